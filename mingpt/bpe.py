"""How does text become token ids? GPT-2's byte-level byte-pair encoding (BPE).

text -> words -> bytes -> tokens -> ids. One pattern cuts a text into words; then each word's utf-8
bytes are joined pair by pair, the pair that was learned first going first. Bytes are the smallest
tokens, so any text can be written and nothing is unknown.
Sources: Sennrich et al. 2016 (arXiv 1508.07909), sec. 3.2; Radford et al. 2019 (GPT-2), sec. 2.2.

What is a letter or a number follows the Unicode version of `regex`: 18 in 2026. OpenAI's tiktoken
and Hugging Face's tokenizers have 16, where 17,480 of these are not assigned yet: Han from U+323B0
and seal script from U+3D000 on, rare scripts in U+107BB-1E6FF, 19 below U+10000, and 19 more Han.
OpenAI's encoder of 2019 had 9, without 42,161. All else is cut alike. With GPT-2's merges the ids
differ from tiktoken's only where 's, 't ... or, for some, a Han character directly follows one.
"""

import codecs
import json
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from operator import index
from pathlib import Path
from typing import Any

import regex
import torch

from mingpt.common import AnyPath, read_json, reading
from mingpt.hub import Hub

END_OF_TEXT = "<|endoftext|>"
# Bounds of the cache, without which it would grow for ever: words, and characters in a word.
CACHED_WORDS = 2**17
CACHED_LENGTH = 64
SPLIT = regex.compile(
    # The end of a contraction: 's, 't, 're ...
    r"'(?:[stmd]|re|ve|ll)"
    # Letters, numbers, anything else: each takes along one space before it.
    r"| ?\p{L}+"
    r"| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+"
    # White space, but for its last character where a word follows: that goes with the word.
    r"|\s+(?!\S)"
    r"|\s+"
)


def bytes_to_unicode() -> dict[int, str]:
    """{byte: character} for all 256 bytes, in the order of GPT-2's first 256 ids.

    Vocabulary files need each byte as a visible character: a printable Latin-1 one is itself, the
    others are U+0100, U+0101 ... in order; so a space is 'Ġ' and a line feed 'Ċ'.
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(256 + n) for n, byte in enumerate(others)}


SYMBOLS = bytes_to_unicode()  # byte -> symbol
BYTES = {symbol: byte for byte, symbol in SYMBOLS.items()}
# For display: bytes that are no character as <0xe29c>, and where to go on.
codecs.register_error(
    "show bytes",
    lambda e: (f"<0x{e.object[e.start : e.end].hex()}>", e.end),  # type: ignore[attr-defined]
)


def token_bytes(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for."""
    # A token that was added by hand may be plain text, not byte symbols.
    if not BYTES.keys() >= set(token):
        return token.encode()
    return bytes(BYTES[symbol] for symbol in token)


def checked(text: str) -> str:
    """The text itself; ValueError if it is not a str or has no utf-8 form."""
    if not isinstance(text, str):
        raise ValueError(
            f"the text must be a str, got {type(text).__name__}; encode several texts one by one"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is {text[error.start]!r}, half of a surrogate "
            'pair, not valid utf-8; text.encode("utf-16", "surrogatepass").decode("utf-16", '
            '"replace") joins pairs and replaces lone halves'
        ) from error
    return text


