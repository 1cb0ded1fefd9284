"""Edges against patched runs of the public forward, gradients against finite differences, circuits
against a model whose edges are known because its weights are written by hand."""

import random
import re

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.path import Path

from experiments import circuit_study
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability import circuits
from mingpt.interpretability.circuit_figure import draw_circuit
from mingpt.interpretability.circuits import edge_attribution, find_circuit
from mingpt.interpretability.graph import layout, record_base_runs, run_circuit
from mingpt.interpretability.tasks import Batch, load_task
from mingpt.model import GPT, GPTConfig, Patch
from tests.handmade import CIRCUIT, induction_model

L, H, D, V, T = 3, 2, 5, 13, 6


def make_model(dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            n_layer=L, n_head=H, n_embd=H * D, vocab_size=V, block_size=12, n_inner=17, **options
        )
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.to(dtype)


def make_batch(model, B=2):
    generator = torch.Generator().manual_seed(1)
    clean, corrupted = torch.randint(V, (2, B, T), generator=generator)
    rows = model.lm_head.weight.detach()
    return Batch(clean, corrupted, rows[torch.tensor([3, 4][:B])] - rows[torch.tensor([5, 9][:B])])


def metric_of(model, batch, ids, patches=None):
    """(B,), by the public forward; the direction written as the answers that make_batch takes."""
    logits = model(ids, patch_params=patches)[0][:, -1]
    return logits.gather(1, torch.tensor([[3], [4]])) - logits.gather(1, torch.tensor([[5], [9]]))


def sender_outputs(model, ids):
    """{sender: (B,T,C)} from what the public forward stores."""
    model(ids, store_activations=["resid_pre", "z", "mlp_out"])
    acts = model.activations
    found = {"embed": acts["resid_pre"][0]}
    for layer, block in enumerate(model.transformer.h):
        for head in range(H):
            weight = block.attn.c_proj.weight[:, head * D : (head + 1) * D]
            found[f"{layer}.{head}"] = acts["z"][layer][:, head] @ weight.T
        found[f"mlp {layer}"] = acts["mlp_out"][layer]
    return found


@torch.no_grad()
def drop_by_patched_forwards(model, batch, sender, reader):
    """Drop of the metric when one edge is corrupted: the reader's output with a changed input, put
    in.
    """
    change = (
        sender_outputs(model, batch.corrupted)[sender] - sender_outputs(model, batch.clean)[sender]
    )
    intact = metric_of(model, batch, batch.clean)
    if reader == "logits":
        patches = [Patch(L - 1, None, lambda old: old + change, "resid_post")]
        return (intact - metric_of(model, batch, batch.clean, patches)).mean().item()
    layer, head, site = reader.split(".") if "." in reader else (reader[4:], None, "mlp_out")
    layer, head = int(layer), head and int(head)
    into = "resid_mid" if head is None else "resid_pre"
    model(
        batch.clean,
        store_activations=[site],
        patch_params=Patch(layer, None, lambda old: old + change, into),
    )
    new = model.activations[site][layer]
    patch = Patch(layer, None, new if head is None else new[:, head], site, head)
    return (intact - metric_of(model, batch, batch.clean, patch)).mean().item()


def test_the_layout_has_every_edge_once():
    graph = layout(make_model())
    senders, readers, nodes, possible = graph.senders, graph.readers, graph.nodes, graph.possible
    assert len(senders) == 1 + L * (H + 1) and len(readers) == L * (3 * H + 1) + 1
    place = {name: number for number, name in enumerate([*senders, "logits"])}
    for r, reader in enumerate(readers):
        layer = None if reader == "logits" else int(nodes[r].removeprefix("mlp ").split(".")[0])
        for s, sender in enumerate(senders):
            same_attention = (
                nodes[r][:3] != "mlp" and layer is not None and sender.startswith(f"{layer}.")
            )
            assert possible[r, s] == (place[sender] < place[nodes[r]] and not same_attention)


@torch.no_grad()
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one():
    model = make_model(scale_attn_by_inverse_layer_idx=True)
    batch = make_batch(model)
    base = record_base_runs(model, batch)
    possible = layout(model).possible
    for mask, ids in ((possible, batch.clean), (~possible, batch.corrupted)):
        right = metric_of(model, batch, ids)[:, 0]
        assert run_circuit(base, mask).sub(right).abs().max() < 1e-12


