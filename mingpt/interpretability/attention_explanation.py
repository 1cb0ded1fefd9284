"""Why does a head look there? A score, cut into pairs of what wrote the query and what the key.

A query is a linear reading of the residual stream at its token, a key of that at its own, once each
layer norm keeps the scale of this run. The stream is a sum of what the parts below wrote, so the
score is a sum over pairs of parts. A large entry says that these two parts together make the score
large in this run. It does not say what the head would do without them: then the scales change too,
and the parts above them. What adds the same to the scores of all keys moves no attention: compare
the tables of two keys.
Sources: the question, circuit-tracer issue 53; the decomposition, Elhage et al. 2021 (A
Mathematical Framework for Transformer Circuits).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mingpt.interpretability import figures, runs
from mingpt.interpretability.inputs import encode_one, token_texts
from mingpt.interpretability.partial_runs import written_by_heads
from mingpt.interpretability.readout import wide_dtype


@dataclass(repr=False)
class AttentionExplanation:
    """The score of one query and one key, as a table that sums to it."""

    table: Tensor  # (S,S): rows are what wrote the query, columns what wrote the key
    parts: list  # S names: token, position, "0.0" ..., "mlp 0" ..., biases
    score: float  # the run's own, scaled, before the softmax
    weight: float  # the pattern's, after it
    head: str  # "layer.head"
    query: str  # position and token
    key: str

    def largest(self, count=10):
        """[(part of the query, part of the key, entry)]: those that matter most, first."""
        S = len(self.parts)
        flat = self.table.flatten()
        order = flat.abs().argsort(descending=True)[:count].tolist()
        return [(self.parts[i // S], self.parts[i % S], flat[i].item()) for i in order]

    def plot(self, path=None, count=12):
        """The matplotlib Figure of the parts with the largest entries; written to path if given.

        count: of rows and of columns; what is left stands in a last one, so that the picture too
        sums to the score.
        """
        values, rows = _shorten(self.table, self.parts, count)
        values, columns = _shorten(values.T, self.parts, count)
        title = (
            f"why head {self.head} looks from {self.query} to {self.key}: score {self.score:.2f}"
        )
        figure = figures.draw_heatmap(
            values.T, columns, title, "part of the score", rows, "what wrote the key"
        )
        figure.axes[0].set_ylabel("what wrote the query")
        return figures.shown(figure, path)

    def __repr__(self):
        lines = [
            f"head {self.head} from {self.query} to {self.key}: "
            f"score {self.score:.2f}, attention weight {self.weight:.2f}",
            "query      key        part of the score",
        ]
        for query, key, entry in self.largest():
            lines.append(f"{query:9}  {key:9}  {entry:17.2f}")
        rest = self.table.sum().item() - sum(entry for _, _, entry in self.largest())
        lines.append(f"{'all others':20}  {rest:17.2f}")
        return "\n".join(lines)


def _shorten(table, names, count):
    """(table (rows,S), names): the rows with the largest entries, and one of all others."""
    size = table.abs().amax(1)
    chosen = size.argsort(descending=True)[:count].sort().values
    others = torch.ones_like(size, dtype=torch.bool)
    others[chosen] = False
    shorter = torch.cat((table[chosen], table[others].sum(0, keepdim=True)))
    return shorter, [names[i] for i in chosen.tolist()] + ["others"]


@torch.no_grad()
def explain_attention(model, text, layer, head, query, key):
    """AttentionExplanation of the score of a head's query with a key, at two positions.

    Its table sums to the score. Positions may count from the end. A head's entry includes its value
    bias; all other biases, which are there in every text, are in "biases". text: one text, or ids
    (1,T). ValueError for a head or a position that there is not, and for a key after its query.
    Cost: 1 pass.
    """
    ids = encode_one(model, text)
    places = _check_places(model, ids, layer, head, query, key)
    stored = runs.record(model, ids, ["resid_pre", "q", "k", "z", "mlp_out"])
    wide = wide_dtype(model)

    attn = model.transformer.h[layer].attn
    readings = []
    for third, position in enumerate(places):  # of c_attn, which makes queries, keys and values
        normed = _normed_parts(model, stored, ids, layer, position)  # (S,C)
        rows = attn.c_attn.weight.chunk(3)[third].chunk(attn.n_head)[head]  # (D,C)
        reading = normed @ rows.T.to(wide)  # (S,C) @ (C,D) -> (S,D)
        reading[-1] += attn.c_attn.bias.chunk(3)[third].chunk(attn.n_head)[head]
        readings.append(reading)
    queries, keys = readings

    q = stored["q"][layer][0, head, places[0]].to(wide)
    k = stored["k"][layer][0, head, : places[0] + 1].to(wide)  # all that it may see
    scores = k @ q * attn.scale
    texts = figures.token_labels(token_texts(model, ids[0]))
    return AttentionExplanation(
        table=queries @ keys.T * attn.scale,  # (S,D) @ (D,S) -> (S,S)
        parts=_part_names(layer, attn.n_head),
        score=scores[places[1]].item(),
        weight=scores.softmax(0)[places[1]].item(),
        head=f"{layer}.{head}",
        query=texts[places[0]],
        key=texts[places[1]],
    )


def _check_places(model, ids, layer, head, query, key):
    """The positions of query and key, from 0; ValueError where there is no such score."""
    L = model.config.n_layer
    H = model.config.n_head
    if layer not in range(L) or head not in range(H):
        raise ValueError(
            f"no head {layer}.{head}; the layers are 0 to {L - 1}, each with heads 0 to {H - 1}"
        )
    T = ids.size(1)
    if query not in range(-T, T) or key not in range(-T, T):
        raise ValueError(f"query and key must be -{T} to {T - 1}; got {query!r} and {key!r}")
    if key % T > query % T:
        raise ValueError(
            f"no token sees a later one: give a key up to the query, {query % T}; got {key % T}"
        )
    return query % T, key % T


def _part_names(layer, H):
    """What writes into the stream before a block: token, position, ..., biases."""
    names = ["token", "position"]
    for below in range(layer):
        names += [f"{below}.{head}" for head in range(H)]
        names.append(f"mlp {below}")
    return [*names, "biases"]


def _normed_parts(model, stored, ids, layer, position):
    """(S,C): what each part adds to the block's first layer norm's output at one position.

    stored: {site: {layer: (1,...,T,C)}} of one run.
    """
    gpt = model.transformer
    x = stored["resid_pre"][layer][0, position].to(wide_dtype(model))  # (C,)
    rows = [gpt.wte.weight[ids[0, position]], gpt.wpe.weight[position]]
    biases = torch.zeros_like(x)
    for below, block in enumerate(gpt.h[:layer]):
        z = stored["z"][below][:, :, [position]]  # (1,H,1,D)
        rows += written_by_heads(block.attn, z)[:, 0, 0]  # (H,1,1,C) -> H x (C,)
        rows.append(stored["mlp_out"][below][0, position] - block.mlp.c_proj.bias)
        biases += block.attn.c_proj.bias + block.mlp.c_proj.bias
    parts = torch.stack([row.to(x) for row in [*rows, biases]])
    # The norm takes off the mean, divides by its scale, here that of the whole stream, multiplies
    # by its weight, and adds its bias.
    norm = gpt.h[layer].ln_1
    scale = (x.var(correction=0) + norm.eps).sqrt()
    normed = (parts - parts.mean(1, keepdim=True)) / scale * norm.weight
    normed[-1] += norm.bias
    return normed
