"""The embedded model `names`: the text it learns from, how it is trained, and what it must be able to do.

    python -m experiments.train_names OUTPUT [--austen FOLDER]

trains it and writes it to the folder OUTPUT; the same command goes on where a run was stopped. Needs `tokenizers`.
Each row of a batch is one of three things: passages about people whose names come back, Austen's prose, or a chunk of
uniformly random tokens again and again. A (first, last) combination or a sentence form that the measures use never
occurs in training, so that a right answer was copied from the context.
"""

import argparse
import math
import random
import statistics
import time
from itertools import accumulate
from pathlib import Path

import requests
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from experiments.train import GUTENBERG, read_corpus, strip_licence
from mingpt import pretrained
from mingpt.bpe import BPETokenizer, Encoder, train_bpe
from mingpt.model import GPT, GPTConfig
from mingpt.names import FIRST, LAST, held_out_pair, passage
from mingpt.trainer import Trainer

SEED = 0
CONTEXT = 256
VOCABULARY = (
    1600  # of the tokens learned from text; those that the single-token words need come on top
)
PHASES = (
    (64, 64, 2e-3, 1e-3, 2400),
    (256, 16, 1e-3, 1e-4, 2400),
)  # T, B, learning rate from and to, steps
NOVELS = (
    158,
    141,
    121,
    105,
    1342,
    161,
)  # Project Gutenberg's numbers, in the order of the model card


def read_novels(folder=None):
    """Austen's six novels, a list of texts: the folder's .txt files, or from Project Gutenberg without its header."""
    if folder:
        return read_corpus(folder)
    answers = [requests.get(GUTENBERG.format(number), timeout=60) for number in NOVELS]
    for answer in answers:
        answer.raise_for_status()
    return [
        strip_licence(answer.content.decode("utf-8-sig").replace("\r\n", "\n"))
        for answer in answers
    ]


def make_tokenizer(novels):
    """A BPE of the novels and of generated passages, then the merges that make each name one token."""
    rng = random.Random(SEED)
    merges = train_bpe([*novels, *(passage(rng) for _ in range(20_000))], VOCABULARY)
    split = [
        " top",
        "not",
    ]  # so that the default sentences have the 11 tokens that they have in GPT-2
    for word in [*FIRST, *(f" {name}" for name in FIRST + LAST), *split]:
        tokens = Encoder(merges).show_word(word)["token_merged"]
        merges += zip(accumulate(tokens), tokens[1:])  # (a, b), (ab, c), (abc, d) ...
    return BPETokenizer(Encoder(merges))


