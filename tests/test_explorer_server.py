"""The explorer's server: the command, streams, cancellation, models, what it refuses to read."""

import json
import urllib.request

import pytest


@pytest.fixture
def ask(explorer):
    """ask(view, **fields): the events of an answer, over a real socket."""

    def send(view, **fields):
        request = urllib.request.Request(
            f"http://127.0.0.1:{explorer.port}/api/{view}",
            json.dumps({"tab": "test"} | fields).encode(),
            {
                "content-type": "application/json",
                "cookie": f"explorer-{explorer.port}={explorer.token}",
            },
        )
        with urllib.request.urlopen(request) as answer:
            return [json.loads(line) for line in answer]

    return send


def test_the_model_is_described_and_the_last_line_says_so(ask):
    described, end = ask("model", model="names")
    assert described["model"]["layers"] == 12 and described["model"]["context"] == 256
    assert end["end"] is True and end["seconds"] < 60


def test_a_model_that_is_not_offered_is_refused_in_a_sentence(ask):
    (answer,) = ask("model", model="/etc/passwd")
    assert answer["error"].startswith("no model '/etc/passwd'")


def test_the_facts_name_all_sites_and_the_model_to_start_with(ask):
    facts, _ = ask("facts")
    assert facts["start"] == "names" and len(facts["sites"]) == 13
