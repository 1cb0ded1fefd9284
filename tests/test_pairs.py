"""Files of pairs, in every format, against rows written here and the field's own samples."""

import json
from pathlib import Path

import pytest
import torch

from mingpt.interpretability.pairs import (
    Pair,
    draw_task,
    load_pairs,
    read_batch,
    usable_pairs,
    write_pairs,
)
from mingpt.interpretability.tasks import load_task
from mingpt.model import GPT
from tests.test_attention_analysis import text_model

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "pairs"
needs_samples = pytest.mark.skipif(
    not SAMPLES.exists(), reason=f"the samples of pairs are not at {SAMPLES}"
)
CLEAN = "Anna Lee met. Anna"
CORRUPTED = "Anna Brown met. Anna"


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_our_own_lines_come_back_as_they_were_written(tmp_path):
    pairs = [
        Pair(CLEAN, CORRUPTED, " Lee", " Brown", {"name": [1, 4], "end": -1}),
        Pair([1, 2, 3], [1, 4, 3], [5, 6], 7),
        Pair("an »é« ", "an »ê« ", ["a", "b"], ["c"]),
    ]
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    again = load_pairs(tmp_path / "pairs.jsonl")
    assert [pair._replace(line=None) for pair in again] == pairs
    assert [pair.line for pair in again] == [1, 2, 3]


def test_each_format_is_recognised_by_its_columns(tmp_path):
    own = write(
        tmp_path / "own.csv",
        "clean,corrupted,clean_answer,corrupted_answer,roles",
        f'"{CLEAN}","{CORRUPTED}", Lee, Brown,"{{""name"": 1}}"',
    )
    assert load_pairs(own) == [Pair(CLEAN, CORRUPTED, " Lee", " Brown", {"name": 1}, 2)]

    later = write(tmp_path / "later.csv", "clean,corrupted,label", "in 1352 13,in 1301 13,52")
    (pair,) = load_pairs(later)
    assert pair.clean_answer == [str(year) for year in range(53, 100)]
    assert pair.corrupted_answer[:2] == ["00", "01"] and pair.corrupted_answer[-1] == "52"

    gave = "Then, Ann and Bob met. {} gave a book to"
    ioi = write(
        tmp_path / "ioi.csv",
        ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx",
        f'7,"{gave.format("Ann")}","{gave.format("Eve")}","{gave.format("Bob")}",9,8',
        '8,"Nobody is here","Somebody is here","x",9,8',
    )
    first, second = load_pairs(ioi)
    assert first == Pair(gave.format("Ann"), gave.format("Eve"), " Bob", " Ann", {}, 2)
    assert second.clean_answer == []

    circuit = write(
        tmp_path / "circuit.json",
        {
            "word_idxs": {"IO": 1, "end": 3},
            "prompts": [
                {"clean": "a b", "corrupt": "a c", "answers": ["x"], "wrong_answers": ["y"]}
            ],
        },
    )
    assert load_pairs(circuit) == [Pair("a b", "a c", ["x"], ["y"], {"IO": 1, "end": 3}, 1)]

    feature = write(
        tmp_path / "feature.json",
        {
            "clean_prefix": "The dog",
            "patch_prefix": "The dogs",
            "clean_answer": " is",
            "patch_answer": " are",
            "case": "singular",
        },
    )
    assert load_pairs(feature) == [Pair("The dog", "The dogs", " is", " are", {}, 1)]


@needs_samples
@pytest.mark.parametrize(
    "name, count",
    [
        ("auto_circuit_layout.json", None),
        ("eap_ig_greater_than.csv", 199),
        ("eap_ig_ioi_llama.csv", None),
        ("feature_circuits_simple_test.json", None),
        ("feature_circuits_nounpp_test.json", None),
    ],
)
def test_the_samples_of_the_field_are_read(name, count):
    pairs = load_pairs(SAMPLES / name)
    assert len(pairs) == count if count else len(pairs) > 20
    for pair in pairs:
        assert pair.clean != pair.corrupted and pair.clean_answer and pair.corrupted_answer
    if name == "eap_ig_ioi_llama.csv":
        for pair in pairs:
            # The receiver is named once, the giver twice.
            assert pair.clean.count(pair.clean_answer.strip()) == 1
            assert pair.clean.count(pair.corrupted_answer.strip()) == 2


