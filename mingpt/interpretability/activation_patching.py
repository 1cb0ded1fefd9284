"""Where is the information that decides the answer?

Two texts that differ in one token are run; a piece of one run's activations is put into the other run, and the answer
at the last position is read again. Denoising puts clean activations into the corrupted run: a cell that moves the
answer towards the clean one carries information that the answer depends on. Noising is the other way round, and asks
what is needed. Neither shows what happens in other texts, nor that the cell is the only way.
Sources: Meng et al. 2022 (arXiv 2202.05262), Zhang & Nanda 2023 (arXiv 2309.16042), Heimersheim & Nanda 2024
(arXiv 2404.15255).
"""

import re
from dataclasses import dataclass

import torch
from tqdm import tqdm

from mingpt.interpretability import figures, tails
from mingpt.interpretability.inputs import answer_ids, answer_pair, check_mode, encode, encode_pair, tokens
from mingpt.model import ATTENTION_SITES, GPT, HEAD_SITES, Patch, as_store, check_site, plain

WITH_HEADS = HEAD_SITES + ATTENTION_SITES
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}]"  # it goes forward by parts of a patch


@torch.no_grad()
def get_activations(model, inputs, sites=("resid_post",)):
    """{site: {layer: tensor}} of a run on a text, texts of equal token length, or ids (B,T); copies. One pass."""
    kept = tails.record(model, encode(model, inputs), sites)
    return {site: kept[site] for site in ([sites] if isinstance(sites, str) else sites)}


@torch.no_grad()
def patch_activation(model, inputs, layer, position, activation, site="resid_post", head=None):
    """Last-token logits (B,V) of one run with one patch; see mingpt.model.Patch. One pass."""
    check_mode(model)
    model(encode(model, inputs), patch_params=Patch(layer, position, activation, site, head))
    return model.last_token_logits


