"""Train a sparse autoencoder on the activations of a model.

    python experiments/train_autoencoder.py MODEL [--site SITE] [--layer LAYER] [--text TEXT ...]

MODEL is what GPT.from_pretrained takes; the presets are for names, for the model that
`python -m experiments.train python` leaves in runs/python-1m, and for gpt2, which asks for a GPU.
TEXT is austen, shakespeare, python, names, a text file, or a folder of .txt files; its last tenth
is for validation. FOLDER, runs/PRESET-autoencoder if not given, becomes a folder that
Autoencoder.from_pretrained takes, with curve.csv and curve.png. The same command goes on where a
run was stopped. torchrun starts it on several GPUs.
"""

import signal
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, Python looks for packages in this folder, not in the one above.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # While the imports below take their seconds, Ctrl-C ends without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from experiments.autoencoder_presets import PRESET_OF, PRESETS, TEXT_OF, AutoencoderPreset
from experiments.corpora import read_corpus, split_text
from experiments.train import (
    add_options,
    hashes,
    read_settings,
    record_settings,
    shared_fields,
    write_rows,
)
from mingpt.bpe import END_OF_TEXT
from mingpt.checkpointing import locked
from mingpt.common import command_parser, run_command, say
from mingpt.hub import MODEL_HELP
from mingpt.interpretability import figures
from mingpt.interpretability.activation_stream import ActivationStream, StreamConfig
from mingpt.interpretability.autoencoder_quality import ratio
from mingpt.interpretability.autoencoder_training import AutoencoderTrainer, SparsityConfig
from mingpt.interpretability.shards import digest
from mingpt.model import GPT
from mingpt.processes import first_alone, this_process
from mingpt.trainer import TrainerConfig

# Rows of the validation text on which it is measured.
MEASURED = 64
# Of curve.csv, and of the rows of a trainer's history.
COLUMNS = (
    "step",
    "tokens",  # that the training has seen, repetitions included
    "seconds",  # of training, without the measuring
    "loss",  # of the last batch
    "fvu",  # on the validation text: the share of the variance that is not explained
    "fvu_error",  # standard error over the measured rows
    "l0",  # on the validation text: active features at a token
    "dead",  # features that have been silent for dead_steps
)


def train(model, texts, preset, output, device="auto"):
    """The trained Autoencoder; the folder output has it too.

    model: a GPT in eval mode. texts: a list of str. Goes on from the newest checkpoint in the
    folder, if there is one. ValueError if the folder has a run with other settings, another text or
    another model, or anything but a run, or another process trains in it; and if the text is too
    short.
    """
    output = Path(output)
    read_settings(output)
    # Of several processes that train together, the first one writes.
    with nullcontext() if this_process().rank else locked(output):
        return train_in(output, model, texts, preset, device)


def train_in(output, model, texts, preset, device):
    """Train, as `train` says, in a folder that is free."""
    text = END_OF_TEXT.join(texts)
    settings = StreamConfig(**shared_fields(preset, StreamConfig))
    settings.beginning_token = bool(preset.beginning_token)
    streams = [
        ActivationStream(model, settings, part.split(END_OF_TEXT)) for part in split_text(text)
    ]
    trainer = make_trainer(preset, streams[0], output, device)
    # Only now: settings that the model or the trainer refuses must not claim the folder.
    with first_alone(trainer.process):
        weights = {"weights": digest(model.state_dict())}
        merges = repr(model.tokenizer.encoder.merges)
        record_settings(output, asdict(preset) | hashes(text=text, merges=merges) | weights)
    trainer.resume()
    if trainer.process.rank:
        trainer.run()
        return trainer.autoencoder()
    measured = measured_activations(streams[1])
    steps = measured_steps(preset)
    measure = partial(measure_fit, x=measured, path=output / "curve.csv", steps=steps)
    trainer.add_callback("on_batch_end", measure)
    trainer.run()
    draw_curve(trainer.history, output / "curve.png")
    autoencoder = trainer.autoencoder().cpu()
    autoencoder.save_pretrained(output)
    tokens = trainer.iter_num * preset.tokens
    speed = tokens / trainer.seconds
    say(f"{output} is done: {trainer.iter_num:,} steps, {tokens:,} tokens, {speed:,.0f} tokens/s")
    return autoencoder


