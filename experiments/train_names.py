"""The embedded model `names`: the text it learns from, how it is trained, and what it must do.

    python -m experiments.train_names OUTPUT [--austen FOLDER]

trains it and writes it to the folder OUTPUT; the same command goes on where a run was stopped.
Needs `tokenizers`. The words and forms of its passages, and what is held out of them, are in
mingpt/names.py; what was tried and measured stands in the model card beside the model.
"""

import math
import random
import signal
import statistics
import sys
from dataclasses import dataclass
from itertools import accumulate

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from experiments.corpora import GUTENBERG, download, read_corpus, strip_licence
from mingpt import pretrained
from mingpt.bpe import BPETokenizer, Encoder, train_bpe
from mingpt.checkpointing import locked
from mingpt.common import command_parser, run_command
from mingpt.model import GPT, GPTConfig
from mingpt.names import FIRST, LAST, held_out_pair, passage
from mingpt.trainer import Trainer, TrainerConfig

SEED = 0
CONTEXT = 256
# Of the tokens learned from text; those that make each name one token come on top.
VOCABULARY = 1600
# T, B, learning rate at the start and at the end, steps.
PHASES = ((64, 64, 2e-3, 1e-3, 2400), (256, 16, 1e-3, 1e-4, 2400))
# Project Gutenberg's numbers, in the order of the model card.
NOVELS = (158, 141, 121, 105, 1342, 161)


def read_novels(folder=None):
    """Austen's six novels, a list of texts: the folder's .txt files, or from Project Gutenberg."""
    if folder:
        return read_corpus(folder)
    paths = [download("austen", GUTENBERG.format(number)) for number in NOVELS]
    return [strip_licence(path.read_text(encoding="utf-8-sig")) for path in paths]


def make_tokenizer(novels):
    """A BPE of the novels and of passages, then the merges that make each name one token."""
    rng = random.Random(SEED)
    passages = [passage(rng) for _ in range(20_000)]
    merges = train_bpe([*novels, *passages], VOCABULARY)
    words = [*FIRST, *(f" {name}" for name in FIRST + LAST)]
    # Two words more, so that the default sentences have the 11 tokens that they have in GPT-2.
    for word in [*words, " top", "not"]:
        tokens = Encoder(merges).show_word(word)["token_merged"]
        # (a, b), (ab, c), (abc, d) ...
        merges += zip(accumulate(tokens), tokens[1:])
    return BPETokenizer(Encoder(merges))


