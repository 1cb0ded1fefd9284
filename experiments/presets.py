"""The small models that can be trained: their sizes, and how each is trained."""

from dataclasses import asdict, dataclass
from typing import Annotated

# The vocabulary of a model whose tokens are bytes: 256 of them, and the end of text.
BYTES = 257
# Any larger number is a slip: this is no program for models of a billion weights.
LARGEST = 10**9


@dataclass
class Preset:
    """A model and its training.

    Each field is an option of the command line too, which replaces the preset's value.
    """

    vocab_size: Annotated[int, "of a byte-level BPE trained on the text; 257: a token per byte"]
    n_layer: Annotated[int, "layers"]
    n_head: Annotated[int, "heads in a layer"]
    n_embd: Annotated[int, "width of the residual stream"]
    block_size: Annotated[int, "tokens in a row"]
    batch_size: Annotated[int, "rows in a step"]
    max_iters: Annotated[int, "steps"]
    learning_rate: Annotated[float, "at its highest; a cosine brings it to a tenth"]
    dropout: Annotated[float, "of embeddings and of what blocks add"] = 0.0
    accumulation: Annotated[int, "parts in which a batch is computed, for memory"] = 1
    warmup_iters: Annotated[int, "steps in which the learning rate rises"] = 100
    weight_decay: Annotated[float, "of matrices, embeddings aside"] = 0.1
    checkpoint_interval: Annotated[int, "steps between checkpoints to go on from"] = 100
    kept: Annotated[int, "models that stay, and losses measured, besides the untrained one"] = 24
    seed: Annotated[int, "of weights, dropout and batches"] = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            may_be_zero = name in ("dropout", "warmup_iters", "weight_decay", "seed")
            if value < 0 or (value == 0 and not may_be_zero):
                raise ValueError(f"{name} must be above 0, got {value}")
            # Neither may a nan pass.
            if not value <= LARGEST:
                raise ValueError(f"{name} must be a number up to {LARGEST:,}, got {value}")
        if self.dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {self.dropout}")
        # Of the matrices: 12 C^2 in a layer (GPT-2), and the embeddings.
        C = self.n_embd
        weights = 12 * C * C * self.n_layer + C * (self.vocab_size + self.block_size)
        tokens = self.batch_size * self.block_size
        for count, noun in ((weights, "weights in the model"), (tokens, "tokens in a batch")):
            if count > LARGEST:
                raise ValueError(
                    f"these sizes make {count:,} {noun}; ask for {LARGEST:,} at the most"
                )


# Vocabulary, layers, heads, width, context, batch, steps, learning rate.
PRESETS = {
    "shakespeare-char": Preset(BYTES, 4, 4, 128, 128, 32, 3000, 2e-3),
    "shakespeare-gpu": Preset(BYTES, 6, 6, 384, 256, 64, 5000, 1e-3, dropout=0.2),
    "austen-2m": Preset(1024, 4, 6, 192, 128, 32, 2000, 2e-3),
    "austen-5.6m": Preset(3072, 6, 8, 256, 128, 32, 2000, 1e-3),
    "python-1m": Preset(2048, 4, 4, 128, 128, 32, 8000, 4e-3),
}
# Of a corpus, where none is named.
PRESET_OF = {"shakespeare": "shakespeare-char", "austen": "austen-2m", "python": "python-1m"}