@pytest.mark.parametrize("max_tokens", [4096, 50])
def test_exact_scores_are_those_of_patched_forwards(max_tokens):
    model = make_model()
    batch = make_batch(model)
    graph = layout(model)
    scores = edge_attribution(model, [batch], "exact", max_tokens=max_tokens)
    assert scores.shape == graph.possible.shape and scores[~graph.possible].eq(0).all()
    for r, s in graph.possible.nonzero().tolist():
        sender = graph.senders[s]
        reader = graph.readers[r]
        right = drop_by_patched_forwards(model, batch, sender, reader)
        assert scores[r, s].item() == pytest.approx(right, abs=1e-12), (sender, reader)


@torch.no_grad()
def test_a_circuit_without_one_edge_is_that_patched_forward():
    model = make_model()
    batch = make_batch(model)
    base = record_base_runs(model, batch)
    graph = layout(model)
    intact = run_circuit(base, graph.possible).mean().item()
    for r, s in graph.possible.nonzero().tolist()[::5]:
        mask = graph.possible.clone()
        mask[r, s] = False
        drop = intact - run_circuit(base, mask).mean().item()
        right = drop_by_patched_forwards(model, batch, graph.senders[s], graph.readers[r])
        assert drop == pytest.approx(right, abs=1e-12)
        # The layers below the reader's are clean, so that a run may begin there.
        assert intact - run_circuit(base, mask, graph.layer_of(r)).mean().item() == pytest.approx(
            right, abs=1e-12
        )


def test_eap_is_the_derivative_by_each_edge():
    """run_circuit takes shares of edges: the slope where one begins to be corrupted, by central
    differences.
    """
    model = make_model()
    batch = make_batch(model)
    base = record_base_runs(model, batch)
    possible = layout(model).possible
    step = 1e-5
    scores = edge_attribution(model, [batch], "eap")
    for r, s in possible.nonzero().tolist():
        ends = []
        for share in (1 - step, 1 + step):
            mask = possible.double()
            mask[r, s] = share
            with torch.no_grad():
                ends.append(run_circuit(base, mask).mean().item())
        assert scores[r, s].item() == pytest.approx(
            (ends[1] - ends[0]) / (2 * step), abs=1e-7
        )  # their rounding


def test_eap_ig_averages_the_gradient_on_the_way_from_corrupted_to_clean():
    """At k/m of the way, k = 1 ... m: the embedding's edges together are its whole gradient times
    its change.
    """
    model, steps = make_model(), 3
    batch = make_batch(model)
    clean, corrupted = (
        sender_outputs(model, ids)["embed"].detach() for ids in (batch.clean, batch.corrupted)
    )
    right = 0
    for k in range(1, steps + 1):
        embedding = (corrupted + k / steps * (clean - corrupted)).requires_grad_()
        metric = metric_of(model, batch, batch.clean, Patch(0, None, embedding, "resid_pre")).sum()
        right = (
            right
            + (torch.autograd.grad(metric, embedding)[0] * (clean - corrupted)).sum().item()
            / steps
            / 2
        )
    scores = edge_attribution(model, [batch], "eap-ig-inputs", steps)
    assert scores[:, 0].sum().item() == pytest.approx(right, abs=1e-12)


def test_all_methods_agree_on_a_linear_model():
    """Layer norms with a huge epsilon, uniform attention and a linear MLP: the estimates have
    nothing to leave out.
    """
    model = make_model(layer_norm_epsilon=1e6, activation_function="relu")
    with torch.no_grad():
        for block in model.transformer.h:
            block.ln_1.weight.mul_(1e3), block.ln_2.weight.mul_(1e3)
            block.attn.c_attn.weight[: 2 * H * D], block.attn.c_attn.bias[: 2 * H * D] = (
                0,
                0,
            )  # no scores
            block.mlp.c_fc.bias.fill_(50)  # above 0 for every input
        model.transformer.ln_f.weight.mul_(1e3)
    batch = make_batch(model)
    exact = edge_attribution(model, [batch], "exact")
    for method in ("eap", "eap-ig-inputs"):
        scores = edge_attribution(model, [batch], method)
        # what the layer norms' variance still adds to an epsilon of 1e6: parts in 1e5
        assert scores.sub(exact).abs().max() < 1e-3 * exact.abs().max() and exact.abs().max() > 1e-2


