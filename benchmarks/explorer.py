"""How soon does the explorer show what was typed, and does its page stay smooth meanwhile?

    python -m benchmarks.explorer [--model names] [--rounds 15] [--idle 10]

starts the explorer and types pairs of texts of 11 tokens into it in headless Chromium, the last
letters one by one. It prints medians: from the last key to the first row and to the finished
heatmap on the screen; and how many frames a second the page draws meanwhile. Each round has a
surname of its own, so that none was computed before. At the end the server's CPU time while nobody
types. --model random-gpt2 has GPT-2-small's shapes, random weights, and the tokens of `names`.
Linux; it needs selenium, chromium and chromedriver.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from mingpt import pretrained
from mingpt.common import command_parser, run_command
from mingpt.model import GPT, GPTConfig

RANDOM = "random-gpt2"
SENTENCE = "Michelle{} was a top-notch student. Michelle"
T = 11
PATIENCE = 120  # seconds
LAST = 4  # letters of a text that are typed one by one
BETWEEN = 0.1  # seconds from one to the next
# Runs in the page. `seen` has times in ms: of the last key, of the frame that showed the first row,
# of the one that showed the last, and of each frame from the key on. A timer that is set in a frame
# runs when the frame has been drawn.
WATCH = """
const map = document.querySelector("#heatmap");
const seen = window.seen = { key: 0, first: 0, whole: 0, frames: [] };
function shown(name) {
  const { key } = seen;
  requestAnimationFrame(() => setTimeout(() => {
    if (key === seen.key) seen[name] ||= performance.now();
  }));
}
addEventListener("keydown", () => {
  Object.assign(seen, { key: performance.now(), first: 0, whole: 0, frames: [] });
}, true);
new MutationObserver(changes => {
  if (changes.some(({ target }) => target.closest?.("td"))) shown("first");
  if (map.getAttribute("aria-busy") === "false") shown("whole");
}).observe(map, { subtree: true, childList: true, attributes: true });
requestAnimationFrame(function frame(now) {
  if (!seen.whole && now > seen.key) seen.frames.push(now);
  requestAnimationFrame(frame);
});
"""


def make_random_model(folder):
    """Write a model of GPT-2-small's shapes into the folder."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50257, "block_size": 1024, "tie_word_embeddings": True}
    model = GPT(GPTConfig(model_type="gpt2", **sizes))
    model.tokenizer = GPT.from_pretrained("names").tokenizer
    pretrained.save(model, folder)


def find_surnames(tokenizer, count):
    """Texts such as " Jones", each one token, with which the sentence has T tokens."""
    surnames = []
    for text in tokenizer.tokens(range(tokenizer.n_vocab)):
        if re.fullmatch(" [A-Z][a-z]{3,}", text):
            ids = tokenizer.encode(SENTENCE.format(text))
            if len(ids) == T:
                surnames.append(text)
    if len(surnames) < count:
        raise ValueError(f"this model has {len(surnames)} surnames of one token; ask for fewer")
    return surnames[:count]


@contextmanager
def explorer(model):
    """(process id, address) of an explorer with this model; it ends with the block."""
    command = [sys.executable, "-m", "mingpt.explorer", "--no-browser", "--port", "0"]
    command += ["--model", model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", process.stdout.readline())
        if not address:
            raise ValueError("the explorer did not start; it said why above")
        yield process.pid, address[0]
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextmanager
def open_browser(folder):
    """A headless Chromium, driven by selenium; its files are in the folder."""
    from selenium import webdriver

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        raise ValueError("there is no chromium, or no chromedriver; install both")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu window-size=1280,900 no-first-run disable-sync "
    flags += "disable-background-networking disable-component-update"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={folder}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def wait_for(browser, script):
    """What the script returns, once it is neither null nor false."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = browser.execute_script(script)
        if answer:
            return answer
        time.sleep(0.02)
    raise ValueError(f"the page did not show its heatmap within {PATIENCE} s")


def type_pair(browser, texts):
    """What WATCH saw of the last key, after texts {"clean", "corrupted"} have been typed."""
    from selenium.webdriver import Keys

    for run, text in texts.items():
        box = browser.find_element("id", f"text-{run}")
        box.send_keys(Keys.CONTROL, "a")
        # The last letters come as from a fast typist; before them nothing is measured.
        box.send_keys(text[:-LAST])
        for letter in text[-LAST:]:
            time.sleep(BETWEEN)
            box.send_keys(letter)
    return wait_for(browser, "return window.seen.whole && window.seen")


def measure(options):
    """Start, type, and print."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        model = options.model
        if model == RANDOM:
            model = str(folder / "model")
            make_random_model(model)
        tokenizer = GPT.from_pretrained(model).tokenizer
        surnames = find_surnames(tokenizer, 2 * options.rounds)
        with explorer(model) as (process, address), open_browser(folder / "browser") as browser:
            browser.get(address)
            wait_for(browser, "return document.querySelector('#heatmap[aria-busy=false] td')")
            browser.execute_script(WATCH)
            print_rounds(browser, surnames)
            print_idle(process, options.idle)


def print_rounds(browser, surnames):
    """Type a pair for every two surnames, and print the medians."""
    rounds = []
    for names in zip(surnames[::2], surnames[1::2]):
        texts = dict(zip(("clean", "corrupted"), map(SENTENCE.format, names)))
        rounds.append(type_pair(browser, texts))
    for name, what in (("first", "the first row"), ("whole", "the whole heatmap")):
        times = [seen[name] - seen["key"] for seen in rounds]
        print(
            f"from the last key to {what} on the screen: median {statistics.median(times):.0f} ms, "
            f"{min(times):.0f} to {max(times):.0f}"
        )
    gaps = []
    for seen in rounds:
        gaps += [after - before for before, after in zip(seen["frames"], seen["frames"][1:])]
    rate = 1000 * len(gaps) / sum(gaps)
    print(f"frames meanwhile: {rate:.0f} a second; the longest took {max(gaps):.0f} ms")


def print_idle(process, seconds):
    """Print how much the server computes while nobody types."""
    before = cpu_seconds(process)
    time.sleep(seconds)
    used = cpu_seconds(process) - before
    print(f"the server when nobody types: {1000 * used:.0f} ms of CPU time in {seconds} s")


def cpu_seconds(process):
    """CPU time that a process has used, as Linux counts it."""
    # The program's name, in brackets, may have spaces. User and system time are fields 14 and 15.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", default="names", help=f"or {RANDOM}; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--idle", type=int, default=10, help="seconds; default: %(default)s")
    return run_command(measure, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
