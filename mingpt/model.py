"""GPT-2 in one file, with every activation open to view and to replacement.

Letters in the shape comments: B batch, T position, C n_embd, H heads, D head size (C / H), V vocabulary, L layers.
The parameter names and the public methods are minGPT's. What is added is `tap`: each place in a block where a
tensor can be seen or replaced is one call tap(site, tensor) -> tensor, and nothing outlives the forward call.
Sources: Radford et al. 2019 (GPT-2); the design of Karpathy's minGPT.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # (B,T,C)
MLP_SITES = ("mlp_pre", "mlp_post")  # (B,T,4C)
HEAD_SITES = ("q", "k", "v", "z")  # (B,H,T,D)
ATTENTION_SITES = ("scores", "pattern")  # (B,H,T,T), rows are queries
SITES = RESIDUAL_SITES + MLP_SITES + HEAD_SITES + ATTENTION_SITES

MODEL_TYPES = {  # name -> layers, heads, width
    "openai-gpt": (12, 12, 768),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "gopher-44m": (8, 16, 512),
    "gpt-mini": (6, 6, 192),
    "gpt-micro": (4, 4, 128),
    "gpt-nano": (3, 3, 48),
}

MASKS = (".attn.bias", ".attn.masked_bias")  # buffers in older checkpoints, not weights

ACTIVATIONS = {  # the names that config.json files use
    "gelu_new": partial(F.gelu, approximate="tanh"),  # GPT-2's own
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class Patch(NamedTuple):
    """Replace `site` of block `layer` at `position` by `activation`; a triple of the first three is its short form.

    position: an int (negative counts from the end), a slice, or None for all; at scores and pattern, the query's row.
    activation: a tensor that broadcasts to what it replaces, or a function from the old tensor to the new one.
    head: at the sites with heads (q, k, v, z, scores, pattern) one head, or None for all.
    """

    layer: int
    position: int | slice | None
    activation: torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
    site: str = "resid_post"
    head: int | None = None

    @property
    def index(self):
        """What it replaces, as an index into the site's tensor."""
        position = slice(None) if self.position is None else self.position
        if self.site in HEAD_SITES + ATTENTION_SITES:
            return slice(None), slice(None) if self.head is None else self.head, position
        return slice(None), position

    def check(self, n_layer, n_head, T):
        """ValueError, saying what the right ones are, if there is no such site, layer, head or position."""
        check_site(self.site)
        if type(self.layer) is not int or not 0 <= self.layer < n_layer:
            raise ValueError(f"no layer {self.layer!r}; the layers are 0 to {n_layer - 1}")
        if self.head is not None and self.site not in HEAD_SITES + ATTENTION_SITES:
            raise ValueError(f"{self.site} has no heads; those that have are {', '.join(HEAD_SITES + ATTENTION_SITES)}")
        if self.head is not None and not (type(self.head) is int and 0 <= self.head < n_head):
            raise ValueError(f"no head {self.head!r}; the heads are 0 to {n_head - 1}")
        if type(self.position) is int and not -T <= self.position < T:
            raise ValueError(f"no position {self.position}; the input's positions are 0 to {T - 1} (or -{T} to -1)")
        if type(self.position) not in (int, slice, type(None)):
            raise ValueError(f"position must be an int, a slice or None, got {self.position!r}")
        if isinstance(self.position, slice) and not (self.position.step or 1) > 0:
            raise ValueError(f"the step of {self.position} must be positive; order the activation instead")
        if isinstance(self.position, slice) and not range(T)[self.position]:
            raise ValueError(f"{self.position} selects none of the input's positions 0 to {T - 1}")
        if not (callable(self.activation) or isinstance(self.activation, torch.Tensor)):
            raise ValueError(f"activation must be a tensor or a function, got {type(self.activation).__name__}")

    def apply(self, x):
        """x with the patch in it, a new tensor."""
        x = x.clone()
        old = x[self.index]
        new = self.activation(old.clone()) if callable(self.activation) else self.activation
        if not isinstance(new, torch.Tensor):
            raise ValueError(f"the patch function for {self.site} must return a tensor, got {type(new).__name__}")
        try:
            x[self.index] = new.to(x).broadcast_to(old.shape)
        except RuntimeError as error:
            raise ValueError(
                f"the activation for {self.site} of layer {self.layer} has shape {tuple(new.shape)}, "
                f"which does not broadcast to the {tuple(old.shape)} that it replaces"
            ) from error
        return x


def check_site(site):
    """ValueError, saying what the sites are, if there is none of that name."""
    if site not in SITES:
        raise ValueError(f"no site {site!r}; the sites are {', '.join(SITES)}")


def as_patches(patch_params):
    """None, one patch or triple, or a list of them -> a list of Patch, its numbers as plain ints."""
    if patch_params is None:
        return []
    one = isinstance(patch_params, tuple) and not isinstance(next(iter(patch_params), None), tuple)
    try:
        patches = [Patch(*patch) for patch in ([patch_params] if one else patch_params)]
    except TypeError as error:
        raise ValueError("patch_params must be (layer, position, activation), a Patch, or a list of them") from error
    return [p._replace(layer=plain(p.layer), position=plain(p.position), head=plain(p.head)) for p in patches]


def plain(number):
    """An int of NumPy or PyTorch as Python's; anything else as it is, for Patch.check to judge."""
    if isinstance(number, bool):
        return number
    try:
        return operator.index(number)
    except TypeError:
        return number