@dataclass(repr=False)
class PatchingResult:
    """What the patched runs of patch_layers say at the last token; measures are worked out when they are read.

    Shapes: "cells" is (L,T); (L,H,T) at sites with heads; (L,) or (L,H) where whole sequences were patched; and with
    a B before it where B pairs were given. clean and corrupted, the unpatched runs, are () or (B,).
    """

    model: GPT
    vectors: dict  # "patched" (B,cells,C), "clean" (B,C), "corrupted" (B,C): last-token residual vectors after ln_f
    answers: torch.Tensor  # (B,2): the clean, the corrupted answer
    tokens: list  # the corrupted input's, as texts; of the first pair
    site: str
    direction: str
    single: bool

    @property
    def logit_diff(self):
        """cells: logit(corrupted answer) - logit(clean answer), in logits; positive = the corrupted answer is ahead."""
        return self._read("patched", self._difference)

    @property
    def clean(self):
        """The logit difference of the unpatched clean run."""
        return self._read("clean", self._difference)

    @property
    def corrupted(self):
        """The logit difference of the unpatched corrupted run."""
        return self._read("corrupted", self._difference)

    @property
    def normalized(self):
        """cells: (patched - corrupted) / (clean - corrupted) of the logit differences: 0 as corrupted, 1 as clean."""
        patched, clean, corrupted = (self._all(name, self._difference) for name in ("patched", "clean", "corrupted"))
        clean, corrupted = (x.view(-1, *[1] * (patched.ndim - 1)) for x in (clean, corrupted))
        return self._squeeze((patched - corrupted) / (clean - corrupted))

    @property
    def log_prob(self):
        """cells: log-probability of the clean answer, in nats."""
        return self._read("patched", lambda vector, b: self._log_probs(vector)[..., self.answers[b, 0]])

    @property
    def probability(self):
        """cells: probability of the clean answer."""
        return self.log_prob.exp()

    @property
    def kl(self):
        """cells: KL divergence of the patched from the unpatched clean run's next-token distribution, in nats, >= 0."""

        def divergence(vectors, b):
            clean = self._log_probs(self.vectors["clean"][b])
            return (clean.exp() * (clean - self._log_probs(vectors))).sum(-1)

        return self._read("patched", divergence)

    def mean(self):
        """logit_diff, averaged over the pairs: cells without B."""
        return self._all("patched", self._difference).mean(0)

    def plot(self, path=None):
        """The matplotlib Figure of the mean logit_diff; written to path (.png, .svg, .pdf) if there is one."""
        values, rows, columns = self._table()
        title = f"{self.site}, {self.direction}" + ("" if self.single else f", mean over {len(self.answers)} pairs")
        return figures.shown(figures.draw_heatmap(values, columns, title, self.quantity, rows), path)

    def to_csv(self, path):
        """Write the mean logit_diff: a header, then a row per layer (and head), in full precision."""
        values, rows, columns = self._table()
        with figures.written_whole(path) as beside:
            figures.save_csv(values, columns, beside(path), rows)

    @property
    def quantity(self):
        """What logit_diff is, in words."""
        if len(self.answers) > 1 or self.model.tokenizer is None:
            return "logit(corrupted answer) - logit(clean answer)"
        clean, corrupted = (self.model.tokenizer.decode([answer]) for answer in self.answers[0].tolist())
        return f"logit({corrupted!r}) - logit({clean!r})"

    def __repr__(self):
        shape = "x".join(map(str, self.logit_diff.shape))
        clean, corrupted = self.clean.mean().item(), self.corrupted.mean().item()
        ends = f"clean {clean:.2f}, corrupted {corrupted:.2f}"
        return f"PatchingResult({self.site}, {self.direction}, {shape} cells, {ends})"

    def _table(self):
        values = self.mean()
        L, heads = len(values), values.ndim > 1 and self.site in WITH_HEADS
        if values.ndim == 3:
            return values.flatten(0, 1), [f"{l}.{h}" for l in range(L) for h in range(values.size(1))], self._labels()
        columns = [f"head {h}" for h in range(values.size(1))] if heads else self._labels()
        return (values, None, columns) if values.ndim == 2 else (values[:, None], None, ["all positions"])

    def _labels(self):
        return figures.token_labels(self.tokens)

    def _difference(self, vectors, b):
        rows = self.model.lm_head.weight[self.answers[b]]  # (2,C): the only part of the output matrix that is needed
        logits = vectors @ rows.T
        return logits[..., 1] - logits[..., 0]

    def _log_probs(self, vectors):
        return self.model.lm_head(vectors).log_softmax(-1)

    @torch.no_grad()
    def _all(self, name, measure):
        values = []
        for b, vectors in enumerate(self.vectors[name]):  # (cells,C), or (C,)
            some = vectors.reshape(-1, vectors.size(-1)).split(512)  # a measure may take the whole output matrix
            values.append(torch.cat([measure(part, b) for part in some]).view(vectors.shape[:-1]))
        return torch.stack(values)

    def _read(self, name, measure):
        return self._squeeze(self._all(name, measure))

    def _squeeze(self, values):
        return values[0] if self.single else values


@torch.no_grad()
def patch_layers(
    model,
    clean_input,
    corrupted_input,
    target_token,
    corrupted_token=None,
    site="resid_post",
    direction="denoise",
    each_position=True,
    max_tokens=4096,
):
    """Patch every layer (and head) at every position, or with each_position=False at all positions at once.

    clean_input, corrupted_input: texts, ids (1,T), or lists of B texts or ids (B,T), of equal token lengths.
    target_token, corrupted_token: the clean and the corrupted answer, each an id, a text that is one token, or a list
    of B; without a corrupted_token it is the differing token of the corrupted input.
    direction: "denoise" puts clean activations into the corrupted run, "noise" corrupted ones into the clean run.
    max_tokens: how many tokens may be under way at once, which bounds the memory (about 60 C + 8 H T bytes for each).
    -> PatchingResult. Cost: 2 passes and the tails of the patched runs. Equals one patched pass per cell, to rounding.
    """
    check_site(site)
    if direction not in ("denoise", "noise"):
        raise ValueError(f'direction must be "denoise" or "noise", got {direction!r}')
    check_mode(model)
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    answers = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    source, target = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    sites = tails.needed(site)
    both = tails.record(model, torch.cat((source, target)), {site, *sites})  # one pass reads the weights once
    new = {layer: x[: len(source)] for layer, x in both[site].items()}
    base = tails.as_base({name: {layer: x[len(source) :] for layer, x in both[name].items()} for name in sites})
    patched = _patched_ends(model, base, new, site, (clean != corrupted).any(0), each_position, max_tokens)

    ends = both["resid_post"][model.config.n_layer - 1][:, -1].chunk(2)  # 2 x (B,C)
    names = ("clean", "corrupted") if direction == "denoise" else ("corrupted", "clean")
    vectors = {"patched": patched, names[0]: ends[0], names[1]: ends[1]}
    vectors = {name: model.transformer.ln_f(vector) for name, vector in vectors.items()}
    if not all(vector.isfinite().all() for vector in vectors.values()):
        raise ValueError("the runs give values that are NaN or infinite; check the weights and the dtype")
    single = isinstance(clean_input, str) or (isinstance(clean_input, torch.Tensor) and len(clean) == 1)
    return PatchingResult(model, vectors, torch.stack(answers, 1), tokens(model, corrupted[0]), site, direction, single)


