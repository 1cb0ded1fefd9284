"""Train a small GPT-2 on a text, and keep models on the way, in which to see what forms when.

    python -m experiments.train CORPUS [--preset PRESET] [--output FOLDER]

CORPUS is shakespeare or austen, which are downloaded once, python, the standard library's source,
which is there already, a text file, or a folder of .txt files; its last tenth is for validation.
FOLDER, runs/PRESET if not given, gets curve.csv, curve.png and step-N folders that from_pretrained
takes (FOLDER itself is the newest one). The same command goes on where a run was stopped.
"""

import csv
import hashlib
import json
import math
import signal
import sys
import textwrap
from argparse import SUPPRESS
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import get_args

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from experiments.corpora import read_corpus, split_text
from experiments.presets import BYTES, PRESET_OF, PRESETS, Preset
from mingpt.bpe import END_OF_TEXT, BPETokenizer, Encoder, train_bpe
from mingpt.checkpointing import locked
from mingpt.common import atomic_write, command_parser, run_command, say
from mingpt.hub import steps_in
from mingpt.interpretability import figures
from mingpt.model import GPT, GPTConfig
from mingpt.processes import first_alone, this_process
from mingpt.trainer import Trainer, TrainerConfig

# Rows, spread evenly over a text, on which a loss is measured; fewer if they would overlap.
MEASURED = 100
# Of curve.csv, and of the rows of a trainer's history.
COLUMNS = (
    "step",
    "tokens",  # that the training has seen, repetitions included
    "seconds",  # of training, without the measuring
    "train_loss",  # in nats per token
    "validation_loss",
    "validation_error",  # standard error of the mean over the measured rows
    "bits_per_byte",  # the validation loss, comparable between tokenizers
)


def windows(ids, T, stride=1):
    """A dataset of (x, y), each (T,): one from every `stride` tokens on, of ids (N,).

    y is x one token later: what the model is to predict at each position.
    """
    rows = ids.unfold(0, T + 1, stride)  # (N,) -> (rows,T+1), a view
    return TensorDataset(rows[:, :-1], rows[:, 1:])


def train(texts, preset, output, device="auto"):
    """The trained model, in eval mode; the folder output has it too.

    texts: a list of str. Goes on from the newest checkpoint in the folder, if there is one. It
    seeds torch's random numbers. ValueError if the folder has a run with other settings, another
    text or other tokens, or anything but a run, or another process trains in it; and if the text is
    too short.
    """
    output = Path(output)
    read_settings(output)
    # Of several processes that train together, the first one writes.
    with nullcontext() if this_process().rank else locked(output):
        return train_in(output, texts, preset, device)


