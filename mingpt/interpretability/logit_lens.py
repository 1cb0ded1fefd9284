"""When does the model make up its mind, and which of its parts say so themselves?

The logit lens reads the stream after every block as if no block came after it: through the final
layer norm, worked out anew there, and the output matrix. Attribution splits a logit into what each
part wrote into the stream.

Neither shows a cause. What the lens does not show may be there in another form, and what it shows
need not be used by later blocks. A direct contribution leaves out all that a part does through
those that read it.
Sources: nostalgebraist 2020 ("the logit lens"); where it misleads, Belrose et al. 2023 (arXiv
2303.08112); Elhage et al. 2021 ("A Mathematical Framework").
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.interpretability import figures, readout, runs
from mingpt.interpretability.inputs import answer_ids, encode, encode_one, token_texts
from mingpt.sites import RESIDUAL_SITES

QUANTITIES = {
    "probability": "probability",
    "entropy": "entropy (nats)",
    "kl": "KL to the output (nats)",
}


@dataclass(repr=False)
class Predictions:
    """What the lens reads after each layer at each position."""

    site: str
    tokens: list  # T texts, the input's; without a tokenizer the ids
    top: list  # (L,T,k) texts, the most probable first
    ids: Tensor  # (L,T,k), of top
    logits: Tensor  # (L,T,k); at resid_post the last row is the model's own, to the bit
    probability: Tensor  # (L,T,k), of these tokens
    entropy: Tensor  # (L,T), of the whole distribution, in nats
    kl: Tensor  # (L,T): KL(the model's output || this reading), in nats, >= 0

    def plot(self, save_path=None, quantity="probability"):
        """plot_evolution of these."""
        return plot_evolution(self, save_path, quantity)


def plot_evolution(predictions, save_path=None, quantity="probability"):
    """The matplotlib Figure of the classic grid: layers down, positions across, top tokens.

    quantity, which colours it: "probability" of the token, "entropy" or "kl". save_path: .png, .svg
    or .pdf write the figure; .html instead writes a page, which shows the k tokens of the cell
    under the mouse or reached by arrow keys, and gives None.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}")
    if str(save_path).endswith(".html"):
        return _save_page(predictions, save_path, quantity)

    values = getattr(predictions, quantity).float().cpu()
    # Probabilities have one scale in all pictures, so that these can be compared.
    largest = 1
    if quantity == "probability":
        values = values[..., 0]  # (L,T,k) -> (L,T): the top token's
    else:
        largest = values.max().item() or 1
    words = []
    for row in predictions.top:
        words += [figures.visible_text(tokens[0])[:10] for tokens in row]
    labels = figures.token_labels(predictions.tokens)
    title = f"logit lens at {predictions.site}: the top token"
    figure = figures.draw_words(values, labels, words, title, QUANTITIES[quantity], largest)
    return figures.shown(figure, save_path)


def _save_page(predictions, path, quantity):
    """Write the page, with all quantities, the given one shown first."""
    data = {
        "site": predictions.site,
        "tokens": predictions.tokens,
        "top": predictions.top,
        "names": QUANTITIES,
        "quantity": quantity,
    }
    for name in QUANTITIES:
        data[name] = getattr(predictions, name).tolist()
    figures.save_page("logit_lens", data, path)


@torch.no_grad()
def analyze(model, text, site="resid_post", k=5):
    """Predictions: the k tokens that the lens reads at each layer and position.

    text: one, or ids (1,T). site: resid_pre, resid_mid, resid_post; or attn_out, mlp_out: what one
    layer adds, read alone (the norm then hides how little it may be).
    Cost: 1 pass and L + 1 times the output matrix.
    """
    if not 1 <= k <= model.config.vocab_size:
        raise ValueError(f"k must be 1 to {model.config.vocab_size}, the number of tokens; got {k}")
    _check_site(site)
    ids = encode_one(model, text)
    recorded = runs.record(model, ids, [site])
    last_layer = model.config.n_layer - 1
    _, output = _read(model, recorded["resid_post"][last_layer])  # (1,T,V)

    # A layer at a time, since the logits of all layers together would be large.
    readings = []
    for x in recorded[site].values():
        logits, log_probs = _read(model, x)  # (1,T,V)
        top = logits.topk(k)  # (1,T,k)
        probability = log_probs.gather(-1, top.indices).exp()
        entropy = -(log_probs.exp() * log_probs).sum(-1)  # (1,T)
        kl = (output.exp() * (output - log_probs)).sum(-1).clamp_min(0)
        readings.append((top.indices, top.values, probability, entropy, kl))
    columns = [torch.cat(column) for column in zip(*readings)]  # (L,T,k) and (L,T)
    words = [_texts_of_row(model, row) for row in columns[0]]
    return Predictions(site, token_texts(model, ids[0]), words, *columns)


def _texts_of_row(model, ids):
    """T lists of k texts, of ids (T,k)."""
    return [token_texts(model, cell) for cell in ids]


def _read(model, x):
    """(logits, log-probabilities), each (...,V), of streams (...,C)."""
    logits = model.lm_head(model.transformer.ln_f(x))
    return logits, logits.to(readout.wide_dtype(model)).log_softmax(-1)


