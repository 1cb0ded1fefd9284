"""The experiment script as its user meets it: what it prints and writes, and what it says to bad
input."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import interpretability
from mingpt import hub, pretrained
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability.inputs import encode_pair
from mingpt.model import GPT, GPTConfig

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT.parent / "shared" / "reference" / "gpt2_michelle.json"
CLEAN, CORRUPTED = "ab Jones ab", "ab Smith ab"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of 3 layers for a tokenizer in which " Jones" and " Smith" are tokens."""
    merges, tokens = [], [["Ġ", *"Jones"], ["Ġ", *"Smith"]]
    for symbols in tokens:
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            symbols[:2] = [symbols[0] + symbols[1]]
    tokenizer = BPETokenizer(Encoder(merges))
    torch.manual_seed(1)
    config = GPTConfig(
        n_layer=3,
        n_head=2,
        n_embd=10,
        vocab_size=tokenizer.n_vocab,
        block_size=16,
        tie_word_embeddings=True,
    )
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.tokenizer = tokenizer
    folder = tmp_path_factory.mktemp("model")
    pretrained.save(model, folder)
    return folder


def run(folder, tmp_path, *more, clean=CLEAN, corrupted=CORRUPTED, output="out.png"):
    arguments = [
        "--model",
        folder,
        "--clean",
        clean,
        "--corrupted",
        corrupted,
        "--output",
        tmp_path / output,
        *more,
    ]
    return interpretability.main([str(argument) for argument in arguments])


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, torch.tensor(
        [[float(value) for value in row] for row in rows], dtype=torch.float64
    )


@pytest.mark.parametrize("flags", [[], ["--loop"]])
def test_it_writes_the_table_that_a_loop_over_patched_runs_defines(folder, tmp_path, capsys, flags):
    assert run(folder, tmp_path, *flags) == 0
    header, table = read_table(tmp_path / "out.csv")
    assert header == ["layer", "0 a", "1 b", "2  Smith", "3  ", "4 a", "5 b"]
    assert table[:, 0].tolist() == [0, 1, 2]

    model = GPT.from_pretrained(folder)
    clean, corrupted = encode_pair(model, CLEAN, CORRUPTED)
    jones, smith = clean[0, 2].item(), corrupted[0, 2].item()
    expected = torch.empty(3, 6, dtype=torch.float64)
    with torch.no_grad():
        model(clean, store_activations=True)
        stream = model.layer_activations
        for layer in range(3):
            for position in range(6):
                logits, _ = model(
                    corrupted, patch_params=(layer, position, stream[layer][0, position])
                )
                expected[layer, position] = (logits[0, -1, smith] - logits[0, -1, jones]).item()
    assert (table[:, 1:] - expected).abs().max() <= (
        0 if flags else 1e-4 * (expected.max() - expected.min()) + 1e-5
    )

    printed = capsys.readouterr().out
    moved = (expected - expected[0, 0]).abs()  # a patch left of the difference is the unpatched run
    layer, position = divmod(moved.argmax().item(), 6)
    assert f"after layer {layer} at position {position} " in printed
    assert f"from {expected[0, 0]:.2f} to {expected[layer, position]:.2f}" in printed


