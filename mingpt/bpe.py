"""How does text become token ids? GPT-2's byte-level byte-pair encoding (BPE): text -> words -> bytes -> merges -> ids.

A text is cut into words by one pattern, and each word's utf-8 bytes are joined pair by pair, the pair that was
learned first going first. Bytes are the smallest tokens, so any text can be written and nothing is unknown.
Sources: Sennrich et al. 2016 (arXiv 1508.07909), sec. 3.2; Radford et al. 2019 (GPT-2), sec. 2.2.
"""

import json
from heapq import heappop, heappush
from math import inf
from operator import index
from pathlib import Path

import regex
import torch

from mingpt.hub import Hub

END_OF_TEXT = "<|endoftext|>"
CACHED_WORDS, CACHED_LENGTH = (
    2**17,
    64,
)  # at most so many words, of at most so many characters, are remembered
SPLIT = regex.compile(
    r"'(?:[stmd]|re|ve|ll)"  # the end of a contraction: 's, 't, 're ...
    r"| ?\p{L}+"  # letters, numbers, anything else: each takes along one space before it
    r"| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)"  # white space, but for its last character where a word follows
    r"|\s+"
)


def bytes_to_unicode():
    """{byte: character} for all 256 bytes, in the order of GPT-2's first 256 ids.

    Vocabulary files need each byte as a visible character: a printable Latin-1 one is itself, the others are
    U+0100, U+0101 ... in order; so a space is 'Ġ' and a line feed 'Ċ'.
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + n) for n, byte in enumerate(others)
    }


SYMBOLS = bytes_to_unicode()  # byte -> symbol
BYTES = {symbol: byte for byte, symbol in SYMBOLS.items()}


def token_bytes(token):
    """What a token of the vocabulary stands for; one that was added by hand may be plain text, not byte symbols."""
    return (
        bytes(BYTES[symbol] for symbol in token) if BYTES.keys() >= set(token) else token.encode()
    )


def checked(text):
    """The text itself; ValueError if it is not a str or has no utf-8 form."""
    if not isinstance(text, str):
        raise ValueError(
            f"the text must be a str, got {type(text).__name__}; encode several texts one by one"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is {text[error.start]!r}, half of a surrogate pair, not valid utf-8; "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") joins pairs and replaces lone halves'
        ) from error
    return text


def ids_of(merges):
    """{token: id} as it follows from the merges alone: the 256 bytes, the merges in order, <|endoftext|>."""
    tokens = [*BYTES, *(left + right for left, right in merges), END_OF_TEXT]
    return {
        token: i for i, token in enumerate(dict.fromkeys(tokens))
    }  # two merges may make the same token


class Encoder:
    """Text to ids and back, for a list of merges [(left, right), ...] in the order in which they were learned.

    vocab: {token: id}; without it the ids are ids_of(merges), as GPT-2's own are. No merges: one token per byte.
    ValueError where the vocabulary lacks a byte or a token of the merges, or gives two tokens one id.
    """

    def __init__(self, merges, vocab=None):
        self.merges = [tuple(pair) for pair in merges]
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}  # the lower, the sooner
        self.ids = ids_of(self.merges) if vocab is None else dict(vocab)
        for token in (
            *BYTES,
            *(t for left, right in self.merges for t in (left, right, left + right)),
        ):
            if token not in self.ids:
                why = "a byte or a token of the merges; take merges and vocabulary from the same model"
                raise ValueError(f"the vocabulary has no id for {token!r}, {why}")
        self.tokens = {}  # id -> token
        for token, i in self.ids.items():
            if type(i) is not int or i < 0 or i in self.tokens:
                raise ValueError(
                    f"each token needs an id of its own, an int from 0, got {i!r} for {token!r}"
                )
            self.tokens[i] = token
        self.cache = {}  # word -> ids

    def bpe(self, symbols):
        """One word, in byte symbols, as its tokens: the earliest merge first, wherever it fits, from left to right.

        Time n log n in the word's length, so that 100,000 letters without a space take a quarter of a second.
        """
        n = len(symbols)
        parts = [
            *symbols,
            "",
        ]  # a ring that an empty part closes; a part that its left neighbour took in is empty too
        before, after = [*range(-1, n)], [*range(1, n + 1), 0]

        def rank(i):
            return self.ranks.get((parts[i], parts[after[i]]), inf)

        heap = sorted((rank(i), i) for i in range(n))
        while heap and (lowest := heap[0][0]) < inf:
            touched = set()
            while heap and heap[0][0] == lowest:
                _, i = heappop(heap)
                if (
                    rank(i) == lowest
                ):  # else the pair is gone: one of the two went into another merge
                    j = after[i]
                    parts[i], parts[j] = parts[i] + parts[j], ""
                    after[i], before[after[j]] = after[j], i
                    touched |= {before[i], i}
            for i in touched:
                heappush(heap, (rank(i), i))
        return [part for part in parts if part]

    def show_word(self, word):
        """The steps for one word, as a dict: its bytes, these as symbols, the tokens, the ids."""
        symbols = "".join(SYMBOLS[byte] for byte in word.encode())
        steps = {"token": word, "token_bytes": word.encode(), "token_translated": symbols}
        merged = self.bpe(symbols)
        return steps | {"token_merged": merged, "token_ix": [self.ids[token] for token in merged]}

    def encode(self, text, allow_special=False):
        """The ids of a text, a list. <|endoftext|> in it is one id if allow_special, else text like any other."""
        if allow_special and END_OF_TEXT not in self.ids:
            raise ValueError(f"this vocabulary has no {END_OF_TEXT}; encode without allow_special")
        ids = []
        for n, piece in enumerate(
            checked(text).split(END_OF_TEXT) if allow_special else [checked(text)]
        ):
            if n:
                ids.append(self.ids[END_OF_TEXT])
            for word in SPLIT.findall(piece):
                known = self.cache.get(word)
                if known is None:
                    known = self.show_word(word)["token_ix"]
                    if len(self.cache) < CACHED_WORDS and len(word) <= CACHED_LENGTH:
                        self.cache[word] = known
                ids.extend(known)
        return ids

    def encode_and_show_work(self, text):
        """The steps of encode, as a dict: bpe_idx (the ids), tokens (the words), parts (show_word of each word)."""
        words = SPLIT.findall(checked(text))
        parts = [self.show_word(word) for word in words]
        return {
            "bpe_idx": [i for part in parts for i in part["token_ix"]],
            "tokens": words,
            "parts": parts,
        }

    def bytes_of(self, ids):
        """The bytes of each id, a list; ids: a list of ints or a 1-D tensor, else ValueError."""
        try:
            ids = [index(i) for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]
        except TypeError as error:
            wanted = "a list of ints or a 1-D tensor (of a batch, one row)"
            raise ValueError(f"ids must be {wanted}, got {repr(ids)[:80]}") from error
        for i in ids:
            if i not in self.tokens:
                raise ValueError(
                    f"no token has the id {i}; the {len(self.ids)} ids go up to {max(self.tokens)}"
                )
        return [token_bytes(self.tokens[i]) for i in ids]

    def decode(self, ids):
        """The text of a list of ids or a 1-D tensor; bytes that are no utf-8 become '\ufffd'."""
        return b"".join(self.bytes_of(ids)).decode("utf-8", errors="replace")


class BPETokenizer:
    """`tokenizer(text)` is a LongTensor (1, T), ready for the model. Without an encoder it is GPT-2's own.

    encode, decode and every step between are those of `tokenizer.encoder`; n_vocab is the number of ids.
    """

    def __init__(self, encoder=None):
        if encoder is None:
            encoder = read_tokenizer(Hub("gpt2")).encoder
        self.encoder = encoder

    @classmethod
    def from_files(cls, merges_path, vocab_path=None):
        """The tokenizer of a merges file (merges.txt, vocab.bpe) and, if given, a vocab.json of {token: id}."""
        return cls(
            Encoder(
                read_merges(merges_path), None if vocab_path is None else read_vocab(vocab_path)
            )
        )

    def save(self, folder):
        """Write folder/merges.txt, and vocab.json where the ids are not those that follow from the merges."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.encoder.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        vocab = folder / "vocab.json"
        if (
            self.encoder.ids != ids_of(self.encoder.merges) or vocab.exists()
        ):  # an old one would be taken for ours
            vocab.write_text(json.dumps(self.encoder.ids, ensure_ascii=False), encoding="utf-8")

    @property
    def n_vocab(self):
        return len(self.encoder.ids)

    def __call__(self, text, return_tensors="pt"):
        """The ids of a text as a LongTensor (1, T)."""
        if return_tensors != "pt":
            raise ValueError(
                f"return_tensors must be 'pt', got {return_tensors!r}; tokenizer.encode gives a list"
            )
        return torch.tensor([self.encode(text)], dtype=torch.long)

    def encode(self, text, allow_special=False):
        return self.encoder.encode(text, allow_special)

    def decode(self, ids):
        return self.encoder.decode(ids)

    def tokens(self, ids):
        """Each id's text by itself, for display; a token that is part of a character shows '\ufffd'."""
        return [token.decode("utf-8", errors="replace") for token in self.encoder.bytes_of(ids)]


