"""What the experiment script shows: the model, the two texts, the next tokens, the decisive cell.

The functions that describe return text; who calls them prints it.
"""

import sys
from collections.abc import Sequence

from torch import Tensor

from mingpt.bpe import BPETokenizer
from mingpt.common import AnyPath
from mingpt.hub import Unavailable
from mingpt.model import GPT

# The experiment as it is shipped, which the embedded model can show where gpt2 cannot be had.
SHOWCASE = {
    "model": "gpt2",
    "clean": "Michelle Jones was a top-notch student. Michelle",
    "corrupted": "Michelle Smith was a top-notch student. Michelle",
    "clean_answer": "",
    "corrupted_answer": "",
}
LIKELY = 20  # so many of the most probable next tokens are shown; an answer among them is likely


def load_model(name: AnyPath, may_stand_in: bool = False) -> GPT:
    """The named model; with may_stand_in, the embedded one where it cannot be had, and says so."""
    try:
        return GPT.from_pretrained(name)
    except Unavailable as error:
        if not may_stand_in:
            raise Unavailable(
                f'{error}\n`--model names`, or MODEL = "names" in the script, takes the embedded '
                "model, which needs no network."
            ) from error
        print(
            f"{name} is not in the cache and cannot be had from the hub: "
            "this is names, the embedded model.\n"
            f"With a network, `python interpretability.py --model {name}` downloads and shows it.",
            file=sys.stderr,
        )
        return GPT.from_pretrained("names")


def quote_token(tokenizer: BPETokenizer, index: int) -> str:
    """A token as Python writes it; <60> for a row of the output matrix that is no token."""
    if index not in tokenizer.encoder.tokens:
        return f"<{index}>"
    return repr(tokenizer.tokens([index])[0])


def describe_pair(tokenizer: BPETokenizer, clean: Tensor, corrupted: Tensor) -> str:
    """Both texts, ids (1,T), token by token, with a mark where they differ."""
    clean_tokens = [repr(token) for token in tokenizer.tokens(clean[0])]
    corrupted_tokens = [repr(token) for token in tokenizer.tokens(corrupted[0])]
    width = max(len(token) for token in ["'clean'", *clean_tokens])
    lines = [f"position  {'clean':{width}}  corrupted"]
    for position, pair in enumerate(zip(clean_tokens, corrupted_tokens)):
        mark = "" if pair[0] == pair[1] else "  <- differs"
        lines.append(f"{position:8}  {pair[0]:{width}}  {pair[1]}{mark}")
    return "\n".join(lines)


def describe_next_tokens(tokenizer: BPETokenizer, logits: Tensor, count: int = LIKELY) -> str:
    """The most probable next tokens, of last-token logits (V,), with their probabilities."""
    top = logits.softmax(-1).topk(min(count, len(logits)))
    lines = ["position  index  token           probability"]
    tokens = zip(top.indices.tolist(), top.values.tolist())
    for rank, (index, probability) in enumerate(tokens, 1):
        token = quote_token(tokenizer, index)
        lines.append(f"{rank:8}  {index:5}  {token:14}  {probability:11.4f}")
    return "\n".join(lines)


def describe_unexpected_answers(
    tokenizer: BPETokenizer, answers: Sequence[Tensor], texts: Tensor, logits: Tensor
) -> list[str]:
    """Sentences, a list: one for each answer that is in no text and is no likely next token.

    answers: the clean and the corrupted id, (1,) each. texts: ids (2,T), and logits (2,V) of their
    last tokens: of the clean and the corrupted text.
    """
    sentences = []
    for name, answer, end in zip(("clean", "corrupted"), answers, logits):
        is_likely = (end > end[answer]).sum() < LIKELY
        if is_likely or (texts == answer).any():
            continue
        sentences.append(
            f"{quote_token(tokenizer, int(answer))}, the {name} answer, stands in neither text "
            f"and is none of the {LIKELY} most probable tokens after the {name} text.\n"
            "Is it the answer that you mean? Left empty, it is the token in which the text differs."
        )
    return sentences


def describe_strongest_cell(
    differences: Tensor, tokens: Sequence[str], clean: float, corrupted: float
) -> str:
    """One sentence: the cell of a sweep that moves the answer most.

    differences (L,T): of the patched runs. tokens: T texts. clean, corrupted: the differences of
    the unpatched runs. Of cells that are equal to 0.001 it is the first in layer and position.
    """
    moved = (differences - corrupted).abs().mul(1000).round()
    layer, position = divmod(int(moved.argmax()), moved.size(1))
    return (
        f"The answer moves most when the residual stream after layer {layer} "
        f"at position {position} ({tokens[position]!r}) is the clean one: "
        f"from {corrupted:.2f} to {differences[layer, position]:.2f}; "
        f"the clean text itself gives {clean:.2f}."
    )


def name_model(model: GPT) -> str:
    """What pictures and pages call the model."""
    if model.name is None:
        return "a model without a name"
    return "names, the embedded model" if model.name == "names" else model.name
