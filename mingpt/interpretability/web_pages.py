"""Pages to look around in: a file each, which needs no network and shows itself in a notebook.

`pages/<name>.html` is a page as it is written, with a mark where its data comes, and a mark such as
/* heatmap.js */ for each file of pages/ that it shares with other pages and with the explorer. No
page has an id or a global name, so that several can stand in one document.
"""

import base64
import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingpt.common import AnyPath, atomic_write
from mingpt.interpretability.figures import check_output, visible_text

FOLDER = Path(__file__).with_name("pages")


@dataclass
class Page:
    """A page on disk; as the last line of a notebook's cell it is shown there."""

    path: Path

    def _repr_html_(self):
        # In a frame of its own, where the notebook's style does not reach it.
        text = html.escape(self.path.read_text(encoding="utf-8"))
        style = "width: 100%; height: 720px; border: 0"
        return f'<iframe title="A page" style="{style}" srcdoc="{text}"></iframe>'


def save_page(name: str, data: dict[str, Any], path: AnyPath) -> Page:
    """Write `pages/<name>.html` with data, as JSON, in the place of DATA -> Page.

    Tensors in the data become lists of numbers with six decimals, more than any page shows.
    """
    check_output(path, (".html",))
    text = json.dumps(data, allow_nan=False, default=_round, separators=(",", ":"))
    # Escaped, so that no text in the data can end the script element or begin another.
    text = text.replace("<", r"\u003c")
    page = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    page = re.sub(r"^/\* (\w+\.(?:css|js)) \*/$", _shared, page, flags=re.MULTILINE)
    # Last, so that no mark is looked for in the data.
    page = page.replace('"DATA"', text, 1)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Page(Path(path))


def _shared(mark):
    """The file that a mark names; a module without imports and exports, as one scope holds all."""
    text = (FOLDER / mark[1]).read_text(encoding="utf-8").rstrip("\n")
    return re.sub(r"^(import .*\n|export )", "", text, flags=re.MULTILINE)


def _round(tensor):
    return tensor.cpu().double().round(decimals=6).tolist()


def page_texts(tokens: Iterable[str]) -> list[str]:
    """The tokens as pages show them: as visible_text, and with '␣' for a space."""
    return [visible_text(token).replace(" ", "␣") for token in tokens]


def pack_patterns(patterns: Tensor) -> str:
    """Attention patterns (...,T,T) as base64 of 16-bit thousandths, without the keys to come.

    A row after the other, as the page reads them: 1, 2, ... T weights.
    """
    T = patterns.size(-1)
    rows, columns = torch.tril_indices(T, T)
    thousandths = (1000 * patterns[..., rows, columns]).round()
    return base64.b64encode(thousandths.numpy().astype("<u2").tobytes()).decode()
