"""A minimal GPT-2 in which every activation can be seen and replaced. Start at mingpt.model.GPT."""

__version__ = "0.2.0"  # pyproject.toml takes it from here