class Rows(Dataset):
    """Rows of T + 1 tokens as (x, y); row i follows from (SEED, i) alone."""

    def __init__(self, tokenizer, novels, T):
        self.tokenizer, self.T = tokenizer, T
        self.prose = [tokenizer.encode(text) for text in novels]

    def __len__(self):
        return 2**31

    def __getitem__(self, i):
        rng = random.Random(f"{SEED} {i}")
        kind = rng.choices((self.people, self.excerpt, self.repeated), weights=(3, 1.5, 3.5))[0]
        row = torch.tensor(kind(rng)[: self.T + 1])
        return row[:-1], row[1:]

    def people(self, rng):
        ids = []
        while len(ids) <= self.T:
            ids += self.tokenizer.encode(passage(rng)) + [self.tokenizer.n_vocab - 1]
        return ids

    def excerpt(self, rng):
        novel = rng.choices(self.prose, weights=map(len, self.prose))[0]
        start = rng.randrange(len(novel) - self.T)
        return novel[start : start + self.T + 1]

    def repeated(self, rng):
        """A chunk of 4 to T / 2 random tokens again and again, its length uniform on a log scale."""
        length = round(4 * (self.T / 8) ** rng.random())
        chunk = [rng.randrange(self.tokenizer.n_vocab) for _ in range(length)]
        return chunk * (self.T // length + 2)


@torch.no_grad()
def start(model):
    """A start from which attention can compare at once; from minGPT's own it learns to far later (see the model card).

    Positions are sinusoids (Vaswani et al. 2017, sec. 3.5). Queries begin close to the keys, so that equal tokens and
    near positions attend to each other, and each attention layer passes on a little of what it attends to: mimetic
    initialisation (Trockman and Kolter 2023, arXiv 2305.09828), with plus where they have minus for images.
    """
    C = model.config.n_embd
    frequencies = torch.exp(-math.log(1000) * torch.arange(C // 2) / (C // 2))
    angles = torch.arange(CONTEXT)[:, None] * frequencies  # (T,1) * (C/2,) -> (T,C/2)
    model.transformer.wpe.weight.copy_(0.028 * torch.cat((angles.sin(), angles.cos()), dim=1))
    for block in model.transformer.h:
        q, k, v = block.attn.c_attn.weight.chunk(3)  # (C,C) each
        shared = 0.1 * torch.randn(C, C)
        for weight in (q, k):
            weight.copy_(shared + 0.03 * torch.randn(C, C))
        torch.nn.init.orthogonal_(v)
        block.attn.c_proj.weight.copy_(0.02 * v.t())


@torch.no_grad()
def measure(model, pairs=500, chunks=64, length=40):
    """What the model must be able to do: a dict.

    names_right and median_probability: the clean answer is ahead of the corrupted one, and how probable it is, over
    held-out pairs. first_copy and second_copy: mean loss in nats on r and on the r that follows it, r uniformly random.
    induction: the best head's mean attention from the second r to the token after the earlier one; head names it.
    """
    rng = random.Random(SEED + 1)
    answers = []
    for clean, _, *names in (held_out_pair(rng) for _ in range(pairs)):
        model(model.tokenizer(clean))
        probabilities = model.last_token_logits[0].softmax(-1)
        answers.append([probabilities[model.tokenizer.encode(name)].item() for name in names])
    generator = torch.Generator().manual_seed(SEED + 1)
    r = torch.randint(model.config.vocab_size, (chunks, length), generator=generator)
    ids = torch.cat((r, r), dim=1)
    logits, _ = model(ids, store_activations=["pattern"])
    losses = F.cross_entropy(
        logits[:, :-1].mT, ids[:, 1:], reduction="none"
    )  # (B,2n-1); [t] is that of token t + 1
    patterns = torch.stack([*model.activations["pattern"].values()])  # (L,B,H,T,T)
    after = patterns.diagonal(1 - length, -2, -1)[..., 1:].mean(
        (1, -1)
    )  # queries in the second r -> (L,H)
    return {
        "names_right": statistics.fmean(right > wrong for right, wrong in answers),
        "median_probability": statistics.median(right for right, _ in answers),
        "first_copy": losses[:, : length - 1].mean().item(),
        "second_copy": losses[:, length:].mean().item(),
        "induction": after.max().item(),
        "head": divmod(after.argmax().item(), after.size(1)),
    }


def train(output, novels, phases=PHASES, n_layer=12):
    """Train from the start, or from the checkpoints under output/phase-N, and write the model in half precision."""
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer(novels)
    dropout = {
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }  # no text is seen twice, the novels aside
    shape = {
        "n_layer": n_layer,
        "n_head": 4,
        "n_embd": 128,
        "vocab_size": tokenizer.n_vocab,
        "block_size": CONTEXT,
    }
    model = GPT(GPTConfig(**shape, **dropout, tie_word_embeddings=True))
    model.tokenizer = tokenizer
    start(model)
    for number, (T, batch_size, rate, final_rate, steps) in enumerate(phases, start=1):
        config = Trainer.get_default_config()
        config.batch_size, config.max_iters, config.warmup_iters = batch_size, steps, 100
        config.learning_rate, config.final_learning_rate = rate, final_rate
        config.betas, config.weight_decay, config.seed = (0.9, 0.98), 0.05, SEED + number
        config.checkpoint_dir, config.checkpoint_interval = (
            str(Path(output) / f"phase-{number}"),
            200,
        )
        trainer = Trainer(config, model, Rows(tokenizer, novels, T))
        trainer.resume()
        trainer.run()
    pretrained.save(model.eval(), output, torch.float16)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="folder for the model and its checkpoints")
    parser.add_argument(
        "--austen", help="folder of the six novels as .txt; without it Project Gutenberg is asked"
    )
    options = parser.parse_args()
    began = time.time()
    try:
        train(options.output, read_novels(options.austen))
    except (ValueError, ImportError, OSError) as error:  # requests' errors are OSErrors
        parser.exit(2, f"error: {error}\n")
    print(f"trained in {(time.time() - began) / 60:.0f} minutes; after rounding to half precision:")
    for name, value in measure(GPT.from_pretrained(options.output)).items():
        print(f"{name:20}{value if name == 'head' else format(value, '.3f')}")


if __name__ == "__main__":
    main()
