"""When does the model make up its mind?

The logit lens reads the stream after every block as if no block came after it: through the final
layer norm, worked out anew there, and the output matrix.

It shows no cause. What the lens does not show may be there in another form, and what it shows need
not be used by later blocks.
Sources: nostalgebraist 2020 ("the logit lens"); where it misleads, Belrose et al. 2023 (arXiv
2303.08112).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.common import AnyPath
from mingpt.interpretability import figures, readout, results, runs, web_pages
from mingpt.interpretability.attribution import logit_attribution as logit_attribution
from mingpt.interpretability.inputs import Text, encode, encode_one, text_of, token_texts
from mingpt.interpretability.reports import name_model
from mingpt.interpretability.web_pages import Page
from mingpt.model import GPT
from mingpt.sites import RESIDUAL_SITES

if TYPE_CHECKING:  # matplotlib and pandas are imported where they are needed
    from pandas import DataFrame

    from mingpt.interpretability.notebook_figure import Figure

QUANTITIES = {
    "probability": "probability",
    "entropy": "entropy (nats)",
    "kl": "KL to the output (nats)",
}


def plot_evolution(
    predictions: "Predictions", save_path: AnyPath | None = None, quantity: str = "probability"
) -> "Figure | Page":
    """The matplotlib Figure of the classic grid: layers down, positions across, top tokens.

    quantity, which colours it: "probability" of the token, "entropy" or "kl". save_path: .png, .svg
    or .pdf write the figure; .html instead writes a page, which shows the k tokens of the cell
    under the mouse or reached by arrow keys, and gives the Page.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}")
    if save_path is not None and str(save_path).endswith(".html"):
        return web_pages.save_page("logit_lens", _page_data(predictions, quantity), save_path)

    values = getattr(predictions, quantity)
    # Probabilities have one scale in all pictures, so that these can be compared.
    largest = 1
    if quantity == "probability":
        values = values[..., 0]  # (L,T,k) -> (L,T): the top token's
    else:
        largest = values.max().item() or 1
    words = [figures.visible_text(cell[0])[:10] for row in predictions.top for cell in row]
    labels = figures.token_labels(predictions.tokens)
    title = f"{predictions.model}: logit lens at {predictions.site}, the top token"
    figure = figures.draw_words(values, labels, words, title, QUANTITIES[quantity], largest)
    return figures.shown(figure, save_path)


def _page_data(predictions, quantity):
    """What the page shows: all quantities, of which `quantity` comes first."""
    # It shows neither the ids nor the logits.
    names = "model text site probability entropy kl".split()
    data = {name: getattr(predictions, name) for name in names}
    top = [list(map(web_pages.page_texts, row)) for row in predictions.top]
    tokens = web_pages.page_texts(predictions.tokens)
    return data | {"tokens": tokens, "top": top, "names": QUANTITIES, "quantity": quantity}


@dataclass(repr=False)
class Predictions:
    """What the lens reads after each layer at each position."""

    model: str  # its name
    text: str  # the input; "" without a tokenizer
    site: str
    tokens: list[str]  # T texts, the input's; without a tokenizer the ids
    top: list[list[list[str]]]  # (L,T,k) texts, the most probable first
    ids: Tensor  # (L,T,k), of top
    logits: Tensor  # (L,T,k); at resid_post the last row is the model's own, to the bit
    probability: Tensor  # (L,T,k), of these tokens
    entropy: Tensor  # (L,T), of the whole distribution, in nats
    kl: Tensor  # (L,T): KL(the model's output || this reading), in nats, >= 0

    def __repr__(self):
        size = f"{len(self.top)} layers, {len(self.tokens)} positions"
        end = f"{self.top[-1][-1][0]!r} {self.probability[-1, -1, 0]:.2f}"
        return f"Predictions({self.site}, {size}; at the end {end})"

    # The function as a method: predictions.plot(save_path, quantity).
    plot = plot_evolution
    _repr_png_ = results.picture

    def to_dataframe(self) -> "DataFrame":
        """The pandas DataFrame of the k tokens of every cell: a row for each, the best of rank 0.

        Columns: layer, position, token (the input's), rank, prediction, logit, probability.
        """
        columns = results.places(self.logits.shape, "layer", "position", "rank")
        columns["token"] = [self.tokens[position] for position in columns["position"]]
        cells = chain.from_iterable(self.top)
        columns["prediction"] = list(chain.from_iterable(cells))
        columns["logit"] = self.logits.flatten().tolist()
        columns["probability"] = self.probability.flatten().tolist()
        return results.data_frame(columns)


@torch.no_grad()
def analyze(model: GPT, text: Text, site: str = "resid_post", k: int = 5) -> Predictions:
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
    final = recorded["resid_post"][model.config.n_layer - 1]
    _, output = read_stream(model, final)  # (1,T,V)

    # A layer at a time, since the logits of all layers together would be large.
    words = []
    readings = []
    for x in recorded[site].values():
        logits, log_probs = read_stream(model, x)  # (1,T,V)
        top = logits.topk(k)  # (1,T,k)
        probability = log_probs.gather(-1, top.indices).exp()
        entropy = -(log_probs.exp() * log_probs).sum(-1)  # (1,T)
        kl = (output.exp() * (output - log_probs)).sum(-1).clamp_min(0)
        readings.append((top.indices, top.values, probability, entropy, kl))
        words.append([token_texts(model, cell) for cell in top.indices[0]])
    columns = [torch.cat(column) for column in zip(*readings)]  # (L,T,k) and (L,T)
    names = (name_model(model), text_of(model, ids), site)
    return Predictions(*names, token_texts(model, ids[0]), words, *columns)


