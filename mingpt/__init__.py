"""A minimal GPT-2 in which every activation can be seen and replaced. Start at mingpt.model.GPT."""
