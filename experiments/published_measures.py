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
        ids = text
        if isinstance(text, str):
            ids = encode(model, text)[0].tolist()
        row = torch.tensor([start + ids])
        rows.append(encode(model, row))
    return rows


def read_pairs(model, given):
    """(clean ids (B,T), corrupted ids (B,T), clean answers (B,), corrupted answers (B,))."""
    ids = []
    answers = []
    for name in ("clean", "corrupted"):
        rows = torch.cat(encode_texts(model, given, given[name]))
        named = given[f"{name}_answers"]
        ids.append(rows)
        answers.append(answer_ids(model, named, rows, rows, name))
    return *ids, *answers


@torch.no_grad()
def _all_logits(model, given):
    """(logits (B,T,V), ids (B,T)) of texts of one length, with a head silenced if asked."""
    ids = torch.cat(encode_texts(model, given, given["texts"]))
    patches = _silence(model, given, "v", None)
    logits, _ = model(ids, patch_params=patches)
    return logits, ids


def _gather(rows, tokens):
    """(B,n): of rows (B,V), what belongs to the tokens, B lists of ids."""
    tokens = torch.tensor(tokens).to(rows.device)
    return rows.gather(-1, tokens)


def _silence(model, given, site, position):
    """[Patch] that puts a head's value bias in the place of what it has, or [].

    Zero there is the value bias here: folding moves that bias into the output's.
    """
    if "silenced" not in given:
        return []
    layer, head = given["silenced"]
    bias = _value_biases(model, layer)[head]
    return [Patch(layer, position, bias, site, head)]


def _value_biases(model, layer):
    """(H,D): the part of a layer's values that is the same for all tokens and texts.

    The biases of the values and of the layer norm before them: what folding puts elsewhere.
    """
    block = model.transformer.h[layer]
    qkv = block.attn.c_attn(block.ln_1.bias)  # (C,) -> (3C,)
    _, _, values = qkv.chunk(3)
    return values.view(block.attn.n_head, -1)


def logits(model, given):
    """(B,n): of given["tokens"] at one position, the last one unless the entry names another."""
    rows, _ = _all_logits(model, given)
    position = given.get("position", -1)
    return _gather(rows[:, position], given["tokens"])


def probabilities(model, given):
    """(B,n): the same as probabilities."""
    rows, _ = _all_logits(model, given)
    return _gather(rows[:, -1].softmax(-1), given["tokens"])


def top_tokens(model, given):
    """(B,count): ids, the most probable first."""
    rows, _ = _all_logits(model, given)
    return rows[:, -1].topk(given["count"]).indices


def top_token_everywhere(model, given):
    """(B,T): the id of the most probable next token at every position."""
    rows, _ = _all_logits(model, given)
    return rows.argmax(-1)


def loss(model, given):
    """(): mean loss on the texts' next tokens, or on given["labels"], in nats."""
    rows, labels = _all_logits(model, given)
    if "labels" in given:
        labels = torch.tensor(given["labels"]).to(labels)
    rows = rows[:, :-1].flatten(0, 1)  # (B,T,V) -> (B(T-1),V)
    following = labels[:, 1:].flatten()
    return F.cross_entropy(rows, following)


@torch.no_grad()
def unpatched(model, given):
    """(2,B): logit(corrupted answer) - logit(clean answer) of the clean and the corrupted runs.

    (2,) with given["mean"]. A silenced head is so at the last position.
    """
    clean, corrupted, *answers = read_pairs(model, given)
    direction = answer_direction(model, *answers)
    patches = _silence(model, given, "z", -1)
    rows = []
    for ids in (clean, corrupted):
        stream = runs.run(model, ids, patches)  # (B,T,C)
        rows.append(-logit_diff(model, stream[:, -1], direction))
    differences = torch.stack(rows)
    return differences.mean(1) if given.get("mean") else differences