def read_stream(model: GPT, x: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, log-probabilities), each (...,V), of streams (...,C)."""
    logits = model.lm_head(model.transformer.ln_f(x))
    return logits, logits.to(readout.wide_dtype(model)).log_softmax(-1)


def _check_site(site):
    """ValueError unless the site is a residual stream, or what a layer adds to it."""
    if site not in RESIDUAL_SITES:
        raise ValueError(f"the lens reads {', '.join(RESIDUAL_SITES)}; got {site!r}")


@dataclass(repr=False)
class Convergence:
    """Where the prediction at each position is made; each (T,)."""

    layer: Tensor  # the first from which on the lens's top token is the model's own
    probability: Tensor  # that token's, at this layer
    kl_layer: Tensor  # the first from which on KL(the model's output || the lens) is small

    __repr__ = results.summary


def measure_convergence(model: GPT, text: Text, threshold: float = 0.1) -> Convergence:
    """The Convergence of one text. Cost: analyze.

    threshold: in nats; a KL below it is small. kl_layer is L where none is.
    """
    predictions = analyze(model, text, k=1)
    is_final = (predictions.ids == predictions.ids[-1])[..., 0]  # (L,T)
    # A top token that is lost again on the way up is no prediction yet.
    layer = _first_lasting(is_final)
    probability = predictions.probability[layer, range(len(layer)), 0]
    return Convergence(layer, probability, _first_lasting(predictions.kl < threshold))


def _first_lasting(holds):
    """(T,): the first layer from which on it holds up to the last, of holds (L,T); L if none."""
    # Counted from the last layer down: the product turns 0 where it first fails, and stays 0.
    lasting = holds.flip(0).long().cumprod(0).sum(0)
    return len(holds) - lasting


@dataclass
class Bigrams:
    """What comes after each token of some texts."""

    counts: Tensor  # (V,V), sparse: how often column came after row
    unigrams: Tensor  # (V,), probabilities

    @classmethod
    def count(cls, pairs: Tensor, V: int, extra: int = 0) -> "Bigrams":
        """The Bigrams of pairs (2,N): tokens below V, and what came after each.

        extra: how much more often than it came each token counts among the unigrams.
        """
        ones = torch.ones_like(pairs[0], dtype=torch.float)
        # Sparse, since V x V numbers would not fit; coalesced, equal pairs are one, their sum.
        counts = torch.sparse_coo_tensor(pairs, ones, (V, V), check_invariants=True).coalesce()
        unigrams = torch.bincount(pairs[1], minlength=V) + extra
        return cls(counts, unigrams / unigrams.sum())

    def after(self, ids: Tensor) -> Tensor:
        """(T,V): the probabilities of the token after each of ids (T,).

        One pseudo-count for each token, spread like the unigrams: without it a token that came once
        would be sure of what follows.
        """
        shares = self.counts.index_select(0, ids).to_dense()
        shares += self.unigrams
        return shares / shares.sum(-1, keepdim=True)


@torch.no_grad()
def compare_to_bigram(
    model: GPT, texts: Sequence[Text] | Tensor, site: str = "resid_post"
) -> Tensor:
    """(L,): mean KL(the texts' bigrams || the lens), in nats, over all tokens with a next one.

    Low where a layer predicts by the current token alone. texts: a list, or ids (B,T).
    Cost: analyze of each.
    In this direction pairs that were never seen count for nothing, so they need no share of their
    own beside that of Bigrams.
    """
    _check_site(site)
    rows = [encode(model, text) for text in _separate(texts)]
    rows = [ids for ids in rows if ids.size(1) > 1]  # (1,T) each
    if not rows:
        raise ValueError("no text has two tokens in a row; give a list of longer ones")

    pairs = torch.cat([ids[0].unfold(0, 2, 1) for ids in rows]).T  # (2,N)
    bigrams = Bigrams.count(pairs, model.config.vocab_size)
    total = torch.zeros(model.config.n_layer)
    for ids in rows:
        following = bigrams.after(ids[0, :-1])  # (T-1,V)
        for layer, x in runs.record(model, ids, [site])[site].items():
            _, log_probs = read_stream(model, x[0, :-1])  # (T-1,V)
            total[layer] += F.kl_div(log_probs, following, reduction="sum").item()
    return total / pairs.size(1)


def _separate(texts):
    """Texts one by one; of ids (B,T), each row as (1,T)."""
    return texts.split(1) if isinstance(texts, Tensor) else texts


@dataclass
class Comparison:
    """Two or more texts, aligned at their ends, over the last n positions that all have."""

    layer: Tensor  # (n,): the first where the top tokens are not all one; L if there is none
    table: str  # lines to print: layer by layer the texts' top tokens at one position
    predictions: list[Predictions]  # of each text

    def __repr__(self):
        return self.table


def compare_predictions(
    model: GPT, texts: Sequence[Text] | Tensor, site: str = "resid_post", position: int = -1
) -> Comparison:
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
        cells = [
            f"{one.top[layer][position][0]!r} {one.probability[layer, position, 0]:.2f}"
            for one in predictions
        ]
        if layer == apart:
            cells.append("<- apart")
        lines.append(_line(layer, cells))
    return "\n".join(lines)


def _line(name, cells):
    """A line of a table: a narrow column with the layer, and a wide one for each text."""
    columns = "".join(f"{cell:20}" for cell in cells)
    return f"{name:<7}{columns}".rstrip()
