"""How does a prediction form, layer by layer? Like bigrams early, and from the context late?

    python -m experiments.prediction_layers MODEL --corpus CORPUS --output FOLDER

The corpus is the text that the model was trained on. Bigrams are counted in its first nine tenths;
the logit lens is read on windows of its last tenth, which training did not see. (The model `names`
had other passages like those of the corpus `names`, and excerpts and repeated tokens beside them.)

FOLDER gets layers.csv and layers.png. A small KL(bigrams || lens) shows that a layer predicts like
the bigrams, not that it does so by looking at the current token alone; and what the lens does not
show may be there in another form. KL(unigrams || lens) is the control: a layer can be near the
bigrams for the only reason that it is near the unigrams, whose own row is in the table.
"""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.corpora import read_corpus, split_text
from experiments.train import MEASURED, check_folder, hashes, read_settings, windows, write_rows
from mingpt.bpe import END_OF_TEXT
from mingpt.common import command_parser, progress_bar, run_command
from mingpt.hub import MODEL_HELP
from mingpt.interpretability import figures, runs
from mingpt.interpretability.induction import mean_error
from mingpt.interpretability.inputs import tokenizer_of
from mingpt.interpretability.logit_lens import Bigrams, measure_convergence, read_stream
from mingpt.interpretability.reports import name_model
from mingpt.model import GPT

# Of a reading, means over the tokens of a window, in nats.
QUANTITIES = ("KL(bigrams||.)", "KL(unigrams||.)", "KL(output||.)", "loss")
# Readings that are no layer: they come before the layers, in this order.
BEFORE = ("unigrams", "bigrams", "embedding")
# Of tokens, by the model's top token there: is it the bigrams' top token too, or another? And of
# both those where the model gives it at least the probability SURE.
SURE = 0.5
GROUPS = ("the bigrams'", "another", "the bigrams', sure", "another, sure")


def count_bigrams(ids, V):
    """The Bigrams of ids (N,) below V; among the unigrams each counts once more than it came.

    Without that the loss on a token that is new in the held-out text would be infinite.
    """
    return Bigrams.count(ids.unfold(0, 2, 1).T, V, extra=1)


@dataclass
class Formation:
    """How predictions form, over n windows of T tokens, in a model of L layers.

    The R = L + 3 readings are the unigrams and bigrams themselves, the lens at the embedding (the
    stream before layer 0), and the lens after each layer; the last is the model's output.
    """

    values: Tensor  # (n,R,4): QUANTITIES of each window and reading
    layer: Tensor  # (n,T): the first from which on the lens's top token is the model's own
    is_bigrams: Tensor  # (n,T): whether that token is the bigrams' top token too
    is_sure: Tensor  # (n,T): whether the model gives it at least the probability SURE

    def names(self):
        """R texts, of the readings: BEFORE, and the numbers of the layers."""
        return [*BEFORE, *map(str, range(self.values.size(1) - len(BEFORE)))]

    def groups(self):
        """{name in GROUPS: (n,T)}: which tokens are in the group."""
        masks = [self.is_bigrams, ~self.is_bigrams]
        masks += [mask & self.is_sure for mask in masks]
        return dict(zip(GROUPS, masks))

    def counts(self):
        """{name in GROUPS: (L,)}: of how many tokens the prediction is made at each layer."""
        L = self.values.size(1) - len(BEFORE)
        masks = self.groups().items()
        return {name: torch.bincount(self.layer[mask], minlength=L) for name, mask in masks}

    def mean_layers(self, names):
        """(m,G): the mean layer of each of G groups, in each of the m windows that have all."""
        masks = [self.groups()[name] for name in names]
        sums = torch.stack([(self.layer * mask).sum(1) for mask in masks], dim=1)
        means = sums / torch.stack([mask.sum(1) for mask in masks], dim=1)
        return means[~means.isnan().any(1)]


