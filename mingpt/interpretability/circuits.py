"""Which heads and MLPs, talking to which, produce the answer?

The model as a graph: its nodes are the embedding, the heads, the MLPs and the logits; an edge is what one node reads
of an earlier one's output in the residual stream, a head by its queries, keys and values separately. An edge is taken
out by giving its reader the output that the earlier node has in the corrupted run. A circuit is the set of edges that
suffices for the answer on the given pairs; it need not be the only one, nor what the model does on other texts.
Sources: Wang et al. 2022 (arXiv 2211.00593), Conmy et al. 2023 (ACDC, arXiv 2304.14997), Syed et al. 2023 (EAP, arXiv
2310.10348), Hanna et al. 2024 (EAP-IG, arXiv 2403.17806), Marks et al. 2024 (completeness, arXiv 2403.19647).
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from mingpt import names
from mingpt.interpretability import figures, tails
from mingpt.interpretability.inputs import answer_ids, check_mode, encode, encode_pair
from mingpt.model import GPT, Patch

METHODS = {"path_patching": "exact", "eap": "eap", "eap-ig": "eap-ig-inputs", "acdc": None}  # by which edge_attribution


class Batch(NamedTuple):
    """Pairs of equal length. The metric is the last normalised vector times direction: logit(right) - logit(wrong)."""

    clean: torch.Tensor  # (B,T)
    corrupted: torch.Tensor  # (B,T)
    direction: torch.Tensor  # (B,C), a difference of rows of the output matrix, or of means of rows


class Layout(NamedTuple):
    """The graph of a model, in order: per layer its heads (2.1: layer, head) and its MLP."""

    senders: list  # embed, 0.0, ..., mlp 0, 1.0, ...
    readers: list  # 0.0.q, ..., 0.0.k, ..., 0.0.v, ..., mlp 0, 1.0.q, ..., logits
    nodes: list  # of each reader, the node that it belongs to: 2.1.q -> 2.1
    possible: torch.Tensor  # bool (readers, senders): the edges that exist


def layout(model):
    """The model's Layout."""
    senders, readers, nodes, seen = ["embed"], [], [], []
    for layer in range(model.config.n_layer):
        heads, mlp = [f"{layer}.{head}" for head in range(model.config.n_head)], f"mlp {layer}"
        readers += [*(f"{head}.{site}" for site in "qkv" for head in heads), mlp]
        nodes += [*heads * 3, mlp]
        seen += [len(senders)] * 3 * len(heads) + [len(senders) + len(heads)]
        senders += [*heads, mlp]
    possible = torch.arange(len(senders)) < torch.tensor([*seen, len(senders)])[:, None]
    return Layout(senders, [*readers, "logits"], [*nodes, "logits"], possible)


