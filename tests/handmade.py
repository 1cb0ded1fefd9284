"""A model whose circuit is known because its weights are written by hand: the ground truth for what finds circuits.

`induction_model()` continues what it has seen: after "... a b ... a" it says b. It does so in two steps:

  layer 0, head 1   previous token: each token attends to the one before it (the first to itself) and writes down, in a
                    part of the residual stream kept for it, which token that was
  layer 1, head 2   induction: each token attends to the latest token whose predecessor was the same as itself, and
                    copies that token to the output; with none such it attends to itself and copies itself

No other head, no MLP and no bias writes anything: their outputs are exactly 0. The first head changes the answer only
through the second one's keys, the second one through nothing but the output.

The residual stream's C = 128 numbers are cut into parts: which token this is (20 numbers, one of them 1), at which
position (32), which token came before (20), which token comes next (20), and 36 that stay 0. Each layer norm is made to
change nothing: the streams at its input all have the same mean and variance, which its weight and bias undo.
"""

import torch

from mingpt.model import GPT, GPTConfig

V, BLOCK, H, D = 20, 32, 4, 32
C = H * D
TOKEN, POSITION = slice(0, V), slice(V, V + BLOCK)
BEFORE, NEXT = slice(V + BLOCK, 2 * V + BLOCK), slice(2 * V + BLOCK, 3 * V + BLOCK)
PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD = (0, 1), (1, 2)
SHARPNESS = (
    30  # a wanted key is ahead of every other by so much, before the softmax: e^-30 goes elsewhere
)


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
    norms = [norm for block in model.transformer.h for norm in (block.ln_1, block.ln_2)] + [
        model.transformer.ln_f
    ]
    for norm, ones in zip(
        norms, (2, 3, 3, 4, 4)
    ):  # each layer's head adds a 1 to those of token and position
        mean = ones / C
        norm.weight.fill_((mean - mean**2 + norm.eps) ** 0.5)
        norm.bias.fill_(mean)

    q, k, v, out, _ = parts_of_head(model, *PREVIOUS_TOKEN_HEAD)
    scale = D**0.5  # the model divides scores by it
    q[:BLOCK, POSITION] = SHARPNESS * scale * torch.eye(BLOCK)
    k[:BLOCK, POSITION] = torch.eye(BLOCK).roll(1, 0)  # position j answers to position j + 1
    v[:V, TOKEN] = torch.eye(V)
    out[BEFORE, :V] = torch.eye(V)

    q, k, v, out, q_bias = parts_of_head(model, *INDUCTION_HEAD)
    q[:V, TOKEN] = (
        2 * BLOCK * SHARPNESS * scale * torch.eye(V)
    )  # a match counts more than the latest position
    k[:V, BEFORE] = torch.eye(V)
    q_bias[V] = SHARPNESS * scale
    k[V, POSITION] = torch.arange(float(BLOCK))
    v[:V, TOKEN] = torch.eye(V)
    out[NEXT, :V] = torch.eye(V)
    return model


def parts_of_head(model, layer, head):
    """q, k, v (D,C), output (C,D) and q's bias (D,) of one head, views into the model's weights."""
    attention = model.transformer.h[layer].attn
    q, k, v = attention.c_attn.weight.view(3, H, D, C)[:, head]
    return (
        q,
        k,
        v,
        attention.c_proj.weight.view(C, H, D)[:, head],
        attention.c_attn.bias.view(3, H, D)[0, head],
    )
