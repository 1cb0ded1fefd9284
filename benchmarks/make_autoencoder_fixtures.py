"""What SAELens says about small random autoencoders of every kind: tests/fixtures/sae_lens.json.

    python -m benchmarks.make_autoencoder_fixtures

writes the file anew; it needs sae-lens 6. It also checks that sae-lens reads what our Autoencoder
saves, and computes the same. The file holds for each kind:

cfg             the fields of cfg.json as sae-lens writes them
weights         {name: numbers} of sae_weights.safetensors
x               inputs (3,d), or (3,H,D) at hook_z
features        of its encode, (3,n)
reconstruction  of its forward, as x
"""

import json
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mingpt.interpretability.autoencoders import Autoencoder

PATH = Path(__file__).parent.parent / "tests" / "fixtures" / "sae_lens.json"
WEIGHTS = "sae_weights.safetensors"
D = 6
N = 10
LAYER = 3
# Fields of cfg.json that differ from `settings`.
KINDS = {
    "relu": {},
    "relu, b_dec not subtracted": {"apply_b_dec_to_input": False},
    "relu, layer_norm": {"normalize_activations": "layer_norm"},
    "relu, constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
    "relu, centred stream": {"center_writing_weights": True},
    "relu, hook_z": {"reshape_activations": "hook_z", "hook": "attn.hook_z"},
    "topk": {"architecture": "topk", "k": 3},
    "topk, layer_norm": {"architecture": "topk", "k": 4, "normalize_activations": "layer_norm"},
    "topk, by what is written": {
        "architecture": "topk",
        "k": 3,
        "rescale_acts_by_decoder_norm": True,
    },
    "jumprelu": {"architecture": "jumprelu"},
    "jumprelu, constant_norm_rescale": {
        "architecture": "jumprelu",
        "normalize_activations": "constant_norm_rescale",
    },
}
# cfg.json as SAELens wrote it before version 6, read by the sae-lens of today.
OLD = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.3.hook_resid_pre",
    "hook_point_layer": LAYER,
    "hook_point_head_index": None,
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": 3},
    "d_in": D,
    "d_sae": N,
    "normalize_activations": False,
    "dtype": "torch.float32",
    "device": "cpu",
    "context_size": 128,
    "model_from_pretrained_kwargs": {},
}


def settings(kind):
    """The fields of cfg.json of a kind, as SAELens 6 has them."""
    fields = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **KINDS[kind],
    }
    hook = fields.pop("hook", "hook_resid_post")
    processing = {"center_writing_weights": fields.pop("center_writing_weights", False)}
    fields["metadata"] = {
        "sae_lens_version": "6.0.0",
        "model_name": "gpt2-small",
        "hook_name": f"blocks.{LAYER}.{hook}",
        "prepend_bos": True,
        "context_size": 64,
        "model_from_pretrained_kwargs": processing,
    }
    return fields


def random_weights(fields, generator):
    """Weights of every part; the thresholds lie among the pre-activations."""
    weights = {
        "W_enc": torch.randn(D, N, generator=generator),
        "b_enc": torch.randn(N, generator=generator) / 2,
        "W_dec": torch.randn(N, D, generator=generator),
        "b_dec": torch.randn(D, generator=generator),
    }
    if fields.get("architecture") == "jumprelu":
        weights["threshold"] = torch.rand(N, generator=generator)
    return weights


def load(fields, weights):
    """sae-lens's autoencoder of these fields and weights, from files."""
    from sae_lens import SAE

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cfg.json").write_text(json.dumps(fields))
        save_file(weights, Path(folder, WEIGHTS))
        return SAE.load_from_disk(folder)


def save_again(sae):
    """(fields, weights) as sae-lens itself writes them."""
    with tempfile.TemporaryDirectory() as folder:
        sae.save_model(folder)
        fields = json.loads(Path(folder, "cfg.json").read_text())
        return fields, load_file(Path(folder, WEIGHTS))


def answers(sae, x, is_centered):
    """(features, reconstruction) by sae-lens; where the stream was centred, of x less its mean."""
    mean = x.mean(-1, keepdim=True) if is_centered else torch.zeros(())
    return sae.encode(x - mean), sae(x - mean) + mean


def check_ours(weights, fields, x, features, reconstruction):
    """AssertionError if sae-lens does not read what our Autoencoder saves, or computes another."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cfg.json").write_text(json.dumps(fields))
        save_file(weights, Path(folder, WEIGHTS))
        ours = Autoencoder.from_pretrained(folder)
        again = Path(folder, "again")
        ours.save_pretrained(again)
        theirs = load(json.loads((again / "cfg.json").read_text()), load_file(again / WEIGHTS))
    found = answers(theirs, x, ours.config.centered_stream)
    torch.testing.assert_close(found[0], features)
    torch.testing.assert_close(found[1], reconstruction)


@torch.no_grad()
def main():
    warnings.simplefilter("ignore")  # it says that a model should be loaded with centred weights
    generator = torch.Generator().manual_seed(20261)
    kinds = {kind: settings(kind) for kind in KINDS} | {"topk, before version 6": OLD}
    results = {}
    for kind, fields in kinds.items():
        weights = random_weights(fields, generator)
        sae = load(fields, weights)
        x = 2 * torch.randn(3, D, generator=generator) + 1
        if "hook_z" in kind:
            x = x.view(3, 2, D // 2)
        features, reconstruction = answers(sae, x, "centred" in kind)
        check_ours(weights, fields, x, features, reconstruction)
        if fields is not OLD:
            fields, weights = save_again(sae)
        results[kind] = {
            "cfg": fields,
            "weights": {name: weight.tolist() for name, weight in weights.items()},
            "x": x.tolist(),
            "features": features.tolist(),
            "reconstruction": reconstruction.tolist(),
        }
    # To nine digits, which is all that fp32 has.
    text = json.dumps(results)
    rounded = json.loads(text, parse_float=lambda number: float(f"{float(number):.9g}"))
    PATH.write_text(json.dumps(rounded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
