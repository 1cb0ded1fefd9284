"""What do the fields and the tensors of others' files mean? Three projects' autoencoders.

Each function gives fields of AutoencoderConfig, or weights under our names. What a file asks for
and this Autoencoder does not compute is a ValueError that names it.
Sources: SAELens 6 and before, sparsify (EleutherAI), sparse_autoencoder (OpenAI).
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mingpt.interpretability.autoencoder_config import NORMALIZATIONS, Place, place_of
from mingpt.sites import RESIDUAL_SITES

Fields = dict[str, Any]  # of a JSON file, or of an AutoencoderConfig
# SAELens's names of what computes the same here.
ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
OLD_KEYS = {  # before SAELens 6 -> since
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
OUR_NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "latent_bias": "b_enc",
    "decoder.weight": "W_dec",
    "pre_bias": "b_dec",
}
# Trained on a centred stream, which their files do not say.
CENTERED = (
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "tommmcgrath/gpt2-small-mlp-out-saes",
)
# Where OpenAI's files lie says where they belong.
OPENAI = re.compile(r"resid_(delta_attn|delta_mlp|post_attn|post_mlp)_[^/]*/autoencoders/(\d+)\.pt")
OPENAI_SITES = {
    "delta_attn": "attn_out",
    "delta_mlp": "mlp_out",
    "post_attn": "resid_mid",
    "post_mlp": "resid_post",
}


def is_sparsify(fields: Fields) -> bool:
    """Are these fields of a cfg.json sparsify's? Else they are SAELens's."""
    return "expansion_factor" in fields and not {"hook_name", "hook_point"} & set(fields)


def stated_place(fields: Fields | None, path: Path) -> Place | None:
    """(layer, site) of an autoencoder as its files say it; None where they do not.

    fields: of its cfg.json. path: of its folder, or of OpenAI's file.
    """
    if fields is None:
        openai = OPENAI.search(path.as_posix())
        return openai and (int(openai[2]), OPENAI_SITES[openai[1]])
    if is_sparsify(fields):
        return place_of(path.name)
    hook = saelens_settings(fields).get("hook_name")
    place = place_of(hook) if isinstance(hook, str) else None
    if hook is not None and place is None:
        raise ValueError(f"its hook_name {hook!r:.80} is no site of this model")
    return place


def saelens_settings(fields: Fields) -> Fields:
    """The fields of SAELens's cfg.json in one level, under the keys that it has since version 6."""
    together = fields | _group(fields, "metadata")
    return {OLD_KEYS.get(name, name): value for name, value in together.items()}


def _group(fields, name):
    """The fields in this field; {} without it."""
    group = fields.get(name) or {}
    if not isinstance(group, dict):
        raise ValueError(f"its {name} must hold fields, got {group!r:.80}")
    return group


def saelens_config(fields: Fields, site: str, repo: str | None) -> Fields:
    """{field of AutoencoderConfig: value} of SAELens's cfg.json; without layer and site.

    repo: the hub id that it comes from, or None.
    """
    settings = saelens_settings(fields)
    is_old = "metadata" not in fields
    options = _group(settings, "activation_fn_kwargs")
    architecture = settings.get("architecture", "standard")
    function = settings.get("activation_fn", "relu")
    if architecture == "standard" and function == "topk":
        architecture = "topk"
    if architecture not in list(ARCHITECTURES) or function not in ("relu", "topk"):
        raise ValueError(
            f"its architecture {architecture!r:.80} with {function!r:.80} is not read here; "
            f"those that are: {', '.join(ARCHITECTURES)}"
        )
    normalization = _normalization(settings.get("normalize_activations"))
    if settings.get("hook_head_index") is not None:
        raise ValueError(
            f"it is of head {settings['hook_head_index']!r:.80} alone (hook_head_index); "
            "those of all heads side by side are read"
        )
    return {
        "width": settings.get("d_in"),
        "n_features": settings.get("d_sae") or _multiple(settings),
        "activation": ARCHITECTURES[architecture],
        "k": settings.get("k", options.get("k")),
        "normalization": normalization,
        "subtract_b_dec": settings.get("apply_b_dec_to_input", True),
        "centered_stream": _is_centered(settings, site, normalization, is_old, repo),
        "beginning_token": settings.get("prepend_bos", is_old),
        "context": settings.get("context_size"),
        "model": settings.get("model_name"),
    }