def train_in(output, texts, preset, device):
    """Train, as `train` says, in a folder that is free."""
    text = END_OF_TEXT.join(texts)
    parts = split_text(text)
    merges = []
    if preset.vocab_size != BYTES:
        # From the training part alone: the validation text must be new in every respect.
        merges = train_bpe(parts[0].split(END_OF_TEXT), preset.vocab_size)
    tokenizer = BPETokenizer(Encoder(merges))
    ids = [torch.tensor(tokenizer.encode(part, allow_special=True)) for part in parts]
    needed = 2 * preset.block_size + 1
    if len(ids[1]) < needed:
        raise ValueError(
            f"the last tenth of the text has {len(ids[1])} tokens, needs {needed}; give more text"
        )
    trainer = make_trainer(preset, tokenizer, ids[0], output, device)
    # Only now: settings that the model or the trainer refuses must not claim the folder.
    with first_alone(trainer.process):
        record_settings(output, asdict(preset) | hashes(text=text, merges=repr(merges)))
    trainer.resume()

    T = preset.block_size
    # Always the same rows, so that losses at different steps can be compared.
    rows = [windows(part.to(trainer.device), T, max(T, len(part) // MEASURED)) for part in ids]
    bits = len(ids[1]) / len(parts[1].encode()) / math.log(2)  # per byte, of a nat per token
    measure = partial(measure_losses, rows=rows, bits=bits, path=output / "curve.csv")
    trainer.add_callback("on_batch_end", measure)
    if trainer.process.rank:
        trainer.run()
        return trainer.model.eval()
    # The untrained model is measured too.
    measure(trainer)
    trainer.run()
    draw_curve(trainer.history, output / "curve.png")
    tokens = trainer.iter_num * preset.batch_size * T
    speed = tokens / trainer.seconds
    say(f"{output} is done: {trainer.iter_num:,} steps, {tokens:,} tokens, {speed:,.0f} tokens/s")
    return trainer.model.eval()


def make_trainer(preset, tokenizer, ids, output, device):
    """The Trainer of a new model on ids (N,), with checkpoints in the folder output.

    The model has minGPT's own initial weights, which follow from preset.seed.
    """
    torch.manual_seed(preset.seed)
    config = GPTConfig(
        **shared_fields(preset, GPTConfig),
        tie_word_embeddings=True,
        embd_pdrop=preset.dropout,
        resid_pdrop=preset.dropout,
        # Fused attention on a CPU has no dropout.
        attn_pdrop=0.0,
    )
    model = GPT(config)
    model.tokenizer = tokenizer
    shares = [i / preset.kept for i in range(preset.kept + 1)]
    settings = TrainerConfig(
        **shared_fields(preset, TrainerConfig),
        device=device,
        betas=(0.9, 0.99),
        final_learning_rate=preset.learning_rate / 10,
        checkpoint_dir=str(output),
        # Denser early, where a model changes fastest.
        kept_steps=tuple({round(preset.max_iters * share**2) for share in shares}),
    )
    return Trainer(settings, model, windows(ids, preset.block_size))


def shared_fields(preset, config_class):
    """{name: value} of the preset's fields that the configuration has too.

    A preset describes model and training at once; each configuration takes its own part.
    """
    names = {field.name for field in fields(config_class)}
    return {name: value for name, value in asdict(preset).items() if name in names}


def read_settings(output):
    """The dict in the folder's settings.json; {} if the folder is empty or not there.

    ValueError if it is not the folder of a training run: what lies there must stay.
    """
    path = output / "settings.json"
    if not path.exists():
        # Hidden files may be of the system, or what a kill left of a settings.json.
        files = sorted(output.glob("[!.]*"))
        if steps_in(output):
            raise ValueError(f"{output} has checkpoints of another program; give another --output")
        if files:
            raise ValueError(
                f"{output} has files that are not of a training run, such as {files[0].name}; "
                "give a new or empty folder as --output"
            )
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict) or not {"text", "merges"} <= settings.keys():
        raise ValueError(f"{path} is not of a training run; give another --output")
    return settings


def hashes(**texts):
    """{name: sha256} of some texts."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def record_settings(output, settings):
    """Write what makes this run this run into the folder's settings.json.

    settings: the preset's fields, and hashes of the text and of the tokenizer's merges. ValueError
    if the folder has other settings.
    """
    recorded = read_settings(output)
    special = {"text": "another text", "merges": "other tokens", "weights": "another model"}
    differences = [
        special.get(name, f"{name} {recorded.get(name)}")
        for name, value in settings.items()
        if recorded and recorded.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{output} has a run with {', '.join(differences)}; give the same, or another --output"
        )
    with atomic_write(output / "settings.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def measure_losses(trainer, rows, bits, path):
    """A callback: at kept steps, a row of COLUMNS for history, curve.csv and the terminal.

    rows: two datasets, of the training text and of the validation text, on the trainer's device.
    bits: per byte, of a nat per token of the validation text. path: where curve.csv lies; it is
    always whole.
    """
    step = trainer.iter_num
    # A run that goes on has this step's row from before.
    is_measured = trainer.history and trainer.history[-1][0] == step
    if step not in trainer.config.kept_steps or is_measured:
        return
    model = trainer.model.eval()
    training, validation = (row_losses(model, *dataset.tensors) for dataset in rows)
    tokens = step * trainer.config.batch_size * model.block_size
    loss = validation.mean().item()
    error = validation.std().item() / len(validation) ** 0.5
    row = [step, tokens, trainer.seconds, training.mean().item(), loss, error, loss * bits]
    trainer.history.append(row)
    write_rows(path, [COLUMNS, *trainer.history])
    print_progress(row)
    if len(trainer.history) % 4 == 0:
        print_sample(model, rows[1])
    model.train()


def write_rows(path, rows):
    """Write a CSV file, which is always whole."""
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def check_folder(folder, *pictures):
    """ValueError unless files of these names can be written into a folder, which may be a new one.

    It is asked before the work, which would be lost. It makes nothing: bad input leaves no folder.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    for name in pictures:
        figures.check_output(existing / name)


def print_progress(row):
    """Print a row of COLUMNS: the losses, in at most 80 characters."""
    step, _, _, *losses = row
    text = "training loss {:.3f}, validation {:.3f} +- {:.3f}, {:.3f} bits per byte"
    say(f"step {step}: {text.format(*losses)}")


def print_sample(model, dataset):
    """Print 60 tokens that the model writes after the first 8 of the dataset.

    Losses do not show whether it writes words yet.
    """
    start = dataset.tensors[0][:1, :8]
    # The training's own random numbers stay as they are.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        ids = model.generate(start, 60, do_sample=True)
    # A model may write what the terminal cannot show.
    sample = ascii(model.tokenizer.decode(ids[0]))
    say(textwrap.fill(sample, 78, initial_indent="  ", subsequent_indent="  "))


@torch.no_grad()
def row_losses(model, x, y):
    """(rows,): the mean loss of each row of x, y (rows,T), in nats."""
    losses = []
    # Some rows at a time: logits are large.
    for x_part, targets in zip(x.split(32), y.split(32)):
        logits, _ = model(x_part)  # (b,T,V)
        losses.append(F.cross_entropy(logits.float().mT, targets, reduction="none").mean(1))
    return torch.cat(losses)


def draw_curve(history, path=None):
    """The matplotlib Figure of both losses over the steps, of a trainer's history.

    Where validation stays behind or rises, the model learns its training text by heart.
    """
    from mingpt.interpretability.notebook_figure import Figure

    steps, _, _, training, validation, *_ = zip(*history)
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, training, "o-", markersize=4)
    axes.plot(steps, validation, "s--", markersize=4)
    axes.legend(["training text", "validation text"])
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    return figures.shown(figure, path)


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
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
    add_options(parser, Preset)
    options = parser.parse_args(arguments)
    return run_command(lambda given: train_with(**vars(given)), options)


def add_options(parser, preset_class):
    """Give the parser an option for each field; its annotation is the option's type and help."""
    for field in fields(preset_class):
        kind, meaning = get_args(field.type)
        flag = f"--{field.name.replace('_', '-')}"
        hint = f"{meaning}; default: the preset's"
        parser.add_argument(flag, type=kind, default=SUPPRESS, help=hint)


def train_with(corpus, preset, output, device, **changes):
    """Train as the command line asks.

    changes: values of the preset's fields, in place of its own.
    """
    name = preset or PRESET_OF.get(corpus, "austen-2m")
    changed = replace(PRESETS[name], **changes)
    train(read_corpus(corpus), changed, output or f"runs/{name}", device)


if __name__ == "__main__":
    sys.exit(main())