def read_merges(path):
    """[(left, right), ...] of a merges file: a merge a line, in byte symbols, after an optional '#version' line."""
    merges = []
    lines = Path(path).read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("#version"):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not all(pair) or not BYTES.keys() >= set("".join(pair)):
            raise ValueError(
                f"{path}, line {number}: expected two tokens with a space between, got {line[:80]!r}"
            )
        merges.append(pair)
    return merges


def read_vocab(path):
    """{token: id} of a vocab.json."""
    try:
        vocab = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        vocab = None
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: expected one JSON object of token: id; is the file whole?")
    return vocab


def read_tokenizer(files, vocab_size=inf):
    """The BPETokenizer of a model's files (a hub.Folder or hub.Hub); None if they have no tokenizer at all.

    ValueError where files are missing or broken, or the ids go beyond the model's vocab_size.
    """
    merges = files.find("merges.txt")
    vocab = files.find("vocab.json")
    if merges is None:
        other = vocab or files.find("tokenizer.json")
        if other is None:
            return None
        hint = "put the merges.txt (and vocab.json) of the same model beside it: the order of the merges counts"
        raise ValueError(f"{files.where} has {other.name} but no merges.txt; {hint}")
    try:
        tokenizer = BPETokenizer.from_files(merges, vocab)
        last = max(tokenizer.encoder.ids.values())
        if last >= vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {last}, but the vocab_size of config.json is {vocab_size}; "
                "take both from the same model"
            )
    except ValueError as error:
        raise ValueError(f"{files.where}: {error}") from error
    return tokenizer


def train_bpe(texts, vocab_size):
    """The merges, [(left, right), ...], that a byte-level BPE learns from an iterable of texts; Encoder takes them.

    vocab_size counts the 256 bytes, the merges and <|endoftext|>. The same texts always give the same merges.
    ValueError where the texts are too few for that many. Needs the `tokenizers` library.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError(
            "training a BPE needs the tokenizers library: pip install tokenizers"
        ) from error
    if isinstance(texts, str):
        raise ValueError("texts must be an iterable of str, got one str; give [text]")
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), got {vocab_size}"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=list(BYTES), show_progress=False
    )
    learner.train_from_iterator(map(checked, texts), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    if (found := len(ids_of(merges))) != vocab_size:
        raise ValueError(
            f"the texts give a vocabulary of {found}, not {vocab_size}; ask for less or give more text"
        )
    return merges
