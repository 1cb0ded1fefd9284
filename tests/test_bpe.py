"""GPT-2's byte-pair encoding: against Hugging Face's tokenizers, and the rule itself by hand.

The comparison runs with a small BPE that is trained here on a text made here, and with GPT-2's own
merges where ../shared/gpt2/vocab.bpe lies beside the repository.
"""

import copy
import json
import pickle
import random
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import torch
from tokenizers import ByteLevelBPETokenizer, Regex, pre_tokenizers

from mingpt import bpe
from mingpt.bpe import (
    CACHED_LENGTH,
    END_OF_TEXT,
    BPETokenizer,
    Encoder,
    bytes_to_unicode,
    ids_of,
    train_bpe,
)

GPT2_MERGES = Path(__file__).parents[2] / "shared" / "gpt2" / "vocab.bpe"
SENTENCE = "Michelle Jones was a top-notch student. Michelle"
SENTENCE_IDS = [48736, 5437, 373, 257, 1353, 12, 1662, 354, 3710, 13, 16738]
WORDS = """the a cat naïve sat on Anna's mat they're 1984 42 don't I'll we've I'm she'd SHE'S
    'tis ... -- :-) 你好 мир ελλάς e\u0301 🙂 👩‍👩‍👧 🇪🇸""".split()
PIECES = [
    *WORDS,
    *"'s 't 're 've 'm 'll 'd 'S 'Re '' <| ٣ ½ Ⅷ".split(),
    END_OF_TEXT,
    "\x00",
    "\ufeff",
    "\u200d",
    "\ufffd",
]
BLANKS = [
    " ",
    "  ",
    " " * 50,
    "\n",
    "\r\n",
    "\t",
    "\n\n \n",
    *"\u00a0\u2003\u3000\x1c\x85\u2028\u200b",
]


@pytest.fixture
def small():
    return BPETokenizer(Encoder(small_merges()))


@cache
def small_merges():
    """A BPE of 400 tokens, learned from WORDS and further words of random syllables."""
    rng = random.Random(0)
    syllables = ["ka", "the", "ing", "str", "o", "ul", "é", "жи", "你"]
    made = ["".join(rng.choices(syllables, k=3)) for _ in range(100)]
    return train_bpe([" ".join(rng.choices(WORDS + made, k=20)) for _ in range(200)], 400)


def gpt2():
    if not GPT2_MERGES.exists():
        pytest.skip(f"GPT-2's merges are not at {GPT2_MERGES}")
    return BPETokenizer.from_files(GPT2_MERGES)


EVERY_CHARACTER = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)


@cache
def disputed_characters():
    """The characters that regex and the reference put in different classes.

    They are those that are new in the Unicode version of one of the two.
    """
    disputed = set()
    for name in (r"\p{L}", r"\p{N}", r"\s"):
        theirs = pre_tokenizers.Split(Regex(name), "removed", invert=True)
        texts = {text for text, _ in theirs.pre_tokenize_str(EVERY_CHARACTER)}
        disputed |= set(regex.findall(name, EVERY_CHARACTER)) ^ texts
    assert len(disputed) < 0.03 * len(EVERY_CHARACTER)  # 17,480 with Unicode 18 against 16
    return disputed


@cache
def compared_characters():
    """All of Unicode but those."""
    return "".join(sorted(set(EVERY_CHARACTER) - disputed_characters()))