def _check_site(site):
    """ValueError unless the site is a residual stream, or what a layer adds to it."""
    if site not in RESIDUAL_SITES:
        raise ValueError(f"the lens reads {', '.join(RESIDUAL_SITES)}; got {site!r}")


@dataclass
class Convergence:
    """Where the prediction at each position is made; each (T,)."""

    layer: Tensor  # the first from which on the lens's top token is the model's own
    probability: Tensor  # that token's, at this layer
    kl_layer: Tensor  # the first from which on KL(the model's output || the lens) is small


def measure_convergence(model, text, threshold=0.1):
    """The Convergence of one text. Cost: analyze.

    threshold: in nats; a KL below it is small. kl_layer is L where none is.
    """
    predictions = analyze(model, text, k=1)
    is_final = (predictions.ids == predictions.ids[-1])[..., 0]  # (L,T)
    # A top token that is lost again on the way up is no prediction yet.
    layer = _first_lasting(is_final)
    positions = range(len(layer))
    return Convergence(
        layer=layer,
        probability=predictions.probability[layer, positions, 0],
        kl_layer=_first_lasting(predictions.kl < threshold),
    )


def _first_lasting(holds):
    """(T,): the first layer from which on it holds up to the last, of holds (L,T); L if none."""
    # Counted from the last layer down: the product turns 0 where it first fails, and stays 0.
    lasting = holds.flip(0).long().cumprod(0).sum(0)
    return len(holds) - lasting


@torch.no_grad()
def compare_to_bigram(model, texts, site="resid_post"):
    """(L,): mean KL(the texts' bigrams || the lens), in nats, over all tokens with a next one.

    Low where a layer predicts by the current token alone. texts: a list, or ids (B,T).
    Cost: analyze of each.
    The bigrams have one pseudo-count for each token, spread like the unigrams: without it a token
    that came once would be sure of what follows. In this direction pairs that were never seen
    count for nothing, so they need no share of their own.
    """
    _check_site(site)
    rows = [encode(model, text) for text in _separate(texts)]
    rows = [ids for ids in rows if ids.size(1) > 1]  # (1,T) each
    if not rows:
        raise ValueError("no text has two tokens in a row; give a list of longer ones")

    counts, unigrams = _count_pairs(rows, model.config.vocab_size)
    total = torch.zeros(model.config.n_layer)
    for ids in rows:
        bigrams = counts.index_select(0, ids[0, :-1]).to_dense() + unigrams  # (T-1,V)
        bigrams /= bigrams.sum(-1, keepdim=True)
        recorded = runs.record(model, ids, [site])
        for layer, x in recorded[site].items():
            _, log_probs = _read(model, x[0, :-1])  # (T-1,V)
            total[layer] += F.kl_div(log_probs, bigrams, reduction="sum").item()
    return total / sum(ids.size(1) - 1 for ids in rows)


def _count_pairs(rows, V):
    """(counts (V,V), sparse, unigrams (V,)): of the tokens that follow one in rows (1,T)."""
    before = torch.cat([ids[0, :-1] for ids in rows])  # (N,)
    after = torch.cat([ids[0, 1:] for ids in rows])
    pairs = torch.stack((before, after))  # (2,N)
    ones = torch.ones(len(after), device=after.device)
    # Sparse, since V x V numbers would not fit; coalesced, equal pairs are one entry, their sum.
    counts = torch.sparse_coo_tensor(pairs, ones, (V, V), check_invariants=True)
    unigrams = torch.bincount(after, minlength=V) / len(after)
    return counts.coalesce(), unigrams


def _separate(texts):
    """Texts one by one; of ids (B,T), each row as (1,T)."""
    return texts.split(1) if isinstance(texts, Tensor) else texts


@dataclass
class Comparison:
    """Two or more texts, aligned at their ends, over the last n positions that all have."""

    layer: Tensor  # (n,): the first where the top tokens are not all one; L if there is none
    table: str  # lines to print: layer by layer the texts' top tokens at one position
    predictions: list  # Predictions, of each text


def compare_predictions(model, texts, site="resid_post", position=-1):
    """The Comparison of texts, its table at a position from the end. Cost: analyze of each."""
    predictions = [analyze(model, text, site) for text in _separate(texts)]
    n = min((len(prediction.tokens) for prediction in predictions), default=0)
    if isinstance(texts, str) or len(predictions) < 2 or position not in range(-n, 0):
        raise ValueError(
            f"give a list of two or more texts, and a position from -{n} to -1, got {position}"
        )
    top = torch.stack([prediction.ids[:, -n:, 0] for prediction in predictions])  # (texts,L,n)
    is_same = (top == top[0]).all(0)  # (L,n)
    # The product is 1 up to the layer where they first differ.
    layer = is_same.long().cumprod(0).sum(0)  # (n,)
    table = _side_by_side(predictions, position, layer[position].item())
    return Comparison(layer, table, predictions)


