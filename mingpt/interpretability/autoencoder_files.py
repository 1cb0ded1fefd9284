"""An autoencoder's name -> its files -> its configuration and weights, checked; and back, `save`.

What the files of each project say stands in autoencoder_formats.py.
"""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mingpt import hub
from mingpt.common import AnyPath, atomic_write, read_json, reading
from mingpt.interpretability import autoencoder_formats as formats
from mingpt.interpretability.autoencoder_config import (
    MODULES,
    AutoencoderConfig,
    Place,
    hook_of,
)
from mingpt.interpretability.autoencoder_formats import Fields
from mingpt.pretrained import required
from mingpt.weights import FLOATS, is_finite, read_file

if TYPE_CHECKING:  # it imports this module
    from mingpt.interpretability.autoencoders import Autoencoder

SETTINGS = "cfg.json"
WEIGHTS = ("sae_weights.safetensors", "sae.safetensors")  # SAELens's and sparsify's
SAELENS_NAMES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}


class HubFolder(hub.Hub):
    """The files in one folder of a repository on the hub."""

    def __init__(self, repo: str, folder: str = ""):
        super().__init__(repo)
        self.folder = Path(folder)
        self.where = f"{repo}/{folder}" if folder else repo

    def find(self, *filenames: str) -> Path | None:
        return super().find(*((self.folder / name).as_posix() for name in filenames))


