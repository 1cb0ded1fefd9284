"""Train a small GPT-2 on a text, and keep models on the way, in which a study can see what forms when.

    python -m experiments.train CORPUS [--preset PRESET] [--output FOLDER]

CORPUS is shakespeare or austen, which are downloaded once, python, the standard library's source, which is there
already, a text file, or a folder of .txt files; its last tenth is for validation. FOLDER, runs/PRESET if not given,
gets curve.csv, curve.png and step-N folders that from_pretrained takes (FOLDER itself is the newest one). The same
command goes on where a run was stopped.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import re
import sys
import sysconfig
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

from mingpt.bpe import END_OF_TEXT, BPETokenizer, Encoder, train_bpe
from mingpt.common import atomic_write
from mingpt.hub import steps_in
from mingpt.interpretability import figures
from mingpt.model import GPT, GPTConfig
from mingpt.trainer import Trainer, TrainerConfig

KARPATHY = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
GUTENBERG = "https://www.gutenberg.org/cache/epub/{0}/pg{0}.txt"  # revised now and then: no sha256, about so many bytes
CORPORA = {  # name: [(address, bytes without the licence, sha256), ...]
    "shakespeare": [
        (KARPATHY, 1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")
    ],
    "austen": [
        (GUTENBERG.format(n), size, None)
        for n, size in ((158, 883028), (105, 466854), (161, 673688))
    ],
}
NOT_SOURCE = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
}
MEASURED = 100  # rows, spread evenly over a text, on which a loss is measured


@dataclass
class Preset:
    """A model and its training; on the command line each field is an option that goes before the preset's value."""

    vocab_size: Annotated[
        int, "of a byte-level BPE that is trained on the text; 257 is one token per byte"
    ]
    n_layer: Annotated[int, "layers"]
    n_head: Annotated[int, "heads in a layer"]
    n_embd: Annotated[int, "width of the residual stream"]
    block_size: Annotated[int, "tokens in a row"]
    batch_size: Annotated[int, "rows in a step"]
    max_iters: Annotated[int, "steps"]
    learning_rate: Annotated[float, "at its highest; a cosine brings it to a tenth"]
    dropout: Annotated[float, "of embeddings and of what blocks add"] = 0.0
    accumulation: Annotated[int, "parts in which a batch goes through the model, for memory"] = 1
    warmup_iters: Annotated[int, "steps in which the learning rate rises"] = 100
    weight_decay: Annotated[float, "of matrices, embeddings aside"] = 0.1
    checkpoint_interval: Annotated[int, "steps between checkpoints to go on from"] = 100
    kept: Annotated[
        int, "models that stay besides the untrained one, denser early; there losses are measured"
    ] = 24
    seed: Annotated[int, "of weights, dropout and batches"] = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value < 0 or (
                value == 0 and name not in ("dropout", "warmup_iters", "weight_decay", "seed")
            ):
                raise ValueError(f"{name} must be above 0, got {value}")


PRESETS = {  # vocabulary, layers, heads, width, context, batch, steps, learning rate
    "shakespeare-char": Preset(257, 4, 4, 128, 128, 32, 3000, 2e-3),
    "shakespeare-gpu": Preset(257, 6, 6, 384, 256, 64, 5000, 1e-3, dropout=0.2),
    "austen-2m": Preset(1024, 4, 6, 192, 128, 32, 2000, 2e-3),
    "austen-5.6m": Preset(3072, 6, 8, 256, 128, 32, 2000, 1e-3),
    "python-1m": Preset(2048, 4, 4, 128, 128, 32, 8000, 4e-3),
}
DEFAULT = {
    "shakespeare": "shakespeare-char",
    "austen": "austen-2m",
    "python": "python-1m",
}  # a corpus's preset


def read_corpus(name):
    """The texts, a list of str without Project Gutenberg's header and licence; ValueError if there are none."""
    if name in CORPORA:
        paths = [download(name, *file) for file in CORPORA[name]]
    elif name == "python":
        root = Path(sysconfig.get_path("stdlib"))
        paths = [
            path
            for path in sorted(root.rglob("*.py"))
            if not NOT_SOURCE & {*path.relative_to(root).parts}
        ]
    else:
        paths = sorted(Path(name).rglob("*.txt")) if Path(name).is_dir() else [Path(name)]
    texts = []
    for path in paths:
        try:
            texts.append(strip_licence(path.read_text(encoding="utf-8-sig")))
        except (OSError, UnicodeDecodeError) as error:
            known = f"{name!r} is none of {', '.join(DEFAULT)}"
            raise ValueError(
                f"{known}, and {path} cannot be read as utf-8 text: {error}"
            ) from error
    if not any(texts):
        raise ValueError(
            f"{name!r} has no text; give a file with some, or a folder of such .txt files"
        )
    return texts


