"""A minimal GPT-2 in which every activation can be seen and replaced.

Start at mingpt.model.GPT; what can be asked of a model is in mingpt.interpretability.
"""

__version__ = "0.2.0"  # pyproject.toml takes it from here
