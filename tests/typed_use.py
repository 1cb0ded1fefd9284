"""How a user's typed script uses the package: `mypy` reads this file, nothing runs it.

assert_type says what a call gives; a line that must be refused has a `type: ignore`, which mypy
itself refuses where there is no error.
"""

from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import assert_type

from mingpt.bpe import BPETokenizer
from mingpt.interpretability.ablation import ablate_component, ablate_heads
from mingpt.interpretability.activation_patching import (
    PatchingResult,
    attribution_patching,
    get_activations,
    patch_activation,
    patch_layers,
)
from mingpt.interpretability.circuits import Circuit, Edge, find_circuit
from mingpt.interpretability.edges import edge_attribution
from mingpt.interpretability.logit_lens import Predictions, analyze
from mingpt.interpretability.path_patching import path_patching
from mingpt.model import GPT, GPTConfig, Patch
from mingpt.trainer import Trainer, TrainerConfig


def use_model() -> None:
    model = GPT.from_pretrained("names")
    assert_type(model, GPT)
    assert_type(GPT.from_pretrained(Path("runs") / "mine"), GPT)
    assert_type(model.config, GPTConfig)
    assert_type(model.config.n_layer, int)
    GPT.from_pretrained(12)  # type: ignore[arg-type]

    assert_type(model.tokenizer, BPETokenizer)
    ids = model.tokenizer("Michelle Jones was a top-notch student. Michelle")
    assert_type(ids, Tensor)
    assert_type(model.tokenizer.encode(" Jones Smith"), list[int])
    assert_type(model.tokenizer.tokens(ids[0]), list[str])
    model.tokenizer.encode(ids)  # type: ignore[arg-type]

    logits, loss = model(ids, store_activations=["pattern", "z"])
    assert_type(logits, Tensor)
    assert_type(loss, Tensor | None)
    assert_type(model.layer_activations[3], Tensor)
    assert_type(model.activations["pattern"][3], Tensor)
    assert_type(model.last_token_logits, Tensor)
    assert_type(model.generate(ids, 5), Tensor)
    model("a text")  # type: ignore[arg-type]
    model(ids, store=True)  # type: ignore[call-arg]


def use_patches(model: GPT, ids: Tensor) -> None:
    stream = torch.zeros(1, model.config.n_embd)
    patch = Patch(3, None, torch.zeros_like, site="z", head=5)
    model(ids, patch_params=patch)
    model(ids, patch_params=(3, -1, stream))
    model(ids, patch_params=[patch, (3, slice(2, None), stream)])
    model(ids, patch_params=(3, "last", stream))  # type: ignore[arg-type]
    Patch("3", None, stream)  # type: ignore[arg-type]


def use_patching(model: GPT) -> None:
    clean = "Michelle Jones was a top-notch student. Michelle"
    corrupted = "Michelle Smith was a top-notch student. Michelle"
    result = patch_layers(model, clean, corrupted, " Jones", " Smith", site="z")
    assert_type(result, PatchingResult)
    patch_layers(model, [clean, clean], [corrupted, corrupted], each_position=False)
    patch_layers(model, clean)  # type: ignore[call-arg]
    patch_layers("names", clean, corrupted)  # type: ignore[arg-type]

    estimates = attribution_patching(model, clean, corrupted, sites=["z", "mlp_out"])
    assert_type(estimates["z"], Tensor)
    stream = get_activations(model, clean)["resid_post"][3]
    assert_type(stream, Tensor)
    assert_type(patch_activation(model, corrupted, 3, 1, stream[:, 1]), Tensor)


def use_components(model: GPT) -> None:
    clean = "Michelle Jones was a top-notch student. Michelle"
    corrupted = "Michelle Smith was a top-notch student. Michelle"
    answers = (" Jones", " Smith")
    assert_type(ablate_component(model, clean, "3.5", answers=answers), float)
    ablate_component(model, clean, ["3.5", (3, "mlp")], kind="mean", reference=corrupted)
    ablate_component(model, clean, 3)  # type: ignore[arg-type]
    assert_type(ablate_heads(model, clean, answers=answers), Tensor)

    effect: float = path_patching(model, clean, corrupted, "3.5", ["5.7.q", "mlp 7"])
    effects: Tensor = path_patching(model, clean, corrupted, None, "logits")
    print(effect, effects)
    path_patching(model, clean, corrupted, 3.5, "logits")  # type: ignore[arg-type]
    assert_type(edge_attribution(model, "induction", "eap"), Tensor)
    pairs = [(clean, corrupted, " Jones", " Smith")]
    assert_type(edge_attribution(model, pairs), Tensor)
    edge_attribution(model, [(clean, corrupted)])  # type: ignore[arg-type]


def use_results(model: GPT) -> None:
    predictions = analyze(model, "Michelle Jones was a top-notch student. Michelle")
    assert_type(predictions, Predictions)
    assert_type(predictions.top[3][-1][0], str)
    analyze(model, "Michelle", k="5")  # type: ignore[arg-type]
    circuit = find_circuit(model, "induction", n_edges=20)
    assert_type(circuit, Circuit)
    assert_type(circuit.edges, list[Edge])
    assert_type(circuit.faithfulness(), float)
    circuit.curve(sizes=20)  # type: ignore[arg-type]


def use_trainer(rows: torch.utils.data.TensorDataset) -> None:
    config = GPTConfig(model_type="gpt-nano", vocab_size=11, block_size=6)
    trainer = Trainer(TrainerConfig(max_iters=100), GPT(config), rows)
    trainer.add_callback("on_batch_end", lambda trainer: print(trainer.iter_num, trainer.loss))
    trainer.run()
    assert_type(trainer.evaluate(), float)
    GPTConfig(n_layers=3)  # type: ignore[call-arg]
