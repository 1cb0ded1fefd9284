"""One cell in depth, and several cells at once.

What is shown belongs to the cell's layer and position; of a head that is patched at all positions,
to the last one. Effects are published logit differences, logit(corrupted answer) - logit(clean
answer), of exact patched runs.
"""

from typing import NamedTuple

import torch

from mingpt.explorer import feature_view, requests
from mingpt.explorer.events import numbers, tokens, top_tokens
from mingpt.explorer.grid import MOST, groups, operations, run_heads
from mingpt.explorer.memory import check_runs
from mingpt.interpretability import partial_runs, readout
from mingpt.interpretability import runs as one_run
from mingpt.interpretability.activation_patching import DIRECTIONS, Sweep
from mingpt.interpretability.attribution import hold_norm
from mingpt.interpretability.inputs import token_texts
from mingpt.interpretability.logit_lens import read_stream
from mingpt.model import GPT
from mingpt.sites import SITES, Patch

SEEN = ("z", "pattern", "mlp_post")  # of both runs, beside what is patched
MOST_KEPT = 2**28  # bytes of the unpatched runs that are kept for the next cell
NEURONS = 10
LENS_TOKENS = 3


class Place(NamedTuple):
    """What a request about cells is about."""

    model: GPT
    pair: requests.Pair
    runs: Sweep  # the two unpatched runs, and whatever is patched
    site: str
    direction: str
    answers: torch.Tensor  # (C,), along which the clean answer is ahead

    @property
    def T(self):
        return self.pair.clean.size(1)

    @property
    def order(self):
        """The names of the run from which is taken, and of the one into which is put."""
        return DIRECTIONS[self.direction]

    @property
    def both(self):
        """{"clean": {site: {layer: tensor}} of that unpatched run, "corrupted": ...}."""
        named = dict(zip(self.order, (self.runs.source, self.runs.target)))
        return {name: named[name] for name in ("clean", "corrupted")}

    def end(self, layer, position, head):
        """(C,): the last vector, after the final norm, of the run with this cell put in."""
        positions = None if position is None else [position]
        return self.runs.run(self.site, [layer], positions, head).flatten()

    def effect(self, ends):
        """The published logit difference of last vectors (...,C), after the final norm: (...)."""
        return -(ends * self.answers).sum(-1)

    def reads(self, where):
        """(C,): along which a part of the stream there is read towards the answers.

        The final norm is held as in the run that is patched.
        """
        top = self.model.config.n_layer - 1
        last = self.runs.target["resid_post"][top][0, where]  # (C,)
        return hold_norm(self.model, last, self.answers)

    def pieces(self, layer, where, count):
        """Lists of the numbers 0 to count - 1 of runs patched there that run as one piece."""
        one = operations(self.model, layer, self.T - where, self.T)
        return groups(dict.fromkeys(range(count), one), MOST, MOST)

    def unpatched(self):
        """{"clean": logit difference, "corrupted": ...}."""
        ends = self.runs.unpatched
        return {name: numbers(self.effect(ends[name][0])) for name in ("clean", "corrupted")}


@torch.no_grad()
def cell(model, body, cache):
    """The view: what one cell does to the answer, and what is there in both runs."""
    place = read_place(model, body, cache)
    layer, position, head = requests.cell(body, model, place.site, place.T)
    where = place.T - 1 if position is None else position
    patched = place.end(layer, position, head)
    yield {
        "value": numbers(place.effect(patched)),
        "unpatched": place.unpatched(),
        "position": where,
        "sentence": tell(place, layer, position, head),
    }
    ends = torch.stack((place.runs.end[0], patched))  # (2,C)
    yield {"tops": dict(zip(("unpatched", "patched"), top_tokens(model, ends)))}
    yield from patch_each_head(place, layer, where)
    both = place.both
    yield {"looks": {name: looks(run, layer, where) for name, run in both.items()}}
    yield {"lens": {name: lens(place, run, where) for name, run in both.items()}}
    yield from patch_each_neuron(place, layer, where)
    yield from feature_view.features_of(place, cache.autoencoders, layer, where)


def read_place(model, body, cache):
    """The Place of a request; the unpatched runs of the latest one are kept, if they are small."""
    pair = requests.read_pair(model, body)
    site = requests.one_of(body, "site", SITES)
    direction = requests.one_of(body, "direction", DIRECTIONS)
    answers = readout.answer_direction(model, *pair.answers)[0]
    sites = sorted({site, *SEEN, *feature_view.sites_needed(cache.autoencoders)})
    key = (pair.clean.tolist(), pair.corrupted.tolist(), direction, sites)
    kept = cache.get("unpatched runs", dict)
    if kept.get("key") == key:
        return Place(model, pair, kept["runs"], site, direction, answers)
    kept.clear()
    check_runs(model, pair.clean.size(1), sites)
    runs = Sweep(model, pair.clean, pair.corrupted, direction, sites)
    if size_of(runs.source) + size_of(runs.target) <= MOST_KEPT:
        kept.update(key=key, runs=runs)
    return Place(model, pair, runs, site, direction, answers)


