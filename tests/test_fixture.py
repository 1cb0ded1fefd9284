"""A minGPT checkpoint from elsewhere, with the intermediates that its own run recorded.

Source: bbycroft/llm-viz (MIT).
"""

import base64
import json
from pathlib import Path

import pytest
import torch

from mingpt.model import GPT, SITES

FOLDER = Path(__file__).parent.parent.parent / "shared" / "fixtures"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the minGPT checkpoint is not at {FOLDER}"
)


def tensors(name):
    """{name: tensor}, with a dict of the same kind for what the file nests."""
    return decode(json.loads((FOLDER / f"gpt-nano-sort-{name}.json").read_text()))


def decode(entry):
    """A tensor, or a dict of them, from the file's JSON, in which numbers are base64."""
    if "data" in entry:
        data = bytearray(base64.b64decode(entry["data"]))
        return torch.frombuffer(data, dtype=torch.float32).view(entry["shape"])
    parts = {key: part for key, part in entry.items() if isinstance(part, dict)}
    return {key: decode(part) for key, part in parts.items() if key != "config"}


@pytest.fixture(scope="module")
def run():
    """(model after a run that stored every site, the recorded tensors)."""
    config = GPT.get_default_config()
    config.model_type = "gpt-nano"
    config.vocab_size = 3
    config.block_size = 11
    model = GPT(config).eval()
    model.load_state_dict(tensors("model"))  # with minGPT's names and its attn.bias mask buffers
    recorded = tensors("t0-partials")
    with torch.no_grad():
        model.logits, _ = model(recorded["idx"].long(), store_activations=SITES)
    return model, recorded


def close(ours, recorded):
    # fp32 rounding, in another order of sums.
    torch.testing.assert_close(ours, recorded, rtol=0, atol=5e-6)


def test_the_recorded_block_is_reproduced_through_the_sites(run):
    model, recorded = run
    at = {site: model.activations[site][0] for site in SITES}
    pairs = {
        "resid_pre": "x",
        "q": "q",
        "k": "k",
        "v": "v",
        "scores": "att",
        "pattern": "attSm",
        "attn_out": "yProj",
        "resid_mid": "attnResid",
        "mlp_pre": "fc",
        "mlp_post": "gelu",
        "mlp_out": "mlp",
        "resid_post": "mlpResid",
    }
    flat = dict(flatten("", recorded))
    for site, name in pairs.items():
        close(at[site], flat[name])
    close(at["z"].transpose(1, 2).flatten(2), flat["y"])


def flatten(name, entry):
    """[(name, tensor), ...] of a tensor or of nested dicts, each under its innermost name."""
    if isinstance(entry, torch.Tensor):
        return [(name, entry)]
    return [pair for key in entry for pair in flatten(key, entry[key])]


def test_every_block_and_the_logits_are_reproduced(run):
    model, recorded = run
    for layer in range(3):
        close(model.layer_activations[layer], recorded[f"block{layer}"])
    close(model.logits, recorded["lm_head"])
