"""GPT-2 in one file, with every activation open to view and to replacement.

Letters in the shape comments: B batch, T position, C n_embd, H heads, D head size (C / H),
V vocabulary, L layers. The parameter names and the public methods are minGPT's. What is added is
`tap`: each place in a block where a tensor can be seen or replaced is one call
tap(site, tensor) -> tensor, and nothing outlives the forward call.
Sources: Radford et al. 2019 (GPT-2); the design of Karpathy's minGPT.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt.common import AnyPath
from mingpt.config import ACTIVATIONS
from mingpt.config import GPTConfig as GPTConfig  # to be found here too
from mingpt.sites import SITES as SITES  # to be found here too
from mingpt.sites import Activations, Patches, as_patches, as_store
from mingpt.sites import Patch as Patch  # to be found here too
from mingpt.weights import without_masks

if TYPE_CHECKING:  # bpe loads what downloads need, trainer imports this module
    from mingpt.bpe import BPETokenizer
    from mingpt.trainer import TrainerConfig

Tap = Callable[[str, Tensor], Tensor]


def untouched(site: str, x: Tensor) -> Tensor:
    """The tap of a plain run."""
    return x


class CausalSelfAttention(nn.Module):
    """Each token collects values from itself and the tokens before it, in H heads side by side."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.c_attn = nn.Linear(C, 3 * C)  # queries, keys and values in one
        self.c_proj = nn.Linear(C, C)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.scale = 1.0  # of the scores
        if config.scale_attn_weights:
            self.scale = (C // self.n_head) ** -0.5
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def forward(self, x: Tensor, tap: Tap = untouched) -> Tensor:
        q, k, v = self.c_attn(x).chunk(3, -1)  # (B,T,3C) -> 3 x (B,T,C)
        q = tap("q", self.split_heads(q))  # (B,T,C) -> (B,H,T,D)
        k = tap("k", self.split_heads(k))
        v = tap("v", self.split_heads(v))
        # Training needs neither scores nor pattern; whoever looks or patches needs both.
        if self.training and tap is untouched:
            z = self.fused_attention(q, k, v)
        else:
            scores = q @ k.mT * self.scale  # (B,H,T,D) @ (B,H,D,T) -> (B,H,T,T)
            # No token sees a later one: above the diagonal the key is in the query's future.
            future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
            scores = tap("scores", scores)
            pattern = tap("pattern", scores.softmax(-1))  # (B,H,T,T), rows sum to 1
            z = self.attn_dropout(pattern) @ v  # (B,H,T,T) @ (B,H,T,D) -> (B,H,T,D)
        z = tap("z", z).transpose(1, 2).flatten(2)  # (B,H,T,D) -> (B,T,C), heads side by side again
        return tap("attn_out", self.resid_dropout(self.c_proj(z)))  # (B,T,C)

    def split_heads(self, x: Tensor) -> Tensor:
        """(...,T,C) -> (...,H,T,D)."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(-3, -2)

    def fused_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """z (B,H,T,D) without the pattern as a tensor of its own: faster, for training alone."""
        dropout = self.attn_dropout.p
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, scale=self.scale
        )


class MLP(nn.Module):
    """Each token by itself: 4C neurons read it, and write what they make of it."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_inner)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd)
        self.activation = ACTIVATIONS[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, tap: Tap = untouched) -> Tensor:
        x = tap("mlp_pre", self.c_fc(x))  # (B,T,C) -> (B,T,4C)
        x = tap("mlp_post", self.activation(x))
        return tap("mlp_out", self.dropout(self.c_proj(x)))  # (B,T,4C) -> (B,T,C)


class Block(nn.Module):
    """Attention and the MLP each read the residual stream and add to it."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, tap: Tap = untouched) -> Tensor:
        x = tap("resid_pre", x)  # (B,T,C)
        x = tap("resid_mid", x + self.attn(self.ln_1(x), tap))
        return tap("resid_post", x + self.mlp(self.ln_2(x), tap))


def check_shape(idx: Tensor) -> None:
    """ValueError if idx is no tensor of token ids (B,T)."""
    if not isinstance(idx, torch.Tensor):
        raise ValueError(
            f"idx must be a tensor of token ids (B, T), got {idx!r:.60}; "
            "model.tokenizer(text) gives the ids of a text"
        )
    if idx.ndim != 2 or idx.is_floating_point():
        raise ValueError(f"idx must be token ids (B, T), got {tuple(idx.shape)} of {idx.dtype}")


class Transformer(nn.ModuleDict):
    """The parts of a GPT by their names, which is all that this adds to nn.ModuleDict."""

    wte: nn.Embedding  # of the tokens
    wpe: nn.Embedding  # of the positions
    drop: nn.Dropout
    h: Sequence[Block]  # an nn.ModuleList
    ln_f: nn.LayerNorm


class GPT(nn.Module):
    """`GPT(config)` for a new model, `GPT.from_pretrained(name)` for a trained one."""

    @staticmethod
    def get_default_config() -> GPTConfig:
        """A GPTConfig to fill in."""
        return GPTConfig()

    @classmethod
    def from_pretrained(cls, name: AnyPath) -> "GPT":
        """The named model in eval mode, fp32, its tokenizer as `model.tokenizer` or None.

        name: gpt2, gpt2-medium ..., any hub id of a GPT-2, a folder, or `names`, the embedded
        model. hub.Unavailable if it is neither cached nor to be had from the hub, ValueError if
        its files are not those of a GPT-2.
        """
        from mingpt import pretrained  # only here: it loads what downloads need

        files, stored = pretrained.find_and_read(name)
        # No memory and no random numbers: the weights come from the file.
        with torch.device("meta"), pretrained.NoInit():
            model = cls(stored.config)
        model.load_state_dict(stored.weights, assign=True)
        model.tokenizer = stored.tokenizer  # type: ignore[assignment]  # see __init__
        model.name = os.fspath(name)
        model.source = files.source
        return model.eval()

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config = config.complete()
        self.block_size = config.block_size
        blocks = [Block(config, layer) for layer in range(config.n_layer)]
        self.transformer = Transformer(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.embd_pdrop),
                "h": nn.ModuleList(blocks),
                "ln_f": nn.LayerNorm(config.n_embd, config.layer_norm_epsilon),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._tie_embeddings()
        # None where there is none. For type checkers these are what they nearly always are.
        self.tokenizer: BPETokenizer = None  # type: ignore[assignment]
        self.name: str | None = None  # as given to from_pretrained
        self.source: str | None = None  # where from_pretrained found it, one line
        self.layer_activations: dict[int, Tensor] = {}  # (B,T,C) each, of the last call that stored
        self.activations: Activations = {}  # {site: {layer: tensor}}, of the last with sites
        # (B,V), of the last call.
        self.last_token_logits: Tensor = None  # type: ignore[assignment]
        self.apply(self._init_weights)
        # 2L branches add up in the residual stream: each starts smaller (GPT-2, section 2.3).
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(weight, std=0.02 / (2 * config.n_layer) ** 0.5)

    def _tie_embeddings(self):
        """Make the output matrix and the token embedding one parameter, where they are tied."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """nn.Module's; the mask buffers of older checkpoints are passed over."""
        weights = without_masks(state_dict)
        result = super().load_state_dict(weights, strict=strict, assign=assign)
        self._tie_embeddings()  # assign=True makes two parameters of the one
        return result

    def configure_optimizers(self, train_config: "TrainerConfig") -> torch.optim.AdamW:
        """AdamW with weight decay on the matrices of linear layers alone.

        Biases, layer norms and embeddings have none; nor has an output matrix that is tied.
        """
        embedding = self.transformer.wte.weight
        matrices = {id(m.weight) for m in self.modules() if isinstance(m, nn.Linear)}
        matrices.discard(id(embedding))
        decay = [weight for weight in self.parameters() if id(weight) in matrices]
        no_decay = [weight for weight in self.parameters() if id(weight) not in matrices]
        groups = [
            {"params": decay, "weight_decay": train_config.weight_decay},
            {"params": no_decay, "weight_decay": 0.0},
        ]
        has_fused = embedding.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(
            groups, lr=train_config.learning_rate, betas=train_config.betas, fused=has_fused
        )

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        store_activations: bool | Iterable[str] = False,
        patch_params: Patches = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(logits (B,T,V), loss) of token ids idx (B,T).

        The loss is None without targets (B,T), else the mean in nats over those that are not -1.
        store_activations: True keeps the residual stream after each block in
        self.layer_activations {layer: (B,T,C)}; a collection of SITES keeps these too, in
        self.activations {site: {layer: tensor}}. Copies, detached.
        patch_params: a (layer, position, activation), a Patch, or a list of them. A site is patched
        first, then stored.
        After every call self.last_token_logits is a detached copy of the last position's logits
        (B,V). These attributes are of the latest call, of whichever thread: they belong to one.
        """
        stored = as_store(store_activations)
        x = self.stream(idx, as_patches(patch_params), stored)  # (B,T,C)
        x = self.transformer.ln_f(x)
        logits = self.lm_head(x)  # (B,T,C) -> (B,T,V)

        self.last_token_logits = logits[:, -1].detach().clone()  # a view would keep all of logits
        if stored:
            self.layer_activations = stored["resid_post"]
            self.activations = {} if store_activations is True else stored
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's own is of any function

    def stream(
        self, idx: Tensor, patches: Sequence[Patch] = (), stored: Activations | None = None
    ) -> Tensor:
        """The residual stream after the last block, (B,T,C).

        patches: a list of Patch, which are put in. stored: {site: {}}, which is filled.
        """
        self._check_ids(idx)
        T = idx.size(1)
        for patch in patches:
            patch.check(self.config.n_layer, self.config.n_head, T)
        stored = stored or {}

        def tap(layer, site, x):
            for patch in patches:
                if (patch.layer, patch.site) == (layer, site):
                    x = patch.apply(x)
            if site in stored:
                stored[site][layer] = x.detach().clone()
            return x

        positions = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)  # (B,T,C) + (T,C)
        x = self.transformer.drop(x)
        # A plain run has a tap that does nothing, so that it is as quick as without one.
        is_plain = not (patches or stored)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, untouched if is_plain else partial(tap, layer))
        return x

    def _check_ids(self, idx):
        check_shape(idx)
        T = idx.size(1)
        if not 0 < T <= self.block_size:
            raise ValueError(f"the input has {T} tokens; this model takes 1 to {self.block_size}")
        last = self.config.vocab_size - 1
        if idx.min() < 0 or idx.max() > last:
            raise ValueError(f"the ids must be 0 to {last}, got {idx.min()} to {idx.max()}")

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        do_sample: bool = False,
        top_k: int | None = None,
    ) -> Tensor:
        """idx (B,T) with max_new_tokens more: (B,T+max_new_tokens).

        Each new token is the most probable one, or with do_sample one drawn at this temperature,
        from the top_k if given; it is read from the last block_size tokens before it. Call
        model.eval() first where the model has been in training: dropout is noise here.
        """
        if not temperature > 0 or (top_k is not None and top_k < 1):
            raise ValueError(
                f"temperature must be above 0 and top_k from 1, got {temperature} and {top_k}"
            )
        check_shape(idx)
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.block_size :])
            logits = logits[:, -1] / temperature  # (B,T,V) -> (B,V)
            # What is less probable than the top_k cannot be drawn.
            if top_k is not None:
                smallest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B,1)
                logits = logits.masked_fill(logits < smallest, float("-inf"))
            if do_sample:
                new = torch.multinomial(logits.softmax(-1), 1)
            else:
                new = logits.argmax(-1, keepdim=True)
            idx = torch.cat((idx, new), dim=1)
        return idx
