"""What does a run say at its end? A logit difference, or a loss, from the final residual stream.

There is one sign inside: logit(clean answer) - logit(corrupted answer), positive = the clean answer
is ahead. Functions with the published sign, which is the other one, turn it where they return.
"""

import torch
from torch import Tensor

from mingpt.model import GPT


def wide_dtype(model: GPT) -> torch.dtype:
    """The dtype in which differences are taken: in bf16 they would keep two digits."""
    own = model.lm_head.weight.dtype
    return torch.promote_types(own, torch.float32)


def answer_direction(
    model: GPT, clean_answer: Tensor, corrupted_answer: Tensor | None = None
) -> Tensor:
    """(B,C): the direction of the last normalised vector along which the clean answer is ahead.

    clean_answer, corrupted_answer: ids (B,). logit(clean) - logit(corrupted) is the vector's
    product with it; without a corrupted answer it is logit(clean). The output matrix itself is not
    needed.
    """
    rows = model.lm_head.weight
    wide = wide_dtype(model)
    direction = rows[clean_answer].to(wide)
    if corrupted_answer is not None:
        direction = direction - rows[corrupted_answer].to(wide)
    return direction


def logit_diff(model: GPT, ends: Tensor, direction: Tensor) -> Tensor:
    """logit(clean answer) - logit(corrupted answer) of final residual vectors (...,C), before ln_f:
    (...), in logits.

    direction: of answer_direction, (...,C), which broadcasts to ends.
    """
    normed = model.transformer.ln_f(ends).to(direction.dtype)
    return (normed * direction).sum(-1)


def next_token_loss(model: GPT, streams: Tensor, ids: Tensor) -> Tensor:
    """Mean loss on the next tokens of ids (B,T), of each of R runs: (R,), in nats.

    streams: (B,R,T,C), the final residual streams, before ln_f.
    """
    B, T = ids.shape
    if T < 2:
        raise ValueError(
            "one token has no next one to be wrong about; give longer inputs, or answers"
        )
    targets = ids[:, None, 1:, None]  # (B,1,T-1,1)
    losses = []
    at_once = max(1, 512 // (B * T))  # the logits of all runs at once would be large
    for chunk in streams.split(at_once, dim=1):
        r = chunk.size(1)
        normed = model.transformer.ln_f(chunk[:, :, :-1])
        logits = model.lm_head(normed)  # (B,r,T-1,C) -> (B,r,T-1,V)
        logits = logits.to(wide_dtype(model))
        of_target = logits.gather(-1, targets.expand(-1, r, -1, -1))  # (B,r,T-1,1)
        loss = logits.logsumexp(-1) - of_target[..., 0]
        losses.append(loss.mean((0, 2)))
    return torch.cat(losses)


def published_logit_diff(logits: Tensor, clean_answer: Tensor, corrupted_answer: Tensor) -> Tensor:
    """logit(corrupted answer) - logit(clean answer) of last-token logits (...,V): (...,1).

    In logits. clean_answer, corrupted_answer: ids (1,). The published sign: positive = the
    corrupted answer is ahead.
    """
    return logits[..., corrupted_answer] - logits[..., clean_answer]