class Rows(Dataset):
    """Rows of T + 1 tokens as (x, y); row i follows from (SEED, i) alone.

    Each is one of three kinds: passages about people whose names come back, an excerpt of the
    novels, or a chunk of uniformly random tokens again and again.
    """

    def __init__(self, tokenizer, novels, T):
        self.tokenizer = tokenizer
        self.T = T
        self.prose = [tokenizer.encode(text) for text in novels]

    def __len__(self):
        return 2**31

    def __getitem__(self, i):
        rng = random.Random(f"{SEED} {i}")
        kinds = (self.people, self.excerpt, self.repeated)
        (draw,) = rng.choices(kinds, weights=(3, 1.5, 3.5))
        row = torch.tensor(draw(rng)[: self.T + 1])
        return row[:-1], row[1:]

    def people(self, rng):
        """Passages, each with the end of text after it."""
        end_of_text = self.tokenizer.n_vocab - 1
        ids = []
        while len(ids) <= self.T:
            ids += [*self.tokenizer.encode(passage(rng)), end_of_text]
        return ids

    def excerpt(self, rng):
        """Tokens in a row, any place in the novels as probable as any other."""
        (novel,) = rng.choices(self.prose, weights=map(len, self.prose))
        start = rng.randrange(len(novel) - self.T)
        return novel[start : start + self.T + 1]

    def repeated(self, rng):
        """4 to T / 2 random tokens again and again, their number uniform on a log scale."""
        length = round(4 * (self.T / 8) ** rng.random())
        chunk = [rng.randrange(self.tokenizer.n_vocab) for _ in range(length)]
        return chunk * (self.T // length + 2)


@torch.no_grad()
def initialize_for_copying(model):
    """Give the model weights from which attention can compare tokens at once.

    From minGPT's own weights it learns to far later (see the model card). Positions are sinusoids
    (Vaswani et al. 2017, sec. 3.5). Queries begin close to the keys, so that equal tokens and near
    positions attend to each other, and each attention layer passes on a little of what it attends
    to: mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828), with plus where they
    have minus for images.
    """
    C = model.config.n_embd
    frequencies = torch.exp(-math.log(1000) * torch.arange(C // 2) / (C // 2))
    angles = torch.arange(CONTEXT)[:, None] * frequencies  # (T,1) * (C/2,) -> (T,C/2)
    model.transformer.wpe.weight.copy_(0.028 * torch.cat((angles.sin(), angles.cos()), dim=1))
    for block in model.transformer.h:
        q, k, v = block.attn.c_attn.weight.chunk(3)  # (3C,C) -> 3 x (C,C)
        shared = 0.1 * torch.randn(C, C)
        for weight in (q, k):
            weight.copy_(shared + 0.03 * torch.randn(C, C))
        torch.nn.init.orthogonal_(v)
        block.attn.c_proj.weight.copy_(0.02 * v.t())


@dataclass
class Measures:
    """What the model must be able to do.

    names_right         share of held-out pairs in which the clean answer is ahead of the other
    median_probability  of the clean answer, over the same pairs
    first_copy          mean loss in nats on r, uniformly random tokens
    second_copy         mean loss in nats on the r that follows it
    induction           the best head's mean attention from the second r to the token after the
                        earlier occurrence
    head                that head, (layer, head)
    """

    names_right: float
    median_probability: float
    first_copy: float
    second_copy: float
    induction: float
    head: tuple


def measure(model, pairs=500, chunks=64):
    """The Measures of the model, over so many held-out pairs, and so many r."""
    return Measures(*measure_names(model, pairs), *measure_copying(model, chunks))


@torch.no_grad()
def measure_names(model, count):
    """(names_right, median_probability) of Measures."""
    rng = random.Random(SEED + 1)
    right = []
    probabilities = []
    for _ in range(count):
        clean, _, *answers = held_out_pair(rng)
        clean_answer, corrupted_answer = map(model.tokenizer.encode, answers)
        model(model.tokenizer(clean))
        after = model.last_token_logits[0].softmax(-1)  # (V,)
        probabilities.append(after[clean_answer].item())
        right.append(probabilities[-1] > after[corrupted_answer].item())
    return statistics.fmean(right), statistics.median(probabilities)


@torch.no_grad()
def measure_copying(model, count, length=40):
    """(first_copy, second_copy, induction, head) of Measures; length: tokens in an r."""
    generator = torch.Generator().manual_seed(SEED + 1)
    r = torch.randint(model.config.vocab_size, (count, length), generator=generator)
    ids = torch.cat((r, r), dim=1)
    logits, _ = model(ids, store_activations=["pattern"])
    # Entry t is the loss on token t + 1.
    losses = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")  # (B,2n-1)
    first_copy = losses[:, : length - 1].mean().item()
    second_copy = losses[:, length:].mean().item()
    patterns = torch.stack(list(model.activations["pattern"].values()))  # (L,B,H,T,T)
    # The first entry of this diagonal is a query in the first r.
    stripe = patterns.diagonal(1 - length, -2, -1)[..., 1:]  # (L,B,H,n)
    scores = stripe.mean((1, -1))  # (L,H)
    head = divmod(scores.argmax().item(), scores.size(1))
    return first_copy, second_copy, scores.max().item(), head


def train(output, novels, phases=PHASES, n_layer=12):
    """Train the model and write it to the folder output, in half precision.

    novels: a list of texts. Each phase goes on from its checkpoint in output/phase-N, if any.
    """
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer(novels)
    config = GPTConfig(
        n_layer=n_layer,
        n_head=4,
        n_embd=128,
        vocab_size=tokenizer.n_vocab,
        block_size=CONTEXT,
        tie_word_embeddings=True,
        # The novels aside, no text is seen twice: there is nothing to learn by heart.
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT(config)
    model.tokenizer = tokenizer
    initialize_for_copying(model)
    with locked(output):
        for number, phase in enumerate(phases, start=1):
            train_phase(model, novels, phase, SEED + number, f"{output}/phase-{number}")
        pretrained.save(model.eval(), output, torch.float16)


def train_phase(model, novels, phase, seed, folder):
    """Train as an entry of PHASES says; goes on from the checkpoint in the folder, if any."""
    T, batch_size, rate, final_rate, steps = phase
    config = TrainerConfig(
        batch_size=batch_size,
        max_iters=steps,
        warmup_iters=100,
        learning_rate=rate,
        final_learning_rate=final_rate,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        seed=seed,
        checkpoint_dir=folder,
        checkpoint_interval=200,
    )
    trainer = Trainer(config, model, Rows(model.tokenizer, novels, T))
    trainer.resume()
    trainer.run()


def main():
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("output", help="folder for the model and its checkpoints")
    parser.add_argument(
        "--austen", help="folder of the six novels as .txt; without it Project Gutenberg is asked"
    )
    return run_command(train_and_measure, parser.parse_args())


def train_and_measure(options):
    """Train, and print what the model can do after the rounding to half precision."""
    train(options.output, read_novels(options.austen))
    print("after rounding to half precision:")
    measures = measure(GPT.from_pretrained(options.output))
    layer, head = measures.head
    for name, value in vars(measures).items():
        print(f"{name:20}{f'{layer}.{head}' if name == 'head' else f'{value:.3f}'}")


if __name__ == "__main__":
    sys.exit(main())
