"""What the explorer's page knows at first: it is what the library has, and the examples work."""

from pathlib import Path

import pytest
import torch

from mingpt.bpe import BPETokenizer
from mingpt.explorer.facts import describe
from mingpt.explorer.models import Models
from mingpt.explorer.requests import read_pair
from mingpt.interpretability.inputs import encode_pair
from mingpt.interpretability.readout import published_logit_diff
from mingpt.model import GPT
from mingpt.sites import SITES, SITES_WITH_HEADS

GPT2_MERGES = Path(__file__).parents[2] / "shared" / "gpt2" / "vocab.bpe"
BY_TITLE = {example["title"]: example for example in describe(Models())["examples"]}
FOR_NAMES = [title for title, example in BY_TITLE.items() if "names" in example["models"]]


def test_the_facts_name_every_site_and_say_which_have_heads():
    facts = describe(Models(["a/folder"]))
    assert [site["name"] for site in facts["sites"]] == list(SITES)
    heads = [site["name"] for site in facts["sites"] if site["has_heads"]]
    assert heads == list(SITES_WITH_HEADS)
    assert [model["name"] for model in facts["models"]][:3] == ["a/folder", "names", "gpt2"]
    assert facts["start"] == "a/folder"


@pytest.mark.parametrize("title", FOR_NAMES)
def test_names_prefers_the_answer_of_each_text_of_an_example_that_suits_it(title):
    model = GPT.from_pretrained("names")
    pair = read_pair(model, BY_TITLE[title])
    with torch.no_grad():
        logits, _ = model(torch.cat((pair.clean, pair.corrupted)))
    clean, corrupted = published_logit_diff(logits[:, -1], *pair.answers)[:, 0]
    assert clean < -3 and corrupted > 3


@pytest.mark.skipif(not GPT2_MERGES.exists(), reason=f"GPT-2's merges are not at {GPT2_MERGES}")
@pytest.mark.parametrize("title", BY_TITLE)
def test_gpt2_can_compare_the_texts_of_every_example(title):
    model = GPT.from_pretrained("names")
    model.tokenizer = BPETokenizer.from_files(GPT2_MERGES, None)
    model.block_size = 1024
    example = BY_TITLE[title]
    clean, corrupted = encode_pair(model, example["clean"], example["corrupted"])
    assert (clean != corrupted).sum() == 1
    for answer in (example["clean_answer"], example["corrupted_answer"]):
        assert answer is None or len(model.tokenizer.encode(answer)) == 1
