"""When does the model make up its mind, and which of its parts say so themselves?

The logit lens reads the stream after every block as if no block came after it: through the final layer norm, worked out
anew there, and the output matrix. Attribution splits a logit into what each part wrote into the stream. Neither shows a
cause: what the lens does not show may be there in another form, what it shows need not be used by later blocks, and a
direct contribution leaves out all that a part does through those that read it. Sources: nostalgebraist 2020 ("the logit
lens"), where it misleads Belrose et al. 2023 (arXiv 2303.08112); Elhage et al. 2021 ("A Mathematical Framework").
"""

from dataclasses import dataclass

import torch

from mingpt.interpretability import figures, runs
from mingpt.interpretability.inputs import answer_ids, encode, token_texts
from mingpt.sites import RESIDUAL_SITES

QUANTITIES = {
    "probability": "probability",
    "entropy": "entropy (nats)",
    "kl": "KL to the output (nats)",
}


def plot_evolution(predictions, save_path=None, quantity="probability"):
    """The matplotlib Figure of the classic grid: layers up, positions across, top tokens, coloured by a quantity.

    quantity: "probability" of the token, "entropy" or "kl". Written to save_path, .png, .svg or .pdf, if there is one;
    .html is a page instead (None comes back), with the k tokens of the cell under the mouse or reached by arrow keys.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}")
    if str(save_path).endswith(".html"):
        data = {name: getattr(predictions, name) for name in ("site", "tokens", "top", *QUANTITIES)}
        data |= {name: data[name].tolist() for name in QUANTITIES}
        return figures.save_page(
            "logit_lens", data | {"names": QUANTITIES, "quantity": quantity}, save_path
        )
    values = (
        getattr(predictions, quantity).float().cpu().view(*predictions.kl.shape, -1)[..., 0]
    )  # (L,T)
    labels, title = (
        figures.token_labels(predictions.tokens),
        f"logit lens at {predictions.site}: the top token",
    )
    figure = figures.draw_heatmap(values, labels, title, QUANTITIES[quantity])
    axes, most = figure.axes[0], 1 if quantity == "probability" else values.max().item() or 1
    axes.images[0].set(cmap="Blues", norm="linear", clim=(0, most))  # nothing here is below 0
    for number in [*axes.texts]:
        number.remove()
    for layer, row in enumerate(
        predictions.top if len(labels) <= 80 else []
    ):  # else there is no room for them
        for position, (token, *_) in enumerate(row):
            cell = axes.text(
                position,
                layer,
                repr(token)[1:-1][:10],
                fontsize=6.5,
                parse_math=False,
                in_layout=False,
            )
            cell.set(
                ha="center",
                va="center",
                color="white" if values[layer, position] > 0.7 * most else "black",
            )
    return figures.shown(figure, save_path)


@dataclass(repr=False)
class Predictions:
    """What the lens reads after each layer at each position."""

    site: str
    tokens: list  # T texts, the input's; without a tokenizer the ids
    top: list  # (L,T,k) texts, the most probable first
    ids: torch.Tensor  # (L,T,k), of top
    logits: (
        torch.Tensor
    )  # (L,T,k); at resid_post the last row is the model's own output, to the bit
    probability: torch.Tensor  # (L,T,k)
    entropy: torch.Tensor  # (L,T), of the whole distribution, in nats
    kl: torch.Tensor  # (L,T): KL(the model's output || this reading), in nats, >= 0
    plot = plot_evolution


@torch.no_grad()
def analyze(model, text, site="resid_post", k=5):
    """Predictions: the k tokens that the lens reads at each layer and position, how sure they are and how final.

    text: one, or ids (1,T). site: resid_pre, resid_mid, resid_post; or attn_out, mlp_out: what one layer adds, read
    alone (the norm then hides how little it may be). Cost: 1 pass and L + 1 times the output matrix, two at a time.
    """
    if not 1 <= k <= model.config.vocab_size:
        raise ValueError(f"k must be 1 to {model.config.vocab_size}, the number of tokens; got {k}")
    ids, kept = _run(model, text, site)
    (_, final), rows = _read(model, kept["resid_post"][model.config.n_layer - 1]), []
    for x in kept[site].values():
        logits, log_probs = _read(model, x)  # (1,T,V)
        top = logits.topk(k)
        entropy, kl = (
            -(log_probs.exp() * log_probs).sum(-1),
            (final.exp() * (final - log_probs)).sum(-1),
        )
        rows.append(
            (
                top.indices,
                top.values,
                log_probs.gather(-1, top.indices).exp(),
                entropy,
                kl.clamp_min(0),
            )
        )
    columns = [torch.cat(column) for column in zip(*rows)]  # (L,T,k) and (L,T)
    top = [[token_texts(model, cell) for cell in row] for row in columns[0]]
    return Predictions(site, token_texts(model, ids[0]), top, *columns)


def measure_convergence(model, text, threshold=0.1):
    """{"layer", "probability", "kl_layer"}, each (T,): where the prediction at each position is made. Cost: analyze.

    layer: the first from which on the lens's top token is the model's own; probability: that token's, there; kl_layer:
    the first from which on KL(the model's output || the lens) is below the threshold, in nats; L if it never is.
    """
    found, L = analyze(model, text, k=1), model.config.n_layer
    holds = ((found.ids == found.ids[-1])[..., 0], found.kl < threshold)  # (L,T) each
    layer, kl_layer = (L - each.flip(0).long().cumprod(0).sum(0) for each in holds)
    return {
        "layer": layer,
        "probability": found.probability[layer, range(len(layer)), 0],
        "kl_layer": kl_layer,
    }


@torch.no_grad()
def compare_to_bigram(model, texts, site="resid_post"):
    """(L,): mean KL(the texts' bigrams || the lens), in nats, over all tokens with a next one. Cost: analyze of each.

    Low where a layer predicts by the current token alone. texts: a list, or ids (B,T). In this direction a successor
    that never came costs nothing, so it needs no mass; but a token seen once would be sure of what follows, so each has
    one successor more, shared out as those of all tokens are.
    """
    rows = [
        encode(model, text)
        for text in (texts.split(1) if isinstance(texts, torch.Tensor) else texts)
    ]
    rows, V = [row for row in rows if row.size(1) > 1], model.config.vocab_size  # (1,T) each
    if not rows:
        raise ValueError("no text has two tokens in a row; give a list of longer ones")
    pairs = torch.cat([torch.cat((row[:, :-1], row[:, 1:])) for row in rows], 1)  # (2,N)
    counts = torch.sparse_coo_tensor(
        pairs, torch.ones_like(pairs[0]).float(), (V, V), check_invariants=True
    ).coalesce()
    successors, total = (
        torch.bincount(pairs[1], minlength=V) / pairs.size(1),
        torch.zeros(model.config.n_layer),
    )
    for row in rows:
        bigrams = counts.index_select(0, row[0, :-1]).to_dense() + successors  # (T-1,V)
        bigrams /= bigrams.sum(-1, keepdim=True)
        for layer, x in _run(model, row, site)[1][site].items():
            total[layer] += torch.nn.functional.kl_div(
                _read(model, x[0, :-1])[1], bigrams, reduction="sum"
            ).item()
    return total / pairs.size(1)


def compare_predictions(model, texts, site="resid_post", position=-1):
    """{"layer", "table", "predictions"} of two or more texts, aligned at their ends. Cost: analyze of each.

    layer: (n,), of the last n positions that all have: the first where the top tokens are not all one, L if there is
    none; table: lines to print, layer by layer the texts' top tokens at the position, side by side.
    """
    found = [
        analyze(model, text, site)
        for text in (texts.split(1) if isinstance(texts, torch.Tensor) else texts)
    ]
    n = min((len(each.tokens) for each in found), default=0)
    if isinstance(texts, str) or len(found) < 2 or position not in range(-n, 0):
        raise ValueError(
            f"give a list of two or more texts, and a position from -{n} to -1, got {position}"
        )
    top = torch.stack([each.ids[:, -n:, 0] for each in found])  # (texts,L,n)
    apart = (top == top[0]).all(0).long().cumprod(0).sum(0)  # (n,)
    lines = [["layer", *(f"at {each.tokens[position]!r}" for each in found)]]
    for layer in range(model.config.n_layer):
        cells = [
            f"{p.top[layer][position][0]!r} {p.probability[layer, position, 0]:.2f}" for p in found
        ]
        lines.append([str(layer), *cells, "<- apart" * (layer == apart[position].item())])
    table = "\n".join(
        "".join(f"{cell:{20 if i else 7}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    )
    return {"layer": apart, "table": table, "predictions": found}


class LogitParts(dict):
    """{part: what it adds directly}, as logit_attribution gives it."""

    def plot(self, path=None):
        """The matplotlib Figure of every head and MLP, layers up; written to path (.png, .svg, .pdf) if given."""
        values = torch.cat((self["heads"], self["mlps"][:, None]), 1)  # (L,H+1)
        columns = [*(f"head {head}" for head in range(values.size(1) - 1)), "MLP"]
        figure = figures.draw_heatmap(
            values, columns, "what each part adds directly at the last position", "logits"
        )
        figure.axes[0].set_xlabel("part of the layer")
        return figures.shown(figure, path)


@torch.no_grad()
def logit_attribution(model, text, answer, other=None, neurons=None):
    """LogitParts: what each part adds directly to logit(answer) [- logit(other)] at the last position, in logits.

    "heads" (L,H), with their value biases; "mlps", "attention_biases" and "mlp_biases", those of the c_proj (L,);
    "embedding", "position"; "final_bias", of the final layer norm, which keeps this run's scale and so is linear. They
    sum to "total", the run's own. neurons: a layer; "neurons" (n_inner,) then stand for its MLP, 0 in mlps. 1 pass.
    """
    gpt, L = model.transformer, model.config.n_layer
    if answer is None or neurons not in (None, *range(L)):
        raise ValueError(
            f"give an answer, and as neurons a layer, 0 to {L - 1}; got {answer!r} and {neurons!r}"
        )
    sites = ("mlp_out", "z", "mlp_post", "resid_post")
    ids, kept = _run(model, text, *sites)
    mlp_out, z, mlp_post, x = (
        torch.stack([y[0, ..., -1, :] for y in kept[site].values()]) for site in sites
    )  # (L,..)
    row, reads = read_directly(model, ids, x[-1], answer, other)
    mlp_biases = torch.stack([block.mlp.c_proj.bias for block in gpt.h])  # (L,C)
    parts = {
        "heads": (
            z * torch.stack([reads @ block.attn.c_proj.weight for block in gpt.h]).view_as(z)
        ).sum(-1),
        "mlps": (mlp_out - mlp_biases) @ reads,
        "attention_biases": torch.stack([block.attn.c_proj.bias for block in gpt.h]) @ reads,
        "mlp_biases": mlp_biases @ reads,
        "embedding": gpt.wte.weight[ids[0, -1]] @ reads,
        "position": gpt.wpe.weight[ids.size(1) - 1] @ reads,
        "final_bias": row @ gpt.ln_f.bias,
        "total": row @ gpt.ln_f(x[-1]),
    }
    if neurons is not None:
        parts["mlps"][neurons], parts["neurons"] = (
            0,
            mlp_post[neurons] * (reads @ gpt.h[neurons].mlp.c_proj.weight),
        )
    return LogitParts(parts)


def read_directly(model, ids, x, answer, other=None):
    """(row, reads), (C,) each, for a final residual vector x (C,): row @ ln_f(x) is logit(answer) [- logit(other)], and
    y @ reads what a part y of x adds to it, the norm's scale held at that of x.
    """
    ln_f, answers = model.transformer.ln_f, [answer] + [other] * (other is not None)
    rows = model.lm_head.weight[
        torch.cat([answer_ids(model, each, ids, ids, "given") for each in answers])
    ]
    row = rows[0] - rows[1:].sum(0)
    reads = row * ln_f.weight
    return row, (reads - reads.mean()) / (x.var(correction=0) + ln_f.eps).sqrt()


def _run(model, text, *sites):
    """(ids (1,T), {site: {layer: tensor}}) of one pass, resid_post always among the sites."""
    runs.check_model(model)
    ids = encode(model, text)
    if sites[0] not in RESIDUAL_SITES or len(ids) != 1:
        raise ValueError(
            f"give one text, or ids (1,T), and a site of {RESIDUAL_SITES}; got {len(ids)}, {sites[0]!r}"
        )
    return ids, runs.record(model, ids, sites)


def _read(model, x):
    """(logits, log-probabilities), each (..,V), of streams (..,C)."""
    logits = model.lm_head(model.transformer.ln_f(x))
    return logits, logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
