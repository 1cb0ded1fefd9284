"""The texts that small models learn from: novels, Shakespeare, Python's source, names, or a file.

What is downloaded lies in the user's cache afterwards, $XDG_CACHE_HOME/mingpt or ~/.cache/mingpt.
"""

import hashlib
import os
import random
import re
import sysconfig
from pathlib import Path

import requests

from mingpt.names import passage

KARPATHY = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"
GUTENBERG = "https://www.gutenberg.org/cache/epub/{0}/pg{0}.txt"
# {name: {address: sha256}}. Project Gutenberg revises its files now and then: they have None.
CORPORA = {
    "shakespeare": {
        f"{KARPATHY}/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    },
    "austen": dict.fromkeys(map(GUTENBERG.format, (158, 105, 161))),
}
PASSAGES = 40_000  # of the corpus names: 1.9 million of its model's tokens
# Folders of the standard library that are tests, tables, or not part of it.
SKIPPED = set("site-packages dist-packages test tests idle_test encodings pydoc_data".split())


def read_corpus(name):
    """The texts, a list of str without Project Gutenberg's header and licence.

    name: shakespeare, austen, python, names (passages as the embedded model learned from), a file,
    or a folder of .txt files. ValueError if there is no text, or a download fails.
    """
    if name == "names":
        rng = random.Random(0)
        return [passage(rng) for _ in range(PASSAGES)]
    texts = []
    for path in _paths(name):
        try:
            text = read_text(path)
        except ValueError as error:
            known = ", ".join([*CORPORA, "python"])
            raise ValueError(f"{name!r} is none of {known}, and {error}") from error
        texts.append(strip_licence(text))
    if not any(texts):
        raise ValueError(
            f"{name!r} has no text; give a file with some, or a folder of such .txt files"
        )
    return texts


def split_text(text):
    """(its first nine tenths, for training; the last tenth, which is held out)."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def read_text(path):
    """The text of a file in utf-8; ValueError if there is none."""
    path = Path(path)
    # To open a pipe would be to wait for someone who writes into it.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file; give a text file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as utf-8 text: {error}") from error


def _paths(name):
    """The files of a corpus, a list of Path in a fixed order: the order decides the text."""
    if name in CORPORA:
        return [download(name, *source) for source in CORPORA[name].items()]
    if name == "python":
        root = Path(sysconfig.get_path("stdlib"))
        paths = sorted(root.rglob("*.py"))
        return [path for path in paths if not SKIPPED & set(path.relative_to(root).parts)]
    path = Path(name)
    return sorted(path.rglob("*.txt")) if path.is_dir() else [path]


def strip_licence(text):
    """The text between Project Gutenberg's marks; a text without them as it is."""
    body = re.search(r"\*\*\* ?START OF.*?\*\*\*(.*?)\*\*\* ?END OF", text, re.DOTALL)
    return body[1].strip() + "\n" if body else text


def download(corpus, address, sha256=None):
    """The path of the file in the user's cache; downloaded unless it is there.

    Without a sha256 it must have Project Gutenberg's marks, the last of which a part of it has not.
    ValueError if the download breaks off, and the next one goes on from there; or if it gives
    another text, of which nothing stays.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    path = cache / "mingpt" / corpus / Path(address).name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        _fetch_rest(address, part)
    except requests.RequestException as error:
        if part.exists() and part.stat().st_size:
            fault = "did not come whole"
            hint = "run this again, which goes on from there"
        else:
            fault = "cannot be downloaded"
            hint = f"get it elsewhere and save it as {path}"
        raise ValueError(
            f"{address} {fault} ({type(error).__name__}); "
            f"{hint}, or give a text file in place of {corpus}"
        ) from error

    data = part.read_bytes()
    text = data.decode(errors="replace")
    has_marks = strip_licence(text) != text
    is_same_file = hashlib.sha256(data).hexdigest() == sha256
    # What a server answers is not always what was asked for.
    if not (is_same_file if sha256 else has_marks):
        part.unlink()
        raise ValueError(
            f"{address} gave {len(data)} bytes of text, not the file expected; nothing was kept"
        )
    return part.replace(path)


def _fetch_rest(address, part):
    """Append to the file part what it lacks of the address; requests' errors if that breaks off."""
    start = part.stat().st_size if part.exists() else 0
    # Compressed, the bytes would not be those that the range counts.
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with requests.get(address, headers=headers, stream=True, timeout=20) as answer:
        # Nothing lies behind the start: an earlier download was whole, but not yet checked.
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return
        answer.raise_for_status()
        # A server that knows no ranges sends all of it again.
        mode = "ab" if answer.status_code == requests.codes.partial_content else "wb"
        with open(part, mode) as file:
            file.writelines(answer.iter_content(4096))