TRUE_EDGES = set(CIRCUIT)


@pytest.mark.parametrize("method", ["path_patching", "acdc"])
def test_the_exact_methods_find_the_handmade_circuit_no_more_no_less(method):
    circuit = find_circuit(induction_model(), "induction", method)
    assert {(sender, reader) for sender, reader, _ in circuit.edges} == TRUE_EDGES
    assert circuit.faithfulness() == pytest.approx(1, abs=1e-4)
    assert circuit.completeness() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_the_gradient_methods_are_blind_to_saturated_attention(method):
    """The handmade heads look at one key with all their weight: no gradient comes through queries
    and keys.
    """
    found = {
        (sender, reader)
        for sender, reader, _ in find_circuit(induction_model(), "induction", method).edges
    }
    right = found & TRUE_EDGES
    assert right == {edge for edge in TRUE_EDGES if edge[1][-1] not in "qk"}
    assert (len(right) / len(found), len(right) / len(TRUE_EDGES)) == (
        3 / 6,
        3 / 5,
    )  # precision, recall


@pytest.fixture(scope="module")
def handmade():
    return find_circuit(induction_model(), "induction", "path_patching")


def test_a_circuit_says_what_each_edge_is_worth(handmade):
    lost = handmade.minimality()
    assert set(lost) == TRUE_EDGES
    assert lost["embed", "1.2.v"] == pytest.approx(
        1, abs=1e-4
    )  # the answer itself comes from nowhere else
    assert lost["embed", "1.2.q"] == pytest.approx(0.5, abs=1e-4)  # neither answer is ahead
    assert handmade.nodes == ["embed", "0.1", "1.2", "logits"]
    assert [size for size, _ in handmade.curve((1, 2, 5))] == [0, 2, 5]
    # with queries and keys both of the corrupted text the head looks where it did: two edges do
    assert {edge[:2] for edge in handmade.smaller(0.9).edges} == {
        ("embed", "1.2.v"),
        ("1.2", "logits"),
    }


def test_an_edge_that_is_taken_out_takes_with_it_what_it_connected(handmade):
    """Without its last step the head 1.2 is read by nobody, and neither is what it reads."""
    without = handmade.without([("1.2", "logits")])
    assert without.edges == []
    assert without.faithfulness() == 0
    assert {edge[:2] for edge in handmade.edges} == TRUE_EDGES  # it is as it was
    lost = handmade.faithfulness() - handmade.without([("embed", "1.2.q")]).faithfulness()
    assert lost == pytest.approx(handmade.minimality()["embed", "1.2.q"], abs=1e-9)
    for edge in (("1.2", "mlp 9"), ("logits", "1.2.q")):
        with pytest.raises(ValueError, match="no edge from '.*' to '.*'; an edge goes from embed"):
            handmade.without([edge])


def test_the_base_runs_are_computed_once_a_task(monkeypatch):
    """acdc and all measures of a circuit use one run of its pairs, clean and corrupted ones side
    by side.
    """
    model = induction_model()
    count = []
    stream = model.stream
    monkeypatch.setattr(model, "stream", lambda *inputs: count.append(1) or stream(*inputs))
    pairs = load_task(model, "induction", count=5)
    circuit = find_circuit(model, pairs, "acdc")
    circuit.smaller(0.9).minimality()
    circuit.curve((1, 2, 5))
    assert circuit.completeness() == pytest.approx(0, abs=1e-4)
    assert len(pairs) == 1 and len(count) == 1


def test_a_circuit_comes_back_from_its_file(handmade, tmp_path):
    path = tmp_path / "circuit.json"
    handmade.to_json(path)
    again = circuits.Circuit.from_json(path, handmade.model, "induction")
    assert again.edges == handmade.edges and again.method == "path_patching"
    assert again.faithfulness() == handmade.faithfulness()
    with pytest.raises(ValueError, match="no circuit of this model.* 2 layers of 4 heads"):
        circuits.Circuit.from_json(path, make_model(), "induction")


