"""What edge scores leave out or write out by hand, against patched forwards and autograd."""

import pytest
import torch

from mingpt.interpretability import edges
from mingpt.interpretability.graph import layout, record_base_runs
from tests.test_circuits import D, H, T, V, drop_by_patched_forwards, make_batch, make_model


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


@pytest.mark.parametrize("first", [2, T - 1])
def test_exact_scores_are_right_where_the_texts_begin_alike(first):
    """Nothing left of the first difference is computed; the second text differs later still."""
    model = make_model()
    batch = make_batch(model)
    batch.corrupted[:, :first] = batch.clean[:, :first]
    batch.corrupted[:, -1] = (batch.clean[:, -1] + 1) % V
    batch.corrupted[1, :-1] = batch.clean[1, :-1]
    graph = layout(model)
    scores = edges.edge_attribution(model, [batch], "exact")
    for r, s in graph.possible.nonzero().tolist()[::2]:
        right = drop_by_patched_forwards(model, batch, graph.senders[s], graph.readers[r])
        assert scores[r, s].item() == pytest.approx(right, abs=1e-12)
    assert not scores[~graph.possible].any()


@pytest.mark.parametrize("max_tokens", [7, 4096])
def test_the_pieces_of_the_exact_scores_have_every_edge_once(max_tokens):
    """They come one after the other, so that one can say how far it is, and stop."""
    model = make_model()
    base = record_base_runs(model, make_batch(model))
    count = torch.zeros(base.graph.possible.shape)
    for readers, senders, drops in edges.exact_pieces(base, max_tokens):
        assert count[readers, senders].shape == drops.shape
        count[readers, senders] += 1
    assert count.equal(base.graph.possible.float())
