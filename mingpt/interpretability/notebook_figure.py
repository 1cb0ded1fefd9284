"""A matplotlib Figure that a notebook shows, drawn alike whatever the user's settings are.

It is none of pyplot's figures, which notebooks show at the end of a cell whether asked or not: so
it is shown once, and nothing has to close it. Importing this module imports matplotlib, so it is
imported only where something is drawn.
"""

import io
import sys

import matplotlib
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure as PlainFigure
from matplotlib.text import Text

LONGEST = 2000  # pixels of a side in a notebook, which is kept with its pictures


class Figure(PlainFigure):
    """A Figure that shows itself as the last line of a notebook's cell."""

    def _repr_png_(self):
        """The picture, as notebooks ask for it."""
        dpi = min(self.dpi, LONGEST / max(self.get_size_inches()))
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=dpi)
        return file.getvalue()

    def show(self, warn: bool = True) -> None:
        """Show it in the notebook; ValueError where none runs. warn: as matplotlib's, unused."""
        ipython = sys.modules.get("IPython")
        shell = ipython and ipython.get_ipython()
        # In a terminal IPython shows text alone.
        if not shell or "image/png" not in shell.display_formatter.active_types:
            raise ValueError(
                "no notebook runs here that could show the figure; write it to a file: "
                'figure.savefig("figure.png")'
            )
        from IPython.display import display

        display(self)

    def draw(self, renderer: RendererBase) -> None:
        """Draw without LaTeX: it need not be there, and would read our texts as its commands."""
        for text in self.findobj(Text):
            text.set_usetex(False)
        # Some labels of ticks are made only while it is drawn.
        with matplotlib.rc_context({"text.usetex": False}):
            super().draw(renderer)