def test_another_file_is_refused_with_what_it_has_and_what_is_known(tmp_path):
    for name, rows, message in (
        ("a.csv", ["clean,other", "x,y"], "it has the columns\n  clean, other\nknown are"),
        ("a.jsonl", [{"clean": "x"}], "clean_prefix, patch_prefix"),
        ("a.jsonl", ["{"], "is no .jsonl, .json or .csv"),
        ("a.jsonl", ["[1]"], "is no .jsonl, .json or .csv"),
        ("a.jsonl", [""], "has no pairs"),
        ("a.csv", ["clean,corrupted,label", "a 1,b 1,x"], "line 2 is no pair"),
        ("a.jsonl", [dict.fromkeys(Pair._fields[:4], "a"), {"clean": "x"}], "line 2 is no pair"),
        ("a.json", [{"prompts": 3}], "is no .jsonl, .json or .csv"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pairs(write(tmp_path / name, *rows))
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(ValueError, match="there is no file"):
            load_pairs(path)


def test_pairs_that_the_model_cannot_run_are_listed_with_the_reason():
    model = text_model()  # every byte a token
    same_length = CLEAN.replace("Lee", "Roe")  # in bytes
    good = Pair(CLEAN, same_length, "L", "R", {"name": [5, 8], "end": -1}, 1)
    bad = [
        Pair(CLEAN, same_length + "s", "L", "R", line=2),
        Pair(CLEAN, same_length, "Lee", "R", line=3),
        Pair(CLEAN, same_length, "L", "R", {"name": [4, 40]}, line=4),
        Pair(CLEAN, CLEAN, "L", "R", line=5),
        Pair(CLEAN, same_length, [], [], line=6),
        Pair([1, 2], [1, 1000], 3, 4, line=7),
    ]
    usable, skipped = usable_pairs(model, [good, *bad], max_skipped=1)
    (one,) = usable
    T = len(CLEAN)
    assert one.pair == good and one.length == T and one.first == 5
    assert one.roles == {"name": range(5, 8), "end": range(T - 1, T)}
    assert [pair.line for pair, _ in skipped] == [2, 3, 4, 5, 6, 7]
    for (_, reason), part in zip(
        skipped,
        ("equally many tokens", "is 3 tokens", "role 'name'", "same", "all given", "the ids"),
    ):
        assert part in reason
    with pytest.raises(ValueError, match="6 of 7 pairs cannot be used, more than 10%"):
        usable_pairs(model, [good, *bad])
    assert len(usable_pairs(model, [good] * 19 + bad[:1])[1]) == 1


def test_ids_and_several_answers_are_measured_as_given():
    model = GPT.from_pretrained("names")
    ids = model.tokenizer(CLEAN)[0].tolist()
    other = model.tokenizer(CORRUPTED)[0].tolist()
    pairs = [
        Pair(CLEAN, CORRUPTED, [" Lee", " Brown"], " Anna"),
        Pair(ids, other, " Lee", " Brown"),
    ]
    usable, skipped = usable_pairs(model, pairs)
    first, second = (read_batch(model, one.pair) for one in usable)
    assert not skipped and second.clean.equal(first.clean)
    rows = model.lm_head.weight
    lee, brown, anna = (model.tokenizer.encode(name)[0] for name in (" Lee", " Brown", " Anna"))
    expected = (rows[lee] + rows[brown]) / 2 - rows[anna]
    torch.testing.assert_close(first.direction[0], expected)


@pytest.mark.parametrize("task", ["induction", "name_recall"])
def test_a_built_in_task_can_be_written_to_a_file(task, tmp_path):
    model = GPT.from_pretrained("names")
    write_pairs(draw_task(model, task, 5, seed=3), tmp_path / "task.jsonl")
    usable, skipped = usable_pairs(model, load_pairs(tmp_path / "task.jsonl"))
    assert len(usable) == 5 and not skipped
    drawn = load_task(model, task, 5, seed=3)
    texts = sorted(row for batch in drawn for row in batch.clean.tolist())
    assert sorted(read_batch(model, one.pair).clean[0].tolist() for one in usable) == texts
