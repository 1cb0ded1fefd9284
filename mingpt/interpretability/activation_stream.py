"""Which activations does an autoencoder learn from? Those of a text, shuffled, without a data set.

The model runs up to the layer that is asked for, on some rows of the text: a round. Its activations
lie in a buffer, whose size bounds the memory, and go out in random order; then comes the next
round. Round r follows from (seed, r) alone, so that a run that was stopped fills the buffer again
and goes on, and nothing of it is stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mingpt import processes
from mingpt.bpe import END_OF_TEXT
from mingpt.interpretability import runs
from mingpt.interpretability.autoencoder_config import AUTOENCODER_SITES, width_at
from mingpt.interpretability.autoencoders import as_vectors
from mingpt.interpretability.inputs import tokenizer_of
from mingpt.interpretability.patched_models import with_parts
from mingpt.model import GPT
from mingpt.sites import Activations
from mingpt.trainer import draw_batches

AT_ONCE = 8192  # tokens that go through the model at once


@dataclass
class StreamConfig:
    """What of a model an autoencoder is to learn, and in which portions."""

    layer: int
    site: str = "resid_post"
    context: int = 128  # tokens in a row
    tokens: int = 4096  # in a batch
    batches: int = 64  # that the buffer holds
    # Positions at the beginning of each row that are left out: a first token, which can only look
    # at itself, has far larger activations than all others.
    skipped: int = 1
    beginning_token: bool = False  # the end of text stands before each row, as its first token
    seed: int = 0  # of the rows and of their order

    def check(self, model: GPT) -> None:
        """ValueError if the model has no such place, or takes no such rows."""
        if self.site not in AUTOENCODER_SITES:
            raise ValueError(
                f"no autoencoder is trained at the site {self.site!r:.40}; "
                f"give one of {', '.join(AUTOENCODER_SITES)}"
            )
        last = model.config.n_layer - 1
        if type(self.layer) is not int or not 0 <= self.layer <= last:
            raise ValueError(f"no layer {self.layer!r:.40}; this model's layers are 0 to {last}")
        if not 1 < self.context <= model.block_size:
            raise ValueError(
                f"context must be 2 to {model.block_size}, which this model takes; "
                f"got {self.context}"
            )
        if not 0 <= self.skipped < self.context:
            raise ValueError(
                f"skipped must be 0 to {self.context - 1}, below context; got {self.skipped}"
            )
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer to read texts with; take one that has")
        runs.check_model(model)


def up_to(model: GPT, layer: int) -> GPT:
    """The model without the blocks above the layer; its weights are the same tensors."""
    blocks = nn.ModuleList(model.transformer.h[: layer + 1])
    return with_parts(model, transformer=with_parts(model.transformer, h=blocks))


class ActivationStream:
    """Endless batches of the activations of a model at one place, of tokens drawn from texts.

    model: in eval mode. config: a StreamConfig. texts: a list of str. Those that are shorter than a
    row on average are read from their beginning on; in longer ones a row begins anywhere.
    ValueError if they have too few tokens for one row.
    """

    def __init__(self, model: GPT, config: StreamConfig, texts: list[str]):
        config.check(model)
        self.model = up_to(model, config.layer)
        self.config = config
        self.width = width_at(model, config.site)
        self.process = processes.this_process()
        tokenizer = tokenizer_of(model)
        text = END_OF_TEXT.join(texts)
        self.ids = torch.tensor(tokenizer.encode(text, allow_special=True))
        self.end_of_text = tokenizer.n_vocab - 1
        self.starts = self._find_starts(len(texts))
        self.newest: tuple[int, Tensor] | None = None  # (round, its activations), the last fill

    def _find_starts(self, texts):
        """(S,): where in ids a row may begin, of so many texts."""
        length = self.config.context - self.config.beginning_token
        if len(self.ids) < length:
            raise ValueError(
                f"the text has {len(self.ids)} tokens, fewer than the {length} of a row; "
                "give more text, or a smaller context"
            )
        last = len(self.ids) - length
        if len(self.ids) / texts > length:
            return torch.arange(last + 1)
        ends = (self.ids == self.end_of_text).nonzero()[:, 0]
        starts = torch.cat((torch.zeros(1, dtype=torch.long), ends + 1))
        return starts[starts <= last]

    def rows(self, starts: Tensor) -> Tensor:
        """Token ids (R,T) of the rows that begin at these places of ids."""
        config = self.config
        offsets = torch.arange(config.context - config.beginning_token)
        rows = self.ids[starts[:, None] + offsets]  # (R,1) + (T,) -> (R,T)
        if not config.beginning_token:
            return rows
        return torch.cat((torch.full_like(rows[:, :1], self.end_of_text), rows), 1)

    @torch.no_grad()
    def activations(self, rows: Tensor) -> Tensor:
        """(R,T-skipped,d) of token ids (R,T)."""
        config = self.config
        device = self.model.lm_head.weight.device
        found = []
        for part in rows.split(max(1, AT_ONCE // config.context)):
            stored: Activations = {config.site: {}}
            runs.run(self.model, part.to(device), stored=stored)
            x = stored[config.site][config.layer]
            found.append(as_vectors(x, config.site)[:, config.skipped :])
        return torch.cat(found)

    def round(self, number: int) -> Tensor:
        """(N,d): the activations of one round in random order, a batch times `batches` of them.

        Of several processes each runs a part of the rows and gets the activations of all.
        """
        if self.newest and self.newest[0] == number:
            return self.newest[1]
        config = self.config
        needed = config.tokens * config.batches
        by_row = config.context - config.skipped
        count = -(-needed // by_row)  # rounded up
        drawn = next(draw_batches(len(self.starts), count, config.seed, number))
        # Freed before the next one is made: two of them would be twice the memory.
        self.newest = None
        own = self.activations(self.rows(self.starts[self.process.own(drawn)]))
        x = own
        if self.process.count > 1:
            x = own.new_zeros(count, *own.shape[1:])
            self.process.own(x).copy_(own)
            processes.add_up(self.process, x)
        # Another seed than that of the rows, from which it must not follow.
        generator = torch.Generator().manual_seed((config.seed * 0x85EBCA77 + number) % 2**32)
        order = torch.randperm(count * by_row, generator=generator)[:needed]
        self.newest = number, x.flatten(0, 1)[order.to(x.device)]
        return self.newest[1]

    def from_batch(self, number: int) -> Iterator[Tensor]:
        """Endless batches (tokens,d), from batch number `number` on."""
        config = self.config
        while True:
            first, position = divmod(number, config.batches)
            for batch in self.round(first).split(config.tokens)[position:]:
                yield batch
                number += 1
