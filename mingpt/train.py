"""Train a small GPT-2 on a text, and keep checkpoints at which a study can look for what forms when.

    python -m mingpt.train CORPUS [--preset PRESET] [--output FOLDER]

CORPUS is shakespeare, austen (both are downloaded once), a text file, or a folder of .txt files. The last tenth of the
text is for validation. The same command goes on where a run was stopped. FOLDER, `runs/PRESET` if not given, gets
step-N folders that GPT.from_pretrained takes (FOLDER itself is its newest one), curve.csv and curve.png.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import math
import sys
import time
from array import array
from pathlib import Path

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from mingpt.bpe import END_OF_TEXT, BPETokenizer, Encoder, train_bpe
from mingpt.interpretability import figures
from mingpt.model import GPT, GPTConfig
from mingpt.trainer import Trainer

MEASURED = 100  # rows, spread evenly over a text, on which the loss is measured


@dataclasses.dataclass
class Preset:
    """A model and how it is trained; on the command line each field is an option that replaces the preset's."""

    vocabulary: int  # tokens of a byte-level BPE, trained on the text; 257: single bytes
    n_layer: int
    n_head: int
    n_embd: int
    context: int  # tokens in a row
    batch: int  # rows in a step
    steps: int
    learning_rate: float  # at its highest, after the warm-up; it ends at a tenth
    dropout: float = 0.0
    accumulation: int = 1  # parts in which a batch goes through the model, where memory is short
    warmup: int = 100  # steps
    weight_decay: float = 0.1
    checkpoints: int = 24  # that are kept besides the start, denser early; at each the losses are measured
    save: int = 100  # steps between checkpoints to go on from
    seed: int = 0


PRESETS = {
    "shakespeare-char": Preset(257, 4, 4, 128, context=128, batch=32, steps=3000, learning_rate=2e-3),
    "shakespeare-gpu": Preset(257, 6, 6, 384, context=256, batch=64, steps=5000, learning_rate=1e-3, dropout=0.2),
    "austen-2m": Preset(1024, 4, 6, 192, context=256, batch=16, steps=3000, learning_rate=2e-3, dropout=0.1),
    "austen-5.6m": Preset(3072, 6, 8, 256, context=256, batch=16, steps=3000, learning_rate=1e-3, dropout=0.1),
}


