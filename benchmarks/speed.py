"""How fast are the sweeps, beside other ways to the same numbers and beside what this machine can do at all?

    python -m benchmarks.speed [--output benchmark.csv] [--rounds 3] [--threads 2]

GPT-2-small shapes, random weights, fp32, CPU. In each round every way runs once, and before each of them the sweep;
medians are shown. The limit is the floating-point work that a sweep needs (mingpt.interpretability.tails), over the
rate of a large fp32 matrix product measured in between. transformers, TransformerLens and nnsight take part where they
are installed: one forward with a hook per patch, and for nnsight batched traces.
"""

import argparse
import csv
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from experiments.train import PRESETS, shared_fields, windows
from mingpt import pretrained
from mingpt.config import GPTConfig
from mingpt.interpretability.activation_patching import (
    ablate_component,
    ablate_heads,
    patch_layers,
    patch_loop,
)
from mingpt.model import GPT
from mingpt.sites import Patch
from mingpt.trainer import StepSampler, Trainer, TrainerConfig

L, H, C, V = 12, 12, 768, 50257
CLEAN, CORRUPTED = 5437, 4176  # the ids of the answers


def inputs(T, first):
    """Ids (1,T) twice, different at the position `first`."""
    clean = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(T))
    corrupted = clean.clone()
    clean[0, first], corrupted[0, first] = CLEAN, CORRUPTED
    return clean, corrupted


def sweep_work(T, first, heads=1):
    """Floating-point operations of a residual sweep, or of one with so many heads to patch per cell.

    A product of (n,a) @ (a,b) is 2nab. A block costs 24 C^2 a token and 4 C a pair of query and key.
    """
    both = 2 * L * (24 * C * C * T + 2 * C * T * T)
    work = 0
    for p in range(first, T):
        n = T - p
        pairs = sum(range(p + 1, T + 1))
        block = 24 * C * C * n + 4 * C * pairs
        joining = block - 6 * C * C * (
            n - 1
        )  # right of p, q, k and v are still those of the base run
        top = (
            4 * C * C * n + 20 * C * C + 4 * C * T
        )  # keys and values of all tokens, the rest of the last one
        patched = (
            (16 * C * C + 2 * C * C / H) if heads > 1 else 0
        )  # the head's own output, and the MLP of its token
        for layer in range(L):
            blocks_above = L - 1 - layer
            inner = max(0, blocks_above - 2) * block + (joining if blocks_above > 1 else 0)
            work += heads * (inner + (top if blocks_above else 0) + patched)
    return both + work


def ablation_work(T):
    """The same for all heads, with the loss at every token: no token is left out in the last block."""
    block = 24 * C * C * T + 2 * C * T * T
    output = 2 * C * V * (T - 1)
    own = 16 * C * C * T + 2 * C * C / H * T
    return (
        L * block + output + sum(H * (own + (L - 1 - layer) * block + output) for layer in range(L))
    )


def matrix_rate():
    """Floating-point operations a second of a large fp32 product."""
    a, b = torch.randn(2048, 3072), torch.randn(3072, 3072)
    a @ b
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048 * 3072 * 3072 / statistics.median(times)


def first(out):
    return out[0] if isinstance(out, tuple) else out


def stream_of(model, ids):
    """The residual stream after each block of a transformers model, a list."""
    kept = []
    handles = [
        block.register_forward_hook(lambda module, args, out: kept.append(first(out)))
        for block in model.transformer.h
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    return kept


def with_transformers(folder):
    """f(clean, corrupted): a forward of transformers' GPT-2 with one hook per patch."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def sweep(clean, corrupted):
        stream = stream_of(model, clean)
        table = torch.empty(L, clean.size(1))
        for layer in range(L):
            for p in range(clean.size(1)):

                def hook(module, args, out, layer=layer, p=p):
                    first(out)[:, p] = stream[layer][:, p]
                    return out

                handle = model.transformer.h[layer].register_forward_hook(hook)
                logits = model(corrupted).logits[0, -1]
                handle.remove()
                table[layer, p] = logits[CORRUPTED] - logits[CLEAN]
        return table

    return sweep


def with_hooked_transformer(folder):
    """The same with TransformerLens's HookedTransformer; its weights are its own random ones."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {
        "n_layers": L,
        "d_model": C,
        "n_ctx": 1024,
        "d_head": C // H,
        "n_heads": H,
        "d_vocab": V,
    }
    return hooked(
        HookedTransformer(
            HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LNPre")
        )
    )


