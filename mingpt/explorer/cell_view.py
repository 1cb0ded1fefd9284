"""One cell in depth, and several cells at once.

What is shown belongs to the cell's layer and position; of a head that is patched at all positions,
to the last one. Effects are published logit differences, logit(corrupted answer) - logit(clean
answer), of exact patched runs.
"""

from typing import NamedTuple

import torch

from mingpt.explorer import requests
from mingpt.explorer.events import numbers, tokens, top_tokens
from mingpt.explorer.grid import MOST, groups, operations, run_heads
from mingpt.interpretability import partial_runs, readout
from mingpt.interpretability import runs as one_run
from mingpt.interpretability.activation_patching import DIRECTIONS, Sweep
from mingpt.interpretability.attribution import hold_norm
from mingpt.interpretability.inputs import token_texts
from mingpt.interpretability.logit_lens import read_stream
from mingpt.sites import SITES, Patch

SEEN = ("z", "pattern", "mlp_post")  # of both runs, beside what is patched
MOST_KEPT = 2**28  # bytes of the unpatched runs that are kept for the next cell
NEURONS = 10
LENS_TOKENS = 3


class Place(NamedTuple):
    """What a request about cells is about."""

    pair: requests.Pair
    runs: Sweep  # the two unpatched runs, and whatever is patched
    site: str
    direction: str
    answers: torch.Tensor  # (C,), along which the clean answer is ahead

    def effect(self, ends):
        """The published logit difference of last vectors (...,C), after the final norm: (...)."""
        return -(ends * self.answers).sum(-1)

    def unpatched(self):
        """{"clean": logit difference, "corrupted": ...}."""
        return {name: numbers(self.effect(end[0])) for name, end in self.runs.unpatched.items()}


@torch.no_grad()
def cell(model, body, cache):
    """The view: what one cell does to the answer, and what is there in both runs."""
    place = read_place(model, body, cache)
    T = place.pair.clean.size(1)
    layer, position, head = requests.cell(body, model, place.site, T)
    where = T - 1 if position is None else position
    at = None if position is None else [position]
    patched = place.runs.run(place.site, [layer], at, head)[0, 0, 0, 0]  # (C,)
    yield {
        "value": numbers(place.effect(patched)),
        "unpatched": place.unpatched(),
        "position": where,
        "sentence": tell(model, place, layer, position, head),
    }
    unpatched, changed = top_tokens(model, torch.stack((place.runs.end[0], patched)))
    yield {"tops": {"unpatched": unpatched, "patched": changed}}
    yield from patch_each_head(model, place, layer, where)
    yield {"looks": dict(of_both(place, lambda run: looks(run, layer, where)))}
    yield {"lens": dict(of_both(place, lambda run: lens(model, place, run, where)))}
    yield from patch_each_neuron(model, place, layer, where)


def read_place(model, body, cache):
    """The Place of a request; the unpatched runs of the latest one are kept, if they are small."""
    pair = requests.read_pair(model, body)
    site = requests.one_of(body, "site", SITES)
    direction = requests.one_of(body, "direction", DIRECTIONS)
    sites = sorted({site, *SEEN})
    ids = torch.cat((pair.clean, pair.corrupted))  # (2,T)
    key = (ids.tolist(), direction, sites)
    kept = cache.get("unpatched runs", dict)
    runs = kept.get("runs") if kept.get("key") == key else None
    if runs is None:
        kept.clear()
        runs = Sweep(model, pair.clean, pair.corrupted, direction, sites)
        if size_of(runs.source) + size_of(runs.target) <= MOST_KEPT:
            kept.update(key=key, runs=runs)
    answers = readout.answer_direction(model, *pair.answers)[0]
    return Place(pair, runs, site, direction, answers)


def size_of(run):
    """Bytes of {site: {layer: tensor}}."""
    return sum(x.nbytes for layers in run.values() for x in layers.values())


def of_both(place, read):
    """Yields ("clean", what is read of that unpatched run), ("corrupted", ...)."""
    source, target = DIRECTIONS[place.direction]
    both = {source: place.runs.source, target: place.runs.target}
    for name in ("clean", "corrupted"):
        yield name, read(both[name])


def tell(model, place, layer, position, head):
    """What was put where, in a sentence."""
    source, target = DIRECTIONS[place.direction]
    block = f"layer {layer}" if head is None else f"head {layer}.{head}"
    where = "all positions"
    if position is not None:
        ids = {"clean": place.pair.clean, "corrupted": place.pair.corrupted}
        token = token_texts(model, ids[source][0, position : position + 1])[0]
        where = f"position {position} ({token!r})"
    return f"the {source} {place.site} of {block} at {where} was put into the {target} run"