def untouched(site, x):
    """The tap of a plain run."""
    return x


@dataclass(slots=True)
class GPTConfig:
    """Either a model_type of MODEL_TYPES, or n_layer, n_head and n_embd; and always vocab_size and block_size."""

    model_type: str | None = None
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None
    vocab_size: int | None = None
    block_size: int | None = None  # the longest input, in tokens
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    n_inner: int | None = None  # width of the MLP, 4 * n_embd if None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # divide scores by sqrt(D)
    scale_attn_by_inverse_layer_idx: bool = False  # and by layer + 1
    tie_word_embeddings: bool = False  # lm_head is wte, as in GPT-2; minGPT trains two matrices

    def complete(self):
        """A copy in which every size is a number; ValueError if one is missing, doubled or does not fit."""
        sizes = {name: getattr(self, name) for name in self.__slots__}
        shape = ("n_layer", "n_head", "n_embd")
        if self.model_type is not None and self.model_type not in MODEL_TYPES:
            raise ValueError(f"no model_type {self.model_type!r}; known are {', '.join(MODEL_TYPES)}, or None")
        if self.model_type is not None:
            table = dict(zip(shape, MODEL_TYPES[self.model_type]))
            given = {name: sizes[name] for name in shape if sizes[name] not in (None, table[name])}
            if given:
                raise ValueError(f"model_type {self.model_type!r} sets {table}, but the configuration also has {given}")
            sizes.update(table)
        missing = [name for name in (*shape, "vocab_size", "block_size") if not sizes[name]]
        if missing:
            raise ValueError(f"set {', '.join(missing)}, or for the shape a model_type of {', '.join(MODEL_TYPES)}")
        sizes["n_inner"] = sizes["n_inner"] or 4 * sizes["n_embd"]
        for name in (*shape, "vocab_size", "block_size", "n_inner"):
            if type(sizes[name]) is not int or sizes[name] < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {sizes[name]!r}")
        if sizes["n_embd"] % sizes["n_head"]:
            raise ValueError(f"n_embd {sizes['n_embd']} is not a multiple of n_head {sizes['n_head']}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(f"no activation_function {self.activation_function!r}; known are {', '.join(ACTIVATIONS)}")
        return GPTConfig(**sizes)


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
        q, k, v = (tap(site, part.view(B, T, self.n_head, -1).transpose(1, 2)) for site, part in parts)  # (B,H,T,D)
        if self.training and tap is untouched:
            p = self.attn_dropout.p
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p, scale=self.scale)
        else:
            mask = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)  # True where the key is in the future
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
        """The named model in eval mode, fp32, with its tokenizer as `model.tokenizer`; see mingpt.pretrained.load."""
        from mingpt import pretrained

        return pretrained.load(name, cls)

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
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        self.tokenizer = None
        self.layer_activations = {}  # {layer: (B,T,C)}, of the last call that stored
        self.activations = {}  # {site: {layer: tensor}}, of the last call that stored by site
        self.last_token_logits = None  # (B,V), of the last call
        self.apply(self._init_weights)
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):  # 2L branches add up in the residual stream (GPT-2, section 2.3)
                nn.init.normal_(weight, std=0.02 / (2 * config.n_layer) ** 0.5)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """nn.Module's, and the mask buffers of older checkpoints (`attn.bias`, `attn.masked_bias`) are passed over."""
        weights = {name: tensor for name, tensor in state_dict.items() if not name.endswith(MASKS)}
        return super().load_state_dict(weights, strict=strict, assign=assign)

    def configure_optimizers(self, train_config):
        """AdamW with weight decay on the matrices of linear layers alone: not on biases, layer norms or embeddings."""
        linear = {id(m.weight) for m in self.modules() if isinstance(m, nn.Linear)} - {id(self.transformer.wte.weight)}
        decay = [p for p in self.parameters() if id(p) in linear]
        no_decay = [p for p in self.parameters() if id(p) not in linear]
        groups = [
            {"params": decay, "weight_decay": train_config.weight_decay},
            {"params": no_decay, "weight_decay": 0.0},
        ]
        fused = self.lm_head.weight.device.type in ("cpu", "cuda")  # which every PyTorch from 2.4 on has
        return torch.optim.AdamW(groups, lr=train_config.learning_rate, betas=train_config.betas, fused=fused)

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
            raise ValueError(f"the ids must be 0 to {self.config.vocab_size - 1}, got {idx.min()} to {idx.max()}")
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
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)  # (B,T,C) + (T,C) -> (B,T,C)
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
            raise ValueError(f"temperature must be above 0 and top_k from 1, got {temperature} and {top_k}")
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.block_size :])[0][:, -1] / temperature  # (B,V)
            if top_k is not None:
                smallest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < smallest, float("-inf"))
            new = torch.multinomial(logits.softmax(-1), 1) if do_sample else logits.argmax(-1, keepdim=True)
            idx = torch.cat((idx, new), dim=1)
        return idx


def as_store(store_activations):
    """False -> {}, nothing is stored; True or a collection of sites -> {site: {}}, always with resid_post."""
    if store_activations is True or not store_activations:
        return {"resid_post": {}} if store_activations else {}
    try:
        sites = [store_activations] if isinstance(store_activations, str) else list(store_activations)
    except TypeError as error:
        raise ValueError(
            f"store_activations must be True, False or a list of sites, got {store_activations!r}"
        ) from error
    for site in sites:
        check_site(site)
    return {site: {} for site in ("resid_post", *sites)}
