"""What the page must know at first: models, sites, measures, and pairs of texts to begin with."""

from mingpt.explorer.models import title
from mingpt.sites import SITES, SITES_WITH_HEADS

ABOUT_SITES = {
    "resid_pre": "the residual stream before the block",
    "resid_mid": "the residual stream between attention and MLP",
    "resid_post": "the residual stream after the block",
    "attn_out": "what attention adds to the residual stream",
    "mlp_out": "what the MLP adds to the residual stream",
    "mlp_pre": "the neurons before the activation function",
    "mlp_post": "the neurons after the activation function",
    "q": "a head's query",
    "k": "a head's key",
    "v": "a head's value",
    "z": "what a head has collected",
    "scores": "how well a head's query and keys match, before the softmax",
    "pattern": "where a head looks, after the softmax",
}
# low and high: the ends of the scale, None where they come from the values.
MEASURES = {
    "logit_diff": ("logit difference", None, None, True),
    "normalized": ("normalized: 0 corrupted, 1 clean", 0, 1, False),
    "probability": ("probability of the clean answer", 0, 1, False),
    "kl": ("KL divergence from the clean run, nats", 0, None, False),
}
# (title, clean, corrupted, clean answer, corrupted answer, models); no answer: the differing token.
NAMES = ("names", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GPT2 = NAMES[1:]
EXAMPLES = (
    (
        "A name comes back: Jones or Smith",
        "Michelle Jones was a top-notch student. Michelle",
        "Michelle Smith was a top-notch student. Michelle",
        None,
        None,
        NAMES,
    ),
    (
        "The same, further away",
        "Jessica Jones lives by the sea. Every day the bus is late. Everybody likes Jessica",
        "Jessica Smith lives by the sea. Every day the bus is late. Everybody likes Jessica",
        None,
        None,
        NAMES,
    ),
    (
        "Who gets it? Mary or John (gpt2)",
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        " Mary",
        " John",
        GPT2,
    ),
    (
        "Who gets it? Anna or Tom (gpt2)",
        "Then, Tom and Anna had a long argument, and afterwards Tom said to",
        "Then, Tom and Anna had a long argument, and afterwards Anna said to",
        " Anna",
        " Tom",
        GPT2,
    ),
    (
        "A repeated sequence goes on",
        " garden clock student horse teacher garden clock student horse",
        " garden clock student horse doctor garden clock student horse",
        None,
        None,
        NAMES,
    ),
)


def describe(models):
    """The answer to a request for `facts`; models: a Models."""
    fields = ("title", "clean", "corrupted", "clean_answer", "corrupted_answer", "models")
    measures = []
    for name, (words, low, high, diverging) in MEASURES.items():
        facts = {"name": name, "title": words, "low": low, "high": high, "diverging": diverging}
        measures.append(facts)
    sites = []
    for name in SITES:
        has_heads = name in SITES_WITH_HEADS
        sites.append({"name": name, "has_heads": has_heads, "about": ABOUT_SITES[name]})
    return {
        "models": [{"name": name, "title": title(name)} for name in models.names],
        "start": models.start,
        "sites": sites,
        "measures": measures,
        "examples": [dict(zip(fields, example)) for example in EXAMPLES],
    }
