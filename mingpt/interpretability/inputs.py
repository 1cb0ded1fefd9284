"""What do the texts, ids, answers and parts that a user names mean to this model?

Everything that a person gives to an analysis is read here: what comes out is ids, or a component of
the model, or a ValueError that says what was expected, what came and what to do.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mingpt.bpe import BPETokenizer
from mingpt.model import GPT
from mingpt.sites import as_int

Text = str | Tensor  # one text, or ids (1,T)
Inputs = str | Sequence[str] | Tensor  # a text, texts of equal token length, or ids (B,T)
Texts = Iterable[str | Sequence[int] | Tensor]  # each a text, or its ids; a text alone is one too
# A token: a text that is one, or its id; several of them, one for each input; or None, where the
# inputs themselves say it.
Answer = str | int | Sequence[str | int] | Tensor | None
Head = tuple[int, int]  # (layer, head)
ComponentName = str | tuple[int | str, ...]  # "3.5", (3, 5), "mlp 3", "layer_3_head_5"


def tokenizer_of(model: GPT) -> BPETokenizer:
    """The model's tokenizer; ValueError if it has none."""
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name or 'this model'} has no tokenizer; give token ids instead of text, or "
            "put the model's merges.txt (and vocab.json) into its folder"
        )
    return model.tokenizer


def encode(model: GPT, inputs: Inputs, name: str = "input") -> Tensor:
    """Ids (B,T) on the model's device.

    inputs: a text, a list of texts of equal token length, or ids (B,T). name: what error messages
    call them.
    """
    if isinstance(inputs, torch.Tensor):
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise ValueError(
                f"ids must be whole numbers (B, T), got {tuple(inputs.shape)} of {inputs.dtype}"
            )
        ids = inputs.long()
    else:
        texts = [inputs] if isinstance(inputs, str) else inputs
        rows = [tokenizer_of(model).encode(text) for text in texts]
        lengths = [len(row) for row in rows]
        if len(set(lengths)) != 1:
            raise ValueError(f"the texts must have equally many tokens, got {lengths}")
        ids = torch.tensor(rows, dtype=torch.long).view(len(rows), -1)
    if not len(ids):
        raise ValueError(f"the {name} is empty; give at least one text")
    T = ids.size(1)
    if not 0 < T <= model.block_size:
        raise ValueError(
            f"the {name} text has {T} tokens; this model takes 1 to {model.block_size}"
        )
    return ids.to(model.lm_head.weight.device)


def encode_one(model: GPT, text: Inputs) -> Tensor:
    """Ids (1,T) of one text, or ids (1,T) as they are; ValueError where there are several."""
    ids = encode(model, text)
    if len(ids) != 1:
        raise ValueError(f"give one text at a time, got {len(ids)}: a text, or ids (1, T)")
    return ids


def token_texts(model: GPT, ids: Tensor) -> list[str]:
    """The texts of ids (T,), a list.

    Without a tokenizer they are the numbers; <60> stands for an id that is no token.
    """
    numbers = ids.tolist()
    if model.tokenizer is None:
        return [str(i) for i in numbers]
    # The output matrix may have more rows than the tokenizer has tokens.
    known = model.tokenizer.encoder.tokens
    if all(i in known for i in numbers):
        return model.tokenizer.tokens(numbers)
    return [model.tokenizer.tokens([i])[0] if i in known else f"<{i}>" for i in numbers]


def text_of(model: GPT, ids: Tensor) -> str:
    """The text of ids (1,T); "" without a tokenizer. <60> stands for an id that is no token."""
    if model.tokenizer is None:
        return ""
    known = model.tokenizer.encoder.tokens
    if all(i in known for i in ids[0].tolist()):
        return model.tokenizer.decode(ids[0])
    return "".join(token_texts(model, ids[0]))