def test_the_picture_has_every_node_and_edge(handmade, tmp_path):
    figure = handmade.plot(tmp_path / "circuit.png")
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.texts} > {"embed", "0.1", "1.2", "logits"}
    assert len(axes.patches) == 5 and (tmp_path / "circuit.png").read_bytes()[:4] == b"\x89PNG"


def random_graph(n_layer, n_head, n_edges, seed=0):
    """(nodes, edges) as draw_circuit takes them, of no model."""
    rng = random.Random(seed)
    order = ["embed"]
    for layer in range(n_layer):
        order += [f"{layer}.{head}" for head in range(n_head)] + [f"mlp {layer}"]
    order.append("logits")
    edges = []
    while len(edges) < n_edges:
        sender, reader = sorted(rng.sample(order, 2), key=order.index)
        if sender.split(".")[0] != reader.split(".")[0]:
            role = rng.choice([".q", ".k", ".v"]) if "." in reader else ""
            edges.append((sender, reader + role, rng.uniform(-1, 3)))
    used = {node.rstrip(".qkv") for edge in edges for node in edge[:2]}
    return [node for node in order if node in used], edges


@pytest.mark.parametrize(
    "sizes", [(3, 2, 5), (12, 4, 45), (12, 4, 120), (12, 12, 60), (2, 16, 40), (24, 2, 80)]
)
def test_an_arrow_touches_no_node_but_its_own_two(sizes):
    nodes, edges = random_graph(*sizes)
    figure = draw_circuit(nodes, edges, "random")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    boxes = {
        text.get_text(): text.get_bbox_patch().get_window_extent()
        for text in axes.texts
        if text.get_text() in nodes
    }
    assert boxes.keys() == set(nodes) and len(axes.patches) == len(edges)
    for (sender, reader, _), arrow in zip(edges, axes.patches):
        path = arrow.get_transform().transform_path(arrow.get_path())
        # The line and the head of the arrow, each by itself.
        parts = [Path(points) for points in path.to_polygons(closed_only=False)]
        for node, box in boxes.items():
            is_touched = any(part.intersects_bbox(box, filled=False) for part in parts)
            assert not is_touched or node in (sender, reader.rstrip(".qkv"))
    # Nodes and the names of the layers lie apart, within the picture.
    texts = [text.get_window_extent() for text in axes.texts]
    for text in texts:
        assert text.count_overlaps(texts) == 1
        assert figure.bbox.x0 < text.x0 and text.x1 < figure.bbox.x1


def test_the_picture_of_a_circuit_says_what_its_arrows_mean(handmade):
    figure = handmade.plot()
    title = figure.get_suptitle()
    assert "5 edges (path_patching), faithfulness 1.000" in title
    assert re.search(r"up to \d+\.\d\d logits", title) and "Circuit(" not in title
    names = {text.get_text() for text in figure.axes[0].texts}
    assert names == {"embed", "0.1", "1.2", "logits", "layer 0", "layer 1"}