@torch.no_grad()
def measure_formation(model, x, y, bigrams):
    """The Formation of a model on windows x, and the token after each of theirs, y, (n,T) each.

    Cost: 2 passes and 2 L + 3 output matrices for each window.
    """
    rows = [measure_window(model, *row, bigrams) for row in zip(progress_bar(x, unit="window"), y)]
    return Formation(*map(torch.stack, zip(*rows)))


def measure_window(model, ids, targets, bigrams):
    """The fields of Formation of one window, without their first axis. ids, targets: (T,)."""
    recorded = runs.record(model, ids[None], ["resid_pre"])
    streams = [recorded["resid_pre"][0], *recorded["resid_post"].values()]  # L + 1 of (1,T,C)
    _, output = read_stream(model, streams[-1][0])  # (T,V)
    following = bigrams.after(ids)  # (T,V)
    references = (following.log(), bigrams.unigrams.log().expand_as(following), output)
    values = [compare(log_probs, references, targets) for log_probs in references[1::-1]]
    for stream in streams:
        _, log_probs = read_stream(model, stream[0])
        values.append(compare(log_probs, references, targets))
    layer = measure_convergence(model, ids[None]).layer
    largest, top = output.max(-1)  # (T,)
    return torch.stack(values), layer, top == following.argmax(-1), largest.exp() >= SURE


def compare(log_probs, references, targets):
    """(4,): QUANTITIES of a reading, log-probabilities (T,V), as means over the T tokens.

    references: the log-probabilities of the bigrams, the unigrams and the output, (T,V) each.
    """
    distances = [
        F.kl_div(log_probs, reference, log_target=True, reduction="batchmean")
        for reference in references
    ]
    return torch.stack([*distances, F.nll_loss(log_probs, targets)])


def check_text(name, text):
    """ValueError if the model's name is a run folder, and the run was trained on another text."""
    folder = Path(name)
    if (folder / "settings.json").exists():
        recorded = read_settings(folder)["text"]
        if recorded != hashes(text=text)["text"]:
            raise ValueError(
                f"{name} was trained on another text, so that the last tenth of this one need not "
                "be new to it; give the corpus of its training, or one of its step-N folders"
            )


