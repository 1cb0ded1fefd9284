"""Pictures: that a notebook shows them, what their colours and numbers say, how large they are."""

import sys
from types import SimpleNamespace

import matplotlib
import pytest
import torch

from mingpt.interpretability import figures

PNG = b"\x89PNG"


def heatmap(values=((1.0, -2.0), (0.5, 0.0)), **options):
    """The Figure of values, with short names for the columns."""
    values = torch.tensor(values)
    columns = [f"{number} x" for number in range(values.size(1))]
    return figures.draw_heatmap(values, columns, "a title", "a quantity", **options)


def test_a_figure_shows_itself_in_a_notebook_and_only_once():
    figure = heatmap()
    assert figure._repr_png_().startswith(PNG)
    # Notebooks show pyplot's figures a second time, at the end of the cell.
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_show_displays_the_figure_in_a_notebook_and_elsewhere_says_what_to_do(monkeypatch):
    shown = []
    formatter = SimpleNamespace(active_types=["text/plain", "image/png"])
    shell = SimpleNamespace(display_formatter=formatter)
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    figure = heatmap()
    figure.show()
    assert shown == [figure]

    formatter.active_types = ["text/plain"]  # IPython in a terminal
    with pytest.raises(ValueError, match="savefig"):
        figure.show()
    monkeypatch.delitem(sys.modules, "IPython")
    with pytest.raises(ValueError, match="savefig"):
        figure.show()
    assert shown == [figure]


def test_latex_is_not_asked_for_whatever_the_users_settings_say(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no latex
    with matplotlib.rc_context({"text.usetex": True}):
        figure = heatmap()
        figures.save_figure(figure, tmp_path / "a.png")
        assert figure._repr_png_().startswith(PNG)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