def make_trainer(preset, stream, output, device):
    """The AutoencoderTrainer of a new autoencoder, with checkpoints in the folder output."""
    settings = TrainerConfig(
        **shared_fields(preset, TrainerConfig),
        device=device,
        betas=(0.9, 0.99),
        final_learning_rate=preset.learning_rate / 100,
        checkpoint_dir=str(output),
    )
    sparsity = SparsityConfig(**shared_fields(preset, SparsityConfig))
    return AutoencoderTrainer(settings, stream, sparsity)


def measured_activations(stream):
    """(R,T,d): the activations of rows that are spread evenly over the stream's text."""
    stride = max(1, len(stream.starts) // MEASURED)
    return stream.activations(stream.rows(stream.starts[::stride][:MEASURED]))


def measured_steps(preset):
    """The steps at which it is measured: denser early, where it changes fastest."""
    shares = [i / preset.kept for i in range(1, preset.kept + 1)]
    return {max(1, round(preset.max_iters * share**2)) for share in shares}


@torch.no_grad()
def measure_fit(trainer, x, path, steps):
    """A callback: at these steps, a row of COLUMNS for history, curve.csv and the terminal.

    x (R,T,d): activations of the validation text. path: where curve.csv lies; it is always whole.
    """
    step = trainer.iter_num
    # A run that goes on may have this step's row from before.
    is_measured = trainer.history and trainer.history[-1][0] >= step
    if step not in steps or is_measured:
        return
    autoencoder = trainer.autoencoder()
    features = autoencoder.encode(x)
    missed = (x - autoencoder(x)).square().sum((1, 2))  # (R,)
    there = (x - x.mean((0, 1))).square().sum((1, 2))  # (R,)
    fvu = ratio(missed, there)
    l0 = (features > 0).sum(-1).float().mean().item()
    dead = int((trainer.model.silent_steps >= trainer.model.sparsity.dead_steps).sum())
    tokens = step * trainer.config.batch_size
    row = [step, tokens, trainer.seconds, trainer.loss.item(), *fvu, l0, dead]
    trainer.history.append(row)
    write_rows(path, [COLUMNS, *trainer.history])
    say(f"step {step}: FVU {fvu}, {l0:.1f} active features, {dead} dead")


def draw_curve(history, path=None):
    """The matplotlib Figure of FVU, active and dead features over the steps, of a history."""
    from mingpt.interpretability.notebook_figure import Figure

    figure = Figure(figsize=(6.4, 7.2), layout="constrained")
    columns = dict(zip(COLUMNS, zip(*history)))
    panels = figure.subplots(3, sharex=True)
    panels[0].errorbar(columns["step"], columns["fvu"], columns["fvu_error"], fmt="o-", ms=4)
    panels[0].set(yscale="log", ylabel="FVU on the validation text")
    panels[1].plot(columns["step"], columns["l0"], "o-", markersize=4)
    panels[1].set(ylabel="active features at a token")
    panels[2].plot(columns["step"], columns["dead"], "o-", markersize=4)
    panels[2].set(xlabel="step", ylabel="dead features")
    for axes in panels[1:]:
        axes.set_ylim(bottom=0)
    return figures.shown(figure, path)


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--text", nargs="+", help="default: the preset's")
    parser.add_argument(
        "--preset", choices=PRESETS, help="default: that of the model, else python-1m"
    )
    parser.add_argument("--output", help="folder of the run; default: runs/PRESET-autoencoder")
    parser.add_argument(
        "--device", default="auto", help="default: cuda where there is one, else cpu"
    )
    add_options(parser, AutoencoderPreset)
    options = parser.parse_args(arguments)
    return run_command(lambda given: train_with(**vars(given)), options)


def train_with(model, text, preset, output, device, **changes):
    """Train as the command line asks; changes: values of the preset's fields."""
    name = preset or PRESET_OF.get(model, "python-1m")
    changed = replace(PRESETS[name], **changes)
    if not text and name not in TEXT_OF:
        raise ValueError(f"the preset {name} has no text of its own; give --text")
    texts = [part for corpus in text or [TEXT_OF[name]] for part in read_corpus(corpus)]
    train(GPT.from_pretrained(model), texts, changed, output or f"runs/{name}-autoencoder", device)


if __name__ == "__main__":
    sys.exit(main())