def with_transformer_bridge(folder):
    """The same with TransformerLens's TransformerBridge over transformers' model."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    end = "<|endoftext|>"  # of a tokenizer that only has to be there
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), eos_token=end
    ).save_pretrained(f"{folder}/tok")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(f"{folder}/tok")
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    return hooked(TransformerBridge.boot_transformers("gpt2", hf_model=model, tokenizer=tokenizer))


def hooked(model):
    """f(clean, corrupted) with run_with_cache, and run_with_hooks for each patch."""

    @torch.no_grad()
    def sweep(clean, corrupted):
        _, cache = model.run_with_cache(
            clean, names_filter=lambda name: name.endswith("hook_resid_post")
        )
        table = torch.empty(L, clean.size(1))
        for layer in range(L):
            name = f"blocks.{layer}.hook_resid_post"
            for p in range(clean.size(1)):

                def hook(x, hook, name=name, p=p):
                    x[:, p] = cache[name][:, p]
                    return x

                logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, hook)])[0, -1]
                table[layer, p] = logits[CORRUPTED] - logits[CLEAN]
        return table

    return sweep


def with_nnsight(folder):
    """The same with nnsight: all patches in one trace, where the prompts run as one batch; a trace a layer if long."""
    from nnsight import NNsight
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    traced = NNsight(model)

    @torch.no_grad()
    def sweep(clean, corrupted):
        T = clean.size(1)
        stream = stream_of(model, clean)
        differences = []
        at_once = L if T < 32 else 1
        for start in range(0, L, at_once):
            with traced.trace(corrupted.expand(at_once * T, -1)):
                for layer in range(start, start + at_once):
                    for p in range(T):
                        first(traced.transformer.h[layer].output)[(layer - start) * T + p, p] = (
                            stream[layer][0, p]
                        )
                logits = traced.lm_head.output[:, -1].save()
            differences.append((logits[:, CORRUPTED] - logits[:, CLEAN]).view(at_once, T))
        return torch.cat(differences)

    return sweep


def single_heads(model, clean, corrupted):
    """The loop for the sweep over z: a forward per head and position."""
    with torch.no_grad():
        model(clean, store_activations=["z"])
        z = model.activations["z"]
        for layer in range(L):
            for head in range(H):
                for p in range(clean.size(1)):
                    model(corrupted, patch_params=Patch(layer, p, z[layer][:, head, p], "z", head))


def single_ablations(model, clean):
    for layer in range(L):
        for head in range(H):
            ablate_component(model, clean, (layer, "head", head))


def measure_memory(model):
    """MB by which the T=256 sweep raises the peak memory of a process that has run the model; in one of its own."""
    clean, corrupted = inputs(256, 5)
    with torch.no_grad():
        model(corrupted)
    before = peak_memory()
    patch_layers(model, clean, corrupted, CLEAN, CORRUPTED)
    return peak_memory() - before


def measure_start(folder):
    """Seconds that the whole script takes on a model folder above importing torch and pyplot; medians of 5 each."""
    script = Path(__file__).resolve().parent.parent / "interpretability.py"
    seconds = {"import": [], "script": []}
    with tempfile.TemporaryDirectory() as empty:
        arguments = {
            "import": ["-c", "import torch, matplotlib.pyplot"],
            "script": [script, "--model", folder],
        }
        for way in list(arguments) * 5:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments[way]], cwd=empty, check=True, stdout=subprocess.DEVNULL
            )
            seconds[way].append(time.perf_counter() - start)
    return statistics.median(seconds["script"]) - statistics.median(seconds["import"])


def peak_memory():
    """The most memory that this process has used, in MB, as Linux counts it."""
    status = Path(
        "/proc/self/status"
    ).read_text()  # getrusage's figure would take over the parent process's
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def cases(model, folder):
    """[(case, work, {way: f()})], quick ones first."""
    peers = {
        "transformers": with_transformers,
        "transformer_lens, TransformerBridge": with_transformer_bridge,
        "transformer_lens, HookedTransformer": with_hooked_transformer,
        "nnsight, batched": with_nnsight,
    }
    peers = {way: make(folder) for way, make in peers.items() if find_spec(way.split(",")[0])}
    rows = []
    for T, first in ((11, 1), (64, 5), (256, 5)):
        pair = inputs(T, first)
        ways = {"sweep": lambda pair=pair: patch_layers(model, *pair, CLEAN, CORRUPTED).logit_diff}
        if T <= 64:
            ways["loop over patch_params"] = lambda pair=pair: patch_loop(
                model, *pair, CLEAN, CORRUPTED
            )
            ways |= {
                name: lambda pair=pair, sweep=sweep: sweep(*pair) for name, sweep in peers.items()
            }
        rows.append((f"residual stream, T={T}", sweep_work(T, first), ways))
    pair = inputs(11, 1)
    heads = {"sweep": lambda: patch_layers(model, *pair, CLEAN, CORRUPTED, site="z").logit_diff}
    heads["loop over patch_params"] = lambda: single_heads(model, *pair)
    rows.append(("every head's z, T=11", sweep_work(11, 1, H), heads))
    ablations = {"sweep": lambda: ablate_heads(model, pair[0])}
    ablations["loop over patch_params"] = lambda: single_ablations(model, pair[0])
    rows.append(("all heads ablated, T=11", ablation_work(11), ablations))
    return rows


def train_beside_transformers(name, rounds, steps=8):
    """Print tokens/s and losses of experiments.train's preset and of a plain loop over transformers' GPT2LMHeadModel.

    Both start from the same weights and see the same batches: bytes of this package's own source. In each round first
    one, then the other makes so many steps. Without dropout, which transformers also puts on the attention.
    """
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    preset = PRESETS[name]
    text = "".join(
        path.read_text(encoding="utf-8") for path in sorted(Path("mingpt").rglob("*.py"))
    )
    rows = windows(torch.tensor([*text.encode()]), preset.block_size)
    dropout = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
    model = GPT(GPTConfig(**shared_fields(preset, GPTConfig), **dropout, tie_word_embeddings=True))
    settings = shared_fields(replace(preset, warmup_iters=0), TrainerConfig) | {"max_iters": 0}
    config = TrainerConfig(device="cpu", **settings)
    trainer = Trainer(config, model, rows)
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(model, folder)
        peer = GPT2LMHeadModel.from_pretrained(folder, use_cache=False).train()
    linear, others = (
        [],
        [],
    )  # decayed as configure_optimizers does, so that the losses can be compared
    for weight, parameter in peer.named_parameters():
        (
            linear
            if parameter.ndim == 2 and "wte" not in weight and "wpe" not in weight
            else others
        ).append(parameter)
    groups = [
        {"params": linear, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, preset.learning_rate, config.betas)
    sampler = StepSampler(len(rows), config.batch_size, config.seed)
    batches = iter(torch.utils.data.DataLoader(rows, batch_sampler=sampler))
    seconds, losses = defaultdict(list), defaultdict(list)
    trainer.add_callback("on_batch_end", lambda trainer: seconds["mingpt"].append(trainer.iter_dt))
    trainer.add_callback(
        "on_batch_end", lambda trainer: losses["mingpt"].append(trainer.loss.item())
    )
    for _ in range(rounds):
        config.max_iters += steps
        trainer.run()
        for _ in range(steps):
            start = time.perf_counter()
            x, y = next(batches)
            loss = torch.nn.functional.cross_entropy(peer(x).logits.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            losses["transformers"].append(loss.item())
            seconds["transformers"].append(time.perf_counter() - start)
    tokens = preset.batch_size * preset.block_size
    rates = {way: tokens / statistics.median(times) for way, times in seconds.items()}
    for way, rate in rates.items():
        apart = max(abs(a - b) for a, b in zip(losses[way], losses["transformers"]))
        print(
            f"{way:20}{rate:8,.0f} tokens/s, {rate / rates['transformers']:.2f} times transformers'",
            end="; ",
        )
        print(f"loss {losses[way][0]:.4f} to {losses[way][-1]:.4f}, at most {apart:.4f} apart")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="benchmark.csv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="only the cases with this in their name")
    parser.add_argument(
        "--memory", metavar="FOLDER", help="only the memory of the T=256 sweep on this model"
    )
    parser.add_argument(
        "--start", metavar="FOLDER", help="only the start-up of the script on this model"
    )
    parser.add_argument(
        "--train", choices=PRESETS, help="only the speed of training, beside transformers'"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.train:
        train_beside_transformers(options.train, options.rounds)
        return
    if options.start:
        above = measure_start(Path(options.start).resolve())
        print(f"the script takes {above:.2f} s more than its imports, the sweep included")
        return
    if options.memory:
        print(
            f"{measure_memory(GPT.from_pretrained(options.memory)):.0f} MB above the model at the peak of T=256"
        )
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"n_layer": L, "n_head": H, "n_embd": C, "vocab_size": V, "block_size": 1024}
        pretrained.save(GPT(GPTConfig(**sizes, tie_word_embeddings=True)), folder)
        run_cases(options, GPT.from_pretrained(folder), folder)
        command = ["-m", "benchmarks.speed", "--threads", str(options.threads), "--memory", folder]
        subprocess.run([sys.executable, *command], check=True)


def run_cases(options, model, folder):
    table = [("case", "way", "seconds", "times the sweep", "times the limit")]
    for case, work, ways in cases(model, folder):
        if options.only not in case:
            continue
        seconds, limits, results = {way: [] for way in ways}, [], {}
        for number in range(options.rounds):
            for way, run in ways.items():
                if number and seconds[way][0] > 30:
                    continue  # once is enough for what takes so long
                limits.append(work / matrix_rate())
                for each, f in {
                    "sweep": ways["sweep"],
                    way: run,
                }.items():  # the sweep runs beside every other way
                    start = time.perf_counter()
                    results[each] = f()
                    seconds[each].append(time.perf_counter() - start)
        limit = statistics.median(limits)
        medians = {way: statistics.median(times) for way, times in seconds.items()}
        for way, median in medians.items():
            ratios = f"{median / medians['sweep']:.1f}", f"{median / limit:.2f}"
            table.append((case, way, f"{median:.3f}", *ratios))
        table.append((case, f"limit, {work / 1e9:.0f} GFLOP", f"{limit:.3f}", "", "1"))
        for row in table[-len(ways) - 1 :]:
            print("{:26}{:37}{:>8}{:>17}{:>17}".format(*row), flush=True)
        for way in ways.keys() - {
            "sweep",
            "transformer_lens, HookedTransformer",
        }:  # which has weights of its own
            if isinstance(results[way], torch.Tensor):
                print(
                    f"{'':26}{way}: off by {(results[way] - results['sweep']).abs().max().item():.1e}"
                )
    with open(options.output, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
