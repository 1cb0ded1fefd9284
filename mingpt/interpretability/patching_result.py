"""What do the patched runs of a sweep say at the last token, by which measure?

The logit difference is the published one, logit(corrupted answer) - logit(clean answer). Beside it:
normalized, probability, log-probability, and KL divergence from the clean run. Sources:
Heimersheim & Nanda 2024 (arXiv 2404.15255), Zhang & Nanda 2023 (arXiv 2309.16042).
"""

from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mingpt.common import AnyPath, atomic_write
from mingpt.interpretability import figures, results
from mingpt.interpretability.inputs import token_texts
from mingpt.interpretability.readout import answer_direction
from mingpt.interpretability.reports import name_model
from mingpt.model import GPT
from mingpt.sites import SITES_WITH_HEADS

if TYPE_CHECKING:  # matplotlib and pandas are imported where they are needed
    from pandas import DataFrame

    from mingpt.interpretability.notebook_figure import Figure

# Of the output matrix, by which a change of it is known.
COLUMNS = 64
# What each measure is called on a picture, and how it is coloured.
MEASURES = {
    "logit_diff": ("", figures.Scale()),  # named by its answers
    "normalized": (
        "share restored: 0 as in the corrupted run, 1 as in the clean run",
        figures.Scale("RdBu"),
    ),
    "probability": ("probability of the clean answer", figures.Scale("Blues", 0, 1, 1)),
    "log_prob": ("log-probability of the clean answer (nats)", figures.Scale("Blues", -1, 0)),
    "kl": ("KL(clean run || patched run), nats", figures.Scale("Reds", 0, 1)),
}


