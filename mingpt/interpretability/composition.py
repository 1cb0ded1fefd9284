"""Which head's output do later heads read, by the weights alone?

A large score says that two heads could work together, not that they do so on any text.
Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits).
"""

import torch
from torch import Tensor

from mingpt.interpretability.readout import wide_dtype
from mingpt.model import GPT


@torch.no_grad()
def composition_scores(model: GPT, kind: str = "Q") -> Tensor:
    """score[l1, h1, l2, h2] (L,H,L,H): how much of what the earlier head writes the later reads.

    ||A B|| / (||A|| ||B||), Frobenius norms, 0 to 1: B is the earlier head's OV matrix, A the later
    one's QK matrix from its queries' side (kind "Q") or its keys' ("K"), or its OV matrix ("V"); 0
    unless l2 > l1. Random matrices do not give 0. The weights as they are: no biases, layer norms
    not folded in. Cost: no pass. Source: Elhage et al. 2021.
    """
    if kind not in ("Q", "K", "V"):
        raise ValueError(f'kind must be "Q", "K" or "V", got {kind!r}')
    q, k, v, out = _head_weights(model)
    # A is (C,C), and so is B; what stands for A and for B^T is (D,C), D being their rank.
    sides = {
        "Q": (k, q),
        "K": (q, k),
        "V": (out, v),
    }
    a = _unit_product(*sides[kind])  # (L,H,D,C)
    b = _unit_product(v, out)
    L, H = a.shape[:2]
    scores = a.new_zeros(L, H, L, H)
    for layer, heads in enumerate(b):
        for head, written in enumerate(heads):
            later = a[layer + 1 :]
            products = later @ written.T  # (l,H,D,C) @ (C,D) -> (l,H,D,D)
            scores[layer, head, layer + 1 :] = products.norm(dim=(-2, -1))
    return scores


def _unit_product(outer, inner):
    """outer^T @ inner over its Frobenius norm, of two (L,H,D,C); one that is 0 stays 0.

    As (L,H,D,C): of outer^T = Q R the factor Q only rotates, which no norm sees, so it is left out.
    """
    r = torch.linalg.qr(outer.mT, mode="r").R  # (L,H,D,D)
    product = r @ inner
    size = product.norm(dim=(-2, -1), keepdim=True)
    return product / size.clamp_min(1e-30)


def _head_weights(model):
    """q, k, v and transposed output weights of every head, (L,H,D,C) each, at least in fp32."""
    by_layer = []
    for block in model.transformer.h:
        attn = block.attn
        weights = torch.cat((attn.c_attn.weight, attn.c_proj.weight.T))  # (4C,C)
        by_layer.append(weights.unflatten(0, (4, attn.n_head, -1)))  # (4,H,D,C)
    weights = torch.stack(by_layer, 1).to(wide_dtype(model))  # (4,L,H,D,C)
    return weights.unbind()