def test_it_prints_the_tokens_the_tables_and_both_differences(folder, tmp_path, capsys):
    run(folder, tmp_path)
    printed = capsys.readouterr().out
    model = GPT.from_pretrained(folder)
    assert f"Model: folder {folder} (3 layers, 2 heads, width 10)" in printed
    assert re.findall(r"^ +(\d+)  '(.*?)' +'(.*?)'(  <- differs)?$", printed, re.M) == [
        ("0", "a", "a", ""),
        ("1", "b", "b", ""),
        ("2", " Jones", " Smith", "  <- differs"),
        ("3", " ", " ", ""),
        ("4", "a", "a", ""),
        ("5", "b", "b", ""),
    ]
    rows = re.findall(r"^ +(\d+) +(\d+)  '.*' +(0\.\d{4})$", printed, re.M)
    assert len(rows) == 40 and [int(row[0]) for row in rows] == [*range(1, 21)] * 2
    for text, shown in ((CLEAN, rows[:20]), (CORRUPTED, rows[20:])):
        model(model.tokenizer(text))
        top = model.last_token_logits[0].softmax(-1).topk(20)
        assert [int(row[1]) for row in shown] == top.indices.tolist()
        assert [float(row[2]) for row in shown] == pytest.approx(top.values.tolist(), abs=5.1e-5)
    for name, text in (("clean", CLEAN), ("corrupted", CORRUPTED)):
        model(model.tokenizer(text))
        logits = model.last_token_logits[0]
        difference = (
            logits[model.tokenizer.encode(" Smith")[0]]
            - logits[model.tokenizer.encode(" Jones")[0]]
        )
        assert (
            f"logit(' Smith') - logit(' Jones') after the {name} text: {difference:.4f}" in printed
        )


