"""GPT-2 in one file, with every activation open to view and to replacement.

Letters in the shape comments: B batch, T position, C n_embd, H heads, D head size (C / H), V vocabulary, L layers.
The parameter names and the public methods are minGPT's. What is added is `tap`: each place in a block where a
tensor can be seen or replaced is one call tap(site, tensor) -> tensor, and nothing outlives the forward call.
Sources: Radford et al. 2019 (GPT-2); the design of Karpathy's minGPT.
"""

import os
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from mingpt.config import ACTIVATIONS, GPTConfig, without_masks
from mingpt.sites import SITES, Patch, as_patches, as_store  # noqa: F401, to be found here too


def untouched(site, x):
    """The tap of a plain run."""
    return x


class CausalSelfAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def forward(self, x, tap=untouched):
        B, T, C = x.shape
        parts = zip("qkv", self.c_attn(x).chunk(3, -1))  # (B,T,3C) -> 3 x (B,T,C)
        q, k, v = (
            tap(site, part.view(B, T, self.n_head, -1).transpose(1, 2)) for site, part in parts
        )  # (B,H,T,D)
        if self.training and tap is untouched:
            p = self.attn_dropout.p
            z = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=p, scale=self.scale
            )
        else:
            mask = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(
                1
            )  # True where the key is in the future
            scores = q @ k.mT * self.scale  # (B,H,T,D) @ (B,H,D,T) -> (B,H,T,T)
            scores = tap("scores", scores.masked_fill(mask, float("-inf")))
            pattern = tap("pattern", scores.softmax(-1))  # (B,H,T,T), rows sum to 1
            z = self.attn_dropout(pattern) @ v  # (B,H,T,T) @ (B,H,T,D) -> (B,H,T,D)
        z = tap("z", z).transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return tap("attn_out", self.resid_dropout(self.c_proj(z)))  # (B,T,C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_inner)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd)
        self.activation = ACTIVATIONS[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x, tap=untouched):
        x = tap("mlp_pre", self.c_fc(x))  # (B,T,C) -> (B,T,4C)
        x = tap("mlp_post", self.activation(x))
        return tap("mlp_out", self.dropout(self.c_proj(x)))  # (B,T,C)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, tap=untouched):
        x = tap("resid_pre", x)  # (B,T,C)
        x = tap("resid_mid", x + self.attn(self.ln_1(x), tap))
        return tap("resid_post", x + self.mlp(self.ln_2(x), tap))