def patching(model, given):
    """The cells of patch_layers, their mean over the pairs: shares, or the differences themselves.

    (L,T) or (L,H); where heads and positions both are given, (L*H,T).
    """
    clean, corrupted, *answers = read_pairs(model, given)
    answers = [answer.tolist() for answer in answers]
    site = given["site"]
    each_position = given.get("each_position", True)
    result = patch_layers(
        model,
        clean,
        corrupted,
        *answers,
        site=site,
        each_position=each_position,
    )
    cells = result.mean()
    if given.get("normalized", True):
        # A share of the means, not the mean of shares, which a pair near 0 would rule.
        start = result.corrupted.mean()
        whole = result.clean.mean() - start
        cells = (cells - start) / whole
    if site in SITES_WITH_HEADS and each_position:
        cells = cells.flatten(0, 1)  # (L,H,T) -> (L*H,T)
    return cells


def parts(model, given):
    """(2+2L,): what embedding, position, and each layer's attention and MLP add to the clean
    answer's lead in the clean texts, the mean.
    """
    clean, _, *answers = read_pairs(model, given)
    rows = []
    for ids, clean_answer, corrupted_answer in zip(clean, *answers):
        part = logit_attribution(model, ids[None], clean_answer, corrupted_answer)
        attention = part.heads.sum(1) + part.attention_biases
        mlp = part.mlps + part.mlp_biases
        layers = torch.stack((attention, mlp), 1)  # (L,2)
        start = torch.stack((part.embedding, part.position))
        row = torch.cat((start, layers.flatten()))
        rows.append(row)
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
    patches = _silence(model, given, "z", -1)
    x = runs.run(model, clean, patches, stored)
    # With its scale held, the norm takes off the mean, divides, and multiplies by its weight.
    ln_f = model.transformer.ln_f
    variance = x[:, -1].var(-1, correction=0, keepdim=True)  # (B,1)
    scale = (variance + ln_f.eps).sqrt()
    reads = direction * ln_f.weight
    reads = reads - reads.mean(-1, keepdim=True)
    reads = reads / scale  # (B,C)
    rows = []
    for layer, block in enumerate(model.transformer.h):
        z = stored["z"][layer][:, :, -1]  # (B,H,T,D) -> (B,H,D)
        z = z - _value_biases(model, layer)
        written = reads @ block.attn.c_proj.weight  # (B,C) @ (C,C)
        added = z * written.view_as(z)
        rows.append(added.sum(-1).mean(0))
    return torch.stack(rows)


def stripe(model, given):
    """(L,H): mean weight on the key `offset` tokens back, on random tokens twice over."""
    generator = torch.Generator().manual_seed(given["seed"])
    size = given["rows"], given["length"]
    low = given["low"]
    high = given["high"]
    ids = torch.randint(low, high, size, generator=generator)
    below = -given["offset"]
    scores = []
    for row in ids.repeat(1, 2).split(1):
        pattern = extract_attention(model, row)  # (L,H,T,T)
        weights = pattern.diagonal(below, -2, -1)
        scores.append(weights.mean(-1))
    return torch.stack(scores).mean(0)


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
    middle = torch.eye(model.config.n_embd).to(rows)
    if given["through_vocabulary"]:
        embed = _centred(rows)
        centred = rows - rows.mean(0)
        unembed = _centred(centred * gpt.ln_f.weight)
        middle = unembed.T @ embed  # (C,V) @ (V,C) -> (C,C)
    scores = []
    for block in gpt.h:
        attn = block.attn
        _, _, value = attn.c_attn.weight.double().chunk(3)
        value = _centred(value * block.ln_1.weight)  # (C,C)
        value = value.unflatten(0, (attn.n_head, -1))  # (H,D,C)
        out = _centred(attn.c_proj.weight.double().T)
        out = out.view_as(value)  # (C,C) -> (H,D,C)
        # The eigenvalues of the product (C,C) that are not 0 are those of (D,C) @ (C,C) @ (C,D).
        products = out @ middle @ value.mT  # (H,D,D)
        values = torch.linalg.eigvals(products)
        total = values.abs().sum(-1)
        scores.append(values.sum(-1).real / total)
    return torch.stack(scores)


def _centred(weight):
    """A weight (n,C) that reads the stream or writes to it, without its mean over the stream."""
    return weight - weight.mean(1, keepdim=True)


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