def strip_licence(text):
    body = re.search(r"\*\*\* ?START OF.*?\*\*\*(.*?)\*\*\* ?END OF", text, re.DOTALL)
    return body[1].strip() + "\n" if body else text


def download(corpus, address, size, sha256):
    """The path in the user's cache; fetched unless it is there, going on where an earlier download broke off."""
    import requests

    path = (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        / "mingpt"
        / corpus
        / Path(address).name
    )
    part = path.with_suffix(".part")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = {
        "Range": f"bytes={part.stat().st_size if part.exists() else 0}-",
        "Accept-Encoding": "identity",
    }
    try:
        with requests.get(address, headers=headers, stream=True, timeout=20) as answer:
            if answer.status_code != 416:  # there is no more of it
                answer.raise_for_status()
                with open(part, "ab" if answer.status_code == 206 else "wb") as file:
                    file.writelines(answer.iter_content(4096))
    except requests.RequestException as error:
        todo = "run this again, which goes on from there, or give the text as a file"
        raise ValueError(f"{address} did not come whole ({error}); {todo}") from error
    data = part.read_bytes()
    whole = data.decode(errors="replace").replace("\r\n", "\n")
    text = strip_licence(whole)
    found = len(text.encode())
    if (
        hashlib.sha256(data).hexdigest() != sha256
        if sha256
        else text == whole or abs(found / size - 1) > 0.05
    ):
        part.unlink()
        raise ValueError(
            f"{address} gave {found} bytes of text, not the {size} expected; nothing was kept"
        )
    return part.replace(path)


def windows(ids, T, stride=1):
    """A dataset of (x, y), each (T,): one from every `stride` tokens on, of ids (N,)."""
    rows = ids.unfold(0, T + 1, stride)  # a view
    return TensorDataset(rows[:, :-1], rows[:, 1:])


