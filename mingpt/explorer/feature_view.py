"""The features of sparse autoencoders: those that the command names, and the one of `names`.

What is read, patched and weighed is that of a cell's layer and position, as neurons are in
cell_view.py. Features are put in at the autoencoder's own site, whatever the cell's is.
"""

import torch

from mingpt.bpe import END_OF_TEXT
from mingpt.explorer import requests
from mingpt.explorer.events import numbers
from mingpt.interpretability.answer_features import ends_at
from mingpt.interpretability.autoencoders import Autoencoder, as_vectors
from mingpt.interpretability.features import check_fits, feature_logit_weights
from mingpt.interpretability.web_pages import page_texts

FEATURES = 10
PROMOTED = 8  # tokens
BEGINNING = (
    f"It was trained on texts that begin with {END_OF_TEXT}, and these do not: its features may "
    "mean something else here."
)


def read_autoencoders(names, model):
    """{title: Autoencoder} of folders or hub ids; ValueError where one does not fit the model."""
    found = {}
    for name in dict.fromkeys(names):
        autoencoder = Autoencoder.from_pretrained(name)
        try:
            check_fits(model, autoencoder)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found[f"{name}: {autoencoder.extra_repr()}"] = autoencoder
    return found


def sites_needed(autoencoders):
    """The sites that the unpatched runs must have, besides those of every run."""
    sites = {autoencoder.config.site for autoencoder in autoencoders.values()}
    return sites | {"attn_out"} if sites else sites


def describe(autoencoders):
    """What a page must know of them before it asks about a cell."""
    found = []
    for title, autoencoder in autoencoders.items():
        config = autoencoder.config
        found.append({"title": title, "layer": config.layer, "site": config.site})
    return found


def features_of(place, autoencoders, layer, where):
    """Yields {"features": [...], "autoencoder": title, ...} of each autoencoder of this layer."""
    for title, autoencoder in autoencoders.items():
        config = autoencoder.config
        if config.layer != layer:
            continue
        note = BEGINNING if config.beginning_token else None
        about = {"autoencoder": title, "site": config.site, "note": note}
        for event in patch_each_feature(place, autoencoder, where):
            yield event and event | about


def patch_each_feature(place, autoencoder, where):
    """Yields {"features": [...]}: of those that differ, whose change writes most to the answers.

    direct: what the change writes into the logit difference read at that position, the final norm
    held as in the run that is patched. patched: the logit difference at the end, in a run with this
    feature's value of the other run put in, and all else, the error too, as it is.
    """
    model = place.model
    config = autoencoder.config
    x, features, scale = read_features(place, autoencoder, where)
    change = features[0] - features[1]  # (n,)
    differ = change.nonzero()[:, 0]  # (F,)
    added = change[differ, None] * scale * autoencoder.W_dec[differ]  # (F,d)
    reads = place.reads(where)
    direct = -written(model, config, x, added).to(reads) @ reads  # (F,)
    best = direct.abs().topk(min(FEATURES, len(direct))).indices
    found = [direct.new_zeros(0)]
    for some in place.pieces(config.layer, where, len(best)):
        ends = ends_at(model, config, place.runs.target, where, x + added[best[some]])
        found.append(place.effect(model.transformer.ln_f(ends)))
        yield {}
    chosen = differ[best]
    columns = {"feature": chosen.tolist()}
    for name, values in zip(place.order, features):
        columns[name] = numbers(values[chosen])
    columns["direct"] = numbers(direct[best])
    columns["patched"] = numbers(torch.cat(found))
    yield {"features": [dict(zip(columns, row)) for row in zip(*columns.values())]}


def read_features(place, autoencoder, where):
    """What is at that position: x (d,), features (2,n), scale (1,).

    Features are those of the run from which is taken, then of the one into which is put; the others
    are of the latter alone. scale: by so much the decoder's output is multiplied.
    """
    config = autoencoder.config
    both = []
    for run in (place.runs.source, place.runs.target):
        vectors = as_vectors(run[config.site][config.layer], config.site)  # (1,T,d)
        both.append(vectors[0, where].to(autoencoder.W_enc))
    features = autoencoder.encode(torch.stack(both))
    _, scale, _ = autoencoder.normalize(both[1])
    return both[1], features, scale


def written(model, config, x, added):
    """(F,C): what the layer writes more, with each of added (F,d) at x (d,) of its site."""
    block = model.transformer.h[config.layer]
    added = added.to(block.mlp.c_proj.weight)
    if config.site == "z":
        return added @ block.attn.c_proj.weight.T
    if config.site == "mlp_pre":
        activation = block.mlp.activation
        x = x.to(added)
        added = activation(x + added) - activation(x)
    if config.site in ("mlp_pre", "mlp_post"):
        return added @ block.mlp.c_proj.weight.T
    return added


def feature(model, body, cache):
    """The view: the tokens that one feature promotes, and those that it suppresses."""
    title = requests.one_of(body, "autoencoder", cache.autoencoders)
    autoencoder = cache.autoencoders[title]
    number = requests.number(body, "feature", 0, autoencoder.config.n_features - 1)
    weights = feature_logit_weights(model, autoencoder, number, PROMOTED)
    found = {}
    for name in ("promotes", "suppresses"):
        found[name] = page_texts([token for token, _ in getattr(weights, name)])
    yield found
