"""The embedded model: what its text is made of, and that it does what it was trained for."""

import hashlib
import random
import re

import pytest
import torch

from experiments import train_names
from mingpt import hub, names
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability.activation_patching import patch_loop
from mingpt.model import GPT

CLEAN = "Michelle Jones was a top-notch student. Michelle"


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


def skeleton(text):
    """A text with every full name as N."""
    return re.sub(rf"\b({'|'.join(names.FIRST)}) ({'|'.join(names.LAST)})\b", "N", text)


def test_there_are_at_least_100_first_and_last_names_none_of_them_twice():
    assert len(set(names.FIRST)) == len(names.FIRST) >= 100
    assert len(set(names.LAST)) == len(names.LAST) >= 100
    assert not set(names.FIRST) & set(names.LAST)


def test_the_passages_are_to_the_letter_those_that_the_model_was_trained_on():
    rng = random.Random(train_names.SEED)
    text = "\n".join(names.passage(rng) for _ in range(500))
    assert hashlib.sha256(text.encode()).hexdigest().startswith("b22e34ff60044584")


def test_training_never_sees_a_held_out_combination_or_sentence_form():
    rng = random.Random(5)
    pattern = re.compile(rf"\b({'|'.join(names.FIRST)}) ({'|'.join(names.LAST)})\b")
    held_out = [
        form[1:] for form in names.OPENINGS + names.MIDDLES + names.RETURNS if form.startswith("*")
    ]
    held_out = [re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(form))) for form in held_out]
    seen = 0
    for _ in range(3000):
        text = names.passage(rng)
        for first, last in pattern.findall(text):
            assert not names.held_out_combination(first, last)
            seen += 1
        assert not any(
            form.fullmatch(sentence)
            for form in held_out
            for sentence in re.split(r"(?<=[.!?]) ", skeleton(text))
        )
    assert seen > 5000


def test_held_out_pairs_are_of_held_out_combinations_and_forms_and_differ_in_one_name():
    rng = random.Random(6)
    opening = [
        re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(f[1:])))
        for f in names.OPENINGS
        if f.startswith("*")
    ]
    for _ in range(300):
        clean, corrupted, right, wrong = names.held_out_pair(rng)
        assert clean.replace(right, wrong) == corrupted != clean
        first = clean.split()[-1]
        for last in (right.strip(), wrong.strip()):
            assert names.held_out_combination(first, last)
        assert any(form.match(skeleton(clean).replace(" an ", " a ")) for form in opening)


def test_each_name_is_one_token_and_the_default_texts_are_eleven(model):
    for first in names.FIRST:
        assert len(model.tokenizer.encode(first)) == len(model.tokenizer.encode(f" {first}")) == 1
    for last in names.LAST:
        assert len(model.tokenizer.encode(f" {last}")) == 1
    assert model.tokenizer.tokens(model.tokenizer.encode(CLEAN)) == (
        ["Michelle", " Jones", " was", " a", " top", "-", "not", "ch", " student", ".", " Michelle"]
    )


def test_it_is_small_and_stored_in_half_precision_but_computes_in_single(model):
    files = list(hub.EMBEDDED.iterdir())
    assert sum(file.stat().st_size for file in files) <= 8e6
    parameters = list(model.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert all(torch.equal(parameter, parameter.half().float()) for parameter in parameters)
    assert model.config.n_layer >= 6
    assert model.block_size == 256


def test_it_copies_names_and_random_tokens_from_the_context(model):
    """Held-out names, and the second copy of random tokens, which no memory can give."""
    measured = train_names.measure(model)
    assert measured.names_right >= 0.95
    assert measured.median_probability >= 0.2
    assert measured.second_copy <= measured.first_copy - 3
    assert measured.induction >= 0.4


def test_the_picture_shows_what_gpt2s_does(model):
    """The changed token's column decides early, the last one late, the first one never."""
    differences = patch_loop(model, CLEAN, CLEAN.replace("Jones", "Smith"), " Jones", " Smith")
    unpatched = differences[0, 0]
    assert unpatched > 0
    assert torch.equal(differences[:, 0], unpatched.expand(len(differences)))
    assert differences[0, 1] < 0
    assert differences[-1, -1] < 0
    assert (differences[0, 2:] - unpatched).abs().max() < 0.2 * unpatched
    assert (differences[-1, 1:-1] - unpatched).abs().max() < 1e-4 * unpatched


def test_the_measures_fail_a_model_that_has_learned_nothing(model):
    torch.manual_seed(0)
    untrained = GPT(model.config).eval()
    untrained.tokenizer = model.tokenizer
    measured = train_names.measure(untrained, pairs=40, chunks=4)
    assert 0.1 < measured.names_right < 0.9
    assert measured.median_probability < 0.01
    assert abs(measured.second_copy - measured.first_copy) < 0.5
    assert measured.induction < 0.1


def test_induction_is_measured_from_the_second_copy_to_the_token_after_the_first(model):
    """Attention by hand: each query of the second copy on the token after the earlier one: 1."""

    class Stub:
        config, tokenizer = model.config, model.tokenizer

        def __call__(self, ids, store_activations=None):
            B, T = ids.shape
            self.last_token_logits = torch.zeros(1, model.config.vocab_size)
            pattern = torch.zeros(B, 2, T, T)
            if T == 80:
                pattern[:, 1, torch.arange(40, 80), torch.arange(1, 41)] = 1
            self.activations = {"pattern": {0: torch.zeros(B, 2, T, T), 1: pattern}}
            return torch.zeros(B, T, model.config.vocab_size), None

    measured = train_names.measure(Stub(), pairs=2, chunks=2)
    assert measured.induction == 1
    assert measured.head == (1, 1)


def test_rows_follow_from_seed_and_index_and_are_of_all_three_kinds():
    tokenizer = BPETokenizer(Encoder([]))
    rows = train_names.Rows(tokenizer, ["It was a dark night. " * 50], T=32)
    again = train_names.Rows(tokenizer, ["It was a dark night. " * 50], T=32)
    kinds = set()
    for i in range(30):
        x, y = rows[i]
        assert torch.equal(x, again[i][0])
        assert torch.equal(x[1:], y[:-1])
        assert len(x) == 32
        text = tokenizer.decode(x)
        kinds.add(
            "prose"
            if "dark" in text
            else "people"
            if any(first in text for first in names.FIRST)
            else "repeated"
        )
    assert kinds == {"prose", "people", "repeated"}


def test_the_training_command_runs_goes_on_and_writes_a_model(tmp_path, monkeypatch):
    """A few steps of a small one, with the embedded model's tokenizer, to save time."""
    monkeypatch.setattr(
        train_names, "make_tokenizer", lambda novels: GPT.from_pretrained("names").tokenizer
    )
    phases = ((16, 2, 1e-3, 1e-4, 2), (32, 2, 1e-3, 1e-4, 2))
    novel = ["It was a dark night. " * 100]
    train_names.train(tmp_path / "whole", novel, phases, n_layer=1)
    train_names.train(tmp_path / "twice", novel, phases[:1], n_layer=1)
    train_names.train(tmp_path / "twice", novel, phases, n_layer=1)
    ids = torch.arange(9)[None]
    whole, twice = (GPT.from_pretrained(str(tmp_path / run))(ids)[0] for run in ("whole", "twice"))
    assert torch.equal(whole, twice)
