"""A view as a Python script that prints its numbers, with the library's public functions alone.

Whatever a person has typed stands in it as Python writes a literal, so that no text becomes code.
"""

from mingpt.explorer import requests
from mingpt.explorer.attention_view import MOST_PARTS, read_head, read_run, read_weight
from mingpt.explorer.circuit_view import read_choice
from mingpt.explorer.grid import read_grid
from mingpt.interpretability.activation_patching import DIRECTIONS
from mingpt.interpretability.inputs import token_texts
from mingpt.interpretability.patching_result import MEASURES
from mingpt.sites import SITES, SITES_WITH_HEADS

SWEEP = """\
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.model import GPT

model = GPT.from_pretrained({name})
clean = {clean}
corrupted = {corrupted}
answers = {answers}  # {answer_texts}
result = patch_layers(
    model, clean, corrupted, *answers, {site}, {direction}, each_position={each_position}
)
print(result.describe({measure}))
"""
ALL_ROWS = """\
for layer, values in enumerate(result.mean({measure}).tolist()):
    print(layer, *(f"{{value:.6g}}" for value in values))
"""
ONE_HEAD = """\
values = result.mean({measure})[{layer}, {head}].tolist()
print("{layer}.{head}", *(f"{{value:.6g}}" for value in values))
"""
CELLS = """\
from mingpt.interpretability.activation_patching import get_activations
from mingpt.interpretability.inputs import token_texts
from mingpt.model import GPT, Patch

model = GPT.from_pretrained({name})
source = model.tokenizer({source})
target = model.tokenizer({target})
clean_answer, corrupted_answer = {answers}  # {answer_texts}
recorded = get_activations(model, source, {sites})
new = recorded[{site}]
patches = [
    {patches},
]


def run(patches):
    logits, _ = model(target, patch_params=patches)
    difference = logits[0, -1, corrupted_answer] - logits[0, -1, clean_answer]
    return difference.item(), logits[0, -1].softmax(-1).topk(20)


"""
ONE_CELL = """\
for name, chosen in (("unpatched", []), ("patched", patches)):
    difference, top = run(chosen)
    print(f"{{name}} {{difference:.6g}}")
    for probability, token in zip(top.values, token_texts(model, top.indices)):
        print(f"{{probability:.6g}} {{token!r}}")
for head in range(model.config.n_head):
    z = recorded["z"][{layer}][:, head, {where}]
    print("head", head, f"{{run([Patch({layer}, {where}, z, 'z', head)])[0]:.6g}}")
"""
TOGETHER = """\
unpatched = run([])[0]
single = [run([patch])[0] for patch in patches]
print("unpatched", f"{unpatched:.6g}")
print("single", *(f"{value:.6g}" for value in single))
print("joint", f"{run(patches)[0]:.6g}")
print("sum", f"{unpatched + sum(value - unpatched for value in single):.6g}")
"""

ATTENTION = """\
from mingpt.interpretability.attention_analysis import extract_attention
from mingpt.model import GPT

model = GPT.from_pretrained({name})
patterns = extract_attention(model, {text})
for query, weights in enumerate(patterns[{layer}, {head}].tolist()):
    print(query, *(f"{{weight:.3f}}" for weight in weights[: query + 1]))
"""
EXPLAIN = """\
from mingpt.interpretability.attention_analysis import explain_attention
from mingpt.model import GPT

model = GPT.from_pretrained({name})
found = explain_attention(model, {text}, {layer}, {head}, {query}, {key}, {against})
print("score", f"{{found.score:.6g}}", "baseline", f"{{found.baseline:.6g}}")
for query, key, value in found.largest({count}):
    print(f"{{value:.6g}} {{query}} with {{key}}")
for side, sums in (("query", found.table.sum(1)), ("key", found.table.sum(0))):
    for i in sums.abs().argsort(descending=True)[:{count}].tolist():
        print(f"{{sums[i].item():.6g}} wrote the {{side}}: {{found.parts[i]}}")
"""
CIRCUIT = """\
from mingpt.interpretability.circuits import find_circuit
from mingpt.model import GPT

model = GPT.from_pretrained({name})
pair = ({clean}, {corrupted}, *{answers})  # {answer_texts}
circuit = find_circuit(model, [pair], {method}, n_edges={size}).without({removed})
for edge in circuit.edges:
    print(f"{{edge.score:.6g}} {{edge.sender}} to {{edge.reader}}")
print(f"faithfulness {{circuit.faithfulness():.6g}}")
"""
# {the circuit view's method: find_circuit's}
CIRCUIT_METHODS = {"eap": "eap", "exact": "path_patching"}


