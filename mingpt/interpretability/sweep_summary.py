"""What many pairs say together: mean, standard error and n of each cell.

Positions of different texts do not line up. With roles, a cell's place is the role that its token
plays, and a role of several tokens counts as their mean. Without roles it is the position, where
all texts have equally many tokens; else there are two: the distance from the end, and the distance
from the first token in which the pair differs.
An average over different texts says what is common to them. A cell with a small mean may be
decisive in some pairs, in one direction or in both; a large mean does not say that each pair has
it. The standard error is of the pairs as a sample of texts like these, not of other texts.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

Place = int | str  # a role, or a number
Places = dict[str, dict[Place, list[int]]]  # {kind of place: {place: positions}}


@dataclass
class Running:
    """Mean and standard error of values that come one by one. Source: Welford 1962."""

    n: int = 0
    mean: Tensor = torch.zeros((), dtype=torch.float64)
    squares: Tensor = torch.zeros((), dtype=torch.float64)  # sum, of distances from the mean

    def add(self, value: Tensor) -> None:
        self.n += 1
        distance = value - self.mean
        self.mean = self.mean + distance / self.n
        self.squares = self.squares + distance * (value - self.mean)

    @property
    def error(self) -> Tensor:
        """The standard error of the mean; NaN for a single value."""
        if self.n < 2:
            return self.mean * torch.nan
        return (self.squares / (self.n - 1) / self.n) ** 0.5


@dataclass
class SiteSummary:
    """The cells of one site, over the pairs that have been added."""

    site: str
    # {kind of place: {place: Running of (L,) or (L,H)}}
    by_place: dict[str, dict[Place, Running]] = field(default_factory=dict)

    def add(self, values: Tensor, places: Places) -> None:
        """Add a pair's cells: values (L,T) or (L,H,T); places {kind: {place: positions}}."""
        for kind, positions_of in places.items():
            running = self.by_place.setdefault(kind, {})
            for place, positions in positions_of.items():
                value = values[..., positions].double().mean(-1)
                running.setdefault(place, Running()).add(value)

    def table(self, kind: str, least: float = 1) -> tuple[list[Place], Tensor, Tensor]:
        """(places, mean, error): the two (L,K) or (L,H,K), in the order of the text.

        Of the places that at least so many pairs have.
        """
        running = {place: cells for place, cells in self.by_place[kind].items() if cells.n >= least}
        # Roles stay in the order in which they came, numbers are sorted.
        places = sorted(running, key=lambda place: place if type(place) is int else 0)
        mean = torch.stack([running[place].mean for place in places], -1)
        error = torch.stack([running[place].error for place in places], -1)
        return places, mean, error

    def rows(self) -> Iterator[tuple[Place | float, ...]]:
        """Yield (kind, place, layer, head or "", mean, standard error, n) of every cell."""
        for kind, running in self.by_place.items():
            places, mean, error = self.table(kind)
            for cell in torch.cartesian_prod(*map(torch.arange, mean.shape)).tolist():
                layer, *head, k = cell
                numbers = mean[tuple(cell)].item(), error[tuple(cell)].item()
                yield kind, places[k], layer, *(head or [""]), *numbers, running[places[k]].n


def places_of(roles: Mapping[str, Iterable[int]], T: int, first: int, same_length: bool) -> Places:
    """{kind of place: {place: [positions]}} of one pair of T tokens.

    roles: {role: positions}. first: the first differing position. same_length: all pairs have T
    tokens.
    """
    if roles:
        return {"role": {role: list(positions) for role, positions in roles.items()}}
    positions = range(T)
    if same_length:
        return {"position": {p: [p] for p in positions}}
    return {
        "from the end": {p - T: [p] for p in positions},
        "from the difference": {p - first: [p] for p in positions},
    }


def write_table(summaries: Iterable[SiteSummary], path: Path) -> None:
    """Write all cells of the SiteSummaries as CSV, a line for each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["site", "kind", "place", "layer", "head", "mean", "standard_error", "n"])
        for summary in summaries:
            for row in summary.rows():
                writer.writerow([summary.site, *row])
