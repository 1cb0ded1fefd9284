"""Pictures: that a notebook shows them, what their colours and numbers say, how large they are."""

import os
import sys
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mingpt.interpretability import figures
from mingpt.interpretability.ablation import ablate_heads
from mingpt.interpretability.activation_patching import attribution_patching
from mingpt.interpretability.attention_figure import draw_patterns
from mingpt.interpretability.path_patching import path_patching
from mingpt.model import GPT

CLEAN = "Michelle Jones was a top-notch student. Michelle"
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"
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


def cells(figure):
    """The texts in the cells of a heatmap."""
    return [text.get_text() for text in figure.axes[0].texts]


def extents(figure, artists):
    """Where the artists are drawn, in dots; the figure is drawn first."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [artist.get_window_extent(canvas.get_renderer()) for artist in artists]


def test_effects_that_are_nearly_nothing_are_pale_and_their_numbers_can_still_be_read():
    figure = heatmap([[0.0001, -0.0014], [0.0, -1e-6]])
    image = figure.axes[0].images[0]
    assert (image.to_rgba(image.get_array())[..., :3] > 0.9).all()  # nearly white
    assert cells(figure) == ["0.0001", "-0.0014", "0.0000", "0.0000"]


def test_the_numbers_have_digits_as_their_size_asks_for_and_no_minus_zero():
    assert cells(heatmap([[7.38, -0.04], [-112.0, 0.06]])) == ["7.4", "0.0", "-112.0", "0.1"]
    assert cells(heatmap([[0.513, -0.004]])) == ["0.51", "0.00"]
    assert cells(heatmap([[0.0, -0.0]])) == ["0.00", "0.00"]


def test_marks_lie_on_the_scale_and_are_named_beside_the_bar():
    figure = heatmap([[1.0, 2.0]], marks={"clean": -5.0, "corrupted": 3.0})
    _, bar = figure.axes
    names = {text.get_text(): text for text in bar.texts}
    lines = [line.get_ydata()[0] for line in bar.lines]
    assert sorted(lines) == [-5, 3] and set(names) == {"clean", "corrupted"}
    assert [text.get_position()[1] for text in names.values()] == [-5, 3]
    low, high = bar.get_ylim()
    assert low == -high < -5


def test_the_names_of_equal_marks_do_not_cover_each_other():
    figure = heatmap(marks={"clean": 1.0, "corrupted": 1.0})
    low, high = extents(figure, figure.axes[1].texts)
    assert low.y1 <= high.y0 + 1


@pytest.mark.parametrize("T", [40, 95, 400])
def test_a_long_text_keeps_the_size_of_a_page_and_its_labels_apart(T):
    columns = figures.token_labels([" sentence"] * T)
    title = "\n".join(figures.quote(" sentence" * T) for _ in range(2))
    figure = figures.draw_heatmap(torch.randn(12, T), columns, title, "logits")
    across, down = figure.get_size_inches()
    assert across <= 16 and down <= 12
    labels = figure.axes[0].get_xticklabels()
    assert labels[0].get_text() == "0  sentence" and len(labels) > 30
    places = [box.x1 for box in extents(figure, labels)]
    apart = min(right - left for left, right in zip(places, places[1:]))
    # Turned by 60 degrees, two labels are 0.87 times as far apart as their ticks.
    assert 0.87 * apart >= labels[0].get_fontsize() * figure.dpi / 72


def test_the_title_of_a_short_text_is_not_wrapped():
    title = f"clean: {CLEAN!r}\nnames, the embedded model: clean residual stream put in after the"
    title += " layer, at the position"
    figure = figures.draw_heatmap(torch.ones(12, 6), list("abcdef"), title, "q")
    [box] = extents(figure, [figure.axes[0].title])
    line = figure.axes[0].title.get_fontsize() * figure.dpi / 72
    assert box.height < 3 * line
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_a_grid_of_long_texts_has_ticks_that_can_be_read_on_one_page():
    labels = figures.token_labels([" word"] * 80)
    patterns = torch.ones(12, 12, 80, 80).tril()
    patterns /= patterns.sum(-1, keepdim=True)
    figure = draw_patterns(patterns, labels, "every head")
    assert max(figure.get_size_inches()) < 30
    ticks = figure.axes[0].get_xticklabels() + figure.axes[0].get_yticklabels()
    assert all(label.get_fontsize() >= 7 for label in ticks)


def test_words_that_have_no_room_are_missed_in_the_title():
    for T in (80, 81):
        columns = [str(number) for number in range(T)]
        values = torch.ones(2, T)
        figure = figures.draw_words(values, columns, ["x"] * 2 * T, "the top token", "share", 1)
        is_written = bool(figure.axes[0].texts)
        assert is_written == (T <= 80)
        assert ("more than 80 positions" in figure.axes[0].get_title()) != is_written


def test_what_gives_a_number_for_each_head_or_position_has_a_picture(tmp_path):
    model = GPT.from_pretrained("names")
    answers = (" Jones", " Smith")
    lost = ablate_heads(model, CLEAN, answers=answers)
    paths = path_patching(model, CLEAN, CORRUPTED, None, "5.2.v", *answers)
    estimates = attribution_patching(model, CLEAN, CORRUPTED, *answers, sites=["resid_post", "z"])
    tokens = model.tokenizer.tokens(model.tokenizer.encode(CORRUPTED))
    for values, names, shape, label in (
        (lost, None, (12, 4), "head"),
        (paths, None, (12, 4), "head"),
        (estimates["resid_post"], tokens, (12, 11), "position and token"),
        (estimates["z"], tokens, (48, 11), "position and token"),
    ):
        figure = figures.plot_effects(values, names, "a title", path=tmp_path / "a.png")
        axes, bar = figure.axes
        shown = torch.as_tensor(axes.images[0].get_array())
        assert shown.shape == shape and shown.equal(values.double().view(shape))
        assert axes.get_xlabel() == label and axes.get_title() == "a title"
        assert bar.get_ylabel() == "effect (logits)"
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    with pytest.raises(ValueError, match=r"got \(12, 4\), and 11 tokens"):
        figures.plot_effects(lost, tokens)
    with pytest.raises(ValueError, match="got dict"):
        figures.plot_effects(estimates, tokens)
    with pytest.raises(ValueError, match=r"got \(12, 4, 11\), and no tokens"):
        figures.plot_effects(estimates["z"])


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("failing", ["a.png", "a.csv"])
def test_picture_and_table_are_written_both_or_neither(tmp_path, monkeypatch, failing, is_new):
    old = {} if is_new else {"a.png": b"old picture", "a.csv": b"old table"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    replace = os.replace

    def fail_for_one(source, target):
        if target.name == failing:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_one)
    with pytest.raises(ValueError, match=f"{failing}: Permission denied"):
        figures.save_heatmap(torch.ones(2, 2), ["a", "b"], "t", "q", tmp_path / "a.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_the_quantity_of_a_picture_of_one_row_is_not_cut_off():
    quantity = "logit(' Smith') - logit(' Jones'), positive: the corrupted answer is ahead"
    figure = figures.draw_heatmap(torch.ones(1, 11), range(11), "a title", quantity)
    figure.canvas.draw()
    label = figure.axes[1].yaxis.label
    extent = label.get_window_extent()
    assert label.get_text().split() == quantity.split()
    assert figure.bbox.y0 <= extent.y0 and extent.y1 <= figure.bbox.y1
