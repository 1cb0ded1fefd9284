"""Which parts of the model write the answer themselves?

Attribution splits a logit into what each part wrote into the stream; of the neurons that wrote
most, it says whether removing them agrees. A direct contribution leaves out all that a part does
through those that read it, and so shows no cause.
Source: Elhage et al. 2021 ("A Mathematical Framework", transformer-circuits.pub).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mingpt.common import AnyPath
from mingpt.interpretability import figures, readout, runs
from mingpt.interpretability.inputs import Answer, Text, answer_ids, encode_one
from mingpt.model import GPT
from mingpt.sites import Patch

if TYPE_CHECKING:  # it loads matplotlib
    from mingpt.interpretability.notebook_figure import Figure


@dataclass(repr=False)
class LogitParts:
    """What each part adds directly to a logit at the last position; all but total sum to total.

    Printed, a table with a line for each layer.
    """

    heads: Tensor  # (L,H), with their value biases
    mlps: Tensor  # (L,), without their output biases
    attention_biases: Tensor  # (L,), of the output
    mlp_biases: Tensor  # (L,), of the output
    embedding: Tensor
    position: Tensor
    final_bias: Tensor  # of the final layer norm
    total: Tensor  # the run's own logit, or difference of two
    neurons: Tensor | None = None  # (n_inner,), in place of their layer's MLP, there 0

    def __repr__(self):
        lines = ["layer     heads       MLP    biases"]
        biases = self.attention_biases + self.mlp_biases
        columns = torch.stack((self.heads.sum(1), self.mlps, biases), 1)  # (L,3)
        for layer, values in enumerate(columns):
            cells = "".join(f"{value:10.3f}" for value in values)
            lines.append(f"{layer:<5}{cells}")
        rest = {} if self.neurons is None else {"neurons of one MLP": self.neurons.sum()}
        rest |= {
            "embedding": self.embedding,
            "position": self.position,
            "bias of the final norm": self.final_bias,
            "total": self.total,
        }
        lines += [f"{name:25}{value:10.3f}" for name, value in rest.items()]
        return "\n".join(lines)

    def plot(self, path: AnyPath | None = None) -> "Figure":
        """The matplotlib Figure of heads and MLPs, layers down; written to path if given."""
        values = torch.cat((self.heads, self.mlps[:, None]), 1)  # (L,H+1)
        columns = [f"head {head}" for head in range(self.heads.size(1))] + ["MLP"]
        title = "what each head and MLP adds directly at the last position"
        figure = figures.draw_heatmap(values, columns, title, "logits", xlabel="part of the layer")
        return figures.shown(figure, path)


@torch.no_grad()
def logit_attribution(
    model: GPT, text: Text, answer: Answer, other: Answer = None, neurons: int | None = None
) -> LogitParts:
    """LogitParts of logit(answer) [- logit(other)] at the last position, in logits.

    The final layer norm keeps this run's scale, and so is linear: the parts sum to the whole.
    neurons: a layer, whose MLP is then split into its neurons. Cost: 1 pass.
    """
    gpt = model.transformer
    L = model.config.n_layer
    if answer is None or neurons not in (None, *range(L)):
        raise ValueError(
            f"give an answer, and as neurons a layer, 0 to {L - 1}; got {answer!r} and {neurons!r}"
        )
    ids, ends, direction, reads = read_end(model, text, answer, other)
    out, attention_biases = read_outputs(model, "attn", reads)
    of_neurons, mlp_biases = read_outputs(model, "mlp", reads)
    of_neurons *= ends["mlp_post"]  # (L,4C)
    # Each head writes through its own columns of the output weights: z times what these say.
    z = ends["z"]  # (L,H,D)
    out = out.view_as(z)
    parts = LogitParts(
        heads=(z * out).sum(-1),  # (L,H,D) -> (L,H)
        mlps=of_neurons.sum(-1),
        attention_biases=attention_biases,
        mlp_biases=mlp_biases,
        embedding=gpt.wte.weight[ids[0, -1]].to(reads) @ reads,
        position=gpt.wpe.weight[ids.size(1) - 1].to(reads) @ reads,
        final_bias=gpt.ln_f.bias.to(direction) @ direction,
        total=readout.logit_diff(model, ends["resid_post"][-1], direction),
    )
    if neurons is not None:
        parts.neurons = of_neurons[neurons]
        parts.mlps[neurons] = 0
    return parts


def read_outputs(model: GPT, part: str, reads: Tensor) -> tuple[Tensor, Tensor]:
    """(by one unit of each input (L,n), by the bias (L,)): what output layers add directly.

    part: attn, whose inputs are z, or mlp, whose inputs are mlp_post. reads: of read_end.
    """
    layers = [getattr(block, part).c_proj for block in model.transformer.h]
    weights = torch.stack([reads @ layer.weight.to(reads) for layer in layers])
    biases = torch.stack([reads @ layer.bias.to(reads) for layer in layers])
    return weights, biases


def read_end(
    model: GPT, text: Text, answer: Answer, other: Answer
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """(ids (1,T), ends, direction (C,), reads (C,)) of one run. Cost: 1 pass.

    ends: {site: (L,...)} of z, mlp_post and resid_post at the last token, where the final residual
    vector is x. direction . ln_f(x) is logit(answer) [- logit(other)]; reads . y is what a part y
    of x adds to it, the norm's scale held at that of x. Both are in fp32 or wider.
    """
    ids = encode_one(model, text)
    ends = {}
    for site, layers in runs.record(model, ids, ["z", "mlp_post"]).items():
        rows = [tensor[0, ..., -1, :] for tensor in layers.values()]
        ends[site] = torch.stack(rows)
    answer_id = answer_ids(model, answer, ids, ids, "given")
    other_id = None if other is None else answer_ids(model, other, ids, ids, "given")
    direction = readout.answer_direction(model, answer_id, other_id)[0]
    return ids, ends, direction, hold_norm(model, ends["resid_post"][-1], direction)


def hold_norm(model: GPT, x: Tensor, direction: Tensor) -> Tensor:
    """(C,): reads, for which reads . y is what a part y of the residual vector x (C,) adds.

    It adds to direction . ln_f(x), the norm's scale held at that of x. direction: (C,), wide.
    """
    ln_f = model.transformer.ln_f
    # With its scale held, the norm takes off the mean, divides, and multiplies by its weight.
    reads = direction * ln_f.weight
    # The direction's dtype is wide: in fp16 a deviation above 256 has no variance.
    scale = (x.to(direction).var(correction=0) + ln_f.eps).sqrt()
    return (reads - reads.mean()) / scale


@dataclass(repr=False)
class ImportantNeurons:
    """Neurons and what they add to a logit or a difference of two, in logits; printed, a table.

    direct: activation x (output weights . unembedding direction), the final norm's scale held at
    this run's value. ablation: intact - ablated (0 at every position), with all that later blocks
    make of it; a neuron that works through them alone may be missed.
    """

    neurons: list[tuple[int, int]]  # k (layer, neuron), the largest |direct| first
    activation: Tensor  # (k,), at the last position
    direct: Tensor  # (k,)
    ablation: Tensor  # (k,)
    disagree: Tensor  # (k,), one is less than half of the other, or of the other sign

    def __repr__(self):
        lines = ["layer.neuron  activation    direct  ablation"]
        for (layer, neuron), *values, disagree in zip(*vars(self).values()):
            cells = "".join(f"{value:10.3f}" for value in values)
            mark = "  disagree" if disagree else ""
            lines.append(f"{layer:5}.{neuron:<8}{cells}{mark}")
        return "\n".join(lines)


@torch.no_grad()
def important_neurons(
    model: GPT, text: Text, answer: Answer, other: Answer = None, k: int = 10
) -> ImportantNeurons:
    """ImportantNeurons: the k of largest |direct| for logit(answer) [- logit(other)] at the end.

    text: one, or ids (1,T). Cost: 1 + k passes.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    ids, ends, direction, reads = read_end(model, text, answer, other)
    weights, _ = read_outputs(model, "mlp", reads)  # (L,4C)
    acts = ends["mlp_post"].flatten()  # (L*4C,)
    direct = acts * weights.flatten()

    # Of all neurons the direct part is known; an ablation is a run, so only the k largest get one.
    top = direct.abs().topk(min(k, len(direct))).indices
    neurons = [divmod(number, model.config.n_inner) for number in top.tolist()]
    # One run each: neurons of one MLP that are removed together could stand in for each other.
    ablated = [_ablated_end(model, ids, layer, neuron) for layer, neuron in neurons]
    end = ends["resid_post"][-1]  # (C,)
    intact = readout.logit_diff(model, end, direction)
    ablation = intact - readout.logit_diff(model, torch.stack(ablated), direction)  # (k,)
    direct = direct[top]
    larger = torch.maximum(direct.abs(), ablation.abs())
    disagree = (direct - ablation).abs() > larger / 2
    return ImportantNeurons(neurons, acts[top], direct, ablation, disagree)


def _ablated_end(model, ids, layer, neuron):
    """(C,): the last token's final residual vector of a run in which the neuron is 0.

    At every position: later tokens read what it wrote at the earlier ones.
    """

    def without_neuron(acts):
        acts[..., neuron] = 0
        return acts

    patch = Patch(layer, None, without_neuron, "mlp_post")
    return runs.run(model, ids, [patch])[0, -1]
