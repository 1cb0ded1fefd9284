"""What the published numbers measure, computed with the methods of this project.

Each function of MEASURES takes a model and one entry of a file in published/ (its inputs and its
options) and gives numbers of the shape of the entry's values. Where another library folds and
centres the weights first, the file says what that changes; what it does change is done here.
"""

import torch
from torch.nn import functional as F

from experiments import published_edges
from mingpt.bpe import END_OF_TEXT
from mingpt.interpretability import runs
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.interpretability.attention_analysis import extract_attention, find_attention_patterns
from mingpt.interpretability.inputs import answer_ids, encode, tokenizer_of
from mingpt.interpretability.logit_lens import logit_attribution
from mingpt.interpretability.readout import answer_direction, logit_diff
from mingpt.sites import SITES_WITH_HEADS, Patch, as_store


def encode_texts(model, given, texts):
    """[ids (1,T)] of texts or of lists of ids, each after <|endoftext|> if given["bos"]."""
    start = []
    if given.get("bos"):
        start = tokenizer_of(model).encode(END_OF_TEXT, allow_special=True)
    rows = []
    for text in texts:
        ids = encode(model, text)[0].tolist() if isinstance(text, str) else text
        rows.append(encode(model, torch.tensor([start + ids])))
    return rows


def read_pairs(model, given):
    """(clean ids (B,T), corrupted ids (B,T), clean answers (B,), corrupted answers (B,))."""
    clean = torch.cat(encode_texts(model, given, given["clean"]))
    corrupted = torch.cat(encode_texts(model, given, given["corrupted"]))
    answers = [
        answer_ids(model, given[f"{name}_answers"], clean, corrupted, name)
        for name in ("clean", "corrupted")
    ]
    return clean, corrupted, *answers


def all_logits(model, given):
    """(B,T,V) of given["texts"], which are of one length; with a head silenced if it says so."""
    ids = torch.cat(encode_texts(model, given, given["texts"]))
    patches = _silence(model, given, "v", None)
    return model(ids, patch_params=patches)[0], ids


def _silence(model, given, site, position):
    """[Patch] that puts a head's value bias in the place of what it has, or [].

    Zero there is the value bias here: folding moves that bias into the output's.
    """
    if "silenced" not in given:
        return []
    layer, head = given["silenced"]
    return [Patch(layer, position, _value_biases(model, layer)[head], site, head)]


def _value_biases(model, layer):
    """(H,D): the part of a layer's values that is the same for all tokens and texts.

    The biases of the values and of the layer norm before them: what folding puts elsewhere.
    """
    block = model.transformer.h[layer]
    values = block.attn.c_attn(block.ln_1.bias).chunk(3)[2]  # (C,) -> (3C,) -> (C,)
    return values.view(block.attn.n_head, -1)


def logits(model, given):
    """(B,n): of given["tokens"] at one position, the last one unless the entry names another."""
    rows = all_logits(model, given)[0][:, given.get("position", -1)]  # (B,T,V) -> (B,V)
    return rows.gather(-1, torch.tensor(given["tokens"]).to(rows.device))


def probabilities(model, given):
    """(B,n): the same as probabilities."""
    rows = all_logits(model, given)[0][:, -1]  # (B,T,V) -> (B,V)
    tokens = torch.tensor(given["tokens"]).to(rows.device)
    return rows.softmax(-1).gather(-1, tokens)


def top_tokens(model, given):
    """(B,count): ids, the most probable first."""
    rows = all_logits(model, given)[0][:, -1]  # (B,T,V) -> (B,V)
    return rows.topk(given["count"]).indices


def top_token_everywhere(model, given):
    """(B,T): the id of the most probable next token at every position."""
    return all_logits(model, given)[0].argmax(-1)


