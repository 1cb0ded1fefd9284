"""What do the notebooks print and draw now? Run each from a clean kernel, and store its outputs.

    python -m experiments.run_notebooks [FILES]

The notebooks are written by hand, in Jupyter; their outputs are stored by this command alone, so
that they differ only where the text, the code or a result does: without times, counters of cells
and progress bars. An unchanged notebook stays the same, byte for byte. It needs nbclient
and ipykernel, of tests/requirements.txt.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image  # matplotlib needs it too
from PIL.PngImagePlugin import PngInfo

from mingpt.common import atomic_write, command_parser, run_command

HERE = Path(__file__).parent
SECONDS = 120  # for a cell; one that needs more is too slow to be read along
MAX_WIDTH = 1000  # of a picture, in pixels: what a page shows in full
MAX_BYTES = 60_000  # of a picture; git keeps each version of it
MAX_COLOURS = 256  # in a stored picture, a quarter of the bytes of one with any colours
BAR = re.compile(r".*\d%\|.*\|.*\[.*\]")  # of tqdm, where there are no widgets
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def read_notebook(path):
    """The notebook of a file; ValueError if it cannot be read as one."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # of many types, for what is not JSON or has another shape
        raise ValueError(f"{path} cannot be read as a notebook: {error}; give an .ipynb") from error


def run_notebook(notebook):
    """Run all cells in a kernel of their own, and put what they say into the notebook.

    Their current folder is a new one, which is deleted; they cannot reach the hub. ValueError if a
    cell raises an error or says what cannot be stored.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, CellExecutionError

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
            store_widget_state=False,
            extra_arguments=["--log-level=ERROR"],  # it warns of its own sockets
        )
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellControlSignal) as error:
            raise ValueError(f"the notebook does not run to its end: {error}") from error
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [kept for output in cell.outputs if (kept := clean_output(output))]


def clean_output(output):
    """The output as it is stored; None for a progress bar, which shows how long a run took."""
    if output.output_type == "stream":
        if output.name == "stdout":
            return output
        complaint = BAR.sub("", output.text).strip()
        if complaint:
            raise ValueError(f"a cell writes to stderr: {complaint}; mend what it is")
        return None
    if "application/vnd.jupyter.widget-view+json" in output.data:
        return None
    kinds = ("text/plain", "image/png")
    output.data = {kind: output.data[kind] for kind in kinds if kind in output.data}
    output.metadata = {}
    if "execution_count" in output:
        output.execution_count = None
    if "image/png" in output.data:
        output.data["image/png"] = clean_picture(output.data["image/png"])
    return output


def decode_picture(encoded):
    """The Image, in RGB, of a notebook's image/png; .info["Software"] is what drew it."""
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def clean_picture(encoded):
    """The image/png in few colours, with the version of matplotlib that drew it.

    Another version places letters a little otherwise: the test must know how closely to look.
    ValueError if the picture is too large to be stored.
    """
    picture = decode_picture(encoded)
    drawn_by = PngInfo()
    drawn_by.add_text("Software", picture.info.get("Software", ""))
    file = io.BytesIO()
    stored = picture.quantize(MAX_COLOURS, dither=Image.Dither.NONE)
    stored.save(file, "png", optimize=True, pnginfo=drawn_by)
    size = len(file.getvalue())
    if picture.width > MAX_WIDTH or size > MAX_BYTES:
        raise ValueError(
            f"a picture of {picture.width} pixels' width and {size:,} bytes is too large; draw "
            f"less in it, for {MAX_WIDTH} pixels and {MAX_BYTES:,} bytes at most"
        )
    return base64.b64encode(file.getvalue()).decode()


def run_files(options):
    """Run and store the notebooks that the command names."""
    import nbformat

    for path in options.files or sorted(HERE.glob("*.ipynb")):
        notebook = read_notebook(path)
        try:
            run_notebook(notebook)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        with atomic_write(path) as temporary:
            nbformat.write(notebook, temporary)
        print(path)


def main():
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="without any: all of experiments/")
    return run_command(run_files, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