def as_batches(model, task, count=100, seed=0):
    """A task or the user's pairs, as find_circuit takes them, in Batches of pairs of equal length."""
    if task and isinstance(task, list) and all(isinstance(batch, Batch) for batch in task):
        return task
    pairs = [_read(model, pair) for pair in task] if not isinstance(task, str) else _draw(model, task, count, seed)
    if not pairs:
        raise ValueError("the task has no pairs; give at least one")
    groups = {}
    for pair in pairs:
        groups.setdefault(pair.clean.size(1), []).append(pair)
    cut = [(T, some[i : i + 512 // T + 1]) for T, some in groups.items() for i in range(0, len(some), 512 // T + 1)]
    return [Batch(*(torch.cat(parts) for parts in zip(*some))) for _, some in cut]


def _read(model, pair):
    """One pair, as a Batch of one; ValueError if it cannot be compared token by token or an answer is no token."""
    if len(pair) != 4 or any(answer is None or answer == [] for answer in pair[2:]):
        raise ValueError(f"a pair is (clean, corrupted, right answer, wrong answer), got {pair}")
    clean, corrupted = encode_pair(model, *pair[:2])
    if len(clean) != 1:
        raise ValueError(f"a pair has one clean and one corrupted text, got {len(clean)}; give each as a pair")
    means = []
    for answer, name in zip(pair[2:], ("right", "wrong")):
        tokens = answer if isinstance(answer, list) else [answer]
        ids = torch.cat([answer_ids(model, token, clean, corrupted, name) for token in tokens])
        means.append(model.lm_head.weight[ids].detach().mean(0, keepdim=True))
    return Batch(clean, corrupted, means[0] - means[1])


def _draw(model, task, count, seed):
    """So many pairs of a built-in task; those that are not token-aligned for this tokenizer are drawn again."""
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; the tasks are {', '.join(TASKS)}, or give pairs of your own")
    rng, pairs, why = random.Random(seed), [], ""
    for _ in range(50 * count):
        try:
            pairs.append(_read(model, TASKS[task](model, rng)))
        except ValueError as error:
            why = error
        if len(pairs) == count:
            return pairs
    could = f"{len(pairs)} of {50 * count} pairs could be used"
    raise ValueError(f"{task} does not suit this model: {could}; the last: {why}")


def _induction(model, rng):
    """Random tokens and their beginning again; corrupted, other random tokens."""
    V, n = model.config.vocab_size, min(10, model.config.vocab_size // 2, model.block_size // 2)
    if n < 2:
        raise ValueError(f"{V} tokens and {model.block_size} positions leave no room to repeat something")
    tokens = rng.sample(range(V), 2 * n)
    clean, corrupted = (torch.tensor([some + some[: n - 1]]) for some in (tokens[:n], tokens[n:]))
    return clean, corrupted, tokens[n - 1], tokens[-1]


def _ioi(model, rng):
    """Indirect object identification (Wang et al. 2022), with the giver swapped in the corrupted text."""
    one, other = rng.sample("Mary John Tom James Anna David Paul Mark Sarah Alice Peter George Kate Emma".split(), 2)
    place, thing = rng.choice(["store", "park", "school", "office"]), rng.choice(["drink", "book", "ring", "letter"])
    start, end = f"When {one} and {other} went to the {place}, ", f" gave a {thing} to"
    return start + other + end, start + one + end, f" {one}", f" {other}"


def _greater_than(model, rng):
    """Which years may follow (Hanna et al. 2023, arXiv 2305.00586); corrupted, the year is 01 and all may."""
    event, century, year = rng.choice(["war", "project", "trial", "siege"]), rng.randint(11, 17), rng.randint(2, 98)
    whole, *pieces = (encode(model, text)[0].tolist() for text in (f" {century}{year:02}", f" {century}", f"{year:02}"))
    if whole != sum(pieces, []):
        raise ValueError(f"{century}{year:02} is not {century} and {year:02} for the tokenizer")
    start, end = f"The {event} lasted from the year {century}", f" to the year {century}"
    later, earlier = ([f"{y:02}" for y in years] for years in (range(year + 1, 100), range(year + 1)))
    return f"{start}{year:02}{end}", f"{start}01{end}", later, earlier


TASKS = {
    "induction": _induction,
    "name_recall": lambda model, rng: names.held_out_pair(rng),
    "ioi": _ioi,
    "greater_than": _greater_than,
}


def _outputs(model, ids, sites=()):
    """(what the run keeps, what each sender writes to the residual stream (S,B,T,C); biases are no sender's)."""
    kept = tails.record(model, ids, ("resid_pre", "resid_mid", "resid_post", "z", "mlp_out", *sites))
    written = [kept["resid_pre"][0][None]]
    for layer, block in enumerate(model.transformer.h):
        written += [_through_heads(block.attn, kept["z"][layer]), kept["mlp_out"][layer][None]]
    return kept, torch.cat(written)


def _through_heads(attn, z):
    """(H,B,T,C): what each head adds to the residual stream, of z (B,H,T,D)."""
    weight = attn.c_proj.weight.unflatten(1, (attn.n_head, -1))  # (C,H,D)
    return torch.einsum("bhtd,chd->hbtc", z, weight)


def _metric(model, direction, ends):
    """The metric of final residual vectors (...,B,C): (...,B), in logits; positive = the right answer is ahead."""
    wide = torch.promote_types(ends.dtype, torch.float32)
    return (model.transformer.ln_f(ends).to(wide) * direction.to(wide)).sum(-1)


@torch.no_grad()
def run_circuit(model, batch, mask, start=0):
    """(B,): the metric when along the edges in mask (readers, senders) the clean run goes, and along all others not.

    Over the other edges each reader gets what the sender has in the corrupted run. Cost: 2 passes, with 3H copies of
    the stream, since each head's q, k and v may read another one. start: the layer below which mask has all edges, so
    that it is the clean run.
    """
    (kept, old), (_, clean) = _outputs(model, batch.corrupted), _outputs(model, batch.clean)
    H, L, mask = model.config.n_head, model.config.n_layer, mask.to(old)
    change = torch.zeros_like(old)  # of each sender's output, (S,B,T,C)
    change[: 1 + start * (H + 1)] = (clean - old)[: 1 + start * (H + 1)]
    for layer, block in list(enumerate(model.transformer.h))[start:]:
        n, rows = 1 + layer * (H + 1), mask[layer * (3 * H + 1) :]
        read = kept["resid_pre"][layer] + torch.einsum("rs,sbtc->rbtc", rows[: 3 * H, :n], change[:n])
        weight = block.attn.c_attn.weight.view(3, H, -1, old.size(-1))  # (3C,C) -> (3,H,D,C)
        qkv = torch.einsum("xhbtc,xhdc->xbhtd", block.ln_1(read).unflatten(0, (3, H)), weight)
        q, k, v = qkv + block.attn.c_attn.bias.view(3, 1, H, 1, -1)  # (B,H,T,D) each
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=block.attn.scale)
        change[n : n + H] = _through_heads(block.attn, z) - old[n : n + H]
        read = kept["resid_mid"][layer] + torch.einsum("s,sbtc->btc", rows[3 * H, : n + H], change[: n + H])
        change[n + H] = block.mlp(block.ln_2(read)) - old[n + H]
    end = kept["resid_post"][L - 1][:, -1] + torch.einsum("s,sbc->bc", mask[-1], change[:, :, -1])
    return _metric(model, batch.direction, end)


@torch.no_grad()
def _unpatched(model, batches):
    """The metric of each pair's clean and of its corrupted run, 2 x (pairs,)."""
    runs = [torch.cat((batch.clean, batch.corrupted)) for batch in batches]
    ends = [model.stream(ids)[:, -1].view(2, len(batch.clean), -1) for ids, batch in zip(runs, batches)]
    return torch.cat([_metric(model, batch.direction, end) for end, batch in zip(ends, batches)], 1)


def edge_attribution(model, task, method="eap-ig-inputs", steps=5, max_tokens=4096):
    """Score of every edge, (readers, senders) as in `layout`, in logits, averaged over the pairs; 0 where none is.

    How far the metric falls when in the clean run the edge alone carries what it carries in the corrupted run;
    positive = the edge speaks for the right answer. method "exact": each edge patched. "eap": to first order, (clean -
    corrupted output) times the gradient at the reader in the clean run. "eap-ig-inputs": the gradient averaged over
    runs whose embeddings lie k/steps of the way from corrupted to clean, k = 1 ... steps.
    Cost: 2 passes; and exact, the tails of a run per edge; eap, a pass and a backward; eap-ig-inputs, steps of them.
    """
    if method not in ("exact", "eap", "eap-ig-inputs") or steps < 1:
        raise ValueError(f'method must be "exact", "eap" or "eap-ig-inputs", steps from 1; got {method!r}, {steps}')
    check_mode(model)
    batches = as_batches(model, task)
    total = sum(len(batch.clean) for batch in batches)
    scores = 0
    for batch in tqdm(batches, desc=method, unit="batch", disable=None):
        if method == "exact":
            scores = scores + _exact_scores(model, batch, max_tokens)
        else:
            scores = scores + _gradient_scores(model, batch, 1 if method == "eap" else steps)
    return scores / total


def _gradient_scores(model, batch, steps):
    """Summed over the pairs; steps = 1 is the gradient of the clean run itself."""
    with torch.no_grad():
        (_, clean), (_, corrupted) = _outputs(model, batch.clean), _outputs(model, batch.corrupted)
    scores = 0
    for step in range(1, steps + 1):
        embedding = torch.lerp(corrupted[0], clean[0], step / steps)
        gradients = _gradients(model, batch, embedding)
        scores = scores + torch.cat([torch.einsum("rbtc,sbtc->rs", g, clean - corrupted) for g in gradients])
    return scores * layout(model).possible.to(scores) / steps


def _gradients(model, batch, embedding):
    """The metric's gradient by what each reader reads, in pieces (some readers,B,T,C), in the order of `layout`."""
    H, sites = model.config.n_head, ("resid_pre", "q", "k", "v", "resid_mid", "mlp_pre", "resid_post")
    with torch.enable_grad():
        start = [Patch(0, None, embedding, "resid_pre")]
        end, kept = tails.record_with_gradient(model, batch.clean, sites, start)
        metric = _metric(model, batch.direction, end[:, -1]).sum()
        by = dict(zip(kept, torch.autograd.grad(metric, list(kept.values()))))
    pieces = []
    for layer, block in enumerate(model.transformer.h):
        qkv = torch.stack([by[site, layer] for site in "qkv"])  # (3,B,H,T,D)
        weight = block.attn.c_attn.weight.detach().view(3, H, -1, embedding.size(-1))
        by_norm = torch.einsum("xbhtd,xhdc->xhbtc", qkv, weight).flatten(0, 1)  # (3H,B,T,C)
        pieces.append(_through_norm(block.ln_1, kept["resid_pre", layer], by_norm))
        by_norm = by["mlp_pre", layer] @ block.mlp.c_fc.weight.detach()  # (B,T,4C) @ (4C,C) -> (B,T,C)
        pieces.append(_through_norm(block.ln_2, kept["resid_mid", layer], by_norm[None]))
    return [*pieces, by["resid_post", model.config.n_layer - 1][None]]


def _through_norm(norm, x, gradients):
    """Gradients (R,B,T,C) by the layer norm's output -> by its input x (B,T,C)."""
    x = x.detach().expand_as(gradients).requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(norm(x), x, gradients)[0]


@torch.no_grad()
def _exact_scores(model, batch, max_tokens):
    """Summed over the pairs, by patched runs that all end in `tails.finish`."""
    kept, clean = _outputs(model, batch.clean, ("q", "k", "v"))
    change = _outputs(model, batch.corrupted)[1] - clean  # (S,B,T,C)
    base, (B, T), H = tails.as_base(kept), batch.clean.shape, model.config.n_head
    intact = _metric(model, batch.direction, kept["resid_post"][model.config.n_layer - 1][:, -1]).sum()
    scores = []

    def fall(end):  # (B,R,1,C) -> (R,)
        return intact - _metric(model, batch.direction, end[:, :, 0].transpose(0, 1)).sum(-1)

    for layer in range(model.config.n_layer):
        n = 1 + layer * (H + 1)
        for runs, senders, read in ((3 * H, n, _heads_read), (1, n + H, _mlp_reads)):
            at_once = max(1, max_tokens // (B * T * runs))
            found = []
            for some in change[:senders].split(at_once):

                def join(layer, positions, some=some, read=read):
                    return {0: read(model, base, layer, some)}

                found.append(tails.finish(model, base, join, [layer], [0], runs * len(some), read=fall)[layer, 0])
            scores.append(F.pad(torch.cat(found).view(senders, runs).T, (0, len(change) - senders)))
    ends = kept["resid_post"][model.config.n_layer - 1][:, -1] + change[:, :, -1]  # (S,B,C)
    return torch.cat([*scores, fall(ends.transpose(0, 1)[:, :, None])[None]])


def _heads_read(model, base, layer, changes):
    """(B,S*3H,T,C): the stream after the block when one head's q, k or v reads a stream changed by one of (S,B,T,C)."""
    block = model.transformer.h[layer]
    qkv = block.attn.c_attn(block.ln_1(base["resid_pre"][layer] + changes)).unflatten(-1, (3, model.config.n_head, -1))
    runs = []
    for one in qkv:  # (B,T,3,H,D)
        for site, new in zip("qkv", one.permute(2, 0, 3, 1, 4)):  # (B,H,T,D)
            runs.append(tails.patched_tails(model, base, {layer: new}, site, layer, [0], each_position=False)[0])
    return torch.cat(runs, 1)


def _mlp_reads(model, base, layer, changes):
    """(B,S,T,C): the same for the MLP."""
    block, mid = model.transformer.h[layer], base["resid_mid"][layer]
    return (mid + block.mlp(block.ln_2(mid + changes))).transpose(0, 1)


def find_circuit(model, task, method="eap-ig", threshold=0.01, n_edges=None):
    """The Circuit whose edges matter at least threshold times the effect of corrupting everything.

    task: "induction", "name_recall", "ioi" or "greater_than" (100 pairs, seed 0), or pairs (clean, corrupted, right
    answer, wrong answer): texts or ids of equal token lengths, and for each answer a token or a list of tokens.
    method: "path_patching" keeps the edges whose exact score is so large, "eap" and "eap-ig" go by their estimate; with
    n_edges the so many largest are kept instead. "acdc" goes from the logits down and takes out for good each edge
    without which the metric falls by less. What is not on a way from the embedding to the logits is left out.
    ValueError, with the number, if the model prefers the wrong answer on most pairs. Cost: as edge_attribution; acdc,
    2 passes and the layers above for every edge.
    """
    if method not in METHODS or not threshold >= 0 or (n_edges is not None and (method == "acdc" or n_edges < 1)):
        known = f"method must be one of {', '.join(METHODS)}, threshold from 0, n_edges from 1, not with acdc"
        raise ValueError(f"{known}; got {method!r}, {threshold}, {n_edges}")
    check_mode(model)
    batches = as_batches(model, task)
    clean, corrupted = _unpatched(model, batches)
    if not (clean > 0).float().mean() > 0.5:
        found = f"{(clean > 0).sum()} of {len(clean)} pairs (mean logit difference {clean.mean():.2f})"
        todo = "it does not do this task; take another task or model"
        raise ValueError(f"the model prefers the right answer on {found}: {todo}")
    if not clean.mean() > corrupted.mean():
        found = f"by {clean.mean():.2f} in the clean texts and by {corrupted.mean():.2f} in the corrupted ones"
        raise ValueError(f"the right answer is ahead {found}, on average; corrupt them so that it falls behind")
    least = threshold * (clean - corrupted).mean().item()
    if method == "acdc":
        scores, mask = _acdc(model, batches, least)
    else:
        scores = edge_attribution(model, batches, METHODS[method]).cpu()
        possible = layout(model).possible
        mask = _top(scores, possible, n_edges) if n_edges else (scores.abs() >= least) & possible
    return Circuit(model, batches, _connected(model, mask), scores, method)


@torch.no_grad()
def _acdc(model, batches, least):
    """(scores, mask of the edges that stay); the score: how far the metric falls when the edge is tried, else 0."""
    senders, readers, nodes, mask = layout(model)
    scores, count = torch.zeros(mask.shape), sum(len(batch.clean) for batch in batches)

    def metric(layer):
        return sum(run_circuit(model, batch, mask, layer).sum().item() for batch in batches) / count

    now = metric(0)
    for reader in tqdm(range(len(readers) - 1, -1, -1), desc="acdc", unit="reader", disable=None):
        if reader < len(readers) - 1 and not mask[:, senders.index(nodes[reader])].any():
            mask[reader] = False  # nobody reads the node
        layer = min(reader // (3 * model.config.n_head + 1), model.config.n_layer - 1)
        for sender in mask[reader].nonzero()[:, 0].flip(0).tolist():
            mask[reader, sender] = False
            without = metric(layer)
            if now - without < least:
                now = without
            else:
                mask[reader, sender], scores[reader, sender] = True, now - without
    return scores, mask


def _top(scores, possible, size):
    """The mask of the so many possible edges with the largest |score|."""
    order = scores.abs().masked_fill(~possible, -1).flatten().argsort(descending=True)
    mask = torch.zeros(order.shape, dtype=torch.bool)
    mask[order[:size]] = True
    return mask.view_as(possible) & possible


def _connected(model, mask):
    """mask without the edges that are on no way from the embedding to the logits."""
    senders, _, nodes, _ = layout(model)
    inputs = {node: [r for r, name in enumerate(nodes) if name == node] for node in nodes}
    while True:
        fed = torch.tensor([name == "embed" or bool(mask[inputs[name]].any()) for name in senders])
        read = torch.tensor([name == "logits" or bool(mask[:, senders.index(name)].any()) for name in nodes])
        kept = mask & fed & read[:, None]
        if kept.equal(mask):
            return mask
        mask = kept


@dataclass
class Circuit:
    """Some edges of the model, with scores; what it is worth is measured on the task's pairs or on others."""

    model: torch.nn.Module
    task: list  # of Batch
    mask: torch.Tensor  # bool (readers, senders), as in `layout`
    scores: torch.Tensor  # of all edges that the method scored, in logits
    method: str

    @property
    def edges(self):
        """[(sender, reader, score)], the largest effect first."""
        senders, readers, _, _ = layout(self.model)
        found = [(senders[s], readers[r], self.scores[r, s].item()) for r, s in self.mask.nonzero().tolist()]
        return sorted(found, key=lambda edge: -abs(edge[2]))

    @property
    def nodes(self):
        """The names of the nodes that have edges, from the embedding up."""
        senders, _, nodes, _ = layout(self.model)
        found = {i for pair in self.mask.nonzero().tolist() for i in (nodes[pair[0]], senders[pair[1]])}
        return [name for name in [*senders, "logits"] if name in found]

    def faithfulness(self, task=None):
        """The metric with all outside the circuit corrupted: 0 as in the corrupted run, 1 as in the clean run."""
        return self._share(task)(self.mask)

    def completeness(self, task=None):
        """The same with the circuit corrupted and all else clean (Marks et al. 2024): near 0 = nothing is missing."""
        return self._share(task)(layout(self.model).possible & ~self.mask)

    def minimality(self, task=None):
        """{(sender, reader): faithfulness lost without this edge}; near 0 = the circuit does not need it."""
        senders, readers, _, _ = layout(self.model)
        share, lost = self._share(task), {}
        whole = share(self.mask)
        for r, s in tqdm(self.mask.nonzero().tolist(), desc="minimality", unit="edge", disable=None):
            lost[senders[s], readers[r]] = whole - share(_without(self.mask, r, s))
        return lost

    def curve(self, sizes=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), task=None):
        """[(edges, faithfulness)] of the so many edges with the largest scores, as far as they connect."""
        share = self._share(task)
        masks = [self._largest(size) for size in sizes if size <= (self.scores != 0).sum()]
        return [(int(mask.sum()), share(mask)) for mask in masks]

    def smaller(self, faithfulness=0.9):
        """A Circuit of few edges that is this faithful: as many of the largest scores as it takes, of all that were
        scored; then each is tried once, the least first, and goes if it can. That there is no smaller one is not said.
        ValueError if all of them together are not as faithful.
        """
        share, few, many = self._share(), 0, int((self.scores != 0).sum())
        if not (reached := share(self._largest(many))) >= faithfulness:
            why = f"all {many} edges with a score are {reached:.3f} faithful, not {faithfulness}"
            raise ValueError(f"{why}; ask for less")
        while many - few > 1:
            size = (few + many) // 2
            few, many = (few, size) if share(self._largest(size)) >= faithfulness else (size, many)
        mask = self._largest(many)
        order = sorted(mask.nonzero().tolist(), key=lambda edge: abs(self.scores[tuple(edge)].item()))
        for r, s in tqdm(order, desc="shrinking", unit="edge", disable=None):
            fewer = _connected(self.model, _without(mask, r, s))
            if mask[r, s] and share(fewer) >= faithfulness:
                mask = fewer
        return Circuit(self.model, self.task, mask, self.scores, self.method)

    def to_json(self, path):
        """Write method, shape and edges."""
        config = self.model.config
        data = {"method": self.method, "layers": config.n_layer, "heads": config.n_head, "edges": self.edges}
        with figures.written_whole(path) as beside:
            beside(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path, model, task):
        """The Circuit of to_json; ValueError where the model has another shape."""
        senders, readers, _, possible = layout(model)
        scores, mask = torch.zeros(possible.shape), torch.zeros_like(possible)
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if (data["layers"], data["heads"]) != (model.config.n_layer, model.config.n_head):
                raise ValueError(f"the model has {data['layers']} layers of {data['heads']} heads")
            for sender, reader, score in data["edges"]:
                edge = readers.index(reader), senders.index(sender)
                scores[edge], mask[edge] = score, True
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no circuit of this model, as to_json writes it: {error}") from error
        return cls(model, as_batches(model, task), mask & possible, scores, data["method"])

    def plot(self, path=None):
        """The matplotlib Figure: layers upwards, an arrow per edge, as wide as its score; dashed if negative."""
        if not self.edges:
            raise ValueError("the circuit has no edges to draw; take a lower threshold")
        return figures.shown(draw_graph(self), path)

    def __repr__(self):
        return f"Circuit({self.method}, {int(self.mask.sum())} edges, {len(self.nodes)} nodes)"

    def _largest(self, size):
        """The mask of the so many edges with the largest scores, as far as they connect."""
        return _connected(self.model, _top(self.scores, layout(self.model).possible, size))

    def _share(self, task=None):
        """f(mask): (metric of the mask - corrupted) / (clean - corrupted), of the means over the pairs."""
        batches = self.task if task is None else as_batches(self.model, task)
        clean, corrupted = _unpatched(self.model, batches).mean(1).tolist()

        def share(mask):
            found = torch.cat([run_circuit(self.model, batch, mask) for batch in batches]).mean().item()
            return (found - corrupted) / (clean - corrupted)

        return share


def _without(mask, reader, sender):
    mask = mask.clone()
    mask[reader, sender] = False
    return mask


def draw_graph(circuit):
    """The Figure of a Circuit: its nodes in the layers' order, an arrow per edge, coloured by what reads it."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    rows, ends = {}, {"embed": -0.5, "logits": circuit.model.config.n_layer}  # height -> nodes, node -> height
    for node in circuit.nodes:
        layer = node.removeprefix("mlp ").split(".")[0]
        height = ends[node] if node in ends else int(layer) + 0.5 * node.startswith("mlp")
        rows.setdefault(height, []).append(node)
    place = {}
    for number, height in enumerate(sorted(rows)):
        for i, node in enumerate(rows[height]):
            side = 0.28 * (-1) ** number  # neighbours in height a little apart, so that arrows do not run through nodes
            place[node] = (i - (len(rows[height]) - 1) / 2 + side, number)
    width = max(len(nodes) for nodes in rows.values())
    figure = Figure(figsize=(2.2 + 1.6 * max(width, 3), 1.6 + 0.85 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = {"q": "#0072b2", "k": "#d55e00", "v": "#009e73", "": "#555555"}  # told apart by colour-blind people too
    largest = max((abs(score) for _, _, score in circuit.edges), default=1)
    for sender, reader, score in circuit.edges:
        node, _, site = reader.rpartition(".") if reader[-1] in "qkv" and reader[0].isdigit() else (reader, "", "")
        bend = {"q": 0.12, "k": -0.12, "v": 0.0, "": 0.06}[site]
        shape = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 13, "shrinkB": 13}
        line = {"lw": 0.6 + 3.4 * abs(score) / largest, "ls": "-" if score >= 0 else "--", "color": colours[site]}
        axes.add_patch(FancyArrowPatch(place[sender], place[node], mutation_scale=9, alpha=0.8, **shape, **line))
    for node, (x, y) in place.items():
        axes.text(x, y, node, ha="center", va="center", bbox={"boxstyle": "round", "fc": "white", "ec": "black"})
    axes.set_xlim(-width / 2 - 0.6, width / 2 + 0.6)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.axis("off")
    words = {"q": "read as query", "k": "as key", "v": "as value", "": "by an MLP or the logits"}
    lines = [Line2D([], [], color=colour, lw=2, label=words[site]) for site, colour in colours.items()]
    lines.append(Line2D([], [], color="black", lw=2, ls="--", label="against the right answer"))
    axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False, fontsize="small")
    axes.set_title(f"{circuit!r}: arrows as wide as their scores, up to {largest:.2f}", fontsize="medium")
    return figure


def main():
    """Find a small circuit on 100 pairs, measure it on others, write its picture and file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="a name or a folder, as GPT.from_pretrained takes it")
    parser.add_argument("--task", default="name_recall", choices=TASKS)
    parser.add_argument("--method", default="path_patching", choices=METHODS)
    parser.add_argument("--keep", type=float, default=0.9, help="faithfulness of the circuit; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=300, help="pairs to measure it on; default: %(default)s")
    parser.add_argument("--output", default="circuit.png", help="default: %(default)s; and a .json beside it")
    options = parser.parse_args()
    try:
        figures.check_output(options.output)
        model = GPT.from_pretrained(options.model)
        others = as_batches(model, options.task, options.pairs, seed=1)
        circuit = find_circuit(model, options.task, options.method).smaller(options.keep)
        clean, corrupted = _unpatched(model, others)
        print(f"{options.pairs} other pairs: right on {(clean > 0).float().mean():.1%}, mean logit difference", end=" ")
        print(f"{clean.mean():.2f}, corrupted {corrupted.mean():.2f}")
        print(f"{circuit} of {int(layout(model).possible.sum())} possible edges; faithfulness", end=" ")
        print(f"{circuit.faithfulness():.3f}, on the other pairs {circuit.faithfulness(others):.3f};", end=" ")
        print(f"completeness, on the other pairs, {circuit.completeness(others):.3f}")
        for sender, reader, score in circuit.edges:
            print(f"{sender:>8} -> {reader:8} {score:7.3f}")
        circuit.plot(options.output)
        circuit.to_json(Path(options.output).with_suffix(".json"))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