@dataclass(repr=False)
class PatchingResult:
    """What the patched runs of patch_layers say at the last token.

    Measures are worked out when they are read, from the final residual vectors and the two rows of
    the output matrix that are kept here: what happens to the model later changes nothing.
    probability, log_prob and kl need the whole matrix, which is the model's own: ValueError if its
    weights have changed in place, or if the result was unpickled or copied, which leaves it behind.
    Shapes: "cells" is (L,T); (L,H,T) at sites with heads; (L,) or (L,H) where whole sequences were
    patched; and with a B before it where B pairs were given. clean and corrupted, the unpatched
    runs, are () or (B,).
    """

    model: InitVar[GPT]
    # "patched" (B,cells,C), "clean" and "corrupted" (B,C): after the final norm.
    vectors: dict[str, Tensor]
    answers: Tensor  # (B,2): the clean, the corrupted answer
    tokens: list[str]  # the corrupted input's, as texts; of the first pair
    texts: dict[str, str]  # "clean" and "corrupted", of the first pair
    site: str
    direction: str  # denoise or noise
    single: bool  # one pair was given, not a list of pairs

    def __post_init__(self, model: GPT) -> None:
        self.model_name = name_model(model)
        self.direction_of_answers = answer_direction(model, *self.answers.T)  # (B,C)
        self.answer_texts: list[str] | None = None
        if model.tokenizer is not None:
            self.answer_texts = token_texts(model, self.answers[0])  # of the first pair
        self._matrix = model.lm_head.weight.detach()  # (V,C), no copy
        self._version = self._count_changes()
        self._fingerprint = self._read_columns()

    def __getstate__(self):
        return vars(self) | {"_matrix": None}

    @property
    def logit_diff(self) -> Tensor:
        """cells: logit(corrupted answer) - logit(clean answer), in logits.

        Positive = the corrupted answer is ahead.
        """
        return self._logit_diff("patched")

    @property
    def clean(self) -> Tensor:
        """The logit difference of the unpatched clean run."""
        return self._logit_diff("clean")

    @property
    def corrupted(self) -> Tensor:
        """The logit difference of the unpatched corrupted run."""
        return self._logit_diff("corrupted")

    @property
    def normalized(self) -> Tensor:
        """cells: (patched - corrupted) / (clean - corrupted) of the logit differences.

        0 = as in the corrupted run, 1 = as in the clean run. ValueError if these are the same.
        """
        whole = self.clean - self.corrupted
        if (whole == 0).any():
            raise ValueError(
                "the clean and the corrupted run have the same logit difference, so there is "
                "nothing of which a patch could restore a share; read logit_diff instead"
            )
        # B goes last, where the B unpatched runs broadcast to all cells; one pair has no B.
        restored = self.logit_diff.movedim(0, -1) - self.corrupted
        return (restored / whole).movedim(-1, 0)

    @property
    def log_prob(self) -> Tensor:
        """cells: log-probability of the clean answer, in nats."""
        return self._log_prob("patched")

    @property
    def probability(self) -> Tensor:
        """cells: probability of the clean answer."""
        return self.log_prob.exp()

    @property
    def kl(self) -> Tensor:
        """cells: KL(unpatched clean run || patched run) of the next token, in nats, >= 0."""
        return self._kl("patched")

    def mean(self, measure: str = "logit_diff") -> Tensor:
        """A measure, averaged over the pairs: cells without B."""
        if measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
        values: Tensor = getattr(self, measure)
        return values if self.single else values.mean(0)

    def plot(self, path: AnyPath | None = None, measure: str = "logit_diff") -> "Figure":
        """The matplotlib Figure of the mean of a measure; path (.png, .svg, .pdf): written there.

        The unpatched runs are marked on the colour bar. Blue is towards the clean answer. In
        "normalized" what does nothing is white, which suits long texts.
        """
        values, rows, columns, xlabel = self._table(measure)
        quantity = self.describe(measure)
        _, scale = MEASURES[measure]
        figure = figures.draw_heatmap(
            values, columns, self.title(), quantity, rows, xlabel, scale, self.unpatched(measure)
        )
        return figures.shown(figure, path)

    _repr_png_ = results.picture

    def to_csv(self, path: AnyPath, measure: str = "logit_diff") -> None:
        """Write the mean of a measure: a header, then a row per layer (and head), in full."""
        values, rows, columns, _ = self._table(measure)
        with atomic_write(path) as temporary:
            figures.save_csv(values, columns, temporary, rows)

    def to_dataframe(self, *measures: str) -> "DataFrame":
        """The pandas DataFrame of the mean of measures, logit_diff if none: a row per cell.

        Columns: layer (head), position and token, and the measures.
        """
        means = {measure: self.mean(measure) for measure in measures or ["logit_diff"]}
        shape = next(iter(means.values())).shape
        axes = ["layer", "head"] if self.site in SITES_WITH_HEADS else ["layer"]
        columns = results.places(shape, *axes, "position")
        if "position" in columns:
            columns["token"] = [self.tokens[position] for position in columns["position"]]
        columns |= {measure: values.flatten().tolist() for measure, values in means.items()}
        return results.data_frame(columns)

    @property
    def quantity(self) -> str:
        """What logit_diff is, in words."""
        if len(self.answers) > 1 or self.answer_texts is None:
            return "logit(corrupted answer) - logit(clean answer)"
        clean, corrupted = self.answer_texts
        return f"logit({corrupted!r}) - logit({clean!r})"

    def describe(self, measure: str) -> str:
        """What a measure is, in words, with its unit or sign."""
        if measure == "logit_diff":
            return f"{self.quantity}, positive: the corrupted answer is ahead"
        return MEASURES[measure][0]

    def unpatched(self, measure: str = "logit_diff") -> dict[str, float]:
        """{"clean": the measure of the unpatched clean run, "corrupted": ...}, mean over pairs."""
        if measure == "normalized":
            return {"clean": 1, "corrupted": 0}
        read = {"logit_diff": self._logit_diff, "kl": self._kl}.get(measure, self._log_prob)
        values = {name: read(name) for name in ("clean", "corrupted")}
        if measure == "probability":
            values = {name: value.exp() for name, value in values.items()}
        return {name: value.mean().item() for name, value in values.items()}

    def __repr__(self):
        shape = "x".join(map(str, self.logit_diff.shape))
        ends = f"clean {self.clean.mean():.2f}, corrupted {self.corrupted.mean():.2f}"
        return f"PatchingResult({self.site}, {self.direction}, {shape} cells, {ends})"

    def _table(self, measure):
        """What figures.as_table makes of the measure's mean."""
        values = self.mean(measure)
        has_positions = values.ndim - (self.site in SITES_WITH_HEADS) > 1
        return figures.as_table(values, self.tokens if has_positions else None)

    def title(self) -> str:
        """The texts, the model, and what is put into which run."""
        lines = [f"{name}: {figures.quote(text)}" for name, text in self.texts.items()]
        what = f"clean {self.site} put into the corrupted run"
        if self.direction == "noise":
            what = f"corrupted {self.site} put into the clean run"
        if not self.single:
            what += f"; mean over {len(self.answers)} pairs, of which this is the first"
        lines.append(f"{self.model_name}: {what}")
        return "\n".join(lines)

    def _logit_diff(self, name):
        """(B,cells): corrupted - clean answer; of one pair cells."""

        def difference(vectors, pair):
            direction = self.direction_of_answers[pair]  # (C,)
            return -(vectors * direction).sum(-1)  # the published sign

        return self._read(name, difference)

    def _log_prob(self, name):
        """(B,cells): log-probability of the clean answer; of one pair cells."""
        matrix = self._unchanged_matrix()

        def of_clean_answer(vectors, pair):
            log_probs = (vectors.to(matrix) @ matrix.mT).log_softmax(-1)  # (n,V)
            return log_probs[..., self.answers[pair, 0]]

        return self._read(name, of_clean_answer)

    def _kl(self, name):
        """(B,cells): KL(unpatched clean run || the runs of that name); of one pair cells."""
        matrix = self._unchanged_matrix()

        def divergence(vectors, pair):
            clean = (self.vectors["clean"][pair].to(matrix) @ matrix.mT).log_softmax(-1)  # (V,)
            patched = (vectors.to(matrix) @ matrix.mT).log_softmax(-1)  # (n,V)
            kl = (clean.exp() * (clean - patched)).sum(-1)
            return kl.clamp_min(0)  # rounding may take it below

        return self._read(name, divergence)

    def _count_changes(self):
        """How often the matrix was changed in place; None where PyTorch does not count."""
        return None if self._matrix.is_inference() else self._matrix._version

    def _read_columns(self):
        """(V,): a product with the matrix's first columns. It tells of changes through .data.

        Some columns are enough for a change of whole rows, and to read all of them would take a
        good part of a short sweep's time.
        """
        columns = self._matrix[:, :COLUMNS].to(torch.float32)
        return columns @ self.vectors["clean"][0, :COLUMNS].to(columns)

    def _wide_matrix(self):
        """The output matrix (V,C) in fp32 or wider: bf16 rounds logits near -100 to halves."""
        wide = torch.promote_types(self._matrix.dtype, torch.float32)
        return self._matrix.to(wide)

    def _unchanged_matrix(self):
        """_wide_matrix(); ValueError if there is no matrix, or it is not what it was."""
        if self._matrix is None:
            raise ValueError(
                "a result that was unpickled or copied is without the output matrix, which "
                "probability, log_prob and kl need; read them before, or run patch_layers again"
            )
        largest = self._fingerprint.abs().max()
        # Another number of threads may round in another order.
        is_same = (self._read_columns() - self._fingerprint).abs().max() <= 1e-5 * largest
        if not is_same or self._count_changes() != self._version:
            raise ValueError(
                "the model's output matrix has changed since the runs; probability, log_prob and "
                "kl would be of two different models: run patch_layers again"
            )
        return self._wide_matrix()

    @torch.no_grad()
    def _read(self, name, measure):
        """(B,cells): a measure of all the vectors of that name; of one pair cells.

        measure: f(vectors (n,C), number of the pair) -> (n,).
        """
        values = []
        for pair, vectors in enumerate(self.vectors[name]):  # (cells,C), or (C,)
            # A few at a time: a measure may need the logits of the whole vocabulary.
            chunks = vectors.reshape(-1, vectors.size(-1)).split(512)
            measured = torch.cat([measure(chunk, pair) for chunk in chunks])
            values.append(measured.view(vectors.shape[:-1]))
        return values[0] if self.single else torch.stack(values)
