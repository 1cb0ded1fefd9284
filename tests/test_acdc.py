"""Pruning side by side against the plain loop over the edges, one at a time."""

import pytest
import torch

from mingpt.interpretability.acdc import prune_edges
from mingpt.interpretability.graph import record_task
from tests.test_circuits import make_batch, make_model


@torch.no_grad()
def prune_one_by_one(runs, smallest):
    """(scores, mask), every run of it computed whole."""
    graph = runs.graph
    mask = graph.possible.clone()
    scores = torch.zeros(mask.shape)
    metric = runs.metric(mask)
    for reader in reversed(range(len(graph.readers))):
        node = graph.nodes[reader]
        if node != "logits" and not mask[:, graph.senders.index(node)].any():
            mask[reader] = False
        for sender in reversed(mask[reader].nonzero()[:, 0].tolist()):
            mask[reader, sender] = False
            without = runs.metric(mask)
            if metric - without < smallest:
                metric = without
            else:
                mask[reader, sender] = True
                scores[reader, sender] = metric - without
    return scores, mask


@pytest.mark.parametrize("smallest", [0.0, 0.02, 0.3, 100.0])
@pytest.mark.parametrize("max_tokens", [4096, 30])
def test_edges_tried_side_by_side_go_as_if_each_were_tried_by_itself(smallest, max_tokens):
    model = make_model()
    batch = make_batch(model)
    shorter = batch._replace(clean=batch.clean[:, :4], corrupted=batch.corrupted[:, :4])
    runs = record_task(model, [batch, shorter])
    right_scores, right_mask = prune_one_by_one(runs, smallest)
    scores, mask = prune_edges(runs, smallest, max_tokens)
    assert mask.equal(right_mask)
    assert scores.sub(right_scores).abs().max() < 1e-6  # fp32, in which scores are kept