def size_of(run):
    """Bytes of {site: {layer: tensor}}."""
    size = 0
    for layers in run.values():
        size += sum(x.nbytes for x in layers.values())
    return size


def tell(place, layer, position, head):
    """What was put where, in a sentence."""
    source, target = place.order
    what = f"layer {layer}" if head is None else f"head {layer}.{head}"
    where = "all positions"
    if position is not None:
        ids = {"clean": place.pair.clean, "corrupted": place.pair.corrupted}
        token = token_texts(place.model, ids[source][0])[position]
        where = f"position {position} ({token!r})"
    return f"the {source} {place.site} of {what} at {where} was put into the {target} run"


def patch_each_head(place, layer, where):
    """Yields {"heads": H logit differences}, each head's z at that layer and position patched."""
    found = []
    for heads in place.pieces(layer, where, place.model.config.n_head):
        ends = run_heads(place.runs, "z", [layer], [where], heads)  # (1,1,R,1,C)
        found.append(place.effect(ends).flatten())
        yield {}
    yield {"heads": numbers(torch.cat(found))}


def looks(run, layer, where):
    """[H][where + 1]: how much each head of the layer looks at each position."""
    return numbers(run["pattern"][layer][0, :, where, : where + 1])


def lens(place, run, where):
    """For each layer what the logit lens reads after it: the top tokens, the logit difference."""
    ends = [x[0, where] for x in run["resid_post"].values()]
    streams = torch.stack(ends)  # (L,C)
    _, log_probs = read_stream(place.model, streams)  # (L,V)
    best = log_probs.topk(min(LENS_TOKENS, log_probs.size(-1)))
    differences = -readout.logit_diff(place.model, streams, place.answers)  # (L,)
    layers = []
    for ids, values, difference in zip(best.indices, best.values, differences):
        top = tokens(place.model, ids)
        for token, probability in zip(top, numbers(values.exp())):
            token["probability"] = probability
        layers.append({"top": top, "logit_diff": numbers(difference)})
    return layers


def patch_each_neuron(place, layer, where):
    """Yields {"neurons": [...]}: those whose change writes most towards the answers there.

    direct: what the change writes into the logit difference read at that position, the final norm
    held as in the run that is patched. patched: the logit difference at the end, in a run with
    this neuron alone put in.
    """
    source = place.runs.source["mlp_post"][layer][0, where]  # (4C,)
    change = source - place.runs.target["mlp_post"][layer][0, where]
    reads = place.reads(where)
    weight = place.model.transformer.h[layer].mlp.c_proj.weight  # (C,4C)
    direct = -change * (reads @ weight.to(reads))
    chosen = direct.abs().topk(min(NEURONS, len(direct))).indices
    written = change[chosen, None] * weight.T[chosen]  # (10,C)
    found = []
    for some in place.pieces(layer, where, len(chosen)):
        ends = run_written(place.runs, layer, where, written[some])
        found.append(place.effect(ends))
        yield {}
    columns = {"neuron": chosen.tolist()}
    for name, run in place.both.items():
        columns[name] = numbers(run["mlp_post"][layer][0, where, chosen])
    columns["direct"] = numbers(direct[chosen])
    columns["patched"] = numbers(torch.cat(found))
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
    ends = partial_runs.run_patched(runs.model, runs.target, patched)  # (1,1,R,1,C)
    return runs.model.transformer.ln_f(ends[0, 0, :, 0])


@torch.no_grad()
def joint(model, body, cache):
    """The view: several cells put in together, beside what each does alone."""
    place = read_place(model, body, cache)
    cells = requests.cells(body, model, place.site, place.T, least=2)
    if len(set(cells)) < len(cells):
        raise ValueError("a cell is there twice; choose different cells")
    single = []
    patches = []
    for layer, position, head in cells:
        end = place.end(layer, position, head)
        single.append(place.effect(end).item())
        whole = place.runs.source[place.site][layer]
        patch = Patch(layer, position, whole, place.site, head)
        patches.append(patch._replace(activation=whole[patch.index]))
        yield {}
    ids = place.pair.corrupted if place.direction == "denoise" else place.pair.clean
    stream = one_run.run(model, ids, patches)  # (1,T,C)
    end = model.transformer.ln_f(stream[0, -1])
    unpatched = place.effect(place.runs.end[0]).item()
    alone = sum(value - unpatched for value in single)
    yield {
        "unpatched": place.unpatched(),
        "single": numbers(single),
        "joint": numbers(place.effect(end)),
        "sum": numbers(unpatched + alone),
    }
