"""README's ten lines with the package that is installed; exit status 1 if they print otherwise.

    python PATH/TO/.ci/ten_lines.py

Python looks for modules beside this script, where none are, and not in the current folder.
"""

import contextlib
import io
import platform
import re
import sys
from pathlib import Path

import numpy
import torch

import mingpt

README = Path(__file__).parent.parent / "README.md"
EXAMPLE = r"## Ten lines of your own\n\n```python\n(.*?)```\n\nprints\n\n```\n(.*?)```"

code, expected = re.search(EXAMPLE, README.read_text(encoding="utf-8"), re.S).groups()
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    exec(code, {})
print(f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}")
print(f"mingpt {mingpt.__version__} of {Path(mingpt.__file__).parent}")
print(printed.getvalue(), end="")
if printed.getvalue() != expected:
    sys.exit(f"README says:\n{expected}")
