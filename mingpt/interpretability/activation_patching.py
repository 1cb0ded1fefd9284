"""Where is the information that decides the answer?

Two texts that differ in one token are run; a piece of one run's activations is put into the other
run, and the answer at the last position is read again. Denoising puts clean activations into the
corrupted run: a cell that moves the answer towards the clean one carries information that the
answer depends on. Noising is the other way round, and asks what is needed. Neither shows what
happens in other texts, nor that the cell is the only way. Sources: Meng et al. 2022 (arXiv
2202.05262), Zhang & Nanda 2023 (arXiv 2309.16042), Heimersheim & Nanda 2024 (arXiv 2404.15255).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mingpt.common import CheckFailed, check_finite, progress_bar
from mingpt.interpretability import partial_runs, runs
from mingpt.interpretability.ablation import ablate_component as ablate_component
from mingpt.interpretability.ablation import ablate_heads as ablate_heads
from mingpt.interpretability.inputs import (
    Answer,
    Inputs,
    answer_pair,
    encode,
    encode_pair,
    text_of,
    token_texts,
)
from mingpt.interpretability.patching_result import PatchingResult as PatchingResult
from mingpt.interpretability.path_patching import path_patching as path_patching
from mingpt.interpretability.readout import answer_direction, logit_diff, published_logit_diff
from mingpt.model import GPT
from mingpt.sites import (
    SITES_WITH_HEADS,
    Activations,
    Patch,
    Position,
    Replacement,
    as_store,
    check_site,
)

# What is put in, and the run that it is put into.
DIRECTIONS = {"denoise": ("clean", "corrupted"), "noise": ("corrupted", "clean")}


@torch.no_grad()
def get_activations(
    model: GPT, inputs: Inputs, sites: Iterable[str] = ("resid_post",)
) -> Activations:
    """{site: {layer: tensor}} of one run, copies. Cost: 1 pass.

    inputs: a text, texts of equal token length, or ids (B,T). sites: names, or one name.
    """
    recorded = runs.record(model, encode(model, inputs), sites)
    sites = [sites] if isinstance(sites, str) else sites
    return {site: recorded[site] for site in sites}


@torch.no_grad()
def patch_activation(
    model: GPT,
    inputs: Inputs,
    layer: int,
    position: Position,
    activation: Replacement,
    site: str = "resid_post",
    head: int | None = None,
) -> Tensor:
    """Last-token logits (B,V) of one run with one patch; see mingpt.sites.Patch. One pass."""
    patch = Patch(layer, position, activation, site, head)
    return _run_patch(model, encode(model, inputs), patch)


def _run_patch(model, ids, patch):
    """Last-token logits (B,V) of ids (B,T) with a patch, by the model's own forward.

    They are what this call returned: the model's attributes are of its latest call, which may be
    another thread's.
    """
    runs.check_model(model)
    logits, _ = model(ids, patch_params=patch)
    check_finite(logits[:, -1])
    return logits[:, -1].clone()  # a view would keep all of logits


@torch.no_grad()
def patch_layers(
    model: GPT,
    clean_input: Inputs,
    corrupted_input: Inputs,
    target_token: Answer = None,
    corrupted_token: Answer = None,
    site: str = "resid_post",
    direction: str = "denoise",
    each_position: bool = True,
    max_tokens: int = 4096,
) -> PatchingResult:
    """Patch every layer (and head) at every position, or with each_position=False at all at once.

    clean_input, corrupted_input: texts, ids (1,T), or lists of B texts or ids (B,T), of equal token
    lengths. target_token, corrupted_token: the clean and the corrupted answer, each an id, a text
    that is one token, or a list of B; without one it is the differing token of its input.
    direction: "denoise" puts clean activations into the corrupted run, "noise" corrupted ones into
    the clean run. max_tokens: how many tokens may be under way at once, which bounds the memory
    (about 60 C + 8 H T bytes for each).
    -> PatchingResult. Cost: 2 passes and the tails of the patched runs. Equals one patched pass per
    cell, to rounding.
    """
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    answers = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    sweep = Sweep(model, clean, corrupted, direction, [site])
    vectors = sweep.vectors(site, each_position, max_tokens, "patching")
    ids = {"clean": clean, "corrupted": corrupted}
    return PatchingResult(
        model,
        vectors,
        answers=torch.stack(answers, 1),  # (B,2)
        tokens=token_texts(model, corrupted[0]),
        texts={name: text_of(model, rows) or str(rows[0].tolist()) for name, rows in ids.items()},
        site=site,
        direction=direction,
        single=not isinstance(clean_input, (list, tuple)) and len(clean) == 1,
    )


class Sweep:
    """The patched runs of B pairs, all of them or some layers and positions at a time.

    clean, corrupted: ids (B,T), of pairs that differ. sites: names; what of both unpatched runs is
    kept, and can be put in. Cost: 2 passes.
    """

    @torch.no_grad()
    def __init__(
        self, model: GPT, clean: Tensor, corrupted: Tensor, direction: str, sites: Sequence[str]
    ):
        for site in sites:
            check_site(site)
        if direction not in DIRECTIONS:
            raise ValueError(f'direction must be "denoise" or "noise", got {direction!r}')
        source, target = DIRECTIONS[direction]
        ids = {"clean": clean, "corrupted": corrupted}
        kept = set(sites).union(*map(partial_runs.base_sites, sites))
        self.model = model
        # {site: {layer: tensor}} of the runs from which is taken, and into which is put.
        self.source, self.target = runs.record_pair(model, ids[source], ids[target], kept)
        # Left of the first difference the runs are the same, and a patch changes nothing.
        differs = (clean != corrupted).any(0)  # (T,)
        self.positions = range(int(differs.nonzero()[0]), len(differs))
        self.end = self._end_of(self.target)  # of the run into which is put
        # {"clean", "corrupted": (B,C)}: last vectors, after the final norm.
        self.unpatched = {source: self._end_of(self.source), target: self.end}

    def _end_of(self, run):
        """(B,C): the last vector of {site: {layer: tensor}}, after the final norm."""
        last = run["resid_post"][self.model.config.n_layer - 1][:, -1]  # (B,T,C) -> (B,C)
        return self.model.transformer.ln_f(last)

    @torch.no_grad()
    def run(
        self,
        site: str,
        layers: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        head: int | None = None,
        max_tokens: int = 4096,
        desc: str | None = None,
    ) -> Tensor:
        """(B,layers,R,positions,C): last vectors, after the final norm, of one run a cell.

        layers: ascending; None for all. positions: those that are patched, each by itself; None for
        all at once, which is one. head: one, at a site with heads; None for each by itself, R = H,
        and for sites without heads, R = 1. The rest as in patch_layers.
        """
        each_position = positions is not None
        if positions is None:
            positions = [self.positions[0]]
        new = self.source[site]
        patched = partial_runs.patch_site(
            self.model, self.target, new, site, positions, each_position, layers, head
        )
        ends = partial_runs.run_patched(self.model, self.target, patched, max_tokens, desc=desc)
        ends = self.model.transformer.ln_f(ends.permute(3, 0, 2, 1, 4))  # of (L,P,R,B,C)
        check_finite(ends)
        return ends

    def vectors(
        self, site: str, each_position: bool = True, max_tokens: int = 4096, desc: str | None = None
    ) -> dict[str, Tensor]:
        """{"clean", "corrupted": (B,C), "patched": (B,cells,C)} of all cells; see PatchingResult.

        Cost: the tails of the patched runs.
        """
        positions = list(self.positions) if each_position else None
        ends = self.run(site, None, positions, None, max_tokens, desc)  # (B,L,R,P,C)
        ends = self.with_unchanged(ends) if each_position else ends[:, :, :, 0]
        if site not in SITES_WITH_HEADS:
            ends = ends[:, :, 0]
        return self.unpatched | {"patched": ends}

    def with_unchanged(self, ends: Tensor) -> Tensor:
        """(B,l,R,T,C) of the ends (B,l,R,P,C) at all positions that a patch can change.

        Before them a patch puts in what was there: those cells are the unpatched run's end.
        """
        B, layers, R, _, _ = ends.shape
        same = self.end.view(B, 1, 1, 1, -1).expand(-1, layers, R, self.positions[0], -1)
        return torch.cat((same, ends), 3)


@torch.no_grad()
def patch_loop(
    model: GPT,
    clean_input: Inputs,
    corrupted_input: Inputs,
    target_token: Answer = None,
    corrupted_token: Answer = None,
) -> Tensor:
    """patch_layers(...).logit_diff for one pair, by its definition: (L,T), in logits; slow.

    Each cell is a forward pass of its own, with the clean residual stream after block l at position
    p in the corrupted run. Cost: 1 + L*T passes.
    """
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    answers = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    clean_stream = get_activations(model, clean)["resid_post"]  # {layer: (1,T,C)}
    L = len(clean_stream)
    T = clean.size(1)
    differences = []
    for cell in progress_bar(range(L * T), unit="patch"):
        logits = _run_cell(model, corrupted, clean_stream, cell)
        difference = published_logit_diff(logits, *answers)
        differences.append(difference.item())
    return torch.tensor(differences, dtype=torch.float64).view(L, T)


def _run_cell(model, corrupted, clean_stream, cell):
    """Last-token logits (V,) of the corrupted ids (1,T) with the clean stream in one cell of L*T.

    clean_stream: {layer: (1,T,C)}. Cells are counted from left to right, then from top to bottom.
    """
    layer, position = divmod(cell, corrupted.size(1))
    new = clean_stream[layer][:, position]  # (1,C)
    patch = Patch(layer, position, new)
    return _run_patch(model, corrupted, patch)[0]


@torch.no_grad()
def check_cells(
    model: GPT, clean: Tensor, corrupted: Tensor, result: PatchingResult, count: int = 2
) -> str:
    """A sentence; CheckFailed if cells of a sweep are not what they are when each is run by itself.

    result: the PatchingResult of patch_layers(model, clean, corrupted, ...) for one pair at
    resid_post, denoising. Checked are the `count` cells that move the answer most, and the last
    one. Cost: 1 pass and one run a cell.
    """
    differences = result.logit_diff.cpu().double()  # (L,T)
    moved = (differences - result.corrupted.item()).abs().flatten()
    strongest = moved.topk(min(count, len(moved))).indices.tolist()
    cells = sorted({*strongest, len(moved) - 1})
    answers = result.answers[0, :, None]  # (2,1)
    clean_stream = get_activations(model, clean)["resid_post"]
    deviations = []
    size = 0  # of the logits
    for cell in cells:
        logits = _run_cell(model, corrupted, clean_stream, cell)
        again = published_logit_diff(logits, *answers)
        deviation = again.item() - differences.flatten()[cell].item()
        deviations.append(deviation)
        size = max(size, logits.abs().max().item())
    largest = max(map(abs, deviations))
    spread = (differences.max() - differences.min()).item()
    # The sweep's sums round in another order; a wrong cell is off by far more. And a logit is a sum
    # of C terms: its rounding grows with its own size, and like a random walk with their number.
    rounding = 2 * model.config.n_embd**0.5 * torch.finfo(logits.dtype).eps * size
    if not largest <= 1e-4 * spread + 1e-5 + rounding:
        raise CheckFailed(
            f"the sweep is off by {largest:.1e}, more than rounding; "
            "report this, and use --loop until then"
        )
    return f"{len(cells)} cells, each run again by itself: the largest difference is {largest:.1e}."


def attribution_patching(
    model: GPT,
    clean_input: Inputs,
    corrupted_input: Inputs,
    target_token: Answer = None,
    corrupted_token: Answer = None,
    sites: Iterable[str] = ("resid_post",),
) -> dict[str, Tensor]:
    """Linear estimate of how far each cell of patch_layers moves logit_diff: {site: (L,T)}.

    (L,H,T) at sites with heads; in logits, from the corrupted run's difference, averaged over the
    pairs; negative = towards the clean answer. The estimate is (clean - corrupted activation) times
    the gradient in the corrupted run. It is not exact: where a softmax or an activation function is
    saturated the gradient sees nothing, and large changes leave the straight line.
    Inputs and answers as in patch_layers. Cost: 2 forwards and 1 backward for all sites together.
    Source: Nanda 2023, "Attribution patching" (neelnanda.io).
    """
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    answers = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    sites = tuple(as_store(sites))
    with torch.no_grad():
        new = runs.record(model, clean, sites)
        direction = answer_direction(model, *answers)  # (B,C)
    with torch.enable_grad():
        stream, recorded = runs.record_with_gradient(model, corrupted, sites)
        difference = -logit_diff(model, stream[:, -1], direction).mean()
        found = torch.autograd.grad(difference, list(recorded.values()))
    gradients = dict(zip(recorded, found))
    estimates = {}
    for site in sites:
        layers = []
        for layer in range(model.config.n_layer):
            change = new[site][layer] - recorded[site, layer].detach()
            change = change.nan_to_num()  # -inf - -inf: the scores of future keys
            effect = change * gradients[site, layer]
            layers.append(effect.sum((0, -1)))
        estimates[site] = torch.stack(layers)
    return estimates