def legend_of(figure):
    """The labels of a figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_only_what_is_drawn():
    edges = [("embed", "0.1.v", 2.0), ("0.1", "logits", 3.0)]
    figure = draw_circuit(["embed", "0.1", "logits"], edges, "small")
    assert legend_of(figure) == ["read as value", "read by an MLP or the logits"]
    edges = [("embed", "0.1.q", -2.0), ("0.1", "logits", 3.0)]
    figure = draw_circuit(["embed", "0.1", "logits"], edges, "small")
    assert legend_of(figure) == [
        "read as query",
        "read by an MLP or the logits",
        "against the right answer",
    ]


def test_pairs_of_different_lengths_are_run_in_batches_of_equal_ones():
    model, generator = induction_model(), torch.Generator().manual_seed(0)
    pairs = []
    for n in (4, 4, 6):
        ids = torch.randperm(20, generator=generator)
        clean, corrupted = (
            torch.cat((some, some[:-1]))[None] for some in (ids[:n], ids[n : 2 * n])
        )
        pairs.append((clean, corrupted, ids[n - 1].item(), [ids[2 * n - 1].item()]))
    assert sorted(batch.clean.shape for batch in load_task(model, pairs)) == [
        (1, 11),
        (2, 7),
    ]
    assert {edge[:2] for edge in find_circuit(model, pairs, "acdc").edges} == TRUE_EDGES
    scores = edge_attribution(model, pairs, "exact")
    alone = [edge_attribution(model, [pair], "exact") for pair in pairs]
    assert scores.sub(sum(alone) / 3).abs().max() < 1e-5  # fp32


def test_a_task_that_the_model_cannot_do_is_said_first():
    model = induction_model()
    model.lm_head.weight.data.neg_()
    with pytest.raises(ValueError, match="right answer on 0 of 100 pairs .*does not do this task"):
        find_circuit(model, "induction")


def test_unfit_tasks_and_options_are_refused_with_the_reason():
    model = GPT.from_pretrained("names")
    with pytest.raises(
        ValueError,
        match="greater_than does not suit this model: 0 of 5000 pairs .*'.*' is 2 tokens",
    ):
        find_circuit(model, "greater_than")
    with pytest.raises(
        ValueError, match="no task 'nothing'; the tasks are induction, name_recall, ioi"
    ):
        find_circuit(model, "nothing")
    with pytest.raises(ValueError, match="equally many tokens"):
        find_circuit(model, [("Mary Smith met Mary", "Mary Smithson met Mary", " Smith", " Jones")])
    with pytest.raises(ValueError, match="it must be one"):
        find_circuit(model, [("Mary Smith met Mary", "Mary Jones met Mary", " Smithson", " Jones")])
    for options in ({"method": "eap-igs"}, {"method": "acdc", "n_edges": 3}):
        with pytest.raises(ValueError, match="method must be one of"):
            find_circuit(model, "name_recall", **options)
    with pytest.raises(ValueError, match="method must be"):
        edge_attribution(model, "name_recall", "acdc")


@pytest.mark.parametrize("task", ["name_recall", "ioi", "induction"])
def test_tasks_give_aligned_pairs_that_differ_and_have_the_answers_of_their_texts(task):
    model = GPT.from_pretrained("names")
    batches = load_task(model, task, count=20)
    assert sum(len(batch.clean) for batch in batches) == 20
    for batch in batches:
        assert (
            batch.clean.shape == batch.corrupted.shape
            and (batch.clean != batch.corrupted).any(1).all()
        )
    again = load_task(model, task, count=20)
    assert all(one.clean.equal(other.clean) for one, other in zip(batches, again))


def test_greater_than_asks_for_the_later_years():
    """With a tokenizer that has the years' halves as tokens, as GPT-2's has."""
    texts = [f"{year:02}" for year in range(100)]
    halves = [(f"{a}", f"{b}") for a in range(10) for b in range(10)]
    centuries = [
        ("\u0120", "1"),
        *(("\u01201", f"{b}") for b in range(10)),
    ]  # U+0120 is the space's byte symbol
    tokenizer = BPETokenizer(Encoder([*centuries, *halves]))
    model = GPT(
        GPTConfig(n_layer=1, n_head=1, n_embd=4, vocab_size=tokenizer.n_vocab, block_size=64)
    ).eval()
    model.tokenizer = tokenizer
    for batch in load_task(model, "greater_than", count=5):
        for clean, corrupted, direction in zip(*batch):
            assert (clean != corrupted).sum() == 1
            year = next(
                token for token, other in zip(clean.tolist(), corrupted.tolist()) if token != other
            )
            year = int(tokenizer.decode([year]))
            rows = model.lm_head.weight[[tokenizer.encode(text)[0] for text in texts]]
            right = rows[year + 1 :].mean(0) - rows[: year + 1].mean(0)
            assert direction.sub(right).abs().max() < 1e-6


def test_the_largest_edges_are_as_many_as_asked_for_and_possible():
    model = induction_model()
    possible = layout(model).possible
    for n in (2, 20):
        circuit = find_circuit(model, "induction", "path_patching", n_edges=n)
        assert circuit.mask.sum() <= n and (circuit.mask & ~possible).sum() == 0
    assert {edge[:2] for edge in circuit.edges} >= TRUE_EDGES
    for options in ({"n_edges": 0}, {"threshold": -1.0}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match="threshold from 0, n_edges from 1"):
            find_circuit(model, "induction", **options)


def test_odd_pairs_are_refused_with_what_to_give():
    model, ids = induction_model(), torch.arange(5)[None]
    other = ids + 7
    for pair in (
        (ids, other, 1),
        (ids, other, 1, 2, 3),
        (ids, other, [], 2),
        (ids, other, 1, None),
    ):
        with pytest.raises(
            ValueError, match="a pair is .clean, corrupted, right answer, wrong answer."
        ):
            find_circuit(model, [pair])
    with pytest.raises(ValueError, match="no pairs"):
        find_circuit(model, [])
    with pytest.raises(ValueError, match="one clean and one corrupted text, got 2"):
        find_circuit(model, [(ids.repeat(2, 1), other.repeat(2, 1), 1, 2)])
    clean, corrupted = (torch.cat((some, some[:, :-1]), 1) for some in (ids, other))
    with pytest.raises(ValueError, match="ahead by 10.00 in the clean texts and by 10.00"):
        find_circuit(model, [(clean, torch.cat((other[:, :1], clean[:, 1:]), 1), 4, 12)])


def test_a_faithfulness_that_cannot_be_reached_is_said(handmade):
    with pytest.raises(ValueError, match="are 1.000 faithful, not 5.0"):
        handmade.smaller(5.0)


def test_a_broken_file_is_no_circuit(handmade, tmp_path):
    path = tmp_path / "circuit.json"
    for text in (
        "",
        "[]",
        "{}",
        '{"method": "eap", "layers": 2, "heads": 4, "edges": [["nobody", "1.2.q", 1]]}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="circuit.json is no circuit of this model"):
            circuits.Circuit.from_json(path, handmade.model, "induction")


def test_the_estimates_order_the_edges_of_a_trained_model_like_the_exact_scores():
    model = GPT.from_pretrained("names")
    pairs = load_task(model, "name_recall", count=2)
    possible = layout(model).possible
    exact, eap = (
        edge_attribution(model, pairs, method)[possible].abs() for method in ("exact", "eap")
    )
    ranks = torch.stack([scores.argsort().argsort().double() for scores in (exact, eap)])
    assert torch.corrcoef(ranks)[0, 1] > 0.9  # Spearman


@pytest.fixture
def saved(tmp_path):
    """The folder of the handmade model."""
    from mingpt import pretrained

    pretrained.save(induction_model(), tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_finds_draws_and_measures_a_circuit(saved, tmp_path, capsys):
    output = tmp_path / "c.png"
    arguments = [saved, "--task", "induction", "--pairs", "20", "--output", str(output)]
    assert circuit_study.main(arguments) == 0
    printed = capsys.readouterr().out
    assert (
        "20 other pairs: right on 100.0%" in printed and "Circuit(path_patching, 2 edges" in printed
    )
    table = output.with_suffix(".json")
    assert output.exists() and table.exists()
    assert printed.endswith(f"Wrote {output} and {table}.\n")


def test_the_search_takes_as_many_pairs_as_the_command_says(saved, tmp_path, monkeypatch):
    counts = []

    def search(model, task, method):
        counts.append(sum(len(batch.clean) for batch in load_task(model, task)))
        return find_circuit(model, task, method)

    monkeypatch.setattr(circuit_study, "find_circuit", search)
    arguments = [saved, "--task", "induction", "--output", str(tmp_path / "c.png")]
    assert circuit_study.main([*arguments, "--pairs", "7"]) == 0
    assert circuit_study.main(arguments) == 0
    assert counts == [7, 100]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--pairs", "0"], "a task needs 1 pair or more, got 0"),
        (["--pairs", "-3"], "a task needs 1 pair or more, got -3"),
        (["--keep", "nan"], "--keep must be above 0 and at most 1, got nan"),
        (["--keep", "0"], "--keep must be above 0 and at most 1, got 0.0"),
        (["--output", "folder.png"], "folder.json': it is a folder"),
    ],
)
def test_the_command_refuses_what_is_wrong_before_the_search(
    saved, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.setattr(circuit_study, "find_circuit", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    assert circuit_study.main([saved, "--task", "induction", *flags]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model", "folder.json"}


def test_ctrl_c_ends_the_command_without_a_traceback(saved, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(circuit_study, "find_circuit", interrupt)
    arguments = [saved, "--task", "induction", "--output", str(tmp_path / "c.png")]
    assert circuit_study.main(arguments) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()
