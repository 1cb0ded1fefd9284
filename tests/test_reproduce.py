"""The command that reproduces published numbers, run on a stand-in.

The stand-in is a random model whose "published" numbers transformers made here, with hooks of its
own. What another library gives on weights that it folds is made with a copy folded here.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch.nn import functional as F

from experiments import published_edges, reproduce
from experiments.published_measures import MEASURES
from mingpt.interpretability import runs
from mingpt.interpretability.edges import edge_attribution
from mingpt.interpretability.graph import layout, record_base_runs
from mingpt.interpretability.tasks import load_task
from mingpt.model import GPT
from mingpt.sites import Patch

# Every axis has its own size; 8 positions, of which 6 are used.
L = 3
H = 2
C = 10
V = 23
CLEAN = [[1, 4, 7, 2, 9, 11], [1, 5, 7, 2, 8, 11]]
CORRUPTED = [[1, 4, 6, 2, 9, 11], [1, 5, 6, 3, 8, 11]]
ANSWERS = [[12, 13], [14, 15]]  # clean, corrupted
GPT2_MERGES = Path(__file__).parents[2] / "shared" / "gpt2" / "vocab.bpe"


def random_gpt2(**sizes):
    """A random GPT-2 of transformers, with biases and norms that matter."""
    transformers = pytest.importorskip("transformers")
    tiny = {"n_layer": L, "n_head": H, "n_embd": C, "vocab_size": V, "n_positions": 24}
    sizes = tiny | {"bos_token_id": 0, "eos_token_id": 0} | sizes
    config = transformers.GPT2Config(**sizes, attn_implementation="eager")
    generator = torch.Generator().manual_seed(6)
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, weight in model.named_parameters():
        centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        weight.data = centre + 0.4 * torch.randn(weight.shape, generator=generator)
    return model


def folded(model):
    """A copy in which what a head's values have in common moves into its output's bias."""
    model = copy.deepcopy(model)
    for block in model.transformer.h:
        attn = block.attn
        value_bias = attn.c_attn.bias.data[-C:]
        constant = block.ln_1.bias @ attn.c_attn.weight[:, -C:] + value_bias
        value_bias -= constant
        attn.c_proj.bias.data += constant @ attn.c_proj.weight
    return model


class Hooked:
    """transformers' model with hooks on some modules while it runs."""

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def __call__(self, ids, before=(), after=()):
        """Logits (B,T,V). before: [(module, f(input) -> input)]; after: the same of outputs."""
        handles = [
            m.register_forward_pre_hook(lambda m, x, f=f: (f(x[0]), *x[1:])) for m, f in before
        ]
        handles += [m.register_forward_hook(lambda m, x, y, f=f: f(y)) for m, f in after]
        logits = self.model(torch.tensor(ids)).logits
        for handle in handles:
            handle.remove()
        return logits

    def inputs(self, ids, modules):
        """What each module reads."""
        seen = {}

        def keep(module):
            def see(x):
                seen[module] = x.clone()
                return x

            return module, see

        self(ids, before=[keep(module) for module in modules])
        return [seen[module] for module in modules]


def lead(logits, sign=1):
    """(B,): logit(clean answer) - logit(corrupted answer) at the last position, times the sign."""
    rows = logits[:, -1]
    clean, corrupted = (rows.gather(1, torch.tensor(ids)[:, None])[:, 0] for ids in ANSWERS)
    return sign * (clean - corrupted)


def patched_positions(run):
    """(L,T): mean lead of the corrupted answer with the clean stream put in after a block."""
    blocks = run.model.transformer.h
    streams = run.inputs(CLEAN, [*blocks[1:], run.model.transformer.ln_f])
    table = torch.zeros(L, len(CLEAN[0]))
    for layer, stream in enumerate(streams):
        for position in range(table.size(1)):

            def put_in(y, stream=stream, position=position):
                y = y[0] if isinstance(y, tuple) else y
                y = y.clone()
                y[:, position] = stream[:, position]
                return y

            table[layer, position] = lead(
                run(CORRUPTED, after=[(blocks[layer], put_in)]), -1
            ).mean()
    return table