def train(texts, preset, output, device="auto"):
    """The trained model, which the folder has too; ValueError where that has a run with other settings or text.

    texts: a list of str. It seeds torch's random numbers.
    """
    output, text, T = Path(output), END_OF_TEXT.join(texts), preset.block_size
    parts = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    merges = (
        []
        if preset.vocab_size == 257
        else train_bpe(parts[0].split(END_OF_TEXT), preset.vocab_size)
    )
    tokenizer = BPETokenizer(Encoder(merges))
    ids = [torch.tensor(tokenizer.encode(part, allow_special=True)) for part in parts]
    if len(ids[1]) <= 2 * T:
        raise ValueError(
            f"the last tenth of the text has {len(ids[1])} tokens, needs {2 * T + 1}; give more text"
        )

    torch.manual_seed(preset.seed)
    rates = {"embd_pdrop": preset.dropout, "resid_pdrop": preset.dropout}
    rates["attn_pdrop"] = 0.0  # which fused attention does not have on a CPU
    model = GPT(GPTConfig(**chosen(preset, GPTConfig), **rates, tie_word_embeddings=True))
    model.tokenizer = tokenizer
    kept = {round(preset.max_iters * (i / preset.kept) ** 2) for i in range(preset.kept + 1)}
    settings = {"final_learning_rate": preset.learning_rate / 10, "betas": (0.9, 0.99)}
    settings |= {"device": device, "checkpoint_dir": str(output), "kept_steps": tuple(kept)}
    trainer = Trainer(
        TrainerConfig(**chosen(preset, TrainerConfig), **settings), model, windows(ids[0], T)
    )
    content = {"text": text, "merges": repr(merges)}
    claim(
        output,
        asdict(preset)
        | {name: hashlib.sha256(each.encode()).hexdigest() for name, each in content.items()},
    )
    trainer.resume()
    bits = len(ids[1]) / len(parts[1].encode()) / math.log(2)  # per byte, of a nat per token
    rows = [windows(part, T, max(T, len(part) // MEASURED)) for part in ids]
    measure = partial(measure_losses, rows=rows, bits=bits, path=output / "curve.csv")
    trainer.add_callback("on_batch_end", measure)
    measure(trainer)
    trainer.run()
    draw_curve(trainer.history, output / "curve.png")
    return model.eval()


def chosen(preset, config_class):
    """The preset's values for the fields that the configuration has too."""
    names = {field.name for field in fields(config_class)} & {
        field.name for field in fields(Preset)
    }
    return {name: getattr(preset, name) for name in names}


def claim(output, settings):
    """Note the settings in the folder; ValueError if it has others."""
    path = output / "settings.json"
    output.mkdir(parents=True, exist_ok=True)
    if not path.exists() and steps_in(output):
        raise ValueError(f"{output} has checkpoints of another program; give another --output")
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before and (other := [name for name in settings if before.get(name) != settings[name]]):
        said = {"text": "another text", "merges": "other tokens"}
        found = ", ".join(said.get(name, f"{name} {before.get(name)}") for name in other)
        raise ValueError(f"{output} has a run with {found}; give the same, or another --output")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def measure_losses(trainer, rows, bits, path):
    """A callback: at the kept steps the losses on rows of both texts go to the history, curve.csv and the terminal."""
    step, config, model, seconds = trainer.iter_num, trainer.config, trainer.model, trainer.seconds
    if step not in config.kept_steps or (trainer.history and trainer.history[-1][0] == step):
        return
    seen, unseen = (row_losses(trainer, *dataset.tensors) for dataset in rows)
    line = {"step": step, "tokens": step * config.batch_size * model.block_size, "seconds": seconds}
    line |= {"train_loss": seen.mean().item(), "validation_loss": unseen.mean().item()}
    line |= {
        "validation_error": unseen.std().item() / len(unseen) ** 0.5
    }  # standard error of the mean over rows
    line["bits_per_byte"] = line["validation_loss"] * bits
    trainer.history.append([*line.values()])
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file).writerows([line, *trainer.history])
    form = "step {}: training loss {:.3f}, validation {:.3f} +- {:.3f}, {:.3f} bits per byte"
    text, left = (
        form.format(step, *trainer.history[-1][3:]),
        seconds / max(step, 1) * (config.max_iters - step) / 60,
    )
    tqdm.write(
        text + (f"; {line['tokens'] / seconds:,.0f} tokens/s, {left:.0f} min left" if step else "")
    )
    if len(trainer.history) % 4 == 0:
        with torch.random.fork_rng(
            range(torch.cuda.device_count())
        ):  # the training's random numbers stay
            ids = model.eval().generate(
                rows[1][:1][0][:, :8].to(trainer.device), 60, do_sample=True
            )
        model.train()
        tqdm.write(
            ascii(model.tokenizer.decode(ids[0]))
        )  # some terminals cannot show all that a model may write


@torch.no_grad()
def row_losses(trainer, x, y):
    """(N,): the mean loss of each row, in nats, without dropout."""
    model, batches = (
        trainer.model.eval(),
        zip(*(ids.to(trainer.device).split(32) for ids in (x, y))),
    )
    losses = [
        F.cross_entropy(model(x)[0].float().mT, y, reduction="none").mean(1) for x, y in batches
    ]
    model.train()
    return torch.cat(losses)


def draw_curve(rows, path=None):
    """The matplotlib Figure of the rows of a curve.csv: both losses, in nats per token, over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    steps, _, _, seen, unseen, *_ = zip(*rows)
    axes.plot(steps, seen, "o-", steps, unseen, "s--", markersize=4)
    axes.legend(["training text", "validation text"])
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    return figures.shown(figure, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "corpus", help="shakespeare, austen, python, a text file, or a folder of .txt files"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, help="default: that of the corpus, else austen-2m"
    )
    parser.add_argument("--output", help="folder of the run; default: runs/PRESET")
    parser.add_argument(
        "--device", default="auto", help="default: cuda where there is one, else cpu"
    )
    for field in fields(Preset):
        kind, meaning = get_args(field.type)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, help=f"{meaning}; default: the preset's"
        )
    options = parser.parse_args(arguments)
    name = options.preset or DEFAULT.get(options.corpus, "austen-2m")
    given = {field.name: getattr(options, field.name) for field in fields(Preset)}
    try:
        preset = replace(
            PRESETS[name], **{key: value for key, value in given.items() if value is not None}
        )
        train(read_corpus(options.corpus), preset, options.output or f"runs/{name}", options.device)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
