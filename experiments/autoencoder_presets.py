"""The autoencoders that can be trained: of which model and place, how large, and for how long."""

from dataclasses import asdict, dataclass
from typing import Annotated

from experiments.presets import LARGEST

# What may be 0.
FROM_ZERO = ("layer", "l1", "auxiliary", "warmup_iters", "skipped", "beginning_token", "seed")


@dataclass
class AutoencoderPreset:
    """An autoencoder and its training.

    Each field is an option of the command line too, which replaces the preset's value.
    """

    layer: Annotated[int, "layer of the model whose activations it learns"]
    kind: Annotated[str, "topk, batchtopk, or relu, which needs an l1"]
    n_features: Annotated[int, "features"]
    k: Annotated[int, "topk, batchtopk: active features at a token"]
    context: Annotated[int, "tokens in a row of text"]
    tokens: Annotated[int, "tokens in a step"]
    max_iters: Annotated[int, "steps"]
    learning_rate: Annotated[float, "at its highest; a cosine brings it to a hundredth"]
    site: Annotated[str, "resid_pre, resid_mid, resid_post, attn_out, mlp_out ..."] = "resid_post"
    l1: Annotated[float, "relu: weight of the features' sum beside the squared error"] = 0.0
    auxiliary: Annotated[float, "weight of what dead features reconstruct of the error"] = 1 / 32
    dead_steps: Annotated[int, "a feature that was silent for so many is dead"] = 200
    warmup_iters: Annotated[int, "steps in which the learning rate rises"] = 100
    batches: Annotated[int, "steps whose activations the buffer holds"] = 64
    skipped: Annotated[int, "positions left out at the beginning of each row"] = 1
    beginning_token: Annotated[int, "1: the end of text stands before each row"] = 0
    checkpoint_interval: Annotated[int, "steps between checkpoints to go on from"] = 200
    kept: Annotated[int, "measurements on the way"] = 24
    seed: Annotated[int, "of weights, rows and their order"] = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if isinstance(value, str):
                continue
            # Neither may a nan pass.
            if not 0 <= value <= LARGEST or (value == 0 and name not in FROM_ZERO):
                raise ValueError(f"{name} must be above 0, up to {LARGEST:,}, got {value}")
        held = self.tokens * self.batches
        for count, noun in ((self.n_features * self.tokens, "numbers"), (held, "tokens")):
            if count > LARGEST:
                raise ValueError(
                    f"these sizes make {count:,} {noun} at once; ask for {LARGEST:,} at the most"
                )


# Layer, kind, features, k, context, tokens, steps, learning rate.
PRESETS = {
    # Its texts begin without a beginning token, and a first token is not much larger than others.
    "names": AutoencoderPreset(
        6, "topk", 2048, 16, 128, 2048, 1200, 3e-3, dead_steps=50, skipped=0
    ),
    "python-1m": AutoencoderPreset(2, "topk", 2048, 32, 128, 2048, 800, 4e-3),
    # Sizes, tokens and rate of gpt2-small-res-jb; there 300 million tokens with ReLU and L1.
    "gpt2-small-res-jb": AutoencoderPreset(
        *(6, "topk", 24576, 32, 128, 4096, 73_000, 4e-4),
        site="resid_pre",
        dead_steps=1000,
        warmup_iters=1000,
        beginning_token=1,
        checkpoint_interval=1000,
    ),
}
# Of a model, by name, where none is named; of any other it is python-1m.
PRESET_OF = {"names": "names", "gpt2": "gpt2-small-res-jb"}
# Of a preset, where none is given.
TEXT_OF = {"names": "names", "python-1m": "python"}