def _normalization(value):
    """SAELens's normalize_activations as ours; before it had names it was true or false."""
    name = value
    if value is True:
        name = "expected_average_only_in"
    if value in (False, None):
        name = "none"
    if name in NORMALIZATIONS:
        return name
    raise ValueError(
        f"its normalize_activations {name!r:.80} is a factor or a matrix that its files do not "
        "have; let SAELens fold it into the weights, and save it again"
    )


def _is_centered(settings, site, normalization, is_old, repo):
    """Whether the stream of the training was centred; None where the files leave it open."""
    processing = _group(settings, "model_from_pretrained_kwargs")
    for name in ("fold_value_biases", "refactor_factored_attn_matrices"):
        if site == "z" and processing.get(name):
            raise ValueError(f"it was trained on another z than this model's ({name})")
    # The others are not written into the stream, or lose their mean anyway.
    if site not in RESIDUAL_SITES or normalization == "layer_norm":
        return False
    if repo in CENTERED:
        return True
    if is_old and settings.get("model_from_pretrained_kwargs") is None:
        return None
    return processing.get("center_writing_weights", False)


def sparsify_config(fields: Fields) -> Fields:
    """{field of AutoencoderConfig: value} of sparsify's cfg.json; without layer and site."""
    for name in ("transcode", "skip_connection", "signed"):
        if fields.get(name):
            raise ValueError(f"it sets {name}, which is not computed here; take one without it")
    activation = fields.get("activation", "topk")
    if activation != "topk":
        raise ValueError(f"its activation {activation!r:.80} is not read here; topk is")
    return {
        "width": fields.get("d_in"),
        "n_features": fields.get("num_latents") or _multiple(fields),
        "activation": "topk",
        "k": fields.get("k"),
    }


def _multiple(fields):
    """The number of features, d times the expansion factor; None where these do not say it."""
    width = fields.get("d_in")
    expansion = fields.get("expansion_factor")
    return width * expansion if type(width) is type(expansion) is int else None


def openai_config(state: Fields) -> Fields:
    """{field of AutoencoderConfig: value} of OpenAI's state; without sizes, layer and site."""
    activation = state.get("activation", "ReLU")
    options = state.get("activation_state_dict") or {}
    after = options.get("postact_fn", "ReLU")
    if activation not in ("TopK", "ReLU") or after not in ("ReLU", None):
        raise ValueError(f"its activation {activation!r:.80} ({after!r:.80}) is not read here")
    is_topk = activation == "TopK"
    return {
        "activation": "topk" if is_topk else "relu",
        "k": options.get("k"),
        "normalization": "layer_norm" if is_topk else "none",
        "model": "gpt2",
    }


def our_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any of the three projects under our names: W_enc (d,n), W_dec (n,d) ..."""
    encoder = tensors.get("encoder.weight")  # (n,d): a linear layer's, as (out, in)
    weights = {}
    for name, tensor in tensors.items():
        is_turned = name.endswith(".weight")
        if name == "W_dec" and encoder is not None:
            is_turned = tensor.shape != encoder.shape  # sparsify has it as (n,d) or as (d,n)
        weights[OUR_NAMES.get(name, name)] = tensor.T if is_turned else tensor
    return weights


def fold_decoder_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, so that features count in units of their directions' lengths.

    What SAELens computes with rescale_acts_by_decoder_norm: the largest are chosen by what they
    write. No reconstruction changes.
    """
    norms = weights["W_dec"].norm(dim=-1)  # (n,)
    return weights | {
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        "W_dec": weights["W_dec"] / norms[:, None],
    }