def encode_pair(model: GPT, clean_input: Inputs, corrupted_input: Inputs) -> tuple[Tensor, Tensor]:
    """(clean ids (B,T), corrupted ids (B,T)).

    ValueError if they cannot be compared token by token, or if a pair has no difference.
    """
    clean = encode(model, clean_input, "clean")
    corrupted = encode(model, corrupted_input, "corrupted")
    if clean.shape != corrupted.shape:
        raise ValueError(_describe_unequal(model, clean, corrupted))
    same = (clean == corrupted).all(1)
    if same.any():
        number = f" {same.nonzero()[0].item()}" if len(same) > 1 else ""
        raise ValueError(
            f"the clean and the corrupted text{number} are the same; change a token of one"
        )
    return clean, corrupted


def _describe_unequal(model, clean, corrupted):
    """The message for a pair of different lengths: both tokenizations and where they part."""
    message = (
        "clean and corrupted must have equally many tokens, "
        f"got {clean.size(1)} and {corrupted.size(1)}"
    )
    if model.tokenizer is None or len(clean) != 1 or len(corrupted) != 1:
        return f"{message} in {len(clean)} and {len(corrupted)} inputs"
    shared = min(clean.size(1), corrupted.size(1))
    differ = (clean[0, :shared] != corrupted[0, :shared]).nonzero()
    first = differ[0].item() if len(differ) else shared
    return (
        f"{message}:\n"
        f"  clean     {'|'.join(model.tokenizer.tokens(clean[0]))}\n"
        f"  corrupted {'|'.join(model.tokenizer.tokens(corrupted[0]))}\n"
        f"first difference at position {first}; choose a replacement of the same length"
    )


def answer_ids(model: GPT, answer: Answer, ids: Tensor, other_ids: Tensor, name: str) -> Tensor:
    """The answer's token id for each input, (B,).

    answer: an id, a text that is one token, or a list of B of them; or None or "": the token in
    which the input ids (B,T) differs from other_ids, if there is exactly one. name: what error
    messages call the answer.
    """
    if answer is None or (isinstance(answer, str) and not answer):
        differ = ids != other_ids
        if (differ.sum(1) != 1).any():
            positions = differ.any(0).nonzero()[:, 0].tolist()
            raise ValueError(
                f"the texts differ at positions {positions}, not at one; name the {name} answer"
            )
        return ids[differ]
    if isinstance(answer, (list, tuple)) or (isinstance(answer, torch.Tensor) and answer.ndim):
        answers = list(answer)
    else:
        answers = [answer] * len(ids)
    if len(answers) != len(ids):
        raise ValueError(
            f"give one {name} answer, or one for each of the {len(ids)} inputs; got {len(answers)}"
        )
    return torch.tensor([_answer_id(model, one, name) for one in answers], device=ids.device)


def answer_pair(
    model: GPT, clean: Tensor, corrupted: Tensor, clean_answer: Answer, corrupted_answer: Answer
) -> tuple[Tensor, Tensor]:
    """answer_ids of the clean and of the corrupted answer, 2 x (B,).

    Without an answer it is the token in which its text differs. ValueError where both are the same.
    """
    clean_ids = answer_ids(model, clean_answer, clean, corrupted, "clean")
    corrupted_ids = answer_ids(model, corrupted_answer, corrupted, clean, "corrupted")
    same = clean_ids == corrupted_ids
    if same.any():
        text = token_texts(model, clean_ids[same])[0]
        raise ValueError(f"both answers are {text!r}; they must be two different tokens")
    return clean_ids, corrupted_ids


def _answer_id(model, answer, name):
    if not isinstance(answer, str):
        number = as_int(answer)
        if type(number) is not int or not 0 <= number < model.config.vocab_size:
            last = model.config.vocab_size - 1
            raise ValueError(f"the {name} answer {answer} is no token; the ids are 0 to {last}")
        return number
    ids = encode(model, answer)[0].tolist()
    if len(ids) == 1:
        return ids[0]
    pieces = "|".join(model.tokenizer.tokens(ids))
    advice = "give one of them"
    with_space = f" {answer}"
    if len(model.tokenizer.encode(with_space)) == 1:
        advice = f"mind the leading space: {with_space!r} is one"
    raise ValueError(
        f"the {name} answer {answer!r} is {len(ids)} tokens ({pieces}); it must be one: {advice}"
    )


