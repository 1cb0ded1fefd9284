"""The parts of edge scores that are written out by hand, against autograd."""

import torch

from mingpt.interpretability import edges
from tests.test_circuits import D, H, T, make_model


def test_the_gradient_by_what_a_head_reads_is_autograds():
    """Each head's queries, keys and values read a stream of their own, through one layer norm; two
    runs of three texts are summed.
    """
    block = make_model().transformer.h[1]
    generator = torch.Generator().manual_seed(0)
    x = 2 + 3 * torch.randn(2, 3, T, H * D, generator=generator, dtype=torch.float64)
    by_qkv = torch.randn(3, 2, 3, H, T, D, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        qkv = block.attn.c_attn(block.ln_1(x)).unflatten(-1, (3, H, D)).permute(3, 0, 1, 4, 2, 5)
        found = edges._back_to_stream(block, x, qkv, by_qkv)  # (3H,3,T,C)

    for third in range(3):
        for head in range(H):
            read = x.clone().requires_grad_()
            made = block.attn.c_attn(block.ln_1(read)).unflatten(-1, (3, H, D))[..., third, head, :]
            (right,) = torch.autograd.grad(made, read, by_qkv[third, :, :, head])
            assert found[third * H + head].sub(right.sum(0)).abs().max() < 1e-12