def script(model, body, cache):
    """The view: a script of the view that the field `of` names, for the same request."""
    make = SCRIPTS[requests.one_of(body, "of", SCRIPTS)]
    yield {"text": make(model, body)}


def literals(model, pair, **values):
    """{name: Python's literal} of the values, the pair's answers, and the model's name."""
    answers = [answer.item() for answer in pair.answers]
    texts = [token_texts(model, answer)[0] for answer in pair.answers]
    values |= {"name": model.name, "answers": tuple(answers), "answer_texts": tuple(texts)}
    return {name: repr(value) for name, value in values.items()}


def sweep_script(model, body):
    """The script of a heatmap."""
    grid = read_grid(model, body)
    names = literals(
        model,
        grid.pair,
        clean=grid.pair.clean_text,
        corrupted=grid.pair.corrupted_text,
        site=grid.site,
        direction=grid.direction,
        each_position=grid.has_positions,
        measure=requests.one_of(body, "measure", MEASURES),
    )
    if grid.at is None:
        return (SWEEP + ALL_ROWS).format(**names)
    layer, head = grid.at
    return (SWEEP + ONE_HEAD).format(**names, layer=layer, head=head)


def cell_script(model, body):
    """The script of a cell: its value, the next tokens, and the heads there."""
    pair = requests.read_pair(model, body)
    site = requests.one_of(body, "site", SITES)
    T = pair.clean.size(1)
    layer, position, head = requests.cell(body, model, site, T)
    where = T - 1 if position is None else position
    sites = sorted({site, "z"})
    start = cells_script(model, body, pair, site, [(layer, position, head)], sites)
    return start + ONE_CELL.format(layer=layer, where=where)


def joint_script(model, body):
    """The script of several cells, each alone and all together."""
    pair = requests.read_pair(model, body)
    site = requests.one_of(body, "site", SITES)
    cells = requests.cells(body, model, site, pair.clean.size(1), least=2)
    # It has no fields to fill in.
    return cells_script(model, body, pair, site, cells, [site]) + TOGETHER


def cells_script(model, body, pair, site, cells, sites):
    """The beginning that both have: the texts, the patches of the cells, and how one is run."""
    source, target = DIRECTIONS[requests.one_of(body, "direction", DIRECTIONS)]
    texts = {"clean": pair.clean_text, "corrupted": pair.corrupted_text}
    names = literals(
        model, pair, source=texts[source], target=texts[target], site=site, sites=sites
    )
    patches = [write_patch(site, *cell) for cell in cells]
    return CELLS.format(**names, patches=",\n    ".join(patches))


def write_patch(site, layer, position, head):
    """A Patch as Python."""
    if site not in SITES_WITH_HEADS:
        return f"Patch({layer}, {position}, new[{layer}][:, {position}], {site!r})"
    place = f"{head}" if position is None else f"{head}, {position}"
    return f"Patch({layer}, {position}, new[{layer}][:, {place}], {site!r}, {head})"


def attention_script(model, body):
    """The script of one head's pattern."""
    read_run(model, body)
    layer, head = read_head(model, body)
    return ATTENTION.format(name=repr(model.name), text=run_text(body), layer=layer, head=head)


def explain_script(model, body):
    """The script of why a head looks from a query to a key."""
    T = read_run(model, body).size(1)
    layer, head = read_head(model, body)
    query, key, against = read_weight(body, T)
    return EXPLAIN.format(
        name=repr(model.name),
        text=run_text(body),
        layer=layer,
        head=head,
        query=query,
        key=key,
        against=against,
        count=MOST_PARTS,
    )


def run_text(body):
    """Python's literal of the text whose run is asked for."""
    return repr(requests.text(body, body["run"]))


def circuit_script(model, body):
    """The script of the largest edges without the removed ones."""
    pair = requests.read_pair(model, body)
    size, removed = read_choice(body)
    names = literals(
        model,
        pair,
        clean=pair.clean_text,
        corrupted=pair.corrupted_text,
        method=CIRCUIT_METHODS[requests.one_of(body, "method", CIRCUIT_METHODS)],
        size=size,
        removed=removed,
    )
    return CIRCUIT.format(**names)


# {name of a view: f(model, request), the text of its script}
SCRIPTS = {
    "sweep": sweep_script,
    "cell": cell_script,
    "joint": joint_script,
    "attention": attention_script,
    "explain": explain_script,
    "circuit": circuit_script,
}
