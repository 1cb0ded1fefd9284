"""Which features of an autoencoder are active where, and what does one answer to and promote?

Examples and output weights are those of neurons (neuron_analysis.py), and show as little: not that
a feature answers to nothing else, nor that the model uses it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mingpt.bpe import END_OF_TEXT
from mingpt.interpretability import runs
from mingpt.interpretability.autoencoder_config import width_at
from mingpt.interpretability.autoencoders import Autoencoder, as_vectors
from mingpt.interpretability.inputs import Text, Texts, encode_one, token_texts
from mingpt.interpretability.neuron_analysis import (
    LogitWeights,
    TopExamples,
    promoted_tokens,
    strongest_examples,
)
from mingpt.interpretability.windows import Window, are_below, ids_of_text, site_activations
from mingpt.model import GPT
from mingpt.sites import as_int


def check_fits(model: GPT, autoencoder: Autoencoder) -> None:
    """ValueError if the autoencoder can be of no place in this model."""
    config = autoencoder.config
    L = model.config.n_layer
    if config.layer >= L:
        raise ValueError(
            f"the autoencoder is of layer {config.layer}; this model's layers are 0 to {L - 1}"
        )
    device = model.lm_head.weight.device
    if autoencoder.W_enc.device != device:
        raise ValueError(
            f"the autoencoder is on {autoencoder.W_enc.device}, the model on {device}; "
            "move one: autoencoder.to(device)"
        )
    width = width_at(model, config.site)
    if config.width != width:
        raise ValueError(
            f"the autoencoder takes {config.width} numbers at each token, but {config.site} of "
            f"this model has {width}; take the autoencoder of this model"
        )


def check_features(autoencoder: Autoencoder, numbers: int | Sequence[int]) -> list[int]:
    """The numbers of features, a list of ints; ValueError if there is none such."""
    if not isinstance(numbers, Sequence):
        numbers = [numbers]
    numbers = list(dict.fromkeys(map(as_int, numbers)))
    n = autoencoder.config.n_features
    if not numbers or not are_below(numbers, n):
        raise ValueError(f"no feature {numbers}; the features are 0 to {n - 1}")
    return numbers


def beginning_id(model: GPT) -> int:
    """The id of the token that stands before a text in training; ValueError if there is none."""
    tokens = model.tokenizer.encoder.ids if model.tokenizer else {}
    if END_OF_TEXT not in tokens:
        raise ValueError(
            f"this model has no tokenizer with {END_OF_TEXT}, which should stand before the text; "
            "give beginning=False to go without"
        )
    return tokens[END_OF_TEXT]


def check_beginning(
    model: GPT,
    autoencoder: Autoencoder,
    ids: Tensor,
    beginning: bool | None,
    name: str = "the text",
) -> None:
    """ValueError if ids (T,) do not begin as the autoencoder expects, and nobody said they may.

    beginning: True puts the token there, False goes without, None leaves it to the text.
    """
    if beginning is not None or not autoencoder.config.beginning_token:
        return
    if len(ids) and ids[0].item() != beginning_id(model):
        raise ValueError(
            f"this autoencoder was trained on texts that begin with {END_OF_TEXT}, and {name} does "
            "not; give beginning=True to put it there, or beginning=False to go without"
        )


def encode_text(
    model: GPT, autoencoder: Autoencoder, text: Text, beginning: bool | None = None
) -> Tensor:
    """Ids (1,T) of one text, which begins as the autoencoder expects; see check_beginning."""
    ids = encode_one(model, text)
    check_beginning(model, autoencoder, ids[0], beginning)
    if not beginning or ids[0, 0] == beginning_id(model):
        return ids
    start = ids.new_full((1, 1), beginning_id(model))
    return encode_one(model, torch.cat((start, ids), 1))


def encode_texts(
    model: GPT, autoencoder: Autoencoder, texts: Texts, beginning: bool | None = None
) -> tuple[Iterator[Tensor], dict[str, int | None]]:
    """(the ids of each text, a generator; what `windows.batches` takes besides).

    Every window then begins as the autoencoder expects, and is as long as the texts that it was
    trained on; see check_beginning.
    """
    texts = [texts] if isinstance(texts, str) else texts

    def checked():
        for number, text in enumerate(texts):
            ids = ids_of_text(model, text, number)
            check_beginning(model, autoencoder, ids, beginning, f"text {number}")
            yield ids

    is_put = autoencoder.config.beginning_token if beginning is None else beginning
    first = beginning_id(model) if is_put else None
    return checked(), {"size": autoencoder.config.context, "beginning": first}


@dataclass(repr=False)
class Features:
    """The features of every token of a text; printed, the strongest of each token."""

    tokens: list[str]  # T texts
    values: Tensor  # (T,n), sparse: what is not active is not there

    def strongest(self, position: int, k: int = 5) -> list[tuple[int, float]]:
        """[(feature, activation)] of a token: the k strongest that are active."""
        indices, values = self._row(position)
        order = values.argsort(descending=True, stable=True)[:k]
        return list(zip(indices[order].tolist(), values[order].tolist()))

    def _row(self, position):
        row = self.values[position].coalesce()
        return row.indices()[0], row.values()

    def __repr__(self):
        lines = ["position  token           active  strongest (feature: activation)"]
        for position, token in enumerate(self.tokens):
            active = len(self._row(position)[0])
            strongest = [f"{i}: {value:.2f}" for i, value in self.strongest(position)]
            lines.append(f"{position:8}  {token!r:14}  {active:6}  {', '.join(strongest)}")
        return "\n".join(lines)


@torch.no_grad()
def features(
    model: GPT, autoencoder: Autoencoder, text: Text, beginning: bool | None = None
) -> Features:
    """Features of every token of a text, or of ids (1,T).

    beginning: True puts <|endoftext|> before the text, where it is a token like the others; False
    goes without. An autoencoder that expects it is an error if neither is said and it is not there.
    Cost: 1 pass.
    """
    check_fits(model, autoencoder)
    ids = encode_text(model, autoencoder, text, beginning)
    values = autoencoder.encode(site_vectors(model, autoencoder, ids)[0])
    return Features(token_texts(model, ids[0]), values.cpu().to_sparse())


def site_vectors(model: GPT, autoencoder: Autoencoder, ids: Tensor) -> Tensor:
    """What the autoencoder reads in a run of ids (B,T): (B,T,d). Cost: 1 pass."""
    config = autoencoder.config
    recorded = runs.record(model, ids, [config.site])
    return as_vectors(recorded[config.site][config.layer], config.site)


def feature_batches(
    model: GPT, autoencoder: Autoencoder, texts: Texts, beginning: bool | None = None
) -> Iterator[tuple[list[Window], Tensor]]:
    """(windows, what is at the site (tokens,d)) of batches of windows, in the order of the texts.

    The tokens are those of the texts alone, without the beginning token. Cost: one pass over the
    texts, up to the autoencoder's layer.
    """
    check_fits(model, autoencoder)
    config = autoencoder.config
    texts, options = encode_texts(model, autoencoder, texts, beginning)
    found = site_activations(model, texts, [config.layer], config.site, **options)
    for _, windows, x, is_token in found:
        yield windows, as_vectors(x, config.site)[is_token]  # (B,T,d) -> (tokens,d)


@torch.no_grad()
def top_feature_examples(
    model: GPT,
    autoencoder: Autoencoder,
    feature: int | Sequence[int],
    texts: Texts,
    k: int = 10,
    around: int = 16,
    beginning: bool | None = None,
) -> TopExamples:
    """TopExamples of a feature, or of a list of them: the k windows where it is largest.

    top[layer, feature] is the list of one feature's. Windows in which it is nowhere active are left
    out. Windows are as long as the texts of the training; beginning: as in `features`. Else as
    neuron_analysis.top_activating_examples. Cost: one pass over the texts, up to this layer.
    """
    numbers = check_features(autoencoder, feature)
    names = [(autoencoder.config.layer, number) for number in numbers]
    found = feature_batches(model, autoencoder, texts, beginning)
    acts = ((windows, autoencoder.encode(x)[:, numbers]) for windows, x in found)
    top = strongest_examples(model, names, acts, k, around)
    for name, examples in top.examples.items():
        top.examples[name] = [example for example in examples if example.activation > 0]
    return replace(top, what="feature")


@torch.no_grad()
def feature_logit_weights(
    model: GPT, autoencoder: Autoencoder, feature: int, k: int = 10
) -> LogitWeights:
    """LogitWeights of a feature, of the direction that it writes: what it promotes, suppresses.

    At z and mlp_post it is what the output matrix makes of the direction. Cost: no pass.
    """
    check_fits(model, autoencoder)
    (number,) = check_features(autoencoder, feature)
    direction = written_direction(model, autoencoder, number)
    return LogitWeights(*promoted_tokens(model, direction, k))


def written_direction(model: GPT, autoencoder: Autoencoder, feature: int) -> Tensor:
    """(C,): what one unit of a feature writes into the stream, in the units of the decoder."""
    config = autoencoder.config
    block = model.transformer.h[config.layer]
    direction = autoencoder.W_dec[feature].to(model.lm_head.weight)  # (d,)
    if config.site == "z":
        return block.attn.c_proj.weight @ direction
    if config.site == "mlp_post":
        return block.mlp.c_proj.weight @ direction
    if config.site == "mlp_pre":
        raise ValueError(
            "a feature of mlp_pre writes through the activation function: no direction"
        )
    return direction
