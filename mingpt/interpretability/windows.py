"""What is at a site, at every token of many texts?

Texts: a list or a generator, of texts or of ids. One that is longer than the block size is cut into
windows, one after the other: each token is in exactly one, and sees nothing of the window before.
Windows run together, padded on the right, where no token looks.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mingpt.common import check_finite, progress_bar
from mingpt.interpretability import runs
from mingpt.interpretability.inputs import Texts, tokenizer_of
from mingpt.model import GPT

# Tokens that run together, padding included. It bounds the memory; a single window is never cut.
AT_ONCE = 1024


def site_activations(
    model: GPT,
    texts: Texts,
    layers: Collection[int],
    site: str,
    size: int | None = None,
    beginning: int | None = None,
) -> Iterator[tuple[int, list["Window"], Tensor, Tensor]]:
    """(layer, windows, what is at the site (B,T,...), is_token (B,T)) of each batch and layer.

    size, beginning: as in `batches`.
    The blocks are run here, one by one, where other analyses record a whole run: a sweep over many
    texts would waste the blocks above the layer that it asks for, and no more than one layer's
    activations are ever held.
    """
    runs.check_model(model)
    recorded = {}

    # No longer kept than until the next block writes its own.
    def tap(name, x):
        if name == site:
            recorded[site] = x
        return x

    for windows, ids, is_token in batches(model, texts, size, beginning):
        positions = model.transformer.wpe.weight[: ids.size(1)]  # (T,C)
        x = model.transformer.wte(ids) + positions  # (B,T,C)
        for layer, block in enumerate(model.transformer.h[: max(layers) + 1]):
            x = block(x, tap)
            if layer in layers:
                yield layer, windows, recorded[site], is_token
        check_finite(x)


class Window(NamedTuple):
    """As many tokens of a text as the model takes at once, or what is left of it."""

    text: int  # the text's number
    start: int  # the position of its first token in the text
    ids: Tensor  # (T,)
    length: int  # of the whole text


def batches(
    model: GPT, texts: Texts, size: int | None = None, beginning: int | None = None
) -> Iterator[tuple[list[Window], Tensor, Tensor]]:
    """(windows, ids (B,T), is_token (B,T)): those that run together, and where their tokens are.

    At most AT_ONCE tokens, or a single window. size: tokens of a window, the block size if it is
    None. beginning: the id of a token that is put before every window, as one of them; it and the
    padding are no tokens of the texts.
    """
    first = [] if beginning is None else [beginning]
    size = min(size or model.block_size, model.block_size) - len(first)
    for windows in _together(_windows(model, texts, size, beginning), len(first)):
        rows = [torch.cat((window.ids.new_tensor(first), window.ids)) for window in windows]
        ids = pad_sequence(rows, True, padding_value=-1).to(model.lm_head.weight.device)  # (B,T)
        is_token = ids >= 0  # the padding is -1
        is_token[:, : len(first)] = False
        yield windows, ids.clamp(min=0), is_token


def _together(windows, more):
    """Lists of windows that run together; `more` tokens stand before each."""
    batch: list[Window] = []
    longest = 0  # length of a window in the batch, to which the others are padded
    for window in windows:
        longest = max(longest, len(window.ids) + more)
        # The padding counts too: it is computed as the tokens are.
        if batch and (len(batch) + 1) * longest > AT_ONCE:
            yield batch
            batch = []
            longest = len(window.ids) + more
        batch.append(window)
    if not batch:
        raise ValueError("the texts have no tokens; a generator gives its texts only once")
    yield batch


def _windows(model, texts, size, beginning):
    """The texts' windows; a text is asked for when the one before it is used up."""
    texts = [texts] if isinstance(texts, str) else texts
    for number, text in enumerate(progress_bar(texts, unit="text")):
        ids = ids_of_text(model, text, number)
        # What every window gets is not put before the text a second time.
        first = int(beginning is not None and len(ids) > 0 and ids[0].item() == beginning)
        for start in range(first, len(ids), size):
            yield Window(number, start, ids[start : start + size], len(ids))


def ids_of_text(model: GPT, text: str | Sequence[int] | Tensor, number: int) -> Tensor:
    """Ids (T,) of a text, or of ids in a list or tensor; (0,) where it is empty."""
    ids = tokenizer_of(model).encode(text) if isinstance(text, str) else text
    ids = torch.as_tensor(ids, device="cpu")  # where windows wait for their batch
    V = model.config.vocab_size
    # The numbers and not the dtype are looked at, since an empty list becomes a tensor of floats.
    if ids.ndim != 1 or not are_below(ids.tolist(), V):
        raise ValueError(
            f"text {number} must be a text, or ids (T,) from 0 to {V - 1}; got {text!r:.80}"
        )
    return ids.long()


def are_below(numbers: Iterable[object], size: int) -> bool:
    """Whether all the numbers are ints from 0 to size - 1; True is none."""
    return all(type(number) is int and 0 <= number < size for number in numbers)