def _patched_ends(model, base, new, site, differs, each_position, max_tokens):
    """Last-token residual vectors of all patched runs: (B,L,T,C), (B,L,H,T,C) at sites with heads; or without T."""
    first, T, L = differs.nonzero()[0].item(), len(differs), model.config.n_layer
    positions = list(range(first, T)) if each_position else [first]
    layers = list(range(L)) if site != "resid_pre" else list(range(-1, L - 1))  # before block l is after block l - 1

    def join(layer, positions):
        return tails.patched_tails(model, base, new, site, layer, positions, each_position)

    with tqdm(total=L * len(positions), desc="patching", bar_format=BAR, disable=None) as bar:
        runs = model.config.n_head if site in WITH_HEADS else 1
        ends = tails.finish(model, base, join, layers, positions, runs, max_tokens, bar=bar)
    ends = torch.stack([torch.cat([ends[layer, p] for p in positions], 2) for layer in layers], 1)  # (B,L,R,P,C)
    if each_position:  # left of the first difference the two runs are the same, and a patch changes nothing
        unpatched = base["resid_post"][L - 1][:, None, None, None, -1]  # (B,1,1,1,C)
        ends = torch.cat((unpatched.expand(-1, L, ends.size(2), first, -1), ends), 3)
    else:
        ends = ends[:, :, :, 0]
    return ends if site in WITH_HEADS else ends[:, :, 0]


@torch.no_grad()
def patch_loop(model, clean_input, corrupted_input, target_token, corrupted_token=None):
    """patch_layers(...).logit_diff for one pair at resid_post, by its definition: (L,T), in logits; slow.

    Each cell is a forward pass of its own, with the clean residual stream after block l at position p in the corrupted
    run. Cost: 1 + L*T passes.
    """
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    clean_answer, corrupted_answer = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    clean_stream = get_activations(model, clean)["resid_post"]  # {layer: (1,T,C)}
    L, T = len(clean_stream), clean.size(1)
    differences = []
    for layer, position in tqdm([(l, p) for l in range(L) for p in range(T)], unit="patch", disable=None):
        model(corrupted, patch_params=(layer, position, clean_stream[layer][:, position]))
        logits = model.last_token_logits[0]
        differences.append((logits[corrupted_answer] - logits[clean_answer]).item())
    return torch.tensor(differences, dtype=torch.float64).view(L, T)