def check_head(model: GPT, layer: int, head: int) -> None:
    """ValueError if the model has no such head."""
    L = model.config.n_layer
    H = model.config.n_head
    if layer not in range(L) or head not in range(H):
        raise ValueError(
            f"no head {layer}.{head}; the layers are 0 to {L - 1}, each with heads 0 to {H - 1}"
        )


class Component(NamedTuple):
    """A part of the model.

    Where a person reads or writes one, a head is "3.5" (layer, head), what it reads "3.5.q",
    "3.5.k" or "3.5.v", and an MLP "mlp 3".
    """

    kind: str  # head, mlp, neuron, layer (attention and MLP together), or logits
    layer: int | None = None
    # Of the head or neuron; it hides a tuple's own index().
    index: int | None = None  # type: ignore[assignment]
    role: str | None = None  # q, k or v: what a head reads, instead of the whole head


SPELLINGS = (  # how each kind is written: layer, index and role in brackets
    ("head", r"(\d+)\.(\d+)(?:\.([qkv]))?"),
    ("head", r"layer_(\d+)_head_(\d+)(?:_([qkv]))?"),
    ("mlp", r"mlp (\d+)"),
    ("mlp", r"layer_(\d+)_mlp"),
    ("neuron", r"layer_(\d+)_neuron_(\d+)"),
    ("layer", r"layer_(\d+)"),
    ("logits", r"logits"),
)
WORDS = ("head", "mlp", "neuron", "q", "k", "v")  # what a tuple may have beside numbers
HOW_TO_WRITE = (
    "write layer_3, layer_3_mlp, layer_3_head_5 or layer_3_neuron_17; "
    "or 3.5 for a head, 3.5.q for what it reads, mlp 3, logits"
)


def parse_component(model: GPT, name: ComponentName) -> Component:
    """The Component that a name stands for; ValueError, saying how to write one, if there is none.

    name: as HOW_TO_WRITE says, or a tuple: (3,), (3, 5), (3, "head", 5), (3, 5, "q"), (3, "mlp").
    """
    text = name if isinstance(name, str) else _join_pieces(name)
    component = _match_spelling(text)
    if component is None:
        raise ValueError(f"no component {name!r}; {HOW_TO_WRITE}")
    sizes = {
        "layer": (component.layer, model.config.n_layer),
        "head": (component.index, model.config.n_head),
        "neuron": (component.index, model.config.n_inner),
    }
    for what in ("layer", component.kind):
        number, size = sizes.get(what, (None, 0))
        if number is not None and number >= size:
            last = size - 1
            raise ValueError(f"no component {name!r}: {what} must be 0 to {last}; {HOW_TO_WRITE}")
    return component


def _join_pieces(pieces):
    """A tuple as the text that says the same: (3, 5, "q") -> "3.5.q", (3, "mlp") -> "layer_3_mlp".

    Numbers must be ints and the rest words, else it is "", which names nothing.
    """
    if not isinstance(pieces, (tuple, list)):
        return ""
    pieces = [as_int(piece) for piece in pieces]
    if not all(type(piece) is int or piece in WORDS for piece in pieces):
        return ""
    is_short = len(pieces) > 1 and type(pieces[1]) is int
    texts = map(str, pieces)
    return ".".join(texts) if is_short else "_".join(["layer", *texts])


def _match_spelling(text):
    """The Component of a text, None if it is none; its numbers may be larger than the model's."""
    for kind, pattern in SPELLINGS:
        match = re.fullmatch(pattern, text, re.ASCII)
        if match:
            layer, index, role = (*match.groups(), None, None, None)[:3]
            number = None if index is None else int(index)
            return Component(kind, None if layer is None else int(layer), number, role)
    return None