def _side_by_side(predictions, position, apart):
    """A line for each layer, with every text's top token; the layer `apart` is marked."""
    headers = [f"at {prediction.tokens[position]!r}" for prediction in predictions]
    lines = [_line("layer", headers)]
    for layer in range(len(predictions[0].top)):
        cells = []
        for prediction in predictions:
            token = prediction.top[layer][position][0]
            cells.append(f"{token!r} {prediction.probability[layer, position, 0]:.2f}")
        if layer == apart:
            cells.append("<- apart")
        lines.append(_line(layer, cells))
    return "\n".join(lines)


def _line(name, cells):
    """A line of a table: a narrow column with the layer, and a wide one for each text."""
    columns = "".join(f"{cell:20}" for cell in cells)
    return f"{name:<7}{columns}".rstrip()


@dataclass
class LogitParts:
    """What each part adds directly to a logit at the last position; all but total sum to total."""

    heads: Tensor  # (L,H), with their value biases
    mlps: Tensor  # (L,), without their output biases
    attention_biases: Tensor  # (L,), of the output
    mlp_biases: Tensor  # (L,), of the output
    embedding: Tensor
    position: Tensor
    final_bias: Tensor  # of the final layer norm
    total: Tensor  # the run's own logit, or difference of two
    neurons: Tensor | None = None  # (n_inner,), in place of their layer's MLP, there 0

    def plot(self, path=None):
        """The matplotlib Figure of heads and MLPs, layers down; written to path if given."""
        values = torch.cat((self.heads, self.mlps[:, None]), 1)  # (L,H+1)
        columns = [f"head {head}" for head in range(self.heads.size(1))] + ["MLP"]
        title = "what each head and MLP adds directly at the last position"
        figure = figures.draw_heatmap(values, columns, title, "logits", xlabel="part of the layer")
        return figures.shown(figure, path)


@torch.no_grad()
def logit_attribution(model, text, answer, other=None, neurons=None):
    """LogitParts of logit(answer) [- logit(other)] at the last position, in logits.

    The final layer norm keeps this run's scale, and so is linear: the parts sum to the whole.
    neurons: a layer, whose MLP is then split into its neurons. Cost: 1 pass.
    """
    gpt = model.transformer
    L = model.config.n_layer
    if answer is None or neurons not in (None, *range(L)):
        raise ValueError(
            f"give an answer, and as neurons a layer, 0 to {L - 1}; got {answer!r} and {neurons!r}"
        )
    ids = encode_one(model, text)
    recorded = runs.record(model, ids, ["z", "mlp_out", "mlp_post"])
    z = last_token(recorded["z"])  # (L,H,D)
    mlp_out = last_token(recorded["mlp_out"])  # (L,C)
    x = last_token(recorded["resid_post"])[-1]  # (C,)
    direction, reads = read_directly(model, ids, x, answer, other)

    # Each head writes through its own columns of the output weights: z times what these say.
    out = torch.stack([reads @ block.attn.c_proj.weight for block in gpt.h])  # (L,C)
    attention_biases = torch.stack([block.attn.c_proj.bias for block in gpt.h])  # (L,C)
    mlp_biases = torch.stack([block.mlp.c_proj.bias for block in gpt.h])  # (L,C)
    parts = LogitParts(
        heads=(z * out.view_as(z)).sum(-1),  # (L,H,D) -> (L,H)
        mlps=(mlp_out - mlp_biases) @ reads,
        attention_biases=attention_biases @ reads,
        mlp_biases=mlp_biases @ reads,
        embedding=gpt.wte.weight[ids[0, -1]] @ reads,
        position=gpt.wpe.weight[ids.size(1) - 1] @ reads,
        final_bias=gpt.ln_f.bias.to(direction) @ direction,
        total=readout.logit_diff(model, x, direction),
    )
    if neurons is not None:
        # They sum to their MLP without its bias, which would else be counted twice.
        of_neurons = reads @ gpt.h[neurons].mlp.c_proj.weight  # (C,) @ (C,4C) -> (4C,)
        parts.neurons = last_token(recorded["mlp_post"])[neurons] * of_neurons
        parts.mlps[neurons] = 0
    return parts


def last_token(layers):
    """(L,...): the last token's part of {layer: tensor (1,...,T,.)}."""
    rows = [tensor[0, ..., -1, :] for tensor in layers.values()]
    return torch.stack(rows)


def read_directly(model, ids, x, answer, other=None):
    """(direction, reads), (C,) each, for a final residual vector x (C,) of ids (1,T).

    direction . ln_f(x) is logit(answer) [- logit(other)]; reads . y is what a part y of x adds to
    it, the norm's scale held at that of x.
    """
    ln_f = model.transformer.ln_f
    answer_id = answer_ids(model, answer, ids, ids, "given")
    other_id = None if other is None else answer_ids(model, other, ids, ids, "given")
    direction = readout.answer_direction(model, answer_id, other_id)[0]
    # With its scale held, the norm takes off the mean, divides, and multiplies by its weight.
    reads = direction * ln_f.weight
    scale = (x.var(correction=0) + ln_f.eps).sqrt()
    reads = (reads - reads.mean()) / scale
    return direction, reads.to(x.dtype)