@torch.no_grad()
def path_patching(
    model,
    clean_input,
    corrupted_input,
    sender,
    receiver,
    target_token,
    corrupted_token=None,
    freeze_mlps=False,
    max_tokens=4096,
):
    """Effect of a head, (layer, head), along its direct paths to the receiver, in logits; sender None: of all, (L,H).

    The clean run with one head's output taken from the corrupted run, as far as the receiver reads it: all other heads
    stay as in the clean run, MLPs on the way are computed anew, or stay too with freeze_mlps. Then the clean run with
    what the receiver makes of it, and all else above computed anew. effect = logit_diff of that run - logit_diff of
    the clean run, where logit_diff = logit(corrupted answer) - logit(clean answer) at the last position, averaged over
    the pairs; positive = the path carries the clean answer. 0 where no path leads from the head to the receiver.
    receiver: "logits", (layer, "mlp"), (layer, head, "q") or "k" or "v", or a list of these, received together.
    Inputs and answers as in patch_layers. Cost: 2 passes, and for each head the MLPs below the receiver and 1 pass.
    Source: Wang et al. 2022 (arXiv 2211.00593), appendix B.
    """
    check_mode(model)
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    right, wrong = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    receivers = _receivers(model, receiver)
    if len(receivers) > 1 and any(site == "logits" for _, site, _ in receivers):
        raise ValueError('"logits" receive by themselves: what else received would reach them a second time')
    if sender is not None and not (isinstance(sender, tuple) and len(sender) == 2):
        raise ValueError(f"sender must be (layer, head) or None, got {sender!r}")
    senders = [_parts(model, (sender[0], "head", sender[1]))[0][::2]] if sender else None
    base = tails.record(model, clean, ("resid_pre", "resid_mid", "resid_post", "mlp_out", "z"))
    z = tails.record(model, corrupted, ("z",))["z"]
    measure = _measure(model, clean, (wrong.tolist(), right.tolist()))
    L, H, (B, T) = model.config.n_layer, model.config.n_head, clean.shape
    unpatched = measure(base["resid_post"][L - 1][:, None])
    effect = unpatched.new_zeros(L, H)
    top = max(layer for layer, _, _ in receivers)
    senders = senders or [(layer, head) for layer in range(min(top + 1, L)) for head in range(H)]
    at_once = max(1, max_tokens // (B * T))
    for start in tqdm(range(0, len(senders), at_once), desc="path patching", unit="batch", disable=None):
        some = senders[start : start + at_once]
        patches, change = _received(model, base, z, some, receivers, freeze_mlps)
        ids = clean.expand(len(some), B, T).reshape(-1, T)  # runs side by side, each with all pairs
        end = tails.run(model, ids, patches)[:, -1].view(len(some), B, -1) + change[:, :, -1]
        effect[tuple(zip(*some))] = measure(end.transpose(0, 1)[:, :, None]) - unpatched
    return effect[senders[0]].item() if sender else effect


def _receivers(model, receiver):
    """[(layer, site, head)]: where receivers are put into a run; the logits as layer L."""
    found = []
    for each in receiver if isinstance(receiver, list) and receiver else [receiver]:
        pieces = tuple(each) if isinstance(each, (tuple, list)) else ()
        if each == "logits":
            found.append((model.config.n_layer, "logits", None))
        elif len(pieces) == 2 and pieces[1] == "mlp":
            found.append((_parts(model, pieces)[0][0], "mlp_out", None))
        elif len(pieces) == 3 and pieces[2] in ("q", "k", "v"):
            layer, _, head = _parts(model, (pieces[0], "head", pieces[1]))[0]
            found.append((layer, pieces[2], head))
        else:
            raise ValueError(f'no receiver {each!r}; write "logits", (3, "mlp"), (3, 5, "q"), or "k" or "v", or a list')
    return found


def _received(model, base, z, senders, receivers, freeze_mlps):
    """(patches with what each receiver makes of the senders, what reaches the logits directly (R,B,T,C)).

    base: of the clean run; z: of the corrupted one. The patches are for R*B inputs, run after run.
    """
    heads = {layer: [(i, head) for i, (at, head) in enumerate(senders) if at == layer] for layer, _ in senders}
    change = base["resid_pre"][0].new_zeros(len(senders), *base["resid_pre"][0].shape)  # of the stream, (R,B,T,C)
    patches = []
    for layer, block in enumerate(model.transformer.h):
        here = [(site, head) for at, site, head in receivers if at == layer]
        if any(site in HEAD_SITES for site, _ in here):
            qkv = block.attn.c_attn(block.ln_1(base["resid_pre"][layer] + change)).flatten(0, 1)  # (RB,T,3C)
            qkv = qkv.unflatten(-1, (3, model.config.n_head, -1))  # (RB,T,3,H,D)
        for i, head in heads.get(layer, ()):
            weight = block.attn.c_proj.weight.view(change.size(-1), model.config.n_head, -1)[:, head]  # (C,D)
            change[i] += (z[layer][:, head] - base["z"][layer][:, head]) @ weight.T  # (B,T,D) @ (D,C) -> (B,T,C)
        mlp_out = block.mlp(block.ln_2(base["resid_mid"][layer] + change))  # (R,B,T,C)
        for site, head in here:
            new = mlp_out.flatten(0, 1) if site == "mlp_out" else qkv[:, :, "qkv".index(site), head]
            patches.append(Patch(layer, None, new, site, head))
        if not freeze_mlps:
            change = change + mlp_out - base["mlp_out"][layer]
    if not any(site == "logits" for _, site, _ in receivers):
        change = torch.zeros_like(change)
    return patches, change


def attribution_patching(
    model, clean_input, corrupted_input, target_token, corrupted_token=None, sites=("resid_post",)
):
    """Linear estimate of how far each cell of patch_layers moves logit_diff from the corrupted run's: {site: (L,T)}.

    (L,H,T) at sites with heads; in logits, averaged over the pairs; negative = towards the clean answer. The estimate
    is (clean - corrupted activation) times the gradient in the corrupted run. It is not exact: where a softmax or an
    activation function is saturated the gradient sees nothing, and large changes leave the straight line.
    Inputs and answers as in patch_layers. Cost: 2 forwards and 1 backward for all sites together.
    Source: Nanda 2023, "Attribution patching" (neelnanda.io).
    """
    check_mode(model)
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    right, wrong = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    sites = tuple(as_store(sites))
    with torch.no_grad():
        new = tails.record(model, clean, sites)
    with torch.enable_grad():
        end, kept = tails.record_with_gradient(model, corrupted, sites)
        difference = _measure(model, corrupted, (wrong.tolist(), right.tolist()))(end[:, None, -1:]).sum()
        gradients = dict(zip(kept, torch.autograd.grad(difference, list(kept.values()))))
    estimates = {}
    for site in sites:
        cells = []
        for layer in range(model.config.n_layer):
            change = new[site][layer] - kept[site, layer].detach()
            cells.append((change.nan_to_num() * gradients[site, layer]).sum((0, -1)))  # -inf - -inf: future scores
        estimates[site] = torch.stack(cells)
    return estimates


@torch.no_grad()
def ablate_component(model, inputs, component, kind="zero", answers=None, reference=None):
    """What removing a component costs, a float: the increase of the mean next-token loss on the inputs, in nats.

    With answers (right, wrong), ids or texts of one token: diff(ablated) - diff(intact) in logits, averaged over the
    inputs, where diff = logit(right) - logit(wrong) at the last position; negative = the component helped.
    component: "layer_3_head_5" or (3, "head", 5); "layer_3_mlp" or (3, "mlp"); "layer_3" or (3,), attention and MLP;
    "layer_3_neuron_17" or (3, "neuron", 17); or a list of these, removed together.
    kind: "zero"; "mean", over all tokens of the reference inputs; "resample", the reference inputs' own values (texts
    or ids of the same shape as the inputs). Zeroing a head's z is not TransformerLens's zeroing after its default
    weight processing, which folds the value bias away: there a zeroed head still passes on that bias.
    Cost: 2 passes, and 1 over the reference.
    """
    ids = encode(model, inputs)
    components = component if isinstance(component, list) and component else [component]
    parts = [part for each in components for part in _parts(model, each)]
    value = _replacements(model, ids, kind, reference, {PARTS[name] for _, name, _ in parts})
    patches = [_ablation(layer, name, index, value(PARTS[name], layer, index)) for layer, name, index in parts]
    measure = _measure(model, ids, answers)
    ablated, intact = tails.run(model, ids, patches), tails.run(model, ids)
    return (measure(ablated[:, None]) - measure(intact[:, None])).item()


@torch.no_grad()
def ablate_heads(model, inputs, kind="zero", answers=None, reference=None, max_tokens=4096):
    """ablate_component for every head by itself: (L,H). Cost: 1 pass and the tails of the L*H ablated runs."""
    check_mode(model)
    ids = encode(model, inputs)
    L, H = model.config.n_layer, model.config.n_head
    value = _replacements(model, ids, kind, reference, {"z"})
    measure = _measure(model, ids, answers)
    base = tails.as_base(tails.record(model, ids, tails.needed("z")))
    new = {}
    for layer, z in base["z"].items():
        new[layer] = torch.stack([value("z", layer, head).expand_as(z[:, head]) for head in range(H)], 1)  # (B,H,T,D)

    def join(layer, positions):
        return tails.patched_tails(model, base, new, "z", layer, positions, each_position=False)

    with tqdm(total=L, desc="ablating", bar_format=BAR, disable=None) as bar:
        ablated = tails.finish(model, base, join, list(range(L)), [0], H, max_tokens, answers is None, measure, bar)
    return torch.stack([ablated[layer, 0] for layer in range(L)]) - measure(base["resid_post"][L - 1][:, None])


PARTS = {"head": "z", "attention": "attn_out", "mlp": "mlp_out", "neuron": "mlp_post"}  # part of a layer -> its site


def _parts(model, component):
    """[(layer, part, index)] of a component as ablate_component takes it; ValueError if there is none such."""
    known = "write layer_3, layer_3_mlp, layer_3_head_5, layer_3_neuron_17 or (3,), (3, 'mlp'), (3, 'head', 5) ..."
    pieces = [plain(piece) for piece in component] if isinstance(component, tuple) else []
    if isinstance(component, str):
        found = re.fullmatch(r"layer_(\d+)(?:_(mlp)|_(head|neuron)_(\d+))?", component)
        pieces = [int(piece) if piece.isdigit() else piece for piece in found.groups() if piece] if found else []
    sizes = {"head": model.config.n_head, "neuron": model.config.n_inner, "mlp": None, "layer": None}
    layer, part, index = (*pieces, *(["layer"] * (len(pieces) == 1)), None, None, None)[:3]
    if len(pieces) > 3 or part not in sizes or (index is None) != (sizes[part] is None):
        raise ValueError(f"no component {component!r}; {known}")
    for name, number, size in (("layer", layer, model.config.n_layer), (part, index, sizes[part])):
        if size is not None and not (type(number) is int and 0 <= number < size):
            raise ValueError(f"no component {component!r}: {name} must be 0 to {size - 1}; {known}")
    return [(layer, "attention", None), (layer, "mlp", None)] if part == "layer" else [(layer, part, index)]


def _ablation(layer, part, index, value):
    """The Patch that puts value in the place of a part of the layer, at all positions."""
    if part != "neuron":
        return Patch(layer, None, value, PARTS[part], index)

    def with_neuron(old):  # (B,T,4C); the tap hands out a copy
        old[..., index] = value
        return old

    return Patch(layer, None, with_neuron, PARTS[part])


def _replacements(model, ids, kind, reference, sites):
    """f(site, layer, index): what an ablated part is replaced by, a tensor that broadcasts to it."""
    if kind not in ("zero", "mean", "resample"):
        raise ValueError(f'kind must be "zero", "mean" or "resample", got {kind!r}')
    if kind == "zero" and reference is not None:
        raise ValueError('kind "zero" takes nothing from a reference; give "mean" or "resample", or no reference')
    if kind == "zero":
        return lambda site, layer, index: model.lm_head.weight.new_zeros(())
    if reference is None:
        raise ValueError(f'kind "{kind}" takes its values from other inputs; give them as reference')
    reference = encode(model, reference)
    if kind == "resample" and reference.shape != ids.shape:
        shapes = f"{tuple(ids.shape)} tokens like the inputs, got {tuple(reference.shape)}"
        raise ValueError(f"the reference must be {shapes}")
    kept = get_activations(model, reference, sites)

    def value(site, layer, index):
        x = kept[site][layer]
        if index is not None:
            x = x[:, index] if site == "z" else x[..., index]  # (B,H,T,D) -> (B,T,D); (B,T,4C) -> (B,T)
        return x.mean((0, 1)) if kind == "mean" else x

    return value


def _measure(model, ids, answers):
    """f(final residual streams (B,R,n,C)): each run's mean next-token loss, or its logit difference: (R,)."""
    wide = torch.promote_types(model.lm_head.weight.dtype, torch.float32)  # differences in bf16 would keep 2 digits
    if answers is not None:
        if not isinstance(answers, (tuple, list)) or len(answers) != 2:
            raise ValueError(f"answers must be two, (right, wrong), got {answers!r}")
        right, wrong = (answer_ids(model, answer, ids, ids, name) for answer, name in zip(answers, ("right", "wrong")))
        rows = model.lm_head.weight[right].to(wide) - model.lm_head.weight[wrong].to(wide)  # (B,C)
        return lambda streams: (model.transformer.ln_f(streams[:, :, -1]).to(wide) * rows[:, None]).sum(-1).mean(0)
    B, T = ids.shape
    if T < 2:
        raise ValueError("one token has no next one to be wrong about; give longer inputs, or answers")

    def losses(streams):  # (B,r,T,C)
        logits = model.lm_head(model.transformer.ln_f(streams[:, :, :-1])).to(wide)  # (B,r,T-1,V)
        targets = ids[:, None, 1:, None].expand(-1, streams.size(1), -1, -1)  # (B,r,T-1,1)
        return (logits.logsumexp(-1) - logits.gather(-1, targets)[..., 0]).mean((0, 2))

    at_once = max(1, 512 // (B * T))  # the logits of all runs at once would be large
    return lambda streams: torch.cat([losses(some) for some in streams.split(at_once, dim=1)])