def patch_each_head(model, place, layer, where):
    """Yields {"heads": H logit differences}, each head's z at that layer and position patched."""
    T = place.pair.clean.size(1)
    heads = range(model.config.n_head)
    costs = dict.fromkeys(heads, operations(model, layer, T - where, T))
    found = []
    for some in groups(costs, MOST, MOST):
        ends = run_heads(place.runs, "z", [layer], [where], some)  # (1,1,R,1,C)
        found.append(place.effect(ends).flatten())
        yield {}
    yield {"heads": numbers(torch.cat(found))}


def looks(run, layer, where):
    """[H][where + 1]: how much each head of the layer looks at each position."""
    return numbers(run["pattern"][layer][0, :, where, : where + 1])


def lens(model, place, run, where):
    """For each layer what the logit lens reads after it: the top tokens, the logit difference."""
    streams = torch.stack([x[0, where] for x in run["resid_post"].values()])  # (L,C)
    _, log_probs = read_stream(model, streams)  # (L,V)
    best = log_probs.topk(min(LENS_TOKENS, log_probs.size(-1)))
    differences = -readout.logit_diff(model, streams, place.answers)  # (L,)
    layers = []
    for ids, values, difference in zip(best.indices, best.values, differences):
        top = tokens(model, ids)
        for token, probability in zip(top, numbers(values.exp())):
            token["probability"] = probability
        layers.append({"top": top, "logit_diff": numbers(difference)})
    return layers


def patch_each_neuron(model, place, layer, where):
    """Yields {"neurons": [...]}: those whose change writes most towards the answers there.

    direct: what the change writes into the logit difference read at that position, the final norm
    held as in the run that is patched. patched: the logit difference at the end, in a run with
    this neuron alone put in.
    """
    runs = place.runs
    acts = runs.source["mlp_post"][layer][0, where]  # (4C,)
    change = acts - runs.target["mlp_post"][layer][0, where]
    last = runs.target["resid_post"][model.config.n_layer - 1][0, where]  # (C,)
    reads = hold_norm(model, last, place.answers)
    weight = model.transformer.h[layer].mlp.c_proj.weight  # (C,4C)
    direct = -change * (reads @ weight.to(reads))
    chosen = direct.abs().topk(min(NEURONS, len(direct))).indices
    written = change[chosen, None] * weight.T[chosen]  # (10,C)

    T = place.pair.clean.size(1)
    costs = dict.fromkeys(range(len(chosen)), operations(model, layer, T - where, T))
    found = []
    for some in groups(costs, MOST, MOST):
        found.append(place.effect(run_written(runs, layer, where, written[some])))
        yield {}
    columns = {
        "neuron": chosen.tolist(),
        **dict(of_both(place, lambda run: numbers(run["mlp_post"][layer][0, where, chosen]))),
        "direct": numbers(direct[chosen]),
        "patched": numbers(torch.cat(found)),
    }
    yield {"neurons": [dict(zip(columns, row)) for row in zip(*columns.values())]}


def run_written(runs, layer, where, written):
    """(R,C): last vectors, after the final norm, of runs in which a layer writes more.

    written: (R,C), what it adds at that position in each of them.
    """

    def inject(start, positions):
        stream = partial_runs.stream_at(runs.target, start)[:, None, where:]  # (1,1,n,C)
        tail = stream.repeat(1, len(written), 1, 1)
        tail[0, :, 0] += written
        return {where: tail}

    patched = partial_runs.PatchedRuns([layer + 1], [where], len(written), inject)
    ends = partial_runs.run_patched(runs.model, runs.target, patched)[0, 0, :, 0]
    return runs.model.transformer.ln_f(ends)


@torch.no_grad()
def joint(model, body, cache):
    """The view: several cells put in together, beside what each does alone."""
    place = read_place(model, body, cache)
    cells = requests.cells(body, model, place.site, place.pair.clean.size(1), least=2)
    if len(set(cells)) < len(cells):
        raise ValueError("a cell is there twice; choose different cells")
    single = []
    patches = []
    for layer, position, head in cells:
        at = None if position is None else [position]
        end = place.runs.run(place.site, [layer], at, head)[0, 0, 0, 0]  # (C,)
        single.append(place.effect(end).item())
        patch = Patch(layer, position, None, place.site, head)
        new = place.runs.source[place.site][layer][patch.index]
        patches.append(patch._replace(activation=new))
        yield {}
    source, target = DIRECTIONS[place.direction]
    ids = {"clean": place.pair.clean, "corrupted": place.pair.corrupted}
    end = one_run.run(model, ids[target], patches)[0, -1]  # (C,)
    unpatched = place.effect(place.runs.end[0]).item()
    yield {
        "unpatched": place.unpatched(),
        "single": numbers(single),
        "joint": numbers(place.effect(model.transformer.ln_f(end))),
        "sum": numbers(unpatched + sum(value - unpatched for value in single)),
    }
