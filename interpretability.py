"""Which layer and position of GPT-2 decide the answer?

    python interpretability.py

runs a clean and a corrupted text that differ in one token, puts the clean residual stream into the corrupted run, one
layer and position at a time, and writes logit(corrupted answer) - logit(clean answer) as a heatmap and a CSV.
"""

import argparse
import sys
from pathlib import Path

import torch

from mingpt.common import atomic_write, check_device
from mingpt.hub import Unavailable
from mingpt.interpretability import activation_patching, figures, inputs
from mingpt.model import GPT

MODEL = "gpt2"  # a name on the Hugging Face hub, a folder, or names, the small model that is part of this project
CLEAN = "Michelle Jones was a top-notch student. Michelle"  # the text whose activations are put in
CORRUPTED = (
    "Michelle Smith was a top-notch student. Michelle"  # the same number of tokens, another name
)
CLEAN_ANSWER = (
    " Jones"  # one token, with its leading space; empty: the token in which CLEAN differs
)
CORRUPTED_ANSWER = (
    " Smith"  # one token, with its leading space; empty: the token in which CORRUPTED differs
)
OUTPUT = "heatmap.png"  # .png, .svg or .pdf; the numbers go beside it, as .csv

# What stands above as it was shipped. Only this experiment may be shown on the embedded model where gpt2 cannot be had.
SHIPPED = (
    "gpt2",
    "Michelle Jones was a top-notch student. Michelle",
    "Michelle Smith was a top-notch student. Michelle",
    " Jones",
    " Smith",
)


class WrongSweep(Exception):
    """The sweep does not equal the runs that define it."""


