"""A model whose circuit is known because its weights are written by hand.

It is the ground truth for what finds circuits. `induction_model()` continues what it has seen:
after "... a b ... a" it says b. It does so in two steps:

  layer 0, head 1   previous token: each token attends to the one before it (the first to itself)
                    and writes down, in a part of the residual stream kept for it, which token
                    that was
  layer 1, head 2   induction: each token attends to the latest token whose predecessor was the
                    same as itself, and copies that token to the output; with none such it attends
                    to itself and copies itself

No other head, no MLP and no bias writes anything: their outputs are exactly 0. The first head
changes the answer only through the second one's keys, the second one through nothing but the
output.

The residual stream's C = 128 numbers are cut into parts: which token this is (20 numbers, one of
them 1), at which position (32), which token came before (20), which token comes next (20), and 36
that stay 0. Each layer norm is made to change nothing: the streams at its input all have the same
mean and variance, which its weight and bias undo.
"""

import torch

from mingpt.model import GPT, GPTConfig

V = 20
BLOCK = 32
H = 4
D = 32
C = H * D
# The parts of the residual stream.
TOKEN = slice(0, V)
POSITION = slice(V, V + BLOCK)
BEFORE = slice(V + BLOCK, 2 * V + BLOCK)
NEXT = slice(2 * V + BLOCK, 3 * V + BLOCK)
PREVIOUS_TOKEN_HEAD = (0, 1)
INDUCTION_HEAD = (1, 2)
# Its edges, (sender, reader).
CIRCUIT = [
    ("embed", "0.1.v"),
    ("0.1", "1.2.k"),
    ("embed", "1.2.q"),
    ("embed", "1.2.v"),
    ("1.2", "logits"),
]
# A wanted key is ahead of every other by so much, before the softmax: e^-30 goes elsewhere.
SHARPNESS = 30
SCALE = D**0.5  # the model divides scores by it


def induction_model():
    """The model, in eval mode, without a tokenizer; ids 0 to 19, at most 32 of them."""
    config = GPTConfig(n_layer=2, n_head=H, n_embd=C, vocab_size=V, block_size=BLOCK)
    with torch.random.fork_rng():
        model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.transformer.wte.weight[:, TOKEN] = torch.eye(V)
    model.transformer.wpe.weight[:, POSITION] = torch.eye(BLOCK)
    model.lm_head.weight[:, NEXT] = 10 * torch.eye(V)
    write_layer_norms(model)
    write_previous_token_head(model)
    write_induction_head(model)
    return model


def write_layer_norms(model):
    """Make each layer norm the identity on the streams that come to it."""
    first, second = model.transformer.h
    norms = [first.ln_1, first.ln_2, second.ln_1, second.ln_2, model.transformer.ln_f]
    # So many numbers of a stream are 1: token and position, and one from each layer's head.
    for norm, ones in zip(norms, (2, 3, 3, 4, 4)):
        mean = ones / C
        norm.weight.fill_((mean - mean**2 + norm.eps) ** 0.5)
        norm.bias.fill_(mean)


def write_previous_token_head(model):
    q, k, v, out, _ = parts_of_head(model, *PREVIOUS_TOKEN_HEAD)
    q[:BLOCK, POSITION] = SHARPNESS * SCALE * torch.eye(BLOCK)
    k[:BLOCK, POSITION] = torch.eye(BLOCK).roll(1, 0)  # position j answers to position j + 1
    v[:V, TOKEN] = torch.eye(V)
    out[BEFORE, :V] = torch.eye(V)


def write_induction_head(model):
    q, k, v, out, q_bias = parts_of_head(model, *INDUCTION_HEAD)
    # A match counts more than the latest position, whose key is at most BLOCK times SHARPNESS.
    q[:V, TOKEN] = 2 * BLOCK * SHARPNESS * SCALE * torch.eye(V)
    k[:V, BEFORE] = torch.eye(V)
    # Among the matches the latest wins.
    q_bias[V] = SHARPNESS * SCALE
    k[V, POSITION] = torch.arange(float(BLOCK))
    v[:V, TOKEN] = torch.eye(V)
    out[NEXT, :V] = torch.eye(V)


def parts_of_head(model, layer, head):
    """q, k, v (D,C), output (C,D) and q's bias (D,) of one head, views into the model's weights."""
    attention = model.transformer.h[layer].attn
    q, k, v = attention.c_attn.weight.view(3, H, D, C)[:, head]
    out = attention.c_proj.weight.view(C, H, D)[:, head]
    q_bias = attention.c_attn.bias.view(3, H, D)[0, head]
    return q, k, v, out, q_bias