def read_corpus(name):
    """The texts of a corpus, a list of str; ValueError where there are none."""
    path = Path(name)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    try:
        texts = [file.read_text(encoding="utf-8-sig") for file in files]
    except UnicodeDecodeError as error:
        raise ValueError(f"a file of {name} is not utf-8 text: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"there is no file or folder {name}") from error
    if not any(texts):
        raise ValueError(f"{name} has no text in it")
    return texts


class Windows(Dataset):
    """Rows of T + 1 tokens as (x, y), one beginning every `stride` tokens."""

    def __init__(self, ids, T, stride=1):
        self.ids, self.T, self.stride = torch.as_tensor(ids), T, stride

    def __len__(self):
        return max(0, (len(self.ids) - self.T - 1) // self.stride + 1)

    def __getitem__(self, i):
        row = self.ids[i * self.stride : i * self.stride + self.T + 1]
        return row[:-1], row[1:]


def make_model(preset, tokenizer):
    torch.manual_seed(preset.seed)
    shape = {name: getattr(preset, name) for name in ("n_layer", "n_head", "n_embd")}
    dropout = {
        "embd_pdrop": preset.dropout,
        "resid_pdrop": preset.dropout,
        "attn_pdrop": 0.0,
    }  # fused attention has none
    sizes = {"vocab_size": tokenizer.n_vocab, "block_size": preset.context}
    model = GPT(GPTConfig(**shape, **dropout, **sizes, tie_word_embeddings=True))
    model.tokenizer = tokenizer
    return model


def train(texts, preset, output, device="auto"):
    """The trained model; ValueError where the folder has a run with other settings or another text."""
    output, text = Path(output), END_OF_TEXT.join(texts)
    cut = len(text) * 9 // 10
    pieces = text[:cut], text[cut:]
    merges = train_bpe(pieces[0].split(END_OF_TEXT), preset.vocabulary) if preset.vocabulary > 257 else []
    tokenizer = BPETokenizer(Encoder(merges))
    ids = [tokenizer.encode(piece, allow_special=True) for piece in pieces]
    claim(output, dataclasses.asdict(preset) | {"data": hashlib.sha256(array("i", ids[0] + ids[1])).hexdigest()})
    T = preset.context
    validation = Windows(ids[1], T, stride=max(T, len(ids[1]) // MEASURED))
    if not len(validation):
        raise ValueError(f"the validation part has {len(ids[1])} tokens, too few for a row of {T + 1}; give more text")

    config = Trainer.get_default_config()
    config.device, config.max_iters, config.batch_size = device, preset.steps, preset.batch
    config.learning_rate, config.final_learning_rate = preset.learning_rate, preset.learning_rate / 10
    config.warmup_iters, config.weight_decay, config.betas = preset.warmup, preset.weight_decay, (0.9, 0.99)
    config.accumulation, config.seed, config.eval_batches = preset.accumulation, preset.seed, None
    config.checkpoint_dir, config.checkpoint_interval = str(output), preset.save
    kept = {round(preset.steps * (i / preset.checkpoints) ** 2) for i in range(preset.checkpoints + 1)}
    config.kept_steps = tuple(sorted(kept))
    trainer = Trainer(config, make_model(preset, tokenizer), Windows(ids[0], T), validation)
    trainer.resume()
    curve = Curve(output, trainer, len(pieces[1].encode()) / len(ids[1]))
    trainer.add_callback("on_batch_end", curve)
    curve(trainer)
    trainer.run()
    draw_curve(curve.rows, output / "curve.png")
    return trainer.model.eval()


def claim(output, settings):
    """Write settings.json, or check that the run which is there has these settings."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [f"{name} {before.get(name)!r}" for name in settings if before.get(name) != settings[name]]
        if other:
            raise ValueError(
                f"{output} has a run with {', '.join(other)}; repeat its command, or give another --output"
            )
        return
    with figures.written_whole(path) as beside:
        beside(path).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


class Curve:
    """A callback: at the kept steps it measures both losses, adds them to curve.csv, prints them and a sample."""

    COLUMNS = ("step", "tokens", "seconds", "train_loss", "validation_loss", "bits_per_byte")

    def __init__(self, output, trainer, bytes_per_token):
        self.path, self.bytes_per_token = output / "curve.csv", bytes_per_token
        T, stride = trainer.eval_dataset.T, trainer.eval_dataset.stride
        part = trainer.train_dataset.ids[: len(trainer.eval_dataset.ids)]  # as much as is used for validation
        self.seen, self.rows = Windows(part, T, stride), []
        if trainer.resumed:
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
            self.rows = [row for row in rows if row[0] <= trainer.iter_num]
        self.began = time.monotonic() - (self.rows[-1][2] if self.rows else 0)

    def __call__(self, trainer):
        step, config = trainer.iter_num, trainer.config
        if step not in config.kept_steps or (self.rows and self.rows[-1][0] >= step):
            return
        losses = trainer.evaluate(self.seen), trainer.evaluate()
        tokens, seconds = step * config.batch_size * self.seen.T, time.monotonic() - self.began
        self.rows.append([step, tokens, round(seconds, 1), *losses, losses[1] / math.log(2) / self.bytes_per_token])
        with figures.written_whole(self.path) as beside, open(beside(self.path), "w", encoding="utf-8") as file:
            csv.writer(file).writerows([self.COLUMNS, *self.rows])
        line = "step {} of {}: training loss {:.3f}, validation {:.3f} ({:.3f} bits per byte)"
        line = line.format(step, config.max_iters, *self.rows[-1][3:])
        if seconds and step:
            left = seconds * (config.max_iters - step) / step / 60
            line += f", {tokens / seconds:,.0f} tokens/s, {left:.1f} minutes left"
        tqdm.write(f"{line}\n{self.sample(trainer)!r}" if len(self.rows) % 4 == 0 else line)

    def sample(self, trainer, length=60):
        """A text that the model writes, from a generator of its own, so that nothing else changes by it."""
        model = trainer.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = model.tokenizer("\n").to(trainer.device)
            text = model.tokenizer.decode(model.generate(start, length, do_sample=True, top_k=50)[0, 1:])
        model.train()
        return text


def draw_curve(rows, path=None):
    """The matplotlib Figure of a curve.csv's rows: both losses (nats per token) over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    steps = [row[0] for row in rows]
    axes.plot(steps, [row[3] for row in rows], "o-", markersize=3, label="training text")
    axes.plot(steps, [row[4] for row in rows], "s--", markersize=3, label="validation text")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend()
    return figures.shown(figure, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="shakespeare, austen, a text file or a folder of .txt files")
    parser.add_argument("--preset", choices=PRESETS, help="default: shakespeare-char for shakespeare, else austen-2m")
    parser.add_argument("--output", help="the run's folder; default: runs/PRESET")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    for field in dataclasses.fields(Preset):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, help="default: the preset's")
    options = parser.parse_args(arguments)
    name = options.preset or ("shakespeare-char" if options.corpus == "shakespeare" else "austen-2m")
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Preset)}
    preset = dataclasses.replace(PRESETS[name], **{key: value for key, value in given.items() if value is not None})
    try:
        train(read_corpus(options.corpus), preset, options.output or f"runs/{name}", options.device)
    except (ValueError, ImportError, OSError) as error:  # requests' errors are OSErrors
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