def main(arguments=None):
    """Run the experiment; 0, 2 after a message on stderr that says what to change, 1 if the sweep is wrong."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # tokens may hold what the terminal cannot show
    try:
        experiment(parse(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongSweep as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, default, more in (
        ("--model", MODEL, ""),
        ("--clean", CLEAN, ""),
        ("--corrupted", CORRUPTED, ""),
        ("--clean-answer", CLEAN_ANSWER, "; empty: the differing token"),
        ("--corrupted-answer", CORRUPTED_ANSWER, "; empty: the differing token"),
    ):
        parser.add_argument(flag, help=f"default: {default!r}{more}".replace("%", "%%"))
    parser.add_argument(
        "--output",
        default=OUTPUT,
        help="default: %(default)s; .png, .svg or .pdf, and a .csv beside it",
    )
    parser.add_argument(
        "--device", default="cpu", help="default: %(default)s; cuda or mps where there is one"
    )
    parser.add_argument(
        "--loop",
        action="store_true",
        help="run each patch by itself: slow, and what defines the result",
    )
    options = parser.parse_args(arguments)
    asked = [
        options.model,
        options.clean,
        options.corrupted,
        options.clean_answer,
        options.corrupted_answer,
    ]
    constants = (MODEL, CLEAN, CORRUPTED, CLEAN_ANSWER, CORRUPTED_ANSWER)
    options.untouched = asked == [None] * 5 and constants == SHIPPED
    values = [constant if given is None else given for given, constant in zip(asked, constants)]
    (
        options.model,
        options.clean,
        options.corrupted,
        options.clean_answer,
        options.corrupted_answer,
    ) = values
    return options


def experiment(options):
    figures.check_output(options.output)
    check_device(options.device)
    model = load_model(options.model, options.untouched)
    config, tokenizer = model.config, model.tokenizer
    print(
        f"Model: {model.source} ({config.n_layer} layers, {config.n_head} heads, width {config.n_embd})\n"
    )
    if tokenizer is None:
        raise ValueError(
            f"{options.model} has no tokenizer; put the model's merges.txt (and vocab.json) beside it"
        )

    model.to(options.device)
    clean, corrupted = inputs.encode_pair(model, options.clean, options.corrupted)
    clean_answer = inputs.answer_ids(model, options.clean_answer, clean, corrupted, "clean").item()
    corrupted_answer = inputs.answer_ids(
        model, options.corrupted_answer, corrupted, clean, "corrupted"
    ).item()
    if clean_answer == corrupted_answer:
        raise ValueError(
            f"both answers are {shown(tokenizer, clean_answer)}; they must be two different tokens"
        )
    print_inputs(tokenizer.tokens(clean[0]), tokenizer.tokens(corrupted[0]))

    quantity = (
        f"logit({shown(tokenizer, corrupted_answer)}) - logit({shown(tokenizer, clean_answer)})"
    )
    with torch.no_grad():
        model(torch.cat((clean, corrupted)), store_activations=True)
    clean_stream, unpatched = (
        {layer: both[:1] for layer, both in model.layer_activations.items()},
        {},
    )
    for name, logits in zip(("clean", "corrupted"), model.last_token_logits):
        print_next_tokens(name, logits, tokenizer)
        unpatched[name] = (logits[corrupted_answer] - logits[clean_answer]).item()
    for name, difference in unpatched.items():
        print(f"{quantity} after the {name} text: {difference:.4f}")
    if not unpatched["clean"] < 0 < unpatched["corrupted"]:
        print("The model does not prefer each text's own answer: read what follows with care.")

    if options.loop:
        differences = activation_patching.patch_loop(
            model, clean, corrupted, clean_answer, corrupted_answer
        )
    else:
        result = activation_patching.patch_layers(
            model, clean, corrupted, clean_answer, corrupted_answer
        )
        differences = result.logit_diff.cpu().double()
        check_cells(
            model, clean_stream, corrupted, (clean_answer, corrupted_answer), differences, unpatched
        )
    write(differences, tokenizer.tokens(corrupted[0]), quantity, options, model.name)
    print(reading(differences, tokenizer.tokens(corrupted[0]), unpatched))


@torch.no_grad()
def check_cells(model, clean_stream, corrupted, answers, differences, unpatched, count=2):
    """Run the cells that move the answer most, and the last, by themselves; WrongSweep if one is not the same."""
    moved = (differences - unpatched["corrupted"]).abs().flatten()
    cells = sorted({*moved.topk(min(count, len(moved))).indices.tolist(), len(moved) - 1})
    patches = []
    for row, cell in enumerate(
        cells
    ):  # a run each, side by side: every patch changes its own row alone
        layer, position = divmod(cell, differences.size(1))
        new = clean_stream[layer][:, position]  # (1,C)
        patches.append(
            (
                layer,
                position,
                lambda old, row=row, new=new: torch.cat((old[:row], new, old[row + 1 :])),
            )
        )
    model(corrupted.expand(len(cells), -1), patch_params=patches)
    again = model.last_token_logits[:, answers[1]] - model.last_token_logits[:, answers[0]]
    off = (differences.flatten()[cells] - again.cpu()).abs().max().item()
    print(f"{len(cells)} cells, each run again by itself: the largest difference is {off:.1e}.")
    if not off <= 1e-4 * (differences.max() - differences.min()).item() + 1e-5:
        raise WrongSweep(
            f"the sweep is off by {off:.1e}, more than rounding; report this, and use --loop until then"
        )


def load_model(name, untouched):
    """The model asked for; for the shipped experiment alone, the embedded one where gpt2 cannot be had."""
    try:
        return GPT.from_pretrained(name)
    except Unavailable:
        if not untouched:
            raise
        print(
            f"{name} is not in the cache and cannot be had from the hub: this is names, the embedded model.",
            file=sys.stderr,
        )
        print(
            f"With a network, `python interpretability.py --model {name}` downloads and shows it.",
            file=sys.stderr,
        )
        return GPT.from_pretrained("names")


def shown(tokenizer, index):
    """A token as Python writes it; a model may have rows more than its tokenizer has tokens."""
    return repr(tokenizer.decode([index])) if index in tokenizer.encoder.tokens else f"<{index}>"


def print_inputs(clean, corrupted):
    width = max(len(repr(token)) for token in ["clean", *clean])
    print(f"position  {'clean':{width}}  corrupted")
    for position, (one, other) in enumerate(zip(clean, corrupted)):
        mark = "" if one == other else "  <- differs"
        print(f"{position:8}  {one!r:{width}}  {other!r}{mark}")


def print_next_tokens(name, logits, tokenizer, count=20):
    """The most probable next tokens after the last position; logits (V,)."""
    top = logits.softmax(-1).topk(min(count, len(logits)))
    print(
        f"\nMost probable next tokens after the {name} text:\nposition  index  token           probability"
    )
    for position, (probability, index) in enumerate(
        zip(top.values.tolist(), top.indices.tolist()), 1
    ):
        print(f"{position:8}  {index:5}  {shown(tokenizer, index):14}  {probability:11.4f}")
    print()


def write(differences, tokens, quantity, options, model_name):
    title = f"clean: {options.clean!r}\ncorrupted: {options.corrupted!r}"
    model_name = "names, the embedded model" if model_name == "names" else model_name
    title += f"\n{model_name}: clean residual stream put in after the layer, at the position"
    label = f"{quantity}, positive: the corrupted answer is ahead"
    picture, table = Path(options.output), Path(options.output).with_suffix(".csv")
    labels = figures.token_labels(tokens)
    with atomic_write(picture) as temporary_picture, atomic_write(table) as temporary_table:
        figures.save_figure(
            figures.draw_heatmap(differences, labels, title, label), temporary_picture
        )
        figures.save_csv(differences, labels, temporary_table)
    print(f"Wrote {picture} and {table}.")


def reading(differences, tokens, unpatched):
    """The one sentence: which cell moves the answer most (of equal ones, to 0.001, the first in layer and position)."""
    moved = (differences - unpatched["corrupted"]).abs().mul(1000).round()
    layer, position = divmod(moved.argmax().item(), moved.size(1))
    before, after = unpatched["corrupted"], differences[layer, position]
    return (
        f"The answer moves most when the residual stream after layer {layer} at position {position} "
        f"({tokens[position]!r}) is the clean one: from {before:.2f} to {after:.2f}; "
        f"the clean text itself gives {unpatched['clean']:.2f}."
    )


if __name__ == "__main__":
    sys.exit(main())