def generated_strings(n):
    """n strings from a fixed seed: any characters, the pieces above, runs of blanks, or a mix."""
    rng = random.Random(1)
    characters = compared_characters()
    kinds = [
        lambda: rng.choice(characters),
        lambda: chr(rng.randrange(0x250)),
        lambda: rng.choice("ab ') \n1"),
        lambda: rng.choice(PIECES),
        lambda: rng.choice(BLANKS) * rng.choice([1, 1, 2, 9]),
        lambda: rng.choice(WORDS) * rng.choice([1, 3, 40]),
    ]
    for i in range(n):
        chosen = kinds if i % 3 else [kinds[i // 3 % len(kinds)]]  # a third of them of one kind
        yield "".join(rng.choice(chosen)() for _ in range(rng.randrange(12)))


@pytest.mark.parametrize("which", ["small", "gpt2"])
def test_ten_thousand_strings_encode_as_in_the_reference_library_and_decode_to_themselves(
    which, request
):
    ours = gpt2() if which == "gpt2" else request.getfixturevalue("small")
    reference = ByteLevelBPETokenizer(ours.encoder.ids, ours.encoder.merges)
    strings = list(generated_strings(10_000))
    assert set(compared_characters()).issuperset("".join(strings))
    for text, theirs in zip(strings, reference.encode_batch(strings), strict=True):
        assert ours.encode(text) == theirs.ids, repr(text)
        assert ours.decode(theirs.ids) == text


def test_a_disputed_character_changes_the_ids_only_where_a_contraction_or_han_follows():
    """As the docstring of bpe.py says."""
    ours = gpt2()
    reference = ByteLevelBPETokenizer(ours.encoder.ids, ours.encoder.merges)
    texts = [f"a{c}b {c}{c}, 1{c}2\n{c}! '{c}'x é{c}のж" for c in sorted(disputed_characters())]
    for text, theirs in zip(texts, reference.encode_batch(texts), strict=True):
        assert ours.encode(text) == theirs.ids, repr(text)


def test_gpt2_gives_its_known_ids():
    tokenizer = gpt2()
    assert tokenizer.n_vocab == 50257
    assert tokenizer.encode(SENTENCE) == SENTENCE_IDS
    assert tokenizer.encode(SENTENCE.replace("Jones", "Smith"))[1] == 4176
    hello = tokenizer.encode("Hello!! I'm Andrej Karpathy. It's 2022. w00t :D 🤗")
    assert hello[:4] == [15496, 3228, 314, 1101]
    assert tokenizer.encode(END_OF_TEXT, allow_special=True) == [50256]
    tokens = "Michelle| Jones| was| a| top|-|not|ch| student|.| Michelle"
    assert "|".join(tokenizer.tokens(SENTENCE_IDS)) == tokens


def merge_by_the_book(symbols, merges):
    """Sennrich et al. 2016: the earliest merge that fits anywhere, at all its places; and again."""
    parts = list(symbols)
    while fits := [pair for pair in merges if pair in pairwise(parts)]:
        left, right = fits[0]
        joined = []
        while parts:
            n = 2 if parts[:2] == [left, right] else 1
            joined.append("".join(parts[:n]))
            del parts[:n]
        parts = joined
    return parts


def test_any_list_of_merges_is_applied_by_the_rule():
    """Also one that no training gives: a merge may come before those that make its parts."""
    rng = random.Random(2)
    for _ in range(300):
        tokens, merges = ["a", "b", "c"], []
        while len(merges) < 8:
            pair = rng.choice(tokens), rng.choice(tokens)
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
        rng.shuffle(merges)
        for _ in range(5):
            word = "".join(rng.choices("abc", k=rng.randrange(1, 30)))
            assert Encoder(merges).bpe(word) == merge_by_the_book(word, merges), (merges, word)


def test_a_long_run_without_spaces_takes_no_quadratic_time(small):
    merges = [("a" * 2**n, "a" * 2**n) for n in range(5)]
    started = time.perf_counter()
    assert len(Encoder(merges).encode("a" * 100_001)) == 100_001 // 32 + 1
    text = "".join(random.Random(3).choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    assert small.decode(small.encode(text)) == text
    # It takes half a second; with a list that is scanned at every merge it would take minutes.
    assert time.perf_counter() - started < 20
    assert not any(len(word) > CACHED_LENGTH for word in small.encoder.cache)


def test_the_cache_stops_growing(small, monkeypatch):
    monkeypatch.setattr(bpe, "CACHED_WORDS", 3)
    ids = small.encode("the cat sat on the mat")
    assert list(small.encoder.cache) == ["the", " cat", " sat"]
    assert small.encode("the cat sat on the mat") == ids
    assert Encoder(small_merges()).encode("the cat sat on the mat") == ids


def test_two_merges_that_make_the_same_token_share_its_id():
    encoder = Encoder([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("c", "d")])
    ids = [encoder.ids[token] for token in ("ab", "bc", "abc", "cd", END_OF_TEXT)]
    assert ids == [256, 257, 258, 259, 260]
    assert encoder.encode("abcabcd") == [258, 258, 67]  # 67 is the id of 'd'


def test_without_merges_each_byte_is_a_token():
    tokenizer = BPETokenizer(Encoder([]))
    assert tokenizer.n_vocab == 257
    # 'A' is the 33rd printable byte, a space the 33rd of the others.
    assert tokenizer.encode("Añ ") == [32, 127, 109, 220]
    assert tokenizer.tokens(tokenizer.encode("Añ")) == ["A", "<0xc3>", "<0xb1>"]
    every_byte = list(range(256))
    assert sorted(tokenizer.encoder.bytes_of(every_byte)) == [bytes([b]) for b in range(256)]
    assert tokenizer.decode([109]) == "\ufffd"


def test_bytes_to_unicode_is_the_reference_librarys_alphabet():
    assert set(bytes_to_unicode().values()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert len(bytes_to_unicode()) == 256
    assert bytes_to_unicode()[ord(" ")] == "Ġ" and bytes_to_unicode()[10] == "Ċ"


def test_end_of_text_is_special_only_when_asked_for(small):
    text = f"the cat {END_OF_TEXT} the mat{END_OF_TEXT}"
    end = small.n_vocab - 1
    assert end not in small.encode(text) and end not in small(text)
    special = small.encode(text, allow_special=True)
    assert special == [*small.encode("the cat "), end, *small.encode(" the mat"), end]
    assert small.decode(special) == small.decode(small.encode(text)) == text
    vocab = {token: i for token, i in small.encoder.ids.items() if token != END_OF_TEXT}
    with pytest.raises(ValueError, match="has no <|endoftext|>"):
        Encoder(small.encoder.merges, vocab).encode(text, allow_special=True)


def test_the_tokenizer_gives_a_tensor_with_one_row(small):
    idx = small("the cat", return_tensors="pt")
    assert idx.dtype == torch.long and idx.tolist() == [small.encode("the cat")]
    assert small("").shape == (1, 0) and small.decode([]) == ""
    assert small.decode(idx[0]) == small.decode(idx[0].tolist()) == "the cat"
    assert "".join(small.tokens(idx[0])) == "the cat"
    with pytest.raises(ValueError, match="return_tensors must be 'pt', got 'np'"):
        small("the cat", return_tensors="np")


def test_show_work_has_every_step(small):
    work = small.encoder.encode_and_show_work("the naïve")
    assert list(work) == ["bpe_idx", "tokens", "parts"]
    assert work["bpe_idx"] == small.encode("the naïve") and work["tokens"] == ["the", " naïve"]
    part = work["parts"][1]
    assert part["token"] == " naïve" and part["token_bytes"] == " naïve".encode()
    assert part["token_translated"] == "ĠnaÃ¯ve" == "".join(part["token_merged"])
    assert part["token_ix"] == [small.encoder.ids[token] for token in part["token_merged"]]


def test_a_text_is_cut_into_words():
    def words(text):
        return Encoder([]).encode_and_show_work(text)["tokens"]

    for end in "'s 't 're 've 'm 'll 'd".split():
        assert words(f"x{end}y") == ["x", end, "y"]
    cut = ["SHE", "'", "S", " 3", "x", "--", " ", " y", "\n\n", " z", "  "]
    assert words("SHE'S 3x--  y\n\n z  ") == cut


def test_ids_come_from_vocab_json(small, tmp_path):
    merges = small.encoder.merges
    turned = {token: 1000 - i for token, i in small.encoder.ids.items()}
    turned |= {"<pad>": 2000, "▁plain": 2001}  # added by hand; the second is not in byte symbols
    other = BPETokenizer(Encoder(merges, turned))
    ids = other.encode("the cat")
    assert ids == [1000 - i for i in small.encode("the cat")] and other.decode(ids) == "the cat"
    assert other.n_vocab == small.n_vocab + 2 and other.decode([2000, 2001]) == "<pad>▁plain"
    other.save(tmp_path)
    again = BPETokenizer.from_files(tmp_path / "merges.txt", tmp_path / "vocab.json")
    assert again.encoder.merges == merges and again.encoder.ids == turned


def test_saved_is_what_is_read(small, tmp_path):
    folder = tmp_path / "new" / "folder"
    for merges in ([], [("#", "#")], small.encoder.merges):
        tokenizer = BPETokenizer(Encoder(merges))
        tokenizer.save(folder)
        again = BPETokenizer.from_files(folder / "merges.txt")
        assert again.encoder.merges == merges and again.encoder.ids == tokenizer.encoder.ids
        assert [path.name for path in folder.iterdir()] == ["merges.txt"]


def test_save_leaves_no_vocabulary_of_another_tokenizer_beside_the_merges(small, tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 7}')
    small.save(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == small.encoder.ids


@pytest.mark.parametrize("text", ["#version: 0.2\n# #\n## #\n", "# #\n## #\n", "# #\r\n## #"])
def test_a_merge_may_start_with_a_hash(text, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(text.encode())
    assert BPETokenizer.from_files(path).encoder.merges == [("#", "#"), ("##", "#")]


@pytest.mark.parametrize("line", ["abc", "a b c", "a ", "", "a  b", "▁ a"])
def test_a_malformed_merge_is_named_with_its_line(line, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text(f"#version: 0.2\na b\n{line}\nab c\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"merges\.txt, line 3: expected two tokens"):
        BPETokenizer.from_files(path)


def test_a_vocabulary_that_does_not_fit_is_refused_by_name(small, tmp_path):
    merges = small.encoder.merges
    for lacking in ("Ġ", "".join(merges[-1])):
        vocab = {token: i for token, i in small.encoder.ids.items() if token != lacking}
        with pytest.raises(ValueError, match=f"no id for '{regex.escape(lacking)}'"):
            Encoder(merges, vocab)
    with pytest.raises(ValueError, match="no id for 'xyz'"):
        Encoder([("xyz", "a")])
    for wrong in (0, -1, "5", 1.0, True):
        with pytest.raises(ValueError, match="an id of its own, an int from 0, got .* for '<pad>'"):
            Encoder(merges, small.encoder.ids | {"<pad>": wrong})
    small.save(tmp_path)
    wanted = ": expected one JSON object of token: id"
    broken = " is no whole JSON file"
    deep = "[" * 100_000
    for text, complaint in (('{"a": 1', broken), ("[1, 2]", wanted), ("", broken), (deep, broken)):
        (tmp_path / "vocab.json").write_text(text)
        with pytest.raises(ValueError, match=r"vocab\.json" + complaint):
            BPETokenizer.from_files(tmp_path / "merges.txt", tmp_path / "vocab.json")


@pytest.mark.parametrize("text", ["ab\ud800", "ab\udfffc", "ab\ud83d\ude42"])
def test_surrogates_are_refused_and_the_advice_works(text, small):
    for refusing in (small, small.encode, small.encoder.encode_and_show_work):
        message = "character 2 of the text is '.ud.*half of a surrogate pair"
        with pytest.raises(ValueError, match=message):
            refusing(text)
    # As the message says.
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert small.decode(small.encode(mended)) == mended and mended[2] in "\ufffd🙂"


@pytest.mark.parametrize("text", [None, 5, b"ab", ["ab"]])
def test_what_is_no_text_is_refused(text, small):
    for refusing in (small, small.encode, small.encoder.encode_and_show_work):
        with pytest.raises(ValueError, match="the text must be a str, got"):
            refusing(text)


NO_LISTS_OF_IDS = [torch.tensor([[5]]), torch.tensor([[5, 6]]), torch.tensor(5), torch.ones(2)]


@pytest.mark.parametrize("ids", [*NO_LISTS_OF_IDS, [[5]], 5, [5.0], "ab", None])
def test_what_is_no_list_of_ids_is_refused(ids, small):
    for refusing in (small.decode, small.tokens):
        with pytest.raises(ValueError, match="ids must be a list of ints or a 1-D tensor"):
            refusing(ids)


def test_an_id_outside_the_vocabulary_is_named(small):
    for wrong in (-1, small.n_vocab):
        message = f"no token has the id {wrong}; the 400 ids go up to 399"
        with pytest.raises(ValueError, match=message):
            small.decode([5, wrong])


def test_training_finds_the_frequent_pairs_and_always_the_same():
    texts = ["hug"] * 10 + [" pug"] * 5 + [" pun"] * 12 + [" bun"] * 4 + [" hugs"] * 5
    # by hand: u g 20 times; then Ġ p 17, u n 16, h ug 15 (p u was 17 too, but ug took five of them)
    assert train_bpe(texts, 260) == [("u", "g"), ("Ġ", "p"), ("u", "n")]
    assert train_bpe(iter(texts), 257) == []
    assert train_bpe([" ".join(WORDS)], 300) == train_bpe([" ".join(WORDS)], 300)
    assert len(ids_of(small_merges())) == 400


def test_training_says_what_is_wrong(monkeypatch):
    with pytest.raises(ValueError, match="got one str; give"):
        train_bpe("abc", 300)
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(["abc"], 256)
    with pytest.raises(ValueError, match="a vocabulary of 259, not 300"):
        train_bpe(["abc"], 300)
    with pytest.raises(ValueError, match="must be a str, got int"):
        train_bpe(["abc", 5], 300)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="pip install tokenizers"):
        train_bpe(["abc"], 300)


def test_a_tokenizer_can_be_copied_and_pickled(small):
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert other.encode("the cat") == small.encode("the cat")
        assert other.encoder is not small.encoder


def test_a_tokenizer_says_how_many_tokens_it_has():
    assert repr(BPETokenizer(Encoder([]))) == "BPETokenizer(257 tokens)"