def loss(model, given):
    """(): mean loss on the texts' next tokens, or on given["labels"], in nats."""
    rows, ids = all_logits(model, given)
    labels = torch.tensor(given["labels"]).to(ids) if "labels" in given else ids
    return F.cross_entropy(rows[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def unpatched(model, given):
    """(2,B): logit(corrupted answer) - logit(clean answer) of the clean and the corrupted runs.

    (2,) with given["mean"]. A silenced head is so at the last position.
    """
    clean, corrupted, *answers = read_pairs(model, given)
    direction = answer_direction(model, *answers)
    patches = _silence(model, given, "z", -1)
    ends = [runs.run(model, ids, patches)[:, -1] for ids in (clean, corrupted)]
    differences = -logit_diff(model, torch.stack(ends), direction)  # (2,B,C) -> (2,B)
    return differences.mean(1) if given.get("mean") else differences


def patching(model, given):
    """The cells of patch_layers, their mean over the pairs: shares, or the differences themselves.

    (L,T) or (L,H); where heads and positions both are given, (L*H,T).
    """
    clean, corrupted, *answers = read_pairs(model, given)
    answers = [answer.tolist() for answer in answers]
    site = given["site"]
    each_position = given.get("each_position", True)
    result = patch_layers(model, clean, corrupted, *answers, site=site, each_position=each_position)
    cells = result.mean()
    if given.get("normalized", True):
        # A share of the means, not the mean of shares, which a pair near 0 would rule.
        start = result.corrupted.mean()
        cells = (cells - start) / (result.clean.mean() - start)
    return cells.flatten(0, 1) if site in SITES_WITH_HEADS and each_position else cells


def parts(model, given):
    """(2+2L,): what embedding, position, and each layer's attention and MLP add to the clean
    answer's lead in the clean texts, the mean.
    """
    clean, _, *answers = read_pairs(model, given)
    rows = []
    for ids, clean_answer, corrupted_answer in zip(clean, *answers):
        part = logit_attribution(model, ids[None], clean_answer, corrupted_answer)
        attention = part.heads.sum(1) + part.attention_biases
        layers = torch.stack((attention, part.mlps + part.mlp_biases), 1)  # (L,2)
        start = torch.stack((part.embedding, part.position))
        rows.append(torch.cat((start, layers.flatten())))
    return torch.stack(rows).mean(0)


def accumulated_parts(model, given):
    """(1+2L,): the same, added up from the stream before the first layer to that after the last."""
    return parts(model, given).cumsum(0)[1:]


@torch.no_grad()
def heads(model, given):
    """(L,H): what each head adds to the clean answer's lead, without its value bias; the mean."""
    clean, _, *answers = read_pairs(model, given)
    direction = answer_direction(model, *answers)  # (B,C)
    stored = as_store(["z"])
    x = runs.run(model, clean, _silence(model, given, "z", -1), stored)[:, -1]  # (B,C)
    ln_f = model.transformer.ln_f
    reads = direction * ln_f.weight
    scale = (x.var(-1, correction=0) + ln_f.eps).sqrt()
    reads = (reads - reads.mean(-1, keepdim=True)) / scale[:, None]
    rows = []
    for layer, block in enumerate(model.transformer.h):
        z = stored["z"][layer][:, :, -1] - _value_biases(model, layer)  # (B,H,D)
        written = (reads @ block.attn.c_proj.weight).view_as(z)  # (B,C) @ (C,C)
        rows.append((z * written).sum(-1).mean(0))
    return torch.stack(rows)


def stripe(model, given):
    """(L,H): mean weight on the key `offset` tokens back, on random tokens twice over."""
    generator = torch.Generator().manual_seed(given["seed"])
    size = given["rows"], given["length"]
    ids = torch.randint(given["low"], given["high"], size, generator=generator).repeat(1, 2)
    # A row at a time: the patterns of all layers together are large.
    patterns = [extract_attention(model, row[None]) for row in ids]
    stripes = [pattern.diagonal(-given["offset"], -2, -1).mean(-1) for pattern in patterns]
    return torch.stack(stripes).mean(0)


def head_kind(model, given):
    """(L,H): scores of one kind of find_attention_patterns by the measure mul."""
    texts = encode_texts(model, given, given["texts"])
    exclude = given.get("exclude", False)
    found = find_attention_patterns(model, texts, -1, "mul", exclude, exclude)
    scores = torch.zeros(model.config.n_layer, model.config.n_head)
    for layer, head, score in found[given["kind"]]:
        scores[layer, head] = score
    return scores


@torch.no_grad()
def copying(model, given):
    """(L,H): sum of the eigenvalues of a head's OV matrix over the sum of their absolute values.

    1 where it copies: each eigenvalue is positive. through_vocabulary: from embedding to logits.
    The weights are folded and centred as the other library does; in fp64.
    """
    gpt = model.transformer
    rows = gpt.wte.weight.double()  # (V,C), the output matrix too
    middle = torch.eye(rows.size(1)).to(rows)
    if given["through_vocabulary"]:
        unembed = _centred(rows - rows.mean(0), gpt.ln_f)  # (V,C)
        middle = unembed.T @ (rows - rows.mean(1, keepdim=True))  # (C,V) @ (V,C) -> (C,C)
    scores = []
    for block in gpt.h:
        value = _centred(block.attn.c_attn.weight.chunk(3)[2].double(), block.ln_1)  # (C,C)
        value = value.unflatten(0, (block.attn.n_head, -1))  # (H,D,C)
        out = block.attn.c_proj.weight.double()
        out = (out - out.mean(0)).T.reshape(value.shape)  # (C,C) -> (H,D,C)
        # The eigenvalues of the product (C,C) that are not 0 are those of (D,C) @ (C,C) @ (C,D).
        products = out @ middle @ value.mT  # (H,D,D)
        values = torch.linalg.eigvals(products)
        scores.append(values.sum(-1).real / values.abs().sum(-1))
    return torch.stack(scores)


def _centred(weight, norm):
    """A weight (n,C) that reads a layer norm's output, with the norm's own weight in it."""
    folded = weight * norm.weight.double()
    return folded - folded.mean(1, keepdim=True)


MEASURES = {
    function.__name__: function
    for function in (
        logits,
        probabilities,
        top_tokens,
        top_token_everywhere,
        loss,
        unpatched,
        patching,
        parts,
        accumulated_parts,
        heads,
        stripe,
        head_kind,
        copying,
        published_edges.largest_edges,
        published_edges.greater_than,
    )
}