def held_out_windows(model, text):
    """(x, y), (n,T) each: the MEASURED windows on which a training measures its loss, or fewer."""
    ids = torch.tensor(tokenizer_of(model).encode(text, allow_special=True))
    T = model.block_size
    if len(ids) < 2 * T + 1:
        raise ValueError(
            f"the held-out text has {len(ids)} tokens, needs {2 * T + 1}; give a larger corpus"
        )
    return windows(ids, T, max(T, len(ids) // MEASURED)).tensors


def print_formation(formation):
    """Print the readings, and at which layer the predictions are made."""
    print("means over the windows +- standard errors, in nats")
    print(f"{'':9}", *(f"{name:>16}" for name in QUANTITIES))
    for name, reading in zip(formation.names(), formation.values.unbind(1)):  # (n,4)
        cells = map(_number, reading.T)
        print(f"{name:9}", *(f"{cell:>16}" for cell in cells))

    counts = formation.counts()
    print(f"\ntokens whose prediction is made at a layer, by the top token; sure: p >= {SURE}")
    print(f"{'':9}", *(f"{name:>18}" for name in counts))
    for layer, row in enumerate(zip(*counts.values())):
        cells = (f"{count} ({share(count, of):.1%})" for count, of in zip(row, counts.values()))
        print(f"{layer:<9}", *(f"{cell:>18}" for cell in cells))
    print(f"{'all':9}", *(f"{count.sum():>18}" for count in counts.values()), "\n")

    for names in (GROUPS[:2], GROUPS[2:]):
        means = formation.mean_layers(names)  # (m,2)
        if len(means) > 1:
            difference = means[:, 1] - means[:, 0]
            print("mean layer:", end=" ")
            for name, values in zip(names, means.T):
                print(f"{name} {_number(values, 2)};", end=" ")
            print(f"difference {_number(difference, 2)} ({len(means)} windows)")


def _number(values, digits=3):
    """The text "0.468 +- 0.003": mean and standard error."""
    mean, error = mean_error(values)
    return f"{mean:.{digits}f} +- {error:.{digits}f}"


def share(count, counts):
    """count as a share of all counts; 0 of none."""
    return count / max(1, counts.sum())


def write_formation(formation, path):
    """Write the CSV: a line for each reading, with means, standard errors and counts of tokens."""
    header = ["reading"]
    for name in QUANTITIES:
        header += [name, "standard error"]
    counts = torch.stack([*formation.counts().values()], dim=1).tolist()  # L x 4
    counts = [[""] * len(GROUPS)] * len(BEFORE) + counts
    numbers = torch.stack(mean_error(formation.values), dim=-1).flatten(1).tolist()  # R x 8
    readings = zip(formation.names(), numbers, counts)
    n = len(formation.values)
    rows = [[name, *cells, *made, n] for name, cells, made in readings]
    write_rows(path, [[*header, *(f"made here: {name}" for name in GROUPS), "n"], *rows])


def plot_formation(formation, title, path=None):
    """The matplotlib Figure: the divergences by layer, and where the predictions are made.

    The embedding, whose divergences can be ten times as large, is in the table alone.
    """
    from mingpt.interpretability.notebook_figure import Figure

    L = formation.values.size(1) - len(BEFORE)
    figure = Figure(figsize=(10, 3 + 0.25 * L), layout="constrained")
    figure.suptitle(title, wrap=True, parse_math=False)
    left, right = figure.subplots(1, 2, sharey=True)
    layers = range(L)
    mean, error = (values.numpy() for values in mean_error(formation.values))
    for i, style in enumerate(("o-", "s--", "^:")):
        name = QUANTITIES[i].replace(".", "lens")
        lens = slice(len(BEFORE), None)
        left.errorbar(mean[lens, i], layers, xerr=error[lens, i], fmt=style, ms=4, label=name)
    label = "KL(bigrams||unigrams)"
    left.axvline(mean[BEFORE.index("unigrams"), 0], color="grey", lw=1, label=label)
    left.set(xlabel="nats", ylabel="layer")
    left.set_yticks(layers)

    for i, name in enumerate(GROUPS[:2]):
        count = formation.counts()[name]
        places = [layer + 0.4 * i - 0.2 for layer in range(L)]
        label = f"{name} ({count.sum():,} tokens)"
        right.barh(places, share(count, count).tolist(), 0.4, label=label)
    right.set(xlabel="share of tokens whose prediction is made here")
    right.invert_yaxis()
    # Above the axes, where no line runs.
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    title = "the model's top token is"
    right.legend(title=title, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figures.shown(figure, path)


def report(name, corpus, output):
    """Measure the named model on a corpus, write picture and table into the folder, print them.

    ValueError or OSError where something cannot be read, measured or written.
    """
    folder = Path(output)
    picture = folder / "layers.png"
    check_folder(folder, picture.name)
    text = END_OF_TEXT.join(read_corpus(corpus))
    check_text(name, text)
    training, held_out = split_text(text)
    model = GPT.from_pretrained(name)
    x, y = held_out_windows(model, held_out)
    ids = torch.tensor(model.tokenizer.encode(training, allow_special=True))
    bigrams = count_bigrams(ids, model.config.vocab_size)
    formation = measure_formation(model, x, y, bigrams)

    folder.mkdir(parents=True, exist_ok=True)
    n, T = x.shape
    title = f"{name_model(model)}, on {n} windows of {T} held-out tokens of {corpus}"
    print(f"{title}\nbigrams of {len(ids):,} tokens\n")
    print_formation(formation)
    plot_formation(formation, title, picture)
    write_formation(formation, picture.with_suffix(".csv"))
    print(f"\nWrote {picture} and {picture.with_suffix('.csv')}.")


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("name", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--corpus",
        required=True,
        help="names, python, austen, shakespeare, a text file, or a folder of .txt files",
    )
    parser.add_argument("--output", required=True, help="folder for layers.csv and layers.png")
    return run_command(lambda options: report(**vars(options)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
