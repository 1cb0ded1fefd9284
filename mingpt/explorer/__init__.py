"""A page to explore two texts in: `python -m mingpt.explorer` serves it on this machine."""
