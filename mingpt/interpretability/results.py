"""What results have in common: a picture in a notebook, a summary in words, a table for pandas."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:  # pandas need not be there
    from pandas import DataFrame


def picture(result: Any) -> bytes | None:
    """The PNG of result.plot(), which a notebook asks for as _repr_png_.

    None where it cannot be drawn: the notebook then shows the text, and stderr says why.
    """
    try:
        png: bytes = result.plot()._repr_png_()
        return png
    except ValueError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return None


def summary(result: Any) -> str:
    """The repr of a result of many numbers: a line for each field."""
    lines = [f"{type(result).__name__}:"]
    for field in fields(result):
        lines.append(f"  {field.name:<24}{_in_words(getattr(result, field.name))}")
    return "\n".join(lines)


def _in_words(value):
    """A tensor's shape, mean and range; a dict's keys; all else as it is printed."""
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    if not isinstance(value, Tensor) or not value.numel():
        return str(value)
    numbers = value.double()
    least, most = numbers.aminmax()
    shape = "x".join(map(str, value.shape))
    return f"{shape:<10}mean {numbers.mean():.3g}, from {least:.3g} to {most:.3g}"


def places(shape: Sequence[int], *axes: str) -> dict[str, list[Any]]:
    """{name of an axis: indices}: columns of a table with a row for each cell of the shape."""
    index = torch.arange(prod(shape))
    return dict(zip(axes, map(Tensor.tolist, torch.unravel_index(index, tuple(shape)))))


def data_frame(
    rows: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]],
    columns: Sequence[str] | None = None,
) -> "DataFrame":
    """The pandas DataFrame of {column: values}, or of rows with these columns.

    ValueError where pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise ValueError("a table needs pandas; install it: pip install pandas") from error
    return DataFrame(rows, columns=columns)