@pytest.mark.parametrize(
    "output, magic", [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_the_suffix_decides_the_format_and_nothing_else_is_left(folder, tmp_path, output, magic):
    assert run(folder, tmp_path, output=output) == 0
    assert (tmp_path / output).read_bytes().startswith(magic)
    assert {file.name for file in tmp_path.iterdir()} == {output, "a.csv"}


def test_the_picture_names_texts_model_positions_and_quantity(folder, tmp_path):
    from mingpt.interpretability.figures import draw_heatmap, token_labels

    values = torch.tensor([[5.0, -4.0], [0.0, 1.0]])
    title, quantity = "clean: $a$\ncorrupted: b\nsome model", "logit(' _$') - logit(' $')"
    figure = draw_heatmap(values, token_labels(["$x_1$", " b\n"]), title, quantity)
    axes, bar = figure.axes
    assert axes.get_title() == title
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0 $x_1$", "1  b\\n"]
    assert bar.get_ylabel() == quantity
    image = axes.images[0]
    assert (image.norm.vmin, image.norm.vmax) == (
        -5,
        5,
    ) and image.get_cmap().name == "RdBu_r"  # zero is the middle
    figure.savefig(tmp_path / "dollars.png")  # texts with dollars are texts, not formulas


def test_empty_answers_are_taken_from_the_differing_token(folder, tmp_path):
    run(
        folder,
        tmp_path,
        "--clean-answer",
        " Jones",
        "--corrupted-answer",
        " Smith",
        output="named.png",
    )
    run(folder, tmp_path, "--clean-answer", "", "--corrupted-answer", "", output="taken.png")
    assert (tmp_path / "named.csv").read_text() == (tmp_path / "taken.csv").read_text()


@pytest.mark.parametrize("answer", [None, " student", " waited", " Jones"])
def test_an_answer_that_is_neither_in_a_text_nor_likely_is_told_beside_the_result(
    tmp_path, capsys, answer
):
    """Whoever edits the texts alone asks for their own answers; only " Jones" cannot be meant."""
    texts = "Anna {} was a top-notch student. Anna"
    assert interpretability.CLEAN_ANSWER == interpretability.CORRUPTED_ANSWER == ""
    flags = ["--model", "names", "--output", str(tmp_path / "o.png")]
    flags += ["--clean", texts.format("Brown"), "--corrupted", texts.format("Green")]
    flags += ["--clean-answer", answer] if answer else []
    assert interpretability.main(flags) == 0
    printed = capsys.readouterr().out
    expected = answer or " Brown"
    assert f"logit(' Green') - logit({expected!r}) after the clean text" in printed
    sentence = "' Jones', the clean answer, stands in neither text and is none of the 20 most prob"
    assert (sentence in printed) == (answer == " Jones")
    assert printed.count("stands in neither text") == (answer == " Jones")


BAD = {
    "different token counts": (
        {"corrupted": "ab Smith Smith"},
        "equally many tokens, got 6 and 4:\n"
        "  clean     a|b| Jones| |a|b\n  corrupted a|b| Smith| Smith\n"
        "first difference at position 2; choose a replacement of the same length",
    ),
    "identical inputs": ({"corrupted": CLEAN}, "are the same"),
    "empty clean text": ({"clean": ""}, "the clean text has 0 tokens; this model takes 1 to 16"),
    "empty corrupted text": ({"corrupted": ""}, "the corrupted text has 0 tokens"),
    "an answer of several tokens": (["--clean-answer", " Joan"], "is 3 tokens ( Jo|a|n)"),
    "answers that are the same": (["--clean-answer", " Smith"], "two different tokens"),
    "no answer for several differences": (
        {"corrupted": "xb Smith ab", "more": ["--clean-answer", " Jones"]},
        "differ at positions [0, 2], not at one; name the corrupted answer",
    ),
    "a corrupted text longer than the context": (
        {"corrupted": "a" * 17},
        "the corrupted text has 17 tokens; this model takes 1 to 16",
    ),
    "a device that cannot compute": (["--device", "meta"], "no device 'meta'"),
    "a model name that no file can have": (["--model", "x" * 300], "x" * 300),
    "a text longer than the context": (
        {"clean": "a" * 17},
        "has 17 tokens; this model takes 1 to 16",
    ),
    "an unknown output extension": ({"output": "a.gif"}, "must end in one of .png, .svg, .pdf"),
    "a missing output folder": ({"output": "no/a.png"}, "there is no folder"),
    "an output that is a folder": ({"output": "dir.png"}, "it is a folder"),
    "an unknown device": (["--device", "warp"], "warp"),
    "a model folder that is not there": (["--model", "./nowhere"], "nowhere"),
    "a lone surrogate": ({"clean": "a\ud800"}, "surrogate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_clear_error_with_exit_code_2_and_nothing_written(
    folder, tmp_path, capsys, case
):
    change, message = BAD[case]
    (tmp_path / "dir.png").mkdir()
    change = dict(change) if isinstance(change, dict) else {"more": change}
    assert run(folder, tmp_path, *change.pop("more", []), **change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert [file.name for file in tmp_path.iterdir()] == ["dir.png"]


def weights_cut_short(weights):
    weights.write_bytes(weights.read_bytes()[:-1000])


def weights_with_nan(weights):
    tensors = load_file(weights)
    tensors["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (Path.unlink, "no model.safetensors"),
        (weights_cut_short, "is corrupt, cut short"),
        (weights_with_nan, "h.1.mlp.c_fc.weight has values that are NaN"),
    ],
)
def test_a_model_folder_with_spoiled_weights_is_refused(folder, tmp_path, capsys, spoil, message):
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    for file in folder.iterdir():
        (spoiled / file.name).write_bytes(file.read_bytes())
    spoil(spoiled / "model.safetensors")
    assert run(spoiled, tmp_path) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["spoiled"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write into any folder")
def test_an_unwritable_output_folder_is_refused(folder, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert run(folder, tmp_path, output="locked/a.png") == 2
    assert "choose another folder" in capsys.readouterr().err


def test_an_output_folder_that_refuses_files_is_refused(folder, capsys):
    """/proc refuses new files to everyone, root included."""
    if not Path("/proc").is_dir():
        pytest.skip("this system has no /proc")
    assert run(folder, Path("/proc"), output="a.png") == 2
    assert "cannot write /proc/a.png: " in capsys.readouterr().err


def script(*arguments, cwd, **environment):
    command = [sys.executable, ROOT / "interpretability.py", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def no_network(tmp_path):
    return {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}


def test_the_untouched_default_without_gpt2_shows_the_embedded_model_and_says_so(
    tmp_path, no_network
):
    done = script(cwd=tmp_path, **no_network)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert (
        len(lines) == 2
        and "names" in lines[0]
        and "python interpretability.py --model gpt2" in lines[1]
    )
    assert "Model: names, embedded (" in done.stdout
    header, table = read_table(tmp_path / "heatmap.csv")
    assert len(header) == 12 and tuple(table.shape) == (
        GPT.from_pretrained("names").config.n_layer,
        12,
    )
    assert (tmp_path / "heatmap.png").stat().st_size > 10_000


def test_a_model_that_was_asked_for_is_never_replaced(tmp_path, no_network):
    done = script("--model", "gpt2", cwd=tmp_path, **no_network)
    assert (
        done.returncode == 2
        and "cannot be reached" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not list(tmp_path.glob("heatmap*"))


@pytest.mark.parametrize(
    "name", ["MODEL", "CLEAN", "CORRUPTED", "CLEAN_ANSWER", "CORRUPTED_ANSWER"]
)
def test_an_edited_constant_was_asked_for(monkeypatch, name):
    assert interpretability.parse([]).untouched
    monkeypatch.setattr(interpretability, name, "something else")
    assert not interpretability.parse([]).untouched


@pytest.mark.parametrize(
    "flag", ["--model", "--clean", "--corrupted", "--clean-answer", "--corrupted-answer"]
)
def test_a_flag_was_asked_for_even_if_it_repeats_the_default(flag):
    default = {"--model": "gpt2", "--clean-answer": ""}.get(flag, interpretability.CLEAN)
    assert not interpretability.parse([flag, default]).untouched
    assert interpretability.parse(["--output", "x.png", "--device", "cpu"]).untouched


def test_without_gpt2_edited_texts_are_told_how_to_take_the_embedded_model(tmp_path, no_network):
    done = script("--clean", interpretability.CLEAN, cwd=tmp_path, **no_network)
    assert (done.returncode, done.stdout) == (2, "")
    assert '`--model names`, or MODEL = "names" in the script' in done.stderr


def test_help_says_what_model_takes_even_where_the_hubs_address_is_wrong(tmp_path):
    """huggingface_hub itself cannot be imported with this address."""
    done = script("--help", cwd=tmp_path, HF_ENDPOINT="http://[")
    words = " ".join(done.stdout.split())
    assert "--model MODEL a model id of the Hugging Face hub (gpt2, owner/name)" in words
    assert "or names, the embedded model; default: gpt2" in words
    done = script("--model", "gpt2", cwd=tmp_path, HF_ENDPOINT="http://[")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: HF_ENDPOINT must be an address such as https://")


def test_importing_the_script_runs_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import interpretability"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(
        tmp_path.iterdir()
    )


def test_importing_the_package_loads_nothing_that_draws_or_downloads():
    heavy = {"matplotlib", "huggingface_hub", "requests"}
    code = f"import sys, mingpt.model; print({heavy} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    "corrupted, differing",
    [
        ("Jessica Jones was a top-notch student. Michelle", ["0"]),
        ("Michelle Smith was a top-notch student. Jessica", ["1", "10"]),
    ],
)
def test_the_other_pairs_just_work(tmp_path, corrupted, differing, capsys):
    # Where the texts differ at two positions the answers must be named.
    answers = ["--clean-answer", " Jones", "--corrupted-answer", " Smith"]
    texts = ["--model", "names", "--corrupted", corrupted]
    assert interpretability.main([*texts, *answers, "--output", str(tmp_path / "o.png")]) == 0
    assert re.findall(r"^ +(\d+) .*<- differs$", capsys.readouterr().out, re.M) == differing


@pytest.mark.parametrize("failing", ["save_figure", "save_csv"])
def test_a_disk_that_is_full_leaves_nothing_half_written(
    folder, tmp_path, capsys, monkeypatch, failing
):
    def full(*arguments):
        Path(arguments[1] if failing == "save_figure" else arguments[2]).write_text("half")
        raise OSError(28, "No space left on device", "the disk")

    monkeypatch.setattr(interpretability.figures, failing, full)
    assert run(folder, tmp_path) == 2
    assert "No space left on device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_is_refused(folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    assert run(bare, tmp_path) == 2
    error = capsys.readouterr().err
    assert "has no tokenizer" in error and "merges.txt" in error


def test_a_row_of_the_output_matrix_without_a_token_is_shown_by_its_number(folder):
    tokenizer = GPT.from_pretrained(folder).tokenizer
    assert (
        interpretability.reports.quote_token(tokenizer, tokenizer.n_vocab)
        == f"<{tokenizer.n_vocab}>"
    )


def test_an_interrupted_run_ends_with_130_and_writes_nothing(folder, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(interpretability.figures, "save_csv", interrupted)
    assert run(folder, tmp_path) == 130 and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process alone on Windows")
@pytest.mark.parametrize("flags", [[], ["--loop"]])
def test_ctrl_c_in_the_middle_of_the_patched_runs_ends_with_130_and_writes_nothing(tmp_path, flags):
    long = " was a student and a teacher, and" * 28  # some seconds of patched runs
    texts = [
        "--clean",
        f"Michelle Jones{long} Michelle",
        "--corrupted",
        f"Michelle Smith{long} Michelle",
    ]
    command = [
        sys.executable,
        "-u",
        ROOT / "interpretability.py",
        "--model",
        "names",
        *texts,
        *flags,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # what runs in the background may ignore it
    with subprocess.Popen(command, cwd=tmp_path, **pipes, preexec_fn=heed) as process:
        for line in process.stdout:
            if "after the corrupted text: " in line:
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
        assert process.stderr.read() == "" and not list(tmp_path.iterdir())


def test_a_sweep_that_is_not_what_the_runs_give_is_an_error(folder, tmp_path, capsys, monkeypatch):
    right = interpretability.patch_layers

    def wrong(*arguments):
        result = right(*arguments)
        vectors = result.vectors["patched"]
        vectors += 0.01 * vectors.roll(1, -1)  # the layer norm comes after, and would undo a factor
        return result

    monkeypatch.setattr(interpretability, "patch_layers", wrong)
    assert run(folder, tmp_path) == 1
    assert "more than rounding" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_progress_is_shown_on_a_terminal_alone(folder, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return self.shown

    for shown in (True, False):
        terminal = Terminal()
        terminal.shown = shown
        monkeypatch.setattr(sys, "stderr", terminal)
        assert run(folder, tmp_path) == 0
        assert (
            "12/12" in terminal.getvalue()
        ) == shown  # 3 layers, 4 positions from the first difference on


def test_gpt2_itself_gives_the_published_table_and_heatmap(tmp_path):
    """Universitat d'Alacant's figure, its heatmap read off the picture's colours; wherever gpt2 is
    in the cache."""
    if not REFERENCE.exists():
        pytest.skip(f"the published numbers are not at {REFERENCE}")
    if not any(hub.cached(hub.Hub("gpt2").repo, "main", weights) for weights in hub.WEIGHTS):
        pytest.skip("gpt2 is not in the cache; `python interpretability.py` downloads it")
    published = json.loads(REFERENCE.read_text())
    model = GPT.from_pretrained("gpt2")
    model(model.tokenizer(interpretability.CLEAN))
    top = model.last_token_logits[0].softmax(-1).topk(20)
    assert top.indices.tolist() == [row["id"] for row in published["top20_next_token_clean"]]
    assert top.values.tolist() == pytest.approx(
        [row["probability"] for row in published["top20_next_token_clean"]], abs=5e-4
    )
    assert interpretability.main(["--model", "gpt2", "--output", str(tmp_path / "o.png")]) == 0
    table = read_table(tmp_path / "o.csv")[1][:, 1:]
    assert (table - torch.tensor(published["heatmap_layers_by_positions"])).abs().max() <= 0.15