def patched_heads(run):
    """(L,H): the share that is restored with a head's clean output put in at all positions."""
    projections = [block.attn.c_proj for block in run.model.transformer.h]
    clean = run.inputs(CLEAN, projections)
    start = lead(run(CORRUPTED)).mean()
    whole = lead(run(CLEAN)).mean() - start
    table = torch.zeros(L, H)
    for layer in range(L):
        for head in range(H):

            def put_in(x, layer=layer, columns=slice(head * C // H, (head + 1) * C // H)):
                x = x.clone()
                x[..., columns] = clean[layer][..., columns]
                return x

            restored = lead(run(CORRUPTED, before=[(projections[layer], put_in)])).mean() - start
            table[layer, head] = restored / whole
    return table


def direct(run, before=()):
    """(parts (2+2L,), heads (L,H)): direct contributions to the clean lead, of the clean texts."""
    gpt = run.model.transformer
    seen = {}

    def keep(name):
        def see(y):
            seen[name] = (y[0] if isinstance(y, tuple) else y)[:, -1]

        return see

    after = [(gpt.wte, keep("wte")), (gpt.wpe, keep("wpe"))]
    projections = []
    for layer, block in enumerate(gpt.h):
        after += [(block.attn, keep(f"{layer} attn")), (block.mlp, keep(f"{layer} mlp"))]
        after += [(block, keep("end"))]
        projections.append(block.attn.c_proj)
    # The hook that silences comes first, so that what is seen is what the model used.
    zs = {}

    def see_z(layer):
        def see(x):
            zs[layer] = x[:, -1]
            return x

        return projections[layer], see

    run(CLEAN, [*before, *map(see_z, range(L))], after)
    rows = run.model.lm_head.weight
    direction = rows[ANSWERS[0]] - rows[ANSWERS[1]]  # (B,C)
    scale = (seen.pop("end").var(-1, correction=0) + gpt.ln_f.eps).sqrt()

    def reads(y):  # (B,C) -> ()
        normed = (y - y.mean(-1, keepdim=True)) / scale[:, None] * gpt.ln_f.weight
        return (normed * direction).sum(-1).mean()

    seen["wpe"] = seen["wpe"].expand(len(CLEAN), -1)
    table = torch.zeros(L, H)
    for layer, projection in enumerate(projections):
        for head in range(H):
            columns = slice(head * C // H, (head + 1) * C // H)
            table[layer, head] = reads(zs[layer][:, columns] @ projection.weight[columns])
    return torch.stack([reads(seen[name]) for name in seen]), table


def copying(model, through_vocabulary):
    """(L,H): by its definition, with the eigenvalues of the whole product."""
    centre = torch.eye(C, dtype=torch.float64) - 1 / C
    embed = model.transformer.wte.weight.double()
    norm = torch.diag(model.transformer.ln_f.weight.double())
    table = torch.zeros(L, H)
    for layer, block in enumerate(model.transformer.h):
        for head in range(H):
            columns = slice(head * C // H, (head + 1) * C // H)
            value = block.attn.c_attn.weight[:, -C:][:, columns].double()
            out = block.attn.c_proj.weight[columns].double()
            product = centre @ torch.diag(block.ln_1.weight.double()) @ value @ out @ centre
            if through_vocabulary:
                product = embed @ centre @ product @ centre @ norm @ (embed - embed.mean(0)).T
            values = torch.linalg.eigvals(product)
            table[layer, head] = values.sum().real / values.abs().sum()
    return table


# What `silenced` names in the entries below.
SILENCED = {"silenced": [1, 1]}


def silence_output(x):  # (B,T,C), what c_proj reads
    x = x.clone()
    x[:, -1, C // H :] = 0
    return x


def silence_values(qkv):  # (B,T,3C)
    qkv = qkv.clone()
    qkv[..., -C // H :] = 0
    return qkv


def loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def of_logits(run, folded_run):
    """[(measure, options, values)] of the logits themselves."""
    texts = {"texts": CLEAN}
    tokens = [[3, 0, 22], [5, 5, 1]]
    chosen = texts | {"tokens": tokens}
    at = torch.tensor(tokens)
    ids = torch.tensor(CLEAN)
    labels = torch.tensor(CORRUPTED)
    logits = run(CLEAN)
    last = logits[:, -1]
    values = folded_run.model.transformer.h[1].attn.c_attn
    silenced = folded_run(CLEAN, after=[(values, silence_values)])
    return [
        ("logits", chosen, last.gather(1, at)),
        ("logits", chosen | {"position": 2}, logits[:, 2].gather(1, at)),
        ("probabilities", chosen, last.softmax(-1).gather(1, at)),
        ("top_tokens", texts | {"count": 4}, last.argsort(descending=True)[:, :4]),
        ("top_token_everywhere", texts, logits.argmax(-1)),
        ("loss", texts, loss(logits, ids)),
        ("loss", texts | {"labels": CORRUPTED}, loss(logits, labels)),
        ("loss", texts | SILENCED, loss(silenced, ids)),
    ]


def of_pairs(run, folded_run):
    """[(measure, options, values)] of the logit difference, patches and parts."""
    silenced = [(folded_run.model.transformer.h[1].attn.c_proj, silence_output)]
    texts = (CLEAN, CORRUPTED)
    leads = torch.stack([lead(run(ids), -1) for ids in texts])
    without = torch.stack([lead(folded_run(ids, silenced), -1) for ids in texts]).mean(1)
    parts, _ = direct(run)
    _, heads = direct(folded_run)
    _, heads_without = direct(folded_run, silenced)
    return [
        ("unpatched", {}, leads),
        ("unpatched", {"mean": True} | SILENCED, without),
        ("patching", {"site": "resid_post", "normalized": False}, patched_positions(run)),
        ("patching", {"site": "z", "each_position": False}, patched_heads(run)),
        ("parts", {}, parts),
        ("accumulated_parts", {}, parts.cumsum(0)[1:]),
        ("heads", {}, heads),
        ("heads", SILENCED, heads_without),
    ]


def of_heads(model):
    """[(measure, options, values)] of patterns and weights."""
    options = {"seed": 4, "low": 2, "high": 20, "rows": 3, "length": 7, "offset": 6}
    rows = torch.randint(2, 20, (3, 7), generator=torch.Generator().manual_seed(4)).repeat(1, 2)
    patterns = torch.stack(model(rows, output_attentions=True).attentions)  # (L,3,H,14,14)
    stripe = patterns.diagonal(-6, -2, -1).mean((1, 3))
    text = torch.tensor(CLEAN[:1])
    patterns = torch.cat(model(text, output_attentions=True).attentions)  # (L,H,T,T)
    previous = patterns.diagonal(-1, -2, -1).sum(-1) / text.size(1)
    return [
        ("stripe", options, stripe),
        ("head_kind", {"texts": CLEAN[:1], "kind": "previous_token"}, previous),
        ("copying", {"through_vocabulary": False}, copying(model, False)),
        ("copying", {"through_vocabulary": True}, copying(model, True)),
    ]


@torch.no_grad()
def published_by_transformers(model):
    """The content of a file in which every measure that needs no tokenizer has a number."""
    run = Hooked(model)
    folded_run = Hooked(folded(model))
    rest = {"tolerance": 1e-4, "why": "fp32"}
    numbers = [
        {"what": measure, "measure": measure, "values": values.tolist()} | options | rest
        for measure, options, values in (
            *of_logits(run, folded_run),
            *of_pairs(run, folded_run),
            *of_heads(model),
        )
    ]
    return {
        "name": "transformers",
        "clean": CLEAN,
        "corrupted": CORRUPTED,
        "clean_answers": ANSWERS[0],
        "corrupted_answers": ANSWERS[1],
        "numbers": numbers,
        "not_compared": [{"what": "poems", "why": "they have no number"}],
    }


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """(folder of the random model, content of its published file)."""
    folder = tmp_path_factory.mktemp("model")
    model = random_gpt2()
    model.save_pretrained(folder)
    return folder, published_by_transformers(model)


@pytest.fixture(scope="module")
def with_words(tmp_path_factory):
    """(folder of a random model, the model): years and names are one token each for it."""
    merges = [f"{year // 10} {year % 10}" for year in range(100)]
    # Only beginnings of names are merged, so that no name spoils another.
    for (
        name
    ) in "Mary John Tom James Anna David Paul Mark Sarah Alice Peter George Kate Emma".split():
        merges += [f"{'Ġ' + name[:i]} {name[i]}" for i in range(len(name))]
    merges = list(dict.fromkeys(merges))
    folder = tmp_path_factory.mktemp("words")
    random_gpt2(vocab_size=257 + len(merges), n_positions=64).save_pretrained(folder)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    return folder, GPT.from_pretrained(folder)


def run_command(tmp_path, capsys, folder, content):
    """(exit code, lines of stdout, stderr) of the command on one file of published numbers."""
    (tmp_path / "1.json").write_text(json.dumps(content))
    code = reproduce.main(["--model", str(folder), "--published", str(tmp_path)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_what_transformers_computes_is_reproduced_line_by_line(tmp_path, capsys, stand_in):
    folder, content = stand_in
    code, lines, err = run_command(tmp_path, capsys, folder, content)
    n = len(content["numbers"])
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert code == 0 and err == ""
    assert [line[:4] for line in lines] == ["pass"] * n + ["not ", f"{n} of"[:4]]
    assert "tolerance 0.0001 (fp32)" in lines[0] and lines[0].endswith(" s")
    assert lines[-2] == "not compared  transformers: poems: they have no number"
    assert lines[-1].startswith(f"{n} of {n} reproduced")


def test_every_measure_has_a_test_here():
    named = set(Path(__file__).read_text(encoding="utf-8").split('"'))
    assert MEASURES.keys() <= named


def test_a_cell_that_is_off_fails_and_is_named(tmp_path, capsys, stand_in):
    folder, content = stand_in
    content = copy.deepcopy(content)
    [number] = [n for n in content["numbers"] if n.get("site") == "resid_post"]
    number["values"][1][3] += 0.01
    code, lines, err = run_command(tmp_path, capsys, folder, content)
    [failed] = [line for line in lines if line.startswith("FAIL")]
    assert code == 1 and "1 published numbers are not reproduced" in err
    assert "3x6, furthest off at [1, 3]" in failed


def test_what_is_not_a_number_fails():
    ours = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    assert reproduce.compare(torch.ones(2).double(), ours, 0.1) == (False, (1,))


def test_a_table_of_another_size_is_refused(tmp_path, capsys, stand_in):
    folder, content = stand_in
    content = copy.deepcopy(content)
    content["numbers"][0]["values"].append([0, 0, 0])
    code, lines, err = run_command(tmp_path, capsys, folder, content)
    assert code == 2 and "(3, 3), ours (2, 3)" in err


@pytest.mark.parametrize("missing", ["why", "measure"])
def test_a_file_that_is_not_whole_is_refused_before_any_run(tmp_path, capsys, stand_in, missing):
    folder, content = stand_in
    content = copy.deepcopy(content)
    del content["numbers"][0][missing]
    code, lines, err = run_command(tmp_path, capsys, folder, content)
    assert code == 2 and lines == [] and missing in err


def test_without_the_model_it_says_so_and_exits_with_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert reproduce.main([]) == 2
    assert "gpt2" in capsys.readouterr().err


def test_every_shipped_number_has_a_measure_and_a_shape_of_gpt2():
    numbers = 0
    for content in reproduce.read_published(reproduce.PUBLISHED):
        assert content["source"] and content["conventions"] and content["name"]
        for number in content["numbers"]:
            values = torch.tensor(number["values"])
            assert values.isfinite().all()
            torch.as_tensor(number["tolerance"]).expand_as(values)
            if number["measure"] in ("patching", "heads", "stripe", "head_kind", "copying"):
                assert len(values) in (12, 144)
            numbers += 1
    assert numbers > 50


@pytest.mark.skipif(not GPT2_MERGES.exists(), reason=f"GPT-2's merges are not at {GPT2_MERGES}")
def test_all_shipped_files_but_the_slow_ones_run_to_their_end(tmp_path, capsys):
    model = tmp_path / "model"
    random_gpt2(n_layer=12, n_head=12, n_embd=12, vocab_size=50257).save_pretrained(model)
    random_gpt2(
        n_layer=12, n_head=12, n_embd=12, vocab_size=50257, n_positions=210
    ).save_pretrained(model)
    (model / "merges.txt").write_bytes(GPT2_MERGES.read_bytes())
    for path in reproduce.PUBLISHED.glob("[1-6]*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code = reproduce.main(["--model", str(model), "--published", str(tmp_path)])
    out, err = capsys.readouterr()
    # It is not GPT-2, and so fails; but each line is there.
    assert code == 1 and "are not reproduced" in err
    assert len(out.splitlines()) > 60


def test_their_integration_goes_from_the_corrupted_text_on(stand_in):
    model = GPT.from_pretrained(stand_in[0])
    [batch] = load_task(model, [(torch.tensor([[1, 4, 7]]), torch.tensor([[1, 5, 7]]), 12, 13)])
    base = record_base_runs(model, batch)
    expected = []
    for step in range(5):
        ends = [run["resid_pre"][0] for run in (base.corrupted, base.clean)]
        put_in = Patch(0, None, torch.lerp(*ends, step / 5), "resid_pre")
        end = runs.run(model, batch.clean, [put_in]).detach().requires_grad_()
        [gradient] = torch.autograd.grad(base.metric(end[:, -1]).sum(), end)
        expected.append(torch.einsum("btc,sbtc->s", gradient, base.change))
    scores = published_edges.their_scores(base)
    # The logits' row; for the others the same function takes the gradients.
    torch.testing.assert_close(scores["eap-ig"][-1], torch.stack(expected).mean(0))
    torch.testing.assert_close(scores["eap"], edge_attribution(model, [batch], "eap"))
    torch.testing.assert_close(scores["clean-corrupted"][-1] * 2 - scores["eap"][-1], expected[0])


def test_the_largest_edges_are_found_among_ours(tmp_path, capsys, with_words):
    folder, model = with_words
    end_of_text = model.config.vocab_size - 1
    batches = []
    for batch in load_task(model, "ioi", 6):
        clean, corrupted = (F.pad(ids, (1, 0), value=end_of_text) for ids in batch[:2])
        # The other way round, in which the corrupted text is the end that is taken in.
        batches.append(batch._replace(clean=corrupted, corrupted=clean))
    scores = -edge_attribution(model, batches, "eap-ig-inputs")
    graph = layout(model)
    edges = []
    for place in scores.abs().flatten().topk(20).indices.tolist():
        reader, sender = divmod(place, scores.size(1))
        score = scores[reader, sender].item()
        edges.append([graph.senders[sender], graph.readers[reader], score])
    number = {"what": "edges", "measure": "largest_edges", "pairs": 6, "edges": edges}
    number |= {"values": [1, 1], "tolerance": 1e-6, "why": "the same pairs"}
    content = {"name": "edges", "numbers": [number], "not_compared": []}
    code, lines, err = run_command(tmp_path, capsys, folder, content)
    assert code == 0, lines


def test_rank_correlation_is_spearmans():
    correlation = published_edges.rank_correlation([0.1, 0.5, 7.0], [1.0, 3.0, 2.0])
    assert correlation == pytest.approx(0.5)


def greater_than_content(address, edges=10_000):
    source = {"address": address, "sha256": ""}
    number = {"what": "years", "measure": "greater_than", "file": source, "edges": edges}
    number |= {"batch": 2, "values": [0] * 5, "tolerance": 0, "why": "set by the test"}
    return {"name": "years", "numbers": [number], "not_compared": []}


def test_greater_than_is_transformerss_and_a_circuit_of_all_edges_is_the_model(
    tmp_path, capsys, monkeypatch, with_words
):
    folder, model = with_words
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = ["clean,corrupted,label"]
    metrics = []
    theirs = pytest.importorskip("transformers").GPT2LMHeadModel.from_pretrained(folder).eval()
    years = [model.tokenizer.encode(f"{year:02}")[0] for year in range(100)]
    for noun, century, year in (("war", 13, 52), ("plan", 16, 42), ("siege", 14, 98)):
        text = f"The {noun} lasted from the year {century}{year} to the year {century}"
        rows.append(f"{text},{text.replace(str(year), '01')},{year}")
        ids = torch.tensor([[model.config.vocab_size - 1, *model.tokenizer.encode(text)]])
        with torch.no_grad():
            of_years = theirs(ids).logits[0, -1].softmax(-1)[years]
        metrics.append(of_years[year + 1 :].sum() - of_years[: year + 1].sum())
    (tmp_path / "mingpt" / "eap-ig").mkdir(parents=True)
    (tmp_path / "mingpt" / "eap-ig" / "years.csv").write_text("\n".join(rows))
    n_edges = int(layout(model).possible.sum())
    mean = torch.stack(metrics).mean().item()

    content = greater_than_content("https://example.org/years.csv")
    number = content["numbers"][0]
    number |= {"values": [mean] * 4 + [n_edges], "tolerance": 1e-6, "why": "all edges"}
    code, lines, err = run_command(tmp_path, capsys, folder, content)
    assert code == 0, lines

    few = published_edges.greater_than(model, number | {"edges": 4})
    assert few[4] <= 4 and (few[1:4] - mean).abs().max() > 1e-6


def test_texts_that_cannot_be_downloaded_are_no_failure(tmp_path, capsys, monkeypatch, with_words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = greater_than_content("http://127.0.0.1:9/years.csv")
    code, lines, err = run_command(tmp_path, capsys, with_words[0], content)
    assert code == 0
    assert lines[0].startswith("not compared  years: years: its texts could not be downloaded")