class GPT(nn.Module):
    """`GPT(config)` for a new model, `GPT.from_pretrained(name)` for a trained one."""

    @staticmethod
    def get_default_config():
        return GPTConfig()

    @classmethod
    def from_pretrained(cls, name):
        """The named model in eval mode, fp32, with its tokenizer as `model.tokenizer` (None if it has none).

        name: gpt2, gpt2-medium ..., any hub id of a GPT-2, a folder, or `names`, the embedded model.
        pretrained.Unavailable if it is neither cached nor to be had from the hub, ValueError if it does not fit.
        """
        from mingpt import pretrained  # here, since it loads what downloads need

        stored = pretrained.read(name)
        with (
            torch.device("meta"),
            pretrained.NoInit(),
        ):  # no memory and no numbers: the weights come from the file
            model = cls(stored.config)
        model.load_state_dict(stored.weights, assign=True)
        model.tokenizer = stored.tokenizer
        model.name = os.fspath(name)
        model.source = stored.source
        return model.eval()

    def __init__(self, config):
        super().__init__()
        self.config = config = config.complete()
        self.block_size = config.block_size
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.embd_pdrop),
                "h": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, config.layer_norm_epsilon),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._tie_embeddings()
        self.tokenizer = None
        self.name = None  # as given to from_pretrained
        self.source = None  # where from_pretrained found it, one line
        self.layer_activations = {}  # {layer: (B,T,C)}, of the last call that stored
        self.activations = {}  # {site: {layer: tensor}}, of the last call that stored by site
        self.last_token_logits = None  # (B,V), of the last call
        self.apply(self._init_weights)
        for name, weight in self.named_parameters():
            if name.endswith(
                "c_proj.weight"
            ):  # 2L branches add up in the residual stream (GPT-2, section 2.3)
                nn.init.normal_(weight, std=0.02 / (2 * config.n_layer) ** 0.5)

    def _tie_embeddings(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """nn.Module's, and the mask buffers of older checkpoints (`attn.bias`, `attn.masked_bias`) are passed over."""
        weights = without_masks(state_dict)
        result = super().load_state_dict(weights, strict=strict, assign=assign)
        self._tie_embeddings()  # assign=True makes two parameters of the one
        return result

    def configure_optimizers(self, train_config):
        """AdamW with weight decay on the matrices of linear layers alone: not on biases, layer norms or embeddings."""
        linear = {id(m.weight) for m in self.modules() if isinstance(m, nn.Linear)} - {
            id(self.transformer.wte.weight)
        }
        decay = [p for p in self.parameters() if id(p) in linear]
        no_decay = [p for p in self.parameters() if id(p) not in linear]
        groups = [
            {"params": decay, "weight_decay": train_config.weight_decay},
            {"params": no_decay, "weight_decay": 0.0},
        ]
        fused = self.lm_head.weight.device.type in (
            "cpu",
            "cuda",
        )  # which every PyTorch from 2.4 on has
        return torch.optim.AdamW(
            groups, lr=train_config.learning_rate, betas=train_config.betas, fused=fused
        )

    def forward(self, idx, targets=None, store_activations=False, patch_params=None):
        """(logits (B,T,V), loss); the loss is None without targets (B,T), else the mean in nats over those not -1.

        store_activations: True keeps the residual stream after each block in self.layer_activations {layer: (B,T,C)};
        a collection of SITES keeps these too, in self.activations {site: {layer: tensor}}. Copies, detached.
        patch_params: a (layer, position, activation), a Patch, or a list of them. Patched first, then stored.
        After every call self.last_token_logits is a detached copy of the last position's logits (B,V).
        """
        stored = as_store(store_activations)
        x = self.stream(idx, as_patches(patch_params), stored)  # (B,T,C)
        logits = self.lm_head(self.transformer.ln_f(x))  # (B,T,C) -> (B,T,V)

        self.last_token_logits = logits[:, -1].detach().clone()
        if stored:
            self.layer_activations = stored["resid_post"]
            self.activations = {} if store_activations is True else stored
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def stream(self, idx, patches=(), stored=None):
        """The residual stream after the last block, (B,T,C); patches are put in, and stored {site: {}} is filled."""
        if idx.ndim != 2 or idx.is_floating_point():
            raise ValueError(f"idx must be token ids (B, T), got {tuple(idx.shape)} of {idx.dtype}")
        T = idx.size(1)
        if not 0 < T <= self.block_size:
            raise ValueError(f"the input has {T} tokens; this model takes 1 to {self.block_size}")
        if idx.min() < 0 or idx.max() >= self.config.vocab_size:
            raise ValueError(
                f"the ids must be 0 to {self.config.vocab_size - 1}, got {idx.min()} to {idx.max()}"
            )
        for patch in patches:
            patch.check(self.config.n_layer, self.config.n_head, T)

        def tap(layer, site, x):
            for patch in patches:
                if (patch.layer, patch.site) == (layer, site):
                    x = patch.apply(x)
            if site in stored:
                stored[site][layer] = x.detach().clone()
            return x

        stored = stored or {}
        positions = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(
            positions
        )  # (B,T,C) + (T,C) -> (B,T,C)
        x = self.transformer.drop(x)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, partial(tap, layer) if patches or stored else untouched)
        return x

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, do_sample=False, top_k=None):
        """idx (B,T) with max_new_tokens more: (B,T+max_new_tokens); each from the last block_size tokens before it.

        The most probable token, or with do_sample one drawn at this temperature, from the top_k if given. Call
        model.eval() first where the model has been in training: dropout is noise here.
        """
        if not temperature > 0 or (top_k is not None and top_k < 1):
            raise ValueError(
                f"temperature must be above 0 and top_k from 1, got {temperature} and {top_k}"
            )
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.block_size :])[0][:, -1] / temperature  # (B,V)
            if top_k is not None:
                smallest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < smallest, float("-inf"))
            new = (
                torch.multinomial(logits.softmax(-1), 1)
                if do_sample
                else logits.argmax(-1, keepdim=True)
            )
            idx = torch.cat((idx, new), dim=1)
        return idx
