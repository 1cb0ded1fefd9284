"""Which layer and position of GPT-2 decide the answer?

    python interpretability.py

runs a clean and a corrupted text that differ in one token, puts the clean residual stream into the
corrupted run, one layer and position at a time, and writes
logit(corrupted answer) - logit(clean answer) as a heatmap and a CSV.
"""

import argparse
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from mingpt.common import check_device, run_command
from mingpt.hub import MODEL_HELP
from mingpt.interpretability import figures, inputs, reports
from mingpt.interpretability.activation_patching import check_cells, patch_layers, patch_loop
from mingpt.interpretability.readout import published_logit_diff

MODEL = "gpt2"  # a name on the Hugging Face hub, a folder, or names, the model of this project
CLEAN = "Michelle Jones was a top-notch student. Michelle"  # the text whose activations are put in
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"  # as many tokens, another name
CLEAN_ANSWER = ""  # one token, with its space; empty: the token in which CLEAN differs
CORRUPTED_ANSWER = ""  # the same for CORRUPTED
OUTPUT = "heatmap.png"  # .png, .svg or .pdf; the numbers go beside it, as .csv


def main(arguments=None):
    """The exit code: 0; 1 if the sweep is wrong; 2 after a message that says what to change."""
    options = parse(arguments)
    return run_command(experiment, options)


def parse(arguments):
    """The options: what a flag gives, else the constant above."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model", help=f"{MODEL_HELP}; default: {MODEL}")
    empty = "empty: the differing token"
    for flag, default, hint in (
        ("--clean", CLEAN, "the text whose activations are put in"),
        ("--corrupted", CORRUPTED, "the text that they are put into"),
        ("--clean-answer", CLEAN_ANSWER, empty),
        ("--corrupted-answer", CORRUPTED_ANSWER, empty),
    ):
        parser.add_argument(flag, help=f"{hint}; default: {default!r}".replace("%", "%%"))
    parser.add_argument("--output", default=OUTPUT, help="default: %(default)s; .svg and .pdf too")
    parser.add_argument("--device", default="cpu", help="default: %(default)s; cuda or mps")
    parser.add_argument("--loop", action="store_true", help="run each patch by itself: slow")
    options = parser.parse_args(arguments)

    constants = {
        "model": MODEL,
        "clean": CLEAN,
        "corrupted": CORRUPTED,
        "clean_answer": CLEAN_ANSWER,
        "corrupted_answer": CORRUPTED_ANSWER,
    }
    is_given = any(getattr(options, name) is not None for name in constants)
    options.untouched = not is_given and constants == reports.SHOWCASE
    for name, constant in constants.items():
        if getattr(options, name) is None:
            setattr(options, name, constant)
    return options


def experiment(options):
    """Run it: everything is printed, the picture and the table are written at the end."""
    # What cannot end well is refused before a model is downloaded.
    figures.check_output(options.output)
    check_device(options.device)
    model = reports.load_model(options.model, may_stand_in=options.untouched)
    model.to(options.device)
    tokenizer = inputs.tokenizer_of(model)
    size = model.config
    shape = f"{size.n_layer} layers, {size.n_head} heads, width {size.n_embd}"
    print(f"Model: {model.source} ({shape})\n")

    clean, corrupted = inputs.encode_pair(model, options.clean, options.corrupted)
    answers = inputs.answer_pair(
        model, clean, corrupted, options.clean_answer, options.corrupted_answer
    )
    print(reports.describe_pair(tokenizer, clean, corrupted))

    clean_answer, corrupted_answer = (reports.quote_token(tokenizer, int(i)) for i in answers)
    quantity = f"logit({corrupted_answer}) - logit({clean_answer})"
    unpatched = show_unpatched(model, torch.cat((clean, corrupted)), answers, quantity)

    # The clean residual stream goes into the corrupted run, after each layer at each position.
    if options.loop:
        differences = patch_loop(model, clean, corrupted, *answers)
    else:
        result = patch_layers(model, clean, corrupted, *answers)
        print(check_cells(model, clean, corrupted, result))
        differences = result.logit_diff.cpu().double()

    tokens = tokenizer.tokens(corrupted[0])
    title = (
        f"clean: {figures.quote(options.clean)}\n"
        f"corrupted: {figures.quote(options.corrupted)}\n"
        f"{reports.name_model(model)}: "
        "clean residual stream put in after the layer, at the position"
    )
    label = f"{quantity}, positive: the corrupted answer is ahead"
    files = figures.save_heatmap(differences, tokens, title, label, options.output, unpatched)
    print(f"Wrote {files[0]} and {files[1]}.")
    print(reports.describe_strongest_cell(differences, tokens, **unpatched))


def show_unpatched(model, texts, answers, quantity):
    """{"clean": the quantity without a patch, "corrupted": ...}: can the model do the task?

    It is printed, with the most probable next tokens. texts: ids (2,T), clean and corrupted.
    """
    with torch.no_grad():
        logits, _ = model(texts)
    ends = logits[:, -1]  # (2,V)
    unpatched = {}
    for name, end in zip(("clean", "corrupted"), ends):
        print(f"\nMost probable next tokens after the {name} text:")
        print(reports.describe_next_tokens(model.tokenizer, end))
        unpatched[name] = published_logit_diff(end, *answers).item()
    print()
    for name, difference in unpatched.items():
        print(f"{quantity} after the {name} text: {difference:.4f}")
    for sentence in reports.describe_unexpected_answers(model.tokenizer, answers, texts, ends):
        print(sentence)
    if not unpatched["clean"] < 0 < unpatched["corrupted"]:
        print("The model does not prefer each text's own answer: read what follows with care.")
    return unpatched


if __name__ == "__main__":
    sys.exit(main())
