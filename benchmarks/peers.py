"""The same sweep with other libraries, for benchmarks.speed.

Each with_... gives f(clean, corrupted) of ids (1,T): the table (L,T) of logit(corrupted answer) -
logit(clean answer) with the residual stream after one block at one position replaced by the clean
run's. They use what each library's own examples use: a forward with a hook per patch, and for
nnsight batched traces. The libraries are imported where they are used: each may be missing.
Of TransformerLens this takes 3.9; 4.0 has no HookedTransformer.
"""

from importlib.util import find_spec

import torch

# GPT-2-small's shape.
L = 12
H = 12
C = 768
V = 50257
# The ids of the answers.
CLEAN = 5437
CORRUPTED = 4176


def installed_peers(folder):
    """{name: f(clean, corrupted)} of the libraries that are installed, on the model in folder."""
    makers = {
        "transformers": with_transformers,
        "transformer_lens, TransformerBridge": with_transformer_bridge,
        "transformer_lens, HookedTransformer": with_hooked_transformer,
        "nnsight, batched": with_nnsight,
    }
    return {name: make(folder) for name, make in makers.items() if find_spec(name.split(",")[0])}


def read_model(folder):
    """transformers' model of the folder."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).eval()


def stream_in(output):
    """The residual stream in a block's output, which is a tuple by version of transformers."""
    return output[0] if isinstance(output, tuple) else output


def record_stream(model, ids):
    """The residual stream (1,T,C) after each block of a transformers model, a list."""
    # A hook of PyTorch stays until it is removed, so it must not outlive this run.
    recorded = []

    def record(module, arguments, output):
        recorded.append(stream_in(output))

    handles = [block.register_forward_hook(record) for block in model.transformer.h]
    model(ids)
    for handle in handles:
        handle.remove()
    return recorded


def fill_table(patched_logits, T):
    """The table (L,T). Cost: L*T passes, since no library shares work between them.

    patched_logits(layer, p): the last token's logits (V,) of the run that is patched there.
    """
    table = torch.empty(L, T)
    for layer in range(L):
        for p in range(T):
            logits = patched_logits(layer, p)
            table[layer, p] = logits[CORRUPTED] - logits[CLEAN]
    return table


def with_transformers(folder):
    """transformers' GPT-2, with a forward hook of PyTorch per patch.

    The hook writes into the block's output in place, which is the quickest that it can do.
    """
    model = read_model(folder)

    @torch.no_grad()
    def sweep(clean, corrupted):
        stream = record_stream(model, clean)

        def patched_logits(layer, p):
            def patch(module, arguments, output):
                stream_in(output)[:, p] = stream[layer][:, p]
                return output

            handle = model.transformer.h[layer].register_forward_hook(patch)
            logits = model(corrupted).logits[0, -1]
            handle.remove()
            return logits

        return fill_table(patched_logits, clean.size(1))

    return sweep


def with_hooked_transformer(folder):
    """TransformerLens's HookedTransformer; its weights are its own random ones."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=L,
        d_model=C,
        n_ctx=1024,
        d_head=C // H,
        n_heads=H,
        d_vocab=V,
        act_fn="gelu_new",
        normalization_type="LNPre",
    )
    return with_run_with_hooks(HookedTransformer(config))


def with_transformer_bridge(folder):
    """TransformerLens's TransformerBridge over transformers' model."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    # It asks for a tokenizer, read from a folder, though no text is encoded.
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), eos_token="<|endoftext|>"
    )
    made.save_pretrained(f"{folder}/tok")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(f"{folder}/tok")
    bridge = TransformerBridge.boot_transformers(
        "gpt2", hf_model=read_model(folder), tokenizer=tokenizer
    )
    return with_run_with_hooks(bridge)


def with_run_with_hooks(model):
    """A model of TransformerLens: run_with_cache, then run_with_hooks for each patch."""

    @torch.no_grad()
    def sweep(clean, corrupted):
        _, cache = model.run_with_cache(
            clean, names_filter=lambda name: name.endswith("hook_resid_post")
        )

        def patched_logits(layer, p):
            name = f"blocks.{layer}.hook_resid_post"

            def patch(x, hook):
                x[:, p] = cache[name][:, p]
                return x

            return model.run_with_hooks(corrupted, fwd_hooks=[(name, patch)])[0, -1]

        return fill_table(patched_logits, clean.size(1))

    return sweep


def with_nnsight(folder):
    """nnsight: all patches in one trace, where they run as one batch; if long, a trace a layer."""
    from nnsight import NNsight

    model = read_model(folder)
    traced = NNsight(model)

    @torch.no_grad()
    def sweep(clean, corrupted):
        T = clean.size(1)
        stream = record_stream(model, clean)
        differences = []  # each (layers_at_once * T,)
        # One batch of all L * T prompts would not fit into memory if they are long.
        layers_at_once = L if T < 32 else 1
        for start in range(0, L, layers_at_once):
            with traced.trace(corrupted.expand(layers_at_once * T, -1)):
                # Row by row of the batch one patch; the trace runs when its block ends.
                for layer in range(start, start + layers_at_once):
                    for p in range(T):
                        row = (layer - start) * T + p
                        output = traced.transformer.h[layer].output
                        stream_in(output)[row, p] = stream[layer][0, p]
                logits = traced.lm_head.output[:, -1].save()
            differences.append(logits[:, CORRUPTED] - logits[:, CLEAN])
        return torch.cat(differences).view(L, T)

    return sweep
