"""Where is the information that decides the answer?

Two texts that differ in one token are run; a piece of the clean run's activations is put into the corrupted run, and
the logit difference at the last position is read again. A cell that moves it towards the clean run's value carries
information that the answer depends on. It does not show that the model needs this cell in other texts, nor that it
is the only way: what is restored here may be carried elsewhere as well.
Sources: Meng et al. 2022 (arXiv 2202.05262), Heimersheim & Nanda 2024 (arXiv 2404.15255).
"""

import torch
from tqdm import tqdm


def encode_pair(tokenizer, clean, corrupted, block_size):
    """(clean ids (1,T), corrupted ids (1,T), positions that differ); ValueError if the texts cannot be compared."""
    pair = []
    for name, text in (("clean", clean), ("corrupted", corrupted)):
        if not text:
            raise ValueError(f"the {name} text is empty; give it at least one token")
        pair.append(tokenizer.encode(text))
        if len(pair[-1]) > block_size:
            raise ValueError(f"the {name} text has {len(pair[-1])} tokens; this model takes at most {block_size}")
    differing = [position for position, (one, other) in enumerate(zip(*pair)) if one != other]
    if len(pair[0]) != len(pair[1]):
        first = differing[0] if differing else min(map(len, pair))
        shown = ["|".join(tokenizer.tokens(ids)) for ids in pair]
        raise ValueError(
            f"clean and corrupted must have equally many tokens, got {len(pair[0])} and {len(pair[1])}:\n"
            f"  clean     {shown[0]}\n  corrupted {shown[1]}\n"
            f"first difference at position {first}; choose a replacement of the same length"
        )
    if not differing:
        raise ValueError(f"clean and corrupted are the same text, {clean!r}; change one token of the corrupted one")
    return torch.tensor([pair[0]]), torch.tensor([pair[1]]), differing


def answer_id(tokenizer, answer, ids, differing, name):
    """The id of the answer, taken literally; of the differing token of ids (1,T) if the answer is empty."""
    if answer:
        tokens = tokenizer.encode(answer)
        if len(tokens) == 1:
            return tokens[0]
        shown = "|".join(tokenizer.tokens(tokens))
        raise ValueError(
            f"the {name} answer {answer!r} is {len(tokens)} tokens ({shown}); it must be one: mind the leading space"
        )
    if len(differing) > 1:
        raise ValueError(
            f"the texts differ at positions {differing}; name the {name} answer, or let them differ in one token"
        )
    return ids[0, differing[0]].item()


def logit_difference(model, clean_answer, corrupted_answer):
    """logit(corrupted answer) - logit(clean answer) at the last position of the model's last run, a float."""
    logits = model.last_token_logits[0]
    return (logits[corrupted_answer] - logits[clean_answer]).item()


@torch.no_grad()
def patch_loop(model, clean, corrupted, clean_answer, corrupted_answer):
    """Logit difference of the corrupted run with the clean residual stream after block l at position p: (L,T), logits.

    clean, corrupted: ids (1,T); answers: token ids. difference = logit(corrupted answer) - logit(clean answer), so
    lower than the corrupted run's own value = towards the clean run. This loop is the definition of the result.
    Cost: 1 + L*T passes.
    """
    model(clean, store_activations=True)
    clean_residual = model.layer_activations  # {layer: (1,T,C)}
    L, T = len(clean_residual), clean.size(1)
    differences = torch.empty(L, T, dtype=torch.float64)
    with tqdm(total=L * T, desc="patching", unit="run", disable=None) as progress:
        for layer in range(L):
            for position in range(T):
                model(corrupted, patch_params=(layer, position, clean_residual[layer][:, position]))
                differences[layer, position] = logit_difference(model, clean_answer, corrupted_answer)
                progress.update()
    return differences
