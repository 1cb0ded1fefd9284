"""Pictures and tables on disk, each whole or not there at all."""

import csv
import os
from pathlib import Path

SUFFIXES = (".png", ".svg", ".pdf")


def check_output(path):
    """ValueError unless a picture can be written to path, and its table beside it."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot write {str(path)!r}: the name must end in one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    for file in (path, path.with_suffix(".csv")):
        if file.is_dir():
            raise ValueError(f"cannot write {str(file)!r}: it is a folder")
    try:
        probe = _beside(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {str(path)!r}: {error.strerror}; choose another folder") from error


def token_labels(tokens):
    """["0 Michelle", "1  Jones", ...]: position, a space, the token with line ends and the like written as escapes."""
    return [f"{position} {repr(token)[1:-1]}" for position, token in enumerate(tokens)]


def draw_heatmap(values, tokens, title, quantity):
    """The matplotlib Figure of values (L,T): layers up, positions across; red above 0, white at 0, blue below."""
    from matplotlib.colors import CenteredNorm
    from matplotlib.figure import Figure

    L, T = values.shape
    figure = Figure(figsize=(max(6.4, 0.62 * T + 2.6), max(4.4, 0.34 * L + 2.6)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values.numpy(), cmap="RdBu_r", norm=CenteredNorm(0), aspect="auto", origin="lower")
    axes.set_xticks(range(T), token_labels(tokens), rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(L))
    axes.set_xlabel("position and token of the corrupted text")
    axes.set_ylabel("layer after whose block the clean residual stream is put in")
    axes.set_title(title, fontsize="medium", wrap=True, parse_math=False)
    figure.colorbar(image, label=quantity)
    if T <= 24:
        dark = 0.6 * abs(values).max()
        for (layer, position), value in _cells(values):
            colour = "white" if abs(value) > dark else "black"
            axes.text(position, layer, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    return figure


def save_figure(figure, path):
    """Write the figure; the suffix of path decides the format."""
    beside = _beside(path)
    figure.savefig(beside, dpi=150)
    os.replace(beside, path)


def save_csv(values, tokens, path):
    """Write values (L,T): a header `layer,<position and token>...`, then a row per layer from 0, in full precision."""
    beside = _beside(path)
    with open(beside, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["layer", *token_labels(tokens)])
        table.writerows([layer, *row] for layer, row in enumerate(values.tolist()))
    os.replace(beside, path)


def _cells(values):
    return (
        ((layer, position), value) for layer, row in enumerate(values.tolist()) for position, value in enumerate(row)
    )


def _beside(path):
    """A name in the same folder and of the same kind, to write to before the rename."""
    path = Path(path)
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