def read(
    name: AnyPath,
    layer: int | None = None,
    site: str | None = None,
    centered_stream: bool | None = None,
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """(AutoencoderConfig, {name: tensor} in fp32) of what Autoencoder.from_pretrained is given."""
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(f"the autoencoder's name must be a folder or a hub id, got {name!r}")
    name = os.path.expanduser(os.fspath(name))
    if name == "names":
        name = os.fspath(hub.EMBEDDED_AUTOENCODER)
    repo = None if os.path.exists(name) else "/".join(name.split("/")[:2])
    if name.endswith(".pt"):
        return read_openai(find_file(name, repo), layer, site)
    files = find_folder(name, repo, layer, site)
    settings = required(files, SETTINGS)
    fields = read_fields(settings)
    path = required(files, *WEIGHTS)
    try:
        layer, site = settle_place(formats.stated_place(fields, settings.parent), layer, site)
        found = config_fields(fields, site, repo, centered_stream)
        config = AutoencoderConfig(layer=layer, site=site, **found)
    except ValueError as error:
        raise ValueError(f"{settings}: {error}") from error
    weights = fit(formats.our_weights(read_file(path)), config, path)
    if fields.get("rescale_acts_by_decoder_norm"):
        weights = formats.fold_decoder_norms(weights)
    return config, weights


def read_fields(path: Path) -> Fields:
    """The fields of a cfg.json, a dict."""
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold the fields of an autoencoder, got {fields!r:.80}")
    return fields


def config_fields(
    fields: Fields, site: str, repo: str | None, centered_stream: bool | None
) -> Fields:
    """{field of AutoencoderConfig: value} of a cfg.json; without layer and site."""
    if formats.is_sparsify(fields):
        found = formats.sparsify_config(fields)
    else:
        found = formats.saelens_config(fields, site, repo)
    if centered_stream is not None:
        found["centered_stream"] = centered_stream
    if found.get("centered_stream", False) is None:
        raise ValueError(
            "it does not say whether the stream of its training was centred (TransformerLens's "
            "center_writing_weights); give centered_stream=True or False"
        )
    return found


def settle_place(stated: Place | None, layer: int | None, site: str | None) -> Place:
    """(layer, site) from what the files state, or None, and what the user asks for, or None.

    ValueError where these differ, or leave it open.
    """
    if stated is None:
        if layer is None or site is None:
            raise ValueError(
                "its files do not say where in the model it belongs; give layer and site"
            )
        return layer, site
    asked = (stated[0] if layer is None else layer, stated[1] if site is None else site)
    if asked != stated:
        raise ValueError(
            f"it is of {stated[1]} of layer {stated[0]}, not {asked[1]} of layer {asked[0]}"
        )
    return stated


def check_repo(name: str, repo: str) -> None:
    """ValueError if a name that is no path of this machine can be no place on the hub either."""
    is_inside = ".." not in name.split("/")
    if "/" not in repo or not hub.HUB_ID.fullmatch(repo) or not is_inside:
        raise ValueError(
            f"there is no folder {name}; give one that exists, or a hub id (owner/name), with the "
            "folder behind it where there are several"
        )


def find_file(name: str, repo: str | None) -> Path:
    """The path of a .pt file of this machine, or of one on the hub: owner/name/folder/6.pt."""
    if repo is None:
        return Path(name)
    check_repo(name, repo)
    files = hub.Hub(repo)
    return required(files, name.removeprefix(f"{repo}/"))


def find_folder(name: str, repo: str | None, layer: int | None, site: str | None) -> hub.Files:
    """The hub.Folder or HubFolder that has the autoencoder; ValueError if it is not one alone."""
    if repo is None:
        path = choose_folder(Path(name), layer, site)
        return hub.Folder(path, f"folder {path}")
    check_repo(name, repo)
    folder = name.removeprefix(repo).strip("/")
    if folder or layer is None or site is None:
        return HubFolder(repo, folder)
    # The hub is asked for one file at a time, so where it may be must be known.
    names = folder_names(layer, site)
    settings = hub.Hub(repo).find(*(f"{name}/{SETTINGS}" for name in names))
    if settings is None:
        raise ValueError(
            f"{repo} has no {SETTINGS} in {', '.join(names)}; give the folder: {repo}/folder"
        )
    return HubFolder(repo, settings.parent.name)


def folder_names(layer: int, site: str) -> list[str]:
    """The folders in which the projects keep the autoencoder of this layer and site."""
    names = [hook_of(layer, site)]
    names += [f"v5_{size}_layer_{layer}" for size in ("32k", "128k")]  # OpenAI's, by SAELens
    modules = [module for module in MODULES if MODULES[module] == site]
    for start in ("transformer.h", "h", "layers"):
        names += [f"{start}.{layer}{module}" for module in modules]
    return names


def choose_folder(path: Path, layer: int | None, site: str | None) -> Path:
    """The folder with the autoencoder: `path` itself, or the one below it of this place."""
    if not path.is_dir():
        raise ValueError(f"{path} is a file; give the folder that it lies in")
    with reading(path):
        found = sorted(file.parent for file in path.rglob(SETTINGS))
    if path in found:
        return path
    fitting = [folder for folder in found if fits(folder, layer, site)]
    if len(fitting) == 1:
        return fitting[0]
    shown = [folder.relative_to(path).as_posix() for folder in (fitting or found)]
    if len(shown) > 8:
        shown[8:] = [f"and {len(shown) - 8} more"]
    raise ValueError(
        f"{path} has {len(fitting) or 'no'} autoencoders of layer {layer} and site {site}; "
        f"give the layer and site of one, or its folder: {', '.join(shown) or 'there is none'}"
    )


def fits(folder: Path, layer: int | None, site: str | None) -> bool:
    """May the autoencoder in this folder be the one of this layer and site? None is any."""
    try:
        fields = read_fields(folder / SETTINGS)
        place = formats.stated_place(fields, folder) or (None, None)
    except ValueError:  # one that is not read here
        return False
    return layer in (None, place[0]) and site in (None, place[1])


def read_openai(
    path: Path, layer: int | None, site: str | None
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """(AutoencoderConfig, weights) of one of OpenAI's files, read as tensors, never as code."""
    complaint = "cannot be read as an autoencoder of OpenAI's: it is cut short, or no such file"
    with reading(path, complaint):
        state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}
        n, d = state["encoder.weight"].shape
    try:
        layer, site = settle_place(formats.stated_place(None, path), layer, site)
        found = formats.openai_config(state)
        config = AutoencoderConfig(d, n, layer, site, **found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tensors.pop("stats_last_nonzero", None)  # a count of their training
    return config, fit(formats.our_weights(tensors), config, path)


def shapes_of(config: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the weights."""
    d = config.width
    n = config.n_features
    shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    if config.activation == "jumprelu":
        shapes["threshold"] = (n,)
    return shapes


def fit(weights: dict[str, Tensor], config: AutoencoderConfig, path: Path) -> dict[str, Tensor]:
    """The weights in fp32; ValueError that names those that are missing, unknown or wrong."""
    shapes = shapes_of(config)
    # An older SAELens wrote one for each feature, all of them 1 if it was not used.
    factors = weights.pop("scaling_factor", torch.ones(()))
    faults = [] if (factors == 1).all() else ["scaling_factor is not 1, which is not computed here"]
    faults += [f"{name} is missing" for name in shapes if name not in weights]
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        if name not in shapes:
            faults.append(f"{name} is no weight of such an autoencoder")
        elif shape != shapes[name]:
            faults.append(f"{name} has shape {shape}, its settings make it {shapes[name]}")
        elif weight.dtype not in FLOATS:
            faults.append(f"{name} must be floats, got {weight.dtype}")
        elif not is_finite(weight):
            faults.append(f"{name} has values that are NaN or infinite")
    if faults:
        raise ValueError("\n  ".join([f"{path} does not fit its settings:", *faults]))
    return {name: weights[name].float().contiguous() for name in shapes}


def save(autoencoder: "Autoencoder", folder: AnyPath, dtype: torch.dtype = torch.float32) -> None:
    """Write cfg.json and sae_weights.safetensors as SAELens 6 does, all or nothing."""
    weights = {name: w.detach().to("cpu", dtype) for name, w in autoencoder.state_dict().items()}
    with atomic_write(folder) as temporary:
        temporary.mkdir(parents=True)
        settings = temporary / SETTINGS
        text = json.dumps(saelens_fields(autoencoder.config, dtype), indent=2) + "\n"
        settings.write_text(text, encoding="utf-8")
        stored = temporary / WEIGHTS[0]
        try:
            save_file(weights, stored)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(error) from error
        # safetensors makes its file readable by its owner alone.
        shutil.copymode(settings, stored)


def saelens_fields(config: AutoencoderConfig, dtype: torch.dtype) -> Fields:
    """The fields of SAELens's cfg.json."""
    fields = {
        "architecture": SAELENS_NAMES[config.activation],
        "d_in": config.width,
        "d_sae": config.n_features,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": config.subtract_b_dec,
        "normalize_activations": config.normalization,
        "reshape_activations": "hook_z" if config.site == "z" else "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # of the layout
            "model_name": config.model,
            "hook_name": hook_of(config.layer, config.site),
            "hook_head_index": None,
            "prepend_bos": config.beginning_token,
            "context_size": config.context,
            "model_from_pretrained_kwargs": {"center_writing_weights": config.centered_stream},
        },
    }
    return fields | ({"k": config.k} if config.activation == "topk" else {})
