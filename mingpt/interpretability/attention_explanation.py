"""Why does a head look there? A score, cut into pairs of what wrote the query and what the key.

A query is a linear reading of the residual stream at its token, a key of that at its own, once each
layer norm keeps the scale of this run. The stream is a sum of what the parts below wrote, so the
score is a sum over pairs of parts. A large entry says that these two parts together make the score
large in this run. It does not say what the head would do without them: then the scales change too,
and the parts above them. What adds the same to the scores of all keys moves no attention: give
other keys as `against`, and the table is of what the score is above theirs.
Sources: the question, circuit-tracer issue 53; the decomposition, Elhage et al. 2021 (A
Mathematical Framework for Transformer Circuits).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mingpt.common import AnyPath
from mingpt.interpretability import figures, runs
from mingpt.interpretability.inputs import Text, check_head, encode_one, token_texts
from mingpt.interpretability.partial_runs import written_by_heads
from mingpt.interpretability.readout import wide_dtype
from mingpt.model import GPT

if TYPE_CHECKING:  # it loads matplotlib
    from mingpt.interpretability.notebook_figure import Figure


@dataclass(repr=False)
class AttentionExplanation:
    """The score of one query and one key, as a table that sums to it.

    With `against` it sums to score - baseline.
    """

    table: Tensor  # (S,S): rows are what wrote the query, columns what wrote the key
    parts: list[str]  # S names: token, position, "0.0" ..., "mlp 0" ..., biases
    score: float  # the run's own, scaled, before the softmax
    baseline: float  # the mean score of the keys `against`, 0 without any
    weight: float  # the pattern's, after it
    head: str  # "layer.head"
    query: str  # position and token
    key: str

    def largest(self, count: int = 10) -> list[tuple[str, str, float]]:
        """[(part of the query, part of the key, entry)]: those that matter most, first."""
        S = len(self.parts)
        flat = self.table.flatten()
        order = flat.abs().argsort(descending=True)[:count].tolist()
        found = []
        for i in order:
            row, column = divmod(i, S)
            found.append((self.parts[row], self.parts[column], flat[i].item()))
        return found

    def plot(self, path: AnyPath | None = None, count: int = 12) -> "Figure":
        """The matplotlib Figure of the parts with the largest entries; written to path if given.

        count: of rows and of columns; what is left stands in a last one, so that the picture too
        sums to the score.
        """
        values, rows = _shorten(self.table, self.parts, count)
        values, columns = _shorten(values.T, self.parts, count)
        explained = self.score - self.baseline
        title = (
            f"why head {self.head} looks from {self.query} to {self.key}: "
            f"{explained:.2f} of the score {self.score:.2f}"
        )
        figure = figures.draw_heatmap(
            values.T,
            columns,
            title,
            quantity="part of the score",
            rows=rows,
            xlabel="what wrote the key",
        )
        figure.axes[0].set_ylabel("what wrote the query")
        return figures.shown(figure, path)

    def __repr__(self):
        lines = [
            f"head {self.head} from {self.query} to {self.key}: score {self.score:.2f}, "
            f"of which {self.score - self.baseline:.2f} are explained; "
            f"attention weight {self.weight:.2f}",
            "query      key        part of the score",
        ]
        largest = self.largest()
        for query, key, entry in largest:
            lines.append(f"{query:9}  {key:9}  {entry:17.2f}")
        rest = self.table.sum().item() - sum(entry for _, _, entry in largest)
        lines.append(f"{'all others':20}  {rest:17.2f}")
        for name, sums in (("query", self.table.sum(1)), ("key", self.table.sum(0))):
            order = sums.abs().argsort(descending=True)[:5].tolist()
            parts = ", ".join(f"{self.parts[i]} {sums[i]:.2f}" for i in order)
            lines.append(f"by what wrote the {name}: {parts}")
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
def explain_attention(
    model: GPT, text: Text, layer: int, head: int, query: int, key: int, against: Iterable[int] = ()
) -> AttentionExplanation:
    """AttentionExplanation of the score of a head's query with a key, at two positions.

    Its table sums to the score. against: positions of other keys, whose mean score is taken off.
    Positions may count from the end. A head's entry includes its value bias; all other biases,
    which are there in every text, are in "biases". text: one text, or ids (1,T). ValueError for a
    head or a position that there is not, and for a key after its query. Cost: 1 pass.
    """
    ids = encode_one(model, text)
    query, key, *others = _check_places(model, ids, layer, head, (query, key, *against))
    stored = runs.record(model, ids, ["resid_pre", "q", "k", "z", "mlp_out"])
    wide = wide_dtype(model)

    attn = model.transformer.h[layer].attn
    by_head = (3, attn.n_head, -1)  # c_attn makes queries, keys and values
    weights = attn.c_attn.weight.unflatten(0, by_head)[:, head]  # (3C,C) -> (3,D,C)
    biases = attn.c_attn.bias.unflatten(0, by_head)[:, head]  # (3C,) -> (3,D)

    def read(third, position):  # -> (S,D)
        normed = _normed_parts(model, stored, ids, layer, position)  # (S,C)
        reading = normed @ weights[third].T.to(wide)  # (S,C) @ (C,D) -> (S,D)
        reading[-1] += biases[third]
        return reading

    keys = read(1, key)
    if others:
        keys = keys - torch.stack([read(1, position) for position in others]).mean(0)
    q = stored["q"][layer][0, head, query].to(wide)
    k = stored["k"][layer][0, head, : query + 1].to(wide)  # all that it may see
    scores = k @ q * attn.scale
    texts = figures.token_labels(token_texts(model, ids[0]))
    return AttentionExplanation(
        table=read(0, query) @ keys.T * attn.scale,  # (S,D) @ (D,S) -> (S,S)
        parts=_part_names(layer, attn.n_head),
        score=scores[key].item(),
        baseline=scores[others].mean().item() if others else 0.0,
        weight=scores.softmax(0)[key].item(),
        head=f"{layer}.{head}",
        query=texts[query],
        key=texts[key],
    )


def _check_places(model, ids, layer, head, positions):
    """The positions, from 0; ValueError where there is no such score. The first is the query's."""
    check_head(model, layer, head)
    T = ids.size(1)
    for position in positions:
        if position not in range(-T, T):
            raise ValueError(f"query and keys must be -{T} to {T - 1}; got {position!r}")
    query, *keys = (position % T for position in positions)
    if max(keys) > query:
        raise ValueError(
            f"no token sees a later one: give keys up to the query, {query}; got {max(keys)}"
        )
    return query, *keys


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
