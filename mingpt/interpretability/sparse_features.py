"""The few features that are active, without the many that are not: the products of their training.

Of n features k are active at a token. So a token's reconstruction is a sum of k rows of W_dec, and
only k rows of each weight get a gradient from it: k / n of the work of the matrix products. Exact.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

Gradients = tuple[Tensor | None, ...]  # for each input of a Function


@dataclass
class Active:
    """Which features are active at which tokens: P pairs, those of a token side by side."""

    tokens: Tensor  # (P,)
    features: Tensor  # (P,)
    starts: Tensor  # (N,): where the pairs of each token begin
    order: Tensor  # (P,): of the pairs, by feature
    starts_by_feature: Tensor  # (n,): where those of each feature begin

    def sum_by_token(self, values: Tensor, table: Tensor) -> Tensor:
        """(N,d): for each token the sum of value * table[feature], of values (P,), table (n,d)."""
        return F.embedding_bag(
            self.features, table, self.starts, mode="sum", per_sample_weights=values
        )

    def sum_by_feature(self, values: Tensor, table: Tensor) -> Tensor:
        """(n,d): for each feature the sum of value * table[token], of values (P,), table (N,d)."""
        tokens = self.tokens[self.order]
        weights = values[self.order]
        return F.embedding_bag(
            tokens, table, self.starts_by_feature, mode="sum", per_sample_weights=weights
        )


def find_active(tokens: Tensor, features: Tensor, N: int, n: int) -> Active:
    """The Active of pairs (P,) of tokens, in ascending order, and features."""
    order = features.argsort()
    starts = torch.searchsorted(tokens, torch.arange(N, device=tokens.device))
    numbers = torch.arange(n, device=tokens.device)
    starts_by_feature = torch.searchsorted(features[order], numbers)
    return Active(tokens, features, starts, order, starts_by_feature)


def top_of_token(pre: Tensor, k: int) -> Active:
    """The Active with the k largest of pre (N,n) at each token."""
    N, n = pre.shape
    features = pre.topk(k, sorted=False).indices.flatten()
    tokens = torch.arange(N, device=pre.device).repeat_interleave(k)
    return find_active(tokens, features, N, n)


def top_of_batch(pre: Tensor, k: int, guess: float | Tensor) -> Active:
    """The Active with the N * k largest of pre (N,n), of whichever tokens.

    guess: a value that these probably exceed. It changes the work alone: to order all N * n takes
    longer than to find those above it.
    """
    N, n = pre.shape
    flat = pre.flatten()
    candidates = (flat > guess).nonzero()[:, 0]
    if len(candidates) < N * k:
        candidates = torch.arange(len(flat), device=pre.device)
    chosen = flat[candidates].topk(N * k, sorted=False).indices
    pairs = candidates[chosen].sort().values
    return find_active(pairs // n, pairs % n, N, n)


class Encode(Function):
    """values (P,) of the active features of x (N,d), whose pre-activations are known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, pre: Tensor, active: Active
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.active = active
        ctx.n = len(b_enc)
        return pre[active.tokens, active.features]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        (x,) = ctx.saved_tensors
        to_weights = ctx.active.sum_by_feature(gradient, x)  # (n,d)
        to_bias = gradient.new_zeros(ctx.n).index_add_(0, ctx.active.features, gradient)
        return None, to_weights.T, to_bias, None, None


class PassToDecoder(Function):
    """The sum (N,d) as it is; its gradient goes to W_dec, by way of the active values (P,)."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, W_dec: Tensor, values: Tensor, active: Active) -> Tensor:
        ctx.save_for_backward(values)
        ctx.active = active
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        (values,) = ctx.saved_tensors
        return gradient, ctx.active.sum_by_feature(values, gradient), None, None


def decode(values: Tensor, W_dec: Tensor, active: Active) -> Tensor:
    """(N,d): the sum of the active features' directions, of values (P,), W_dec (n,d)."""
    # PyTorch's own gradient for the values is quick, that for the table is not.
    total = active.sum_by_token(values, W_dec.detach())
    return PassToDecoder.apply(total, W_dec, values.detach(), active)
