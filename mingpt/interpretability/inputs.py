"""What do the texts, ids and answers that a user gives mean to this model? Ids, or an error that says what to do."""

import torch

from mingpt.model import plain


def encode(model, inputs, name="input"):
    """Ids (B,T) on the model's device of a text, a list of texts of equal token length, or ids (B,T)."""
    if isinstance(inputs, torch.Tensor):
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise ValueError(f"ids must be whole numbers (B, T), got {tuple(inputs.shape)} of {inputs.dtype}")
        ids = inputs.long()
    else:
        if model.tokenizer is None:
            raise ValueError("this model has no tokenizer; give ids (B, T) instead of texts")
        rows = [model.tokenizer.encode(text) for text in ([inputs] if isinstance(inputs, str) else inputs)]
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"the texts must have equally many tokens, got {[len(row) for row in rows]}")
        ids = torch.tensor(rows, dtype=torch.long).view(len(rows), -1)
    if not len(ids):
        raise ValueError(f"the {name} is empty; give at least one text")
    if not 0 < ids.size(1) <= model.block_size:
        raise ValueError(f"the {name} text has {ids.size(1)} tokens; this model takes 1 to {model.block_size}")
    return ids.to(model.lm_head.weight.device)


def tokens(model, ids):
    """The texts of ids (T,), a list: without a tokenizer the numbers; <60> for one that is no token of its own."""
    if model.tokenizer is None:
        return [str(i) for i in ids.tolist()]
    known = model.tokenizer.encoder.tokens  # the output matrix may have more rows
    if all(i in known for i in ids.tolist()):
        return model.tokenizer.tokens(ids)
    return [model.tokenizer.tokens([i])[0] if i in known else f"<{i}>" for i in ids.tolist()]


def encode_pair(model, clean_input, corrupted_input):
    """(clean ids (B,T), corrupted ids (B,T)); ValueError if they cannot be compared token by token."""
    clean, corrupted = encode(model, clean_input, "clean"), encode(model, corrupted_input, "corrupted")
    if clean.shape != corrupted.shape:
        raise ValueError(_unequal(model, clean, corrupted))
    same = (clean == corrupted).all(1)
    if same.any():
        raise ValueError(f"clean and corrupted text {same.nonzero()[0].item()} are the same; change a token of one")
    return clean, corrupted


def _unequal(model, clean, corrupted):
    message = f"clean and corrupted must have equally many tokens, got {clean.size(1)} and {corrupted.size(1)}"
    if model.tokenizer is None or len(clean) != 1 or len(corrupted) != 1:
        return f"{message} in {len(clean)} and {len(corrupted)} inputs"
    shown = ["|".join(model.tokenizer.tokens(ids[0])) for ids in (clean, corrupted)]
    shared = min(clean.size(1), corrupted.size(1))
    differ = (clean[0, :shared] != corrupted[0, :shared]).nonzero()
    return (
        f"{message}:\n  clean     {shown[0]}\n  corrupted {shown[1]}\n"
        f"first difference at position {differ[0].item() if len(differ) else shared}; "
        "choose a replacement of the same length"
    )


def answer_ids(model, answer, ids, other_ids, name):
    """The answer's token id for each input, (B,): an id, a text that is one token, or a list of B of them; or None.

    None or "": the token in which the input ids (B,T) differs from other_ids, if there is exactly one.
    """
    if answer is None or (isinstance(answer, str) and not answer):
        differ = ids != other_ids
        if (differ.sum(1) != 1).any():
            where = differ.any(0).nonzero()[:, 0].tolist()
            raise ValueError(f"the texts differ at positions {where}, not at one; name the {name} answer")
        return ids[differ]
    several = isinstance(answer, (list, tuple)) or (isinstance(answer, torch.Tensor) and answer.ndim)
    answers = list(answer) if several else [answer] * len(ids)
    if len(answers) != len(ids):
        raise ValueError(f"give one {name} answer, or one for each of the {len(ids)} inputs; got {len(answers)}")
    return torch.tensor([_answer_id(model, each, name) for each in answers], device=ids.device)


def answer_pair(model, clean, corrupted, right, wrong):
    """answer_ids of the clean and of the corrupted answer, 2 x (B,); ValueError where they are the same."""
    answers = (
        answer_ids(model, right, clean, corrupted, "clean"),
        answer_ids(model, wrong, corrupted, clean, "corrupted"),
    )
    if (same := answers[0] == answers[1]).any():
        raise ValueError(f"both answers are {tokens(model, answers[0][same])[0]!r}; they must be two different tokens")
    return answers


def _answer_id(model, answer, name):
    if not isinstance(answer, str):
        if type(plain(answer)) is not int or not 0 <= plain(answer) < model.config.vocab_size:
            raise ValueError(f"the {name} answer {answer} is no token; the ids are 0 to {model.config.vocab_size - 1}")
        return plain(answer)
    tokens = encode(model, answer)[0].tolist()
    if len(tokens) == 1:
        return tokens[0]
    shown = "|".join(model.tokenizer.tokens(tokens))
    raise ValueError(
        f"the {name} answer {answer!r} is {len(tokens)} tokens ({shown}); it must be one: mind the leading space"
    )


def check_mode(model):
    if model.training:
        raise ValueError("the model is in training mode, where dropout is noise; call model.eval() first")
    check_mps(model.lm_head.weight.device)


def check_device(name):
    """ValueError where nothing can be computed on this device, or not rightly."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"no device {name!r} can be used here ({why}); give cpu, or leave the device out") from error
    check_mps(name)


def check_mps(device):
    """ValueError on the PyTorch whose linear layers are silently wrong on Apple's GPU (pytorch issue 161640)."""
    if torch.device(device).type == "mps" and torch.__version__.startswith("2.8."):
        raise ValueError("PyTorch 2.8 computes linear layers wrongly on mps; install another version, or use the cpu")
