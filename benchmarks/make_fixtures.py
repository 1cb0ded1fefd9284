"""What TransformerLens says about a small random checkpoint: tests/fixtures/transformer_lens.json.

    python -m benchmarks.make_fixtures

writes the file anew; it needs transformer-lens 3.9 and transformers. The tests make the same
checkpoint again with `checkpoint()` and need neither. The file holds:

weights             the sum of the absolute values of all weights, to notice where `checkpoint()`
                    makes others
detect_head         {"previous_token_head measure=mul exclude_bos=0 exclude_current_token=0": (L,H),
                    ...} on "ids"
composition         {"Q", "K", "V"}: (L,H,L,H), all_composition_scores on the weights as they are
logit_attribution   of logit(answer) - logit(other) at the last of "ids":
                    "heads" (L,H), "mlps" (L), "embed", "pos_embed";
                    "bias", as TransformerLens calls the attention layers' output biases together;
                    "final_bias", that of the final layer norm times the output matrix;
                    "total", their sum and the run's logit difference
"""

import json
import tempfile
from itertools import product
from pathlib import Path

import torch

from mingpt import pretrained
from mingpt.model import GPT, GPTConfig

PATH = Path(__file__).parent.parent / "tests" / "fixtures" / "transformer_lens.json"
# Every axis has its own size.
L = 3
H = 4
C = 32
V = 50
BLOCK = 40
KINDS = ("previous_token_head", "duplicate_token_head", "induction_head")
IDS = [7, 3, 12, 44, 3, 12, 9, 9, 31, 7, 3, 12, 44, 20, 9, 31, 7, 0, 3, 12, 49, 31, 7, 5]
ANSWER = 3
OTHER = 41
# Of each kind of weight; the first name that fits counts.
SCALES = {"wte": 1.0, "wpe": 1.0, "c_attn.weight": 0.3, "lm_head": 0.5, "ln_": 0.3, "bias": 0.3}


def checkpoint():
    """A GPT with random weights, biases and layer norms, which attends sharply."""
    config = GPTConfig(n_layer=L, n_head=H, n_embd=C, vocab_size=V, block_size=BLOCK)
    generator = torch.Generator().manual_seed(20240)
    with torch.random.fork_rng():
        model = GPT(config).eval()
    for name, weight in model.named_parameters():
        scale = next((scale for part, scale in SCALES.items() if part in name), 0.2)
        centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        weight.data = centre + scale * torch.randn(weight.shape, generator=generator)
    return model


def hooked(model, fold_ln=False):
    """The same model as TransformerLens's HookedTransformer, its weights as they are.

    fold_ln: put the final layer norm's weight into the output matrix, which changes no logit.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
    from transformers import GPT2LMHeadModel

    config = HookedTransformerConfig(
        n_layers=L,
        n_heads=H,
        d_model=C,
        d_head=C // H,
        d_vocab=V,
        n_ctx=BLOCK,
        act_fn="gelu_new",
        normalization_type="LN",
    )
    lens = HookedTransformer(config)
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(model, folder)
        weights = convert_gpt2_weights(GPT2LMHeadModel.from_pretrained(folder), lens.cfg)
    lens.load_and_process_state_dict(
        weights,
        fold_ln=fold_ln,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    # There is no tokenizer, and it would ask the hub for one.
    lens.to_tokens = lambda ids: ids
    ids = torch.tensor([IDS])
    torch.testing.assert_close(lens(ids), model(ids)[0], rtol=1e-4, atol=1e-4)
    return lens


def detected(lens):
    """{what was asked: (L,H)} of detect_head, with all its options."""
    from transformer_lens.head_detector import detect_head

    ids = torch.tensor([IDS])
    scores = {}
    for kind, measure, bos, current in product(KINDS, ("mul", "abs"), (0, 1), (0, 1)):
        heads = detect_head(
            lens,
            ids,
            kind,
            error_measure=measure,
            exclude_bos=bool(bos),
            exclude_current_token=bool(current),
        )
        name = f"{kind} measure={measure} exclude_bos={bos} exclude_current_token={current}"
        scores[name] = heads.tolist()
    return scores


def attributed(lens):
    """The shares of the logit difference that each part writes; lens has its layer norm folded.

    Else logit_attrs would leave the final layer norm's weight out. A head's value bias counts as
    the head's.
    """
    _, cache = lens.run_with_cache(torch.tensor([IDS]))

    def share(stack):
        answer = torch.tensor([ANSWER])
        other = torch.tensor([OTHER])
        return cache.logit_attrs(stack, answer, incorrect_tokens=other, pos_slice=-1)[:, 0]

    heads = share(cache.stack_head_results(layer=-1, pos_slice=-1)).view(L, H)
    mlps = share(cache.decompose_resid(layer=-1, mode="mlp", pos_slice=-1, incl_embeds=False))
    parts, labels = cache.get_full_resid_decomposition(
        expand_neurons=False, pos_slice=-1, return_labels=True
    )
    single = dict(zip(labels[-3:], share(parts)[-3:].tolist()))  # embed, pos_embed, bias
    single["final_bias"] = (lens.b_U[ANSWER] - lens.b_U[OTHER]).item()
    logits = lens(torch.tensor([IDS]))[0, -1]
    total = (logits[ANSWER] - logits[OTHER]).item()
    parts_sum = heads.sum().item() + mlps.sum().item() + sum(single.values())
    torch.testing.assert_close(parts_sum, total, rtol=0, atol=1e-4)
    asked = {"ids": IDS, "answer": ANSWER, "other": OTHER}
    return asked | {"heads": heads.tolist(), "mlps": mlps.tolist(), **single, "total": total}


@torch.no_grad()
def main():
    model = checkpoint()
    lens = hooked(model)
    results = {
        "weights": sum(weight.double().abs().sum().item() for weight in model.parameters()),
        "ids": IDS,
        "detect_head": detected(lens),
        "composition": {kind: lens.all_composition_scores(kind).tolist() for kind in "QKV"},
        "logit_attribution": attributed(hooked(model, fold_ln=True)),
    }
    # To nine digits, which is all that fp32 has.
    text = json.dumps(results)
    rounded = json.loads(text, parse_float=lambda number: float(f"{float(number):.9g}"))
    PATH.write_text(json.dumps(rounded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