def ids_of(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """{token: id} as the merges alone give it: the 256 bytes, the merges, <|endoftext|>."""
    tokens = [*BYTES, *(left + right for left, right in merges), END_OF_TEXT]
    # Two merges may make the same token, which keeps its first place.
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


class Encoder:
    """Text to ids and back, for a list of merges [(left, right), ...] as they were learned.

    vocab: {token: id}; without it the ids are ids_of(merges), as GPT-2's own are. With no merges
    each byte is a token. ValueError where the vocabulary lacks a byte or a token of the merges, or
    gives two tokens one id.
    """

    def __init__(self, merges: Iterable[tuple[str, str]], vocab: Mapping[str, int] | None = None):
        self.merges = [(left, right) for left, right in merges]
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}  # the lower, the sooner
        self.ids = ids_of(self.merges) if vocab is None else dict(vocab)
        self.tokens: dict[int, str] = {}  # id -> token
        for token, i in self.ids.items():
            if type(i) is not int or i < 0 or i in self.tokens:
                raise ValueError(
                    f"each token needs an id of its own, an int from 0, got {i!r} for {token!r}"
                )
            self.tokens[i] = token
        needed = list(BYTES)
        for left, right in self.merges:
            needed += (left, right, left + right)
        for token in needed:
            if token not in self.ids:
                raise ValueError(
                    f"the vocabulary has no id for {token!r}, a byte or a token of the merges; "
                    "take merges and vocabulary from the same model"
                )
        self.cache: dict[str, list[int]] = {}

    def bpe(self, symbols: str) -> list[str]:
        """The tokens of one word, which is given in byte symbols.

        The rule: of the merges that fit anywhere the earliest is made, wherever it fits, from left
        to right; and so on until none fits. Time n log n in the word's length.
        """
        # The parts of the word as spans: where each starts -> where it ends, and back.
        ends = {start: start + 1 for start in range(len(symbols))}
        starts = {end: start for start, end in ends.items()}
        heap: list[tuple[int, int, int, int]] = []  # (rank, start, middle, end), the next one first

        def plan(start):
            """Push the merge of the part at start and the part after it, if there is one."""
            middle = ends.get(start, -1)  # where no part begins
            end = ends.get(middle)
            rank = self.ranks.get((symbols[start:middle], symbols[middle:end]))
            if end is not None and rank is not None:
                heappush(heap, (rank, start, middle, end))

        # A heap gives the next merge in log n steps, where a scan of the whole word would take n.
        for start in ends:
            plan(start)
        while heap:
            # All places of this merge come before any new merge, even one of a lower rank.
            rank = heap[0][0]
            places = []
            while heap and heap[0][0] == rank:
                places.append(heappop(heap))
            for _, start, middle, end in places:
                # Since it was planned, one of the two parts may have gone into another merge.
                if ends.get(start) != middle or ends.get(middle) != end:
                    continue
                del ends[middle]
                ends[start] = end
                starts[end] = start
                # The new part makes a new pair with each of its neighbours.
                plan(starts.get(start))
                plan(start)
        return [symbols[start:end] for start, end in ends.items()]

    def show_word(self, word: str) -> dict[str, Any]:
        """The steps for one word, as a dict: its bytes, these as symbols, the tokens, the ids."""
        symbols = "".join(SYMBOLS[byte] for byte in word.encode())
        tokens = self.bpe(symbols)
        return {
            "token": word,
            "token_bytes": word.encode(),
            "token_translated": symbols,
            "token_merged": tokens,
            "token_ix": [self.ids[token] for token in tokens],
        }

    def word_ids(self, word: str) -> list[int]:
        """The ids of one word; short words are remembered, since a text repeats them."""
        ids = self.cache.get(word)
        if ids is None:
            ids = self.show_word(word)["token_ix"]
            if len(self.cache) < CACHED_WORDS and len(word) <= CACHED_LENGTH:
                self.cache[word] = ids
        return ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text, a list; <|endoftext|> in it is one id only if allow_special."""
        if allow_special and END_OF_TEXT not in self.ids:
            raise ValueError(f"this vocabulary has no {END_OF_TEXT}; encode without allow_special")
        pieces = checked(text).split(END_OF_TEXT) if allow_special else [checked(text)]
        ids = []
        for number, piece in enumerate(pieces):
            if number > 0:
                ids.append(self.ids[END_OF_TEXT])
            for word in SPLIT.findall(piece):
                ids += self.word_ids(word)
        return ids

    def encode_and_show_work(self, text: str) -> dict[str, Any]:
        """The steps of encode, a dict: bpe_idx (the ids), tokens (the words), parts (show_word)."""
        words = SPLIT.findall(checked(text))
        parts = [self.show_word(word) for word in words]
        ids = [i for part in parts for i in part["token_ix"]]
        return {"bpe_idx": ids, "tokens": words, "parts": parts}

    def bytes_of(self, ids: Iterable[int] | torch.Tensor) -> list[bytes]:
        """The bytes of each id, a list; ids: a list of ints or a 1-D tensor, else ValueError."""
        try:
            ids = [index(i) for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]
        except TypeError as error:
            raise ValueError(
                f"ids must be a list of ints or a 1-D tensor (one row of a batch), got {ids!r:.80}"
            ) from error
        for i in ids:
            if i not in self.tokens:
                raise ValueError(
                    f"no token has the id {i}; the {len(self.ids)} ids go up to {max(self.tokens)}"
                )
        return [token_bytes(self.tokens[i]) for i in ids]

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """The text of a list of ids or a 1-D tensor; bytes that are no utf-8 become '\ufffd'."""
        # Joined first: a character may be spread over several tokens.
        return b"".join(self.bytes_of(ids)).decode("utf-8", errors="replace")


class BPETokenizer:
    """`tokenizer(text)` is a LongTensor (1, T), ready for the model. Alone it is GPT-2's own.

    encode, decode and every step between are those of `tokenizer.encoder`; n_vocab counts the ids.
    """

    def __init__(self, encoder: Encoder | None = None):
        if encoder is None:
            files = Hub("gpt2")
            merges = read_merges(files.find("merges.txt"))  # type: ignore[arg-type]  # GPT-2 has it
            encoder = Encoder(merges, read_vocab(files.find("vocab.json")))  # type: ignore[arg-type]
        self.encoder = encoder

    def __repr__(self):
        return f"{type(self).__name__}({self.n_vocab} tokens)"

    @classmethod
    def from_files(cls, merges_path: AnyPath, vocab_path: AnyPath | None = None) -> "BPETokenizer":
        """The tokenizer of a merges file and, if given, a vocab.json with the ids of its tokens."""
        vocab = read_vocab(vocab_path) if vocab_path else None
        return cls(Encoder(read_merges(merges_path), vocab))

    def save(self, folder: AnyPath) -> None:
        """Write folder/merges.txt, and vocab.json where the ids do not follow from the merges."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        merges = self.encoder.merges
        lines = ["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]
        (folder / "merges.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
        vocab = folder / "vocab.json"
        ids = self.encoder.ids
        # An old vocab.json that stayed there would be taken for this tokenizer's.
        if ids != ids_of(merges) or vocab.exists():
            vocab.write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")

    @property
    def n_vocab(self) -> int:
        return len(self.encoder.ids)

    def __call__(self, text: str, return_tensors: str = "pt") -> torch.Tensor:
        """The ids of a text as a LongTensor (1, T)."""
        if return_tensors != "pt":
            raise ValueError(
                f"return_tensors must be 'pt', got {return_tensors!r}; encode gives a list"
            )
        return torch.tensor([self.encode(text)], dtype=torch.long)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text, a list; <|endoftext|> in it is one id only if allow_special."""
        return self.encoder.encode(text, allow_special)

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """The text of a list of ids or a 1-D tensor."""
        return self.encoder.decode(ids)

    def tokens(self, ids: Iterable[int] | torch.Tensor) -> list[str]:
        """Each id's text by itself, for display; a part of a character as its bytes: '<0xe29c>'."""
        return [token.decode("utf-8", errors="show bytes") for token in self.encoder.bytes_of(ids)]


def read_merges(path: AnyPath) -> list[tuple[str, str]]:
    """[(left, right), ...] of a merges file: a merge a line, after an optional '#version' line."""
    merges = []
    with reading(path):
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("#version"):
            continue
        # No token has a space in it: in byte symbols a space is 'Ġ'.
        pair = tuple(line.split(" "))
        is_symbols = BYTES.keys() >= set("".join(pair))
        if len(pair) != 2 or not all(pair) or not is_symbols:
            raise ValueError(
                f"{path}, line {number}: expected two tokens with a space between, "
                f"got {line[:80]!r}"
            )
        merges.append(pair)
    return merges


def read_vocab(path: AnyPath) -> dict[str, int]:
    """{token: id} of a vocab.json; ValueError if the file holds anything else."""
    vocab = read_json(path)
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: expected one JSON object of token: id, got {vocab!r:.80}")
    return vocab


def train_bpe(texts: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """The merges, [(left, right), ...], that a byte-level BPE learns; Encoder takes them.

    texts: an iterable of str. vocab_size counts the 256 bytes, the merges and <|endoftext|>. The
    same texts always give the same merges. ValueError where they are too few for that many.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError("training a BPE needs tokenizers: pip install tokenizers") from error
    if isinstance(texts, str):
        raise ValueError("texts must be an iterable of str, got one str; give [text]")
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), got {vocab_size}"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # One id less: <|endoftext|> is not learned.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=list(BYTES), show_progress=False
    )
    learner.train_from_iterator(map(checked, texts), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    learned = len(ids_of(merges))
    if learned != vocab_size:
        raise ValueError(
            f"the texts give a vocabulary of {learned}, not {vocab_size}; "
            "ask for less or give more text"
        )
    return merges
