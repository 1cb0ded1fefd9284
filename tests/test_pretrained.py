"""Does from_pretrained give the model that was named, exactly, or an error that says what is wrong?

The oracle is transformers' GPT2LMHeadModel; the hub is a stand-in on 127.0.0.1 (hub.py), so
nothing leaves the machine.
"""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from mingpt import hub as hub_files
from mingpt import pretrained, weights
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.model import GPT, GPTConfig
from tests.hub import COMMIT, Handler, files_of, point_to

B, T, L, H, D, V = 2, 5, 4, 3, 7, 11
SHAPES = {  # settings of GPT2Config that differ from L, H, D, V
    "odd head size": {},
    "one layer, two heads": {"n_layer": 1, "n_head": 2, "n_embd": 10},
    "untied, one head": {"tie_word_embeddings": False, "n_head": 1, "n_embd": 9},
    "narrow relu MLP": {"n_inner": 13, "activation_function": "relu"},
    "exact gelu, scaled by layer": {
        "activation_function": "gelu",
        "scale_attn_by_inverse_layer_idx": True,
    },
    "unscaled, wide epsilon, silu": {
        "scale_attn_weights": False,
        "layer_norm_epsilon": 1e-2,
        "activation_function": "silu",
    },
    "reordered": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
}
MERGES = [("a", "b"), ("Ġ", "ab")]
NAN = float("nan")
C_ATTN = "transformer.h.2.attn.c_attn.weight"
# fp32 rounds at 6e-8 of a number; through the L blocks the two add and multiply in another order,
# which leaves some tens of roundings. A wrong epsilon, activation or scale is off by 1e-3 and more.
TOLERANCE = 2e-5


def reference(**settings):
    """A transformers model with random weights everywhere: biases and layer norms too."""
    torch.manual_seed(0)
    sizes = {"n_layer": L, "n_head": H, "n_embd": H * D, "vocab_size": V, "n_positions": 2 * T}
    config = GPT2Config(**sizes | {"bos_token_id": 0, "eos_token_id": 0} | settings)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def tokens(vocab_size=V):
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(1))


def close(ours, theirs):
    return (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


def edit(folder, **settings):
    """Change fields of folder/config.json; None removes one."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | settings
    fields = {name: value for name, value in fields.items() if value is not None}
    path.write_text(json.dumps(fields))


def edit_weights(folder, change):
    """Apply a function to the folder's weights, in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    # Copies: those that were read are the file itself, which must not change under them.
    weights = {name: weight.contiguous().clone() for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors")


def to_bin(folder, zipped=True):
    """Replace model.safetensors by pytorch_model.bin, in today's form or torch 1.5's."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as transformers saves it today."""
    reference().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """{file name: bytes} of a model with a tokenizer whose ids do not follow from its merges."""
    torch.manual_seed(0)
    config = GPTConfig(
        n_layer=2, n_head=H, n_embd=H * D, vocab_size=260, block_size=8, tie_word_embeddings=True
    )
    model = GPT(config)
    ids = Encoder(MERGES).ids
    model.tokenizer = BPETokenizer(Encoder(MERGES, {token: 258 - i for token, i in ids.items()}))
    folder = tmp_path_factory.mktemp("whole")
    pretrained.save(model, folder)
    return files_of(folder)


def nowhere():
    """The address of a port that nobody listens at: the connection is refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# the same function as transformers'


STORED = [(shape, "safetensors") for shape in SHAPES]
STORED += [
    (shape, stored)
    for shape in ("odd head size", "untied, one head")
    for stored in ("bin", "old bin")
]


@pytest.mark.parametrize(("shape", "stored"), STORED)
def test_logits_loss_hidden_states_and_generation_are_those_of_transformers(
    shape, stored, tmp_path
):
    theirs = reference(**SHAPES[shape])
    theirs.save_pretrained(tmp_path)
    if stored != "safetensors":
        to_bin(tmp_path, zipped=stored == "bin")
    ours, idx = GPT.from_pretrained(tmp_path), tokens()
    assert not ours.training and ours.tokenizer is None
    with torch.no_grad():
        expected = theirs(idx, labels=idx, output_hidden_states=True)
        targets = idx.roll(-1, 1).index_fill(1, torch.tensor(T - 1), -1)
        logits, loss = ours(idx, targets, store_activations=True)
    assert close(logits, expected.logits) and close(loss, expected.loss)
    for layer, stream in enumerate(expected.hidden_states[1:-1]):
        assert close(ours.layer_activations[layer], stream)
    last = ours.transformer.ln_f(ours.layer_activations[len(ours.transformer.h) - 1])
    assert close(last, expected.hidden_states[-1])  # transformers gives the last one after ln_f
    options = {
        "do_sample": False,
        "attention_mask": torch.ones_like(idx),
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    generated = theirs.generate(idx, max_new_tokens=T, **options)
    assert ours.generate(idx, T).equal(generated)


@pytest.mark.parametrize("zipped", [None, True, False])
def test_the_real_gpt2_layout_loads(zipped, folder):
    """No prefix, mask buffers in every block, no lm_head, and the real config.json's fields."""
    prefixed = load_file(folder / "model.safetensors")
    # That is what transformers writes today.
    assert all(name.startswith("transformer.") for name in prefixed)
    weights = {name.removeprefix("transformer."): weight for name, weight in prefixed.items()}
    for layer in range(L):
        weights[f"h.{layer}.attn.bias"] = torch.ones(2 * T, 2 * T).tril().view(1, 1, 2 * T, 2 * T)
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors")
    if zipped is not None:
        to_bin(folder, zipped)
    summary = {
        "summary_type": "cls_index",
        "summary_activation": None,
        "task_specific_params": {"text-generation": {}},
    }
    real = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_ctx": 2 * T,
        "initializer_range": 0.02,
    } | summary
    sizes = {"n_layer": L, "n_head": H, "n_embd": H * D, "n_positions": 2 * T, "vocab_size": V}
    (folder / "config.json").write_text(json.dumps(real | sizes))
    ours, idx = GPT.from_pretrained(folder), tokens()
    assert close(ours(idx)[0], reference()(idx).logits)
    assert ours.lm_head.weight is ours.transformer.wte.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_fp32(dtype, folder):
    edit_weights(
        folder, lambda weights: weights.update({k: w.to(dtype) for k, w in weights.items()})
    )
    ours = GPT.from_pretrained(folder)
    expected = {name: weight.to(dtype).float() for name, weight in reference().named_parameters()}
    for name, weight in ours.named_parameters():
        assert weight.dtype == torch.float32
        is_linear = name.endswith(weights.CONV1D)
        assert weight.equal(expected[name].t() if is_linear else expected[name])


# save


@pytest.mark.parametrize(
    "shape", ["odd head size", "untied, one head", "narrow relu MLP", "exact gelu, scaled by layer"]
)
def test_transformers_reads_what_save_writes_and_load_gives_it_back_bit_for_bit(shape, tmp_path):
    reference(**SHAPES[shape]).save_pretrained(tmp_path / "theirs")
    ours, idx = GPT.from_pretrained(tmp_path / "theirs"), tokens()
    pretrained.save(ours, tmp_path / "ours")
    again = GPT.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    pairs = zip(again.state_dict().values(), ours.state_dict().values(), strict=True)
    assert all(a.equal(b) for a, b in pairs)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert close(ours(idx)[0], theirs(idx).logits)
    files = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert files == ["config.json", "model.safetensors"]


def test_a_new_model_with_a_tokenizer_comes_back_from_save_in_half_precision(tmp_path):
    model = GPT(GPTConfig("gpt-nano", vocab_size=259, block_size=8))
    model.tokenizer = BPETokenizer(Encoder(MERGES))
    # An older model's, which must not be taken for this one's.
    for name in ("vocab.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    pretrained.save(model, tmp_path, torch.float16)
    assert not (tmp_path / "tokenizer.json").exists()
    again = GPT.from_pretrained(tmp_path)
    assert again.tokenizer.encode("ab ab") == model.tokenizer.encode("ab ab") == [256, 257]
    assert again.transformer.wte.weight.equal(model.transformer.wte.weight.half().float())
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 258
    # Who may read one may read all.
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_save_to_where_a_file_is_says_so(folder):
    with pytest.raises(ValueError, match="cannot write to .*config.json.*give another folder"):
        pretrained.save(GPT.from_pretrained(folder), folder / "config.json")


# what a name stands for


def test_loading_leaves_the_random_state_alone_and_training_leaves_the_file_alone(folder):
    for stored in ("model.safetensors", "pytorch_model.bin"):
        state, data = torch.get_rng_state(), (folder / stored).read_bytes()
        model = GPT.from_pretrained(folder)
        assert torch.get_rng_state().equal(state)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()  # the weights are mapped from the file
        assert (folder / stored).read_bytes() == data
        if stored == "model.safetensors":
            to_bin(folder)


def test_a_subclass_gets_its_own_class_and_a_str_or_path_names_the_folder(folder):
    class Mine(GPT):
        pass

    assert type(Mine.from_pretrained(folder)) is Mine
    model = GPT.from_pretrained(str(folder))
    assert (model.name, model.source) == (str(folder), f"folder {folder}")


def test_names_is_the_embedded_model(whole, tmp_path, monkeypatch):
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(hub_files, "EMBEDDED", tmp_path)
    model = GPT.from_pretrained("names")
    assert (model.name, model.source) == ("names", "names, embedded")
    assert model.tokenizer.decode(model.tokenizer.encode("ab abc")) == "ab abc"


def test_a_run_folder_gives_its_last_step_by_number(tmp_path):
    for step in (2, 10):
        torch.manual_seed(step)
        model = GPT(GPTConfig("gpt-nano", vocab_size=V, block_size=8))
        pretrained.save(model, tmp_path / f"step-{step}")
    (tmp_path / "step-99.part").mkdir()
    model = GPT.from_pretrained(tmp_path)
    assert model.source == f"folder {tmp_path / 'step-10'}"
    last = GPT.from_pretrained(tmp_path / "step-10")
    assert model.transformer.wte.weight.equal(last.transformer.wte.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must be a hub id such as gpt2, a folder, or names; got ''"),
        (None, "got None"),
        ("./nowhere", "there is no folder ./nowhere"),
        ("~/no/where", "there is no folder ~/no/where"),
        ("/no/where", "there is no folder /no/where"),
        ("a/b/c", "there is no folder a/b/c"),
        ("a b", "there is no folder a b"),
        (__file__, "is a file; give the folder that it lies in"),
    ],
)
def test_a_name_that_is_nothing_is_refused_without_asking_the_hub(name, message, monkeypatch):
    monkeypatch.setattr(hub_files, "check_reachable", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(name)
    assert message in str(error.value)


# folders with something wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llama"}, "model_type must be \"gpt2\", got 'llama'"),
        ({"model_type": None}, 'model_type must be "gpt2", got None'),
        ({"add_cross_attention": True}, "sets add_cross_attention to True"),
        ({"quantization_config": {"bits": 4}}, "sets quantization_config to {'bits': 4}"),
        ({"pruned_heads": {"0": [1]}}, "sets pruned_heads to {'0': [1]}"),
        ({"activation_function": "mish"}, "no activation_function 'mish'; known are gelu_new"),
        ({"activation_function": 3}, "activation_function must be a str"),
        ({"scale_attn_weights": "yes"}, "scale_attn_weights must be a bool"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon must be a float"),
        ({"layer_norm_epsilon": True}, "layer_norm_epsilon must be a float"),
        ({"n_head": None}, "n_head must be a whole number from 1, got None"),
        ({"n_layer": "4"}, "n_layer must be a whole number from 1, got '4'"),
        ({"n_inner": 0}, "n_inner must be a whole number from 1, got 0"),
        ({"n_head": 4}, "n_embd 21 is not a multiple of n_head 4"),
        ({"n_positions": 1e30}, "n_positions must be a whole number from 1, got 1e+30"),
        (
            {"layer_norm_epsilon": NAN},
            "layer_norm_epsilon must be a number from 0 to 1e+30, got nan",
        ),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be a number from 0 to 1e"),
        ({"layer_norm_epsilon": 10**400}, "layer_norm_epsilon must be a number from 0 to 1e"),
        ({"embd_pdrop": NAN}, "embd_pdrop must be a number from 0 to 1, got nan"),
        ({"resid_pdrop": 1.1}, "resid_pdrop must be a number from 0 to 1, got 1.1"),
    ],
)
def test_a_configuration_that_this_model_cannot_honour_is_refused_by_name(
    settings, message, folder
):
    edit(folder, **settings)
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(folder)
    assert message in str(error.value) and str(folder / "config.json") in str(error.value)


@pytest.mark.parametrize("size", [5, 2**31, 2**63, 10**30])
def test_a_size_that_is_not_that_of_the_weights_is_refused_before_anything_is_built(size, folder):
    for name in ("n_layer", "n_inner", "vocab_size", "n_positions"):
        kept = (folder / "config.json").read_text()
        edit(folder, **{name: size})
        # As many layers as there are weights would still be named, one by one.
        with pytest.raises(
            ValueError, match=rf"does not fit its config.json(?s:.*)({size}|h\.4\.)"
        ):
            GPT.from_pretrained(folder)
        (folder / "config.json").write_text(kept)


def change(name, function):
    return lambda weights: weights.update({name: function(weights[name])})


def with_nan(weight):
    weight.view(-1)[3] = float("nan")
    return weight


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda w: w.pop("transformer.h.1.ln_1.bias"), ["transformer.h.1.ln_1.bias is missing"]),
        (
            lambda w: [w.pop(k) for k in list(w) if ".h.0." in k],
            ["transformer.h.0.ln_1.weight is missing", "and 7 more"],
        ),
        (
            lambda w: w.update({"transformer.h.4.extra": torch.ones(1)}),
            ["transformer.h.4.extra is no weight of this model"],
        ),
        (lambda w: w.update({"wte.weight": torch.ones(V, H * D)}), ["wte.weight is there twice"]),
        (
            change(C_ATTN, torch.t),
            [f"{C_ATTN} has shape (63, 21), config.json makes it (21, 63)"],
        ),
        (
            change(C_ATTN, lambda w: w[None]),
            [f"{C_ATTN} has shape (1, 21, 63), config.json makes it (21, 63)"],
        ),
        (
            change("transformer.wpe.weight", lambda w: w[1:]),
            ["wpe.weight has shape (9, 21), config.json makes it (10, 21)"],
        ),
        (
            change("transformer.h.3.mlp.c_fc.weight", with_nan),
            ["h.3.mlp.c_fc.weight has values that are NaN or infinite"],
        ),
        (
            change("transformer.ln_f.bias", lambda w: w / 0),
            ["ln_f.bias has values that are NaN or infinite"],
        ),
        (
            lambda w: w.update({"lm_head.weight": torch.ones(V, H * D)}),
            ["lm_head.weight is not wte.weight", "tie_word"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, messages, folder):
    edit_weights(folder, change)
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(folder)
    for message in [str(folder / "model.safetensors"), *messages]:
        assert message in str(error.value)


def test_an_untied_model_without_its_output_matrix_is_refused(folder):
    edit(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="lm_head.weight is missing"):
        GPT.from_pretrained(folder)


def test_a_tied_model_whose_file_has_the_matrix_twice_loads(folder):
    def add_output_matrix(weights):
        weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()

    edit_weights(folder, add_output_matrix)
    model = GPT.from_pretrained(folder)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_finite_weights_whose_sum_overflows_are_not_refused(folder):
    edit_weights(folder, change("transformer.wpe.weight", lambda w: torch.full_like(w, 3e38)))
    assert GPT.from_pretrained(folder).transformer.wpe.weight.max() > 2e38


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 7, 2000, -1])
def test_a_truncated_file_is_refused_by_name(stored, keep, folder):
    if stored == "pytorch_model.bin":
        to_bin(folder)
    path = folder / stored
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=re.escape(f"delete {path} and get it again")):
        GPT.from_pretrained(folder)


def test_a_bin_that_would_run_code_is_refused_and_does_not_run_it(folder):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(folder / "it ran"),)

    to_bin(folder)
    for content, message in (
        (Code(), "cannot be read as weights"),
        ([1], "must hold one dict of name: tensor"),
        ({1: torch.ones(2)}, "must hold one dict of name: tensor"),
    ):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=message):
            GPT.from_pretrained(folder)
    assert not (folder / "it ran").exists()


NOT_FLOATS = {
    "complex": lambda w: w.cfloat(),
    "int8": lambda w: w.char(),
    "bool": lambda w: w.bool(),
    "float8": lambda w: w.to(torch.float8_e4m3fn),  # of use only with a scale of its own
}
NOT_PLAIN = {
    "meta": lambda w: w.to("meta"),
    "sparse": lambda w: w.to_sparse(),
    "sparse rows": lambda w: w.to_sparse_csr(),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "nested": lambda w: torch.nested.nested_tensor(list(w)),
}


@pytest.mark.filterwarnings("ignore:.*(sparse|quantiz|nested)")
@pytest.mark.parametrize("kind", [*NOT_FLOATS, *NOT_PLAIN])
def test_weights_that_are_no_plain_floats_are_refused_by_name(kind, folder):
    if kind == "complex":
        pytest.importorskip("safetensors", "0.7", reason="older ones cannot write complex numbers")
    message = f"{C_ATTN} must be a plain tensor of floats on the cpu"
    weights = {name: w.clone() for name, w in load_file(folder / "model.safetensors").items()}
    weights[C_ATTN] = (NOT_FLOATS | NOT_PLAIN)[kind](weights[C_ATTN])
    if kind in NOT_FLOATS:
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            GPT.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(folder)


def test_a_weight_that_stands_for_more_numbers_than_fit_into_the_memory_is_refused(folder):
    to_bin(folder)
    weights = torch.load(folder / "pytorch_model.bin")
    weights[C_ATTN] = torch.ones(1, dtype=torch.float16).expand(2**50)  # one number in the file
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{C_ATTN} has shape"):
        GPT.from_pretrained(folder)


def test_numbers_that_are_too_large_for_fp32_are_refused(folder):
    edit_weights(folder, change("transformer.wpe.weight", lambda w: w.double() + 1e300))
    with pytest.raises(ValueError, match="wpe.weight has values that are NaN or infinite"):
        GPT.from_pretrained(folder)


def test_a_safetensors_file_with_an_unknown_dtype_is_refused_by_name(folder):
    path = folder / "model.safetensors"
    for dtype in (b'"X32"', b'"F6_E2M3"'):
        header = json.dumps({"w": {"dtype": "X", "shape": [4], "data_offsets": [0, 3]}})
        header = header.encode().replace(b'"X"', dtype)
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"123")
        with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as weights")):
            GPT.from_pretrained(folder)


LOAD_ALL = """
import sys
from mingpt.model import GPT
for name in sys.argv[1:]:
    try:
        GPT.from_pretrained(name)
    except ValueError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes and devices among its files")
def test_a_pipe_or_a_device_is_never_opened(folder, tmp_path):
    """In a process of its own, since reading one would have no end, and eat the memory."""
    edit(folder, vocab_size=257)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    os.mkfifo(tmp_path / "fifo")
    odd = {tmp_path / "fifo": tmp_path / "fifo"}  # name of a model -> what of it cannot be read
    for name in ("config.json", "vocab.json", "merges.txt", *hub_files.WEIGHTS):
        for target in (tmp_path / "fifo", "/dev/zero"):
            copy = shutil.copytree(folder, tmp_path / str(len(odd)))
            # The first of the weights files that is there is read.
            (copy / ("model.safetensors" if name in hub_files.WEIGHTS else name)).unlink(True)
            (copy / name).symlink_to(target)
            odd[copy] = copy / name
    command = [sys.executable, "-c", LOAD_ALL, *map(str, odd)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=100).stdout
    for line, path in zip(output.splitlines(), odd.values(), strict=True):
        assert f"cannot read {path}: it is a pipe or a device, not a file" in line


@pytest.mark.skipif(os.name == "nt", reason="chmod keeps nobody from a folder on Windows")
def test_a_folder_that_may_not_be_read_is_refused():
    locked = Path(tempfile.mkdtemp())  # not in tmp_path, whose parents are locked too
    locked.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # root may read any folder
    try:
        with pytest.raises(ValueError, match=f"cannot read {locked}: Permission denied"):
            GPT.from_pretrained(locked)
    finally:
        if is_root:
            os.seteuid(0)
        locked.rmdir()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{}"}, "has tokenizer.json but no merges.txt"),
        ({"vocab.json": "{}"}, "has vocab.json but no merges.txt"),
        (
            {"merges.txt": "#version: 0.2\n"},
            "the tokenizer has ids up to 256, but the vocab_size of config.json is 11",
        ),
        ({"merges.txt": "a b c\n"}, "merges.txt, line 1"),
        ({"merges.txt": "#version: 0.2\n", "vocab.json": '{"a": '}, "vocab.json"),
        (
            {"merges.txt": "#version: 0.2\n", "vocab.json": '{"a": 0}'},
            "the vocabulary has no id for",
        ),
        ({"config.json": '{"model_type": '}, "config.json is no whole JSON file"),
        ({"config.json": "[" * 100_000}, "config.json is no whole JSON file"),
        ({"config.json": '{"model_type": 1' + "0" * 5000 + "}"}, "config.json is no whole JSON"),
        ({"config.json": "[]"}, "model_type must be"),
        ({"config.json": None}, "has no config.json"),
        (
            {"model.safetensors": None},
            "has no model.safetensors or pytorch_model.bin; such a file, in one piece,",
        ),
    ],
)
def test_a_folder_whose_files_do_not_make_a_model_is_refused_with_the_reason(
    files, message, folder
):
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text)
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(folder)
    assert message in str(error.value) and str(folder) in str(error.value)


# the hub


def same(model, files, tmp_path):
    """Is this the model of these files?"""
    for name, data in files.items():
        (tmp_path / "same").mkdir(exist_ok=True)
        (tmp_path / "same" / name).write_bytes(data)
    expected = GPT.from_pretrained(tmp_path / "same")
    pairs = zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    same_ids = model.tokenizer.encoder.ids == expected.tokenizer.encoder.ids
    return same_ids and all(a.equal(b) for a, b in pairs)


@pytest.mark.parametrize("moved", [{}, {"gpt2": "openai-community/gpt2"}])
def test_gpt2_is_downloaded_once_and_then_comes_from_the_cache_with_the_hub_shut_down(
    moved, whole, start, tmp_path, capfd
):
    hub = start({moved.get("gpt2", "gpt2"): whole}, moved=moved)
    model = GPT.from_pretrained("gpt2")
    assert same(model, whole, tmp_path)
    assert (model.name, model.source) == ("gpt2", f"gpt2, downloaded from {hub.url}")
    assert hub.count("GET", "model.safetensors") == 1
    # The weights are of the configuration's version.
    assert hub.requests[-1][1].endswith(f"/resolve/{COMMIT}/model.safetensors")
    sent = len(hub.requests)
    cached = GPT.from_pretrained("gpt2")
    assert len(hub.requests) == sent  # no traffic
    hub.__exit__()
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)
    assert cached.source == f"gpt2, from the cache {constants.HF_HUB_CACHE}"
    assert capfd.readouterr() == ("", "")  # no bar where there is no terminal


def test_a_terminal_sees_one_progress_bar_that_of_the_weights(whole, start, monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    start({"owner/model": whole})
    monkeypatch.setattr(sys, "stderr", Terminal())
    GPT.from_pretrained("owner/model")
    assert "model.safetensors: 100%" in sys.stderr.getvalue()
    assert "config.json" not in sys.stderr.getvalue() and "merges.txt" not in sys.stderr.getvalue()


def test_a_download_needs_no_stderr(whole, start, tmp_path, monkeypatch):
    start({"owner/model": whole})
    monkeypatch.setattr(sys, "stderr", None)
    assert same(GPT.from_pretrained("owner/model"), whole, tmp_path)


def test_a_model_cached_under_the_hubs_full_id_is_found_by_its_short_name(
    whole, start, tmp_path, monkeypatch
):
    start({"openai-community/gpt2": whole})
    GPT.from_pretrained("openai-community/gpt2")
    point_to(nowhere(), monkeypatch)
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)


def test_a_model_with_only_a_bin_and_no_vocab_json_is_read_and_cached_as_well(
    whole, start, tmp_path, monkeypatch
):
    (tmp_path / "bin").mkdir()
    for name in ("config.json", "merges.txt", "model.safetensors"):
        (tmp_path / "bin" / name).write_bytes(whole[name])
    to_bin(tmp_path / "bin")
    start({"owner/model": files_of(tmp_path / "bin")})
    assert same(GPT.from_pretrained("owner/model"), files_of(tmp_path / "bin"), tmp_path)
    point_to(nowhere(), monkeypatch)
    assert same(GPT.from_pretrained("owner/model"), files_of(tmp_path / "bin"), tmp_path)


def test_the_default_tokenizer_is_that_of_gpt2_on_the_hub(whole, start):
    hub = start({"gpt2": whole})
    assert BPETokenizer().encoder.ids == json.loads(whole["vocab.json"])
    assert hub.count("GET", "model.safetensors") == 0


def test_a_connection_that_ends_early_is_resumed_where_it_ended(
    whole, start, tmp_path, monkeypatch, capfd
):
    # What comes in whole chunks is kept; by default a chunk is 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub = start({"gpt2": whole})
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    hub.cut["model.safetensors"] = [4500]
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)
    weights = [asked for _, path, asked in hub.requests if path.endswith("safetensors")]
    assert [asked for asked in weights if asked] == ["bytes=4000-"]
    assert capfd.readouterr() == ("", "")  # its lines about retries do not reach the screen
    assert logger.level == logging.WARNING  # as it was


def test_a_connection_that_is_reset_is_tried_again(whole, start, tmp_path):
    hub = start({"gpt2": whole})
    hub.reset = True
    hub.cut["model.safetensors"] = [4500, 9000]
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)
    assert hub.count("GET", "model.safetensors") == 3


def test_a_connection_that_is_always_reset_ends_in_an_error_and_leaves_nothing(
    whole, start, tmp_path
):
    hub = start({"gpt2": whole})
    hub.reset = True
    hub.cut["model.safetensors"] = [4500] * 99
    message = "the download of model.safetensors of gpt2 from .* broke off.*run this again"
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained("gpt2")
    del hub.cut["model.safetensors"]
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)


@pytest.mark.parametrize("wrong", ["corrupt", "truncated"])
def test_bytes_that_are_not_those_announced_are_refused_and_gone(wrong, whole, start, tmp_path):
    data = whole["model.safetensors"]
    hub = start({"gpt2": whole})
    hub.sent["model.safetensors"] = data[:-8] + b"corrupt!" if wrong == "corrupt" else data[:-8]
    with pytest.raises(ValueError, match="run this again") as error:
        GPT.from_pretrained("gpt2")
    assert isinstance(error.value, hub_files.Unavailable) and "reached" not in str(error.value)
    assert hub_files.cached("gpt2", "main", "model.safetensors") is None
    hub.sent.clear()
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)


def test_a_file_that_went_bad_in_the_cache_is_named_and_deleting_it_helps(whole, start, tmp_path):
    start({"gpt2": whole})
    GPT.from_pretrained("gpt2")
    blobs = Path(constants.HF_HUB_CACHE).rglob("blobs/*")
    (blob,) = (path for path in blobs if len(path.name) == 64)
    blob.write_bytes(blob.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"delete {blob} and get it again"):
        GPT.from_pretrained("gpt2")
    blob.unlink()
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "owner/nothing",
            "there is no folder owner/nothing, and no such model at http://127.0.0.1",
        ),
        ("owner/gated", "owner/gated is gated: accept its terms at http://127.0.0.1"),
        ("owner/forbidden", "refuses config.json of owner/forbidden: 403"),
        ("owner/empty", "owner/empty has no config.json"),
        (
            "owner/sharded",
            "has no model.safetensors or pytorch_model.bin; such a file, in one piece,",
        ),
        ("owner/fast", "has tokenizer.json but no merges.txt"),
        ("owner--name", "owner--name"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_an_error_of_its_own_not_unreachable(
    name, message, whole, start
):
    config = {"config.json": whole["config.json"]}
    repos = {
        "owner/empty": {},
        "owner/sharded": config | {"model.safetensors.index.json": b"{}"},
        "owner/fast": config | {"tokenizer.json": b"{}"},
    }
    start(repos, status={"owner/gated": (403, "GatedRepo"), "owner/forbidden": (403, "no")})
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(name)
    assert message in str(error.value)
    assert "reached" not in str(error.value)
    refused = name in ("owner/nothing", "owner/gated", "owner/forbidden")
    assert isinstance(error.value, hub_files.Unavailable) == refused


# no network


def unreachable():
    """The message of Unavailable and the seconds until it came."""
    begin = time.monotonic()
    with pytest.raises(hub_files.Unavailable) as error:
        GPT.from_pretrained("gpt2")
    return str(error.value), time.monotonic() - begin


def test_a_refused_connection_is_unreachable_at_once_and_quietly(start, monkeypatch, capfd):
    url = nowhere()
    point_to(url, monkeypatch)
    message, seconds = unreachable()
    cache = constants.HF_HUB_CACHE
    assert (
        f"config.json of gpt2 is not in the cache {cache}, and {url} cannot be reached" in message
    )
    assert "run this again with a network, or give a folder" in message
    assert seconds < 15
    assert capfd.readouterr() == ("", "")


def test_a_network_that_swallows_everything_is_unreachable_within_15_seconds(start, monkeypatch):
    # It takes connections and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        assert unreachable()[1] < 15


def test_a_silent_name_server_is_unreachable_too(start, monkeypatch):
    """A look-up of a name has no timeout: one on the connection alone would not end the wait."""
    monkeypatch.setattr(hub_files, "PATIENCE", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    point_to("http://hub.invalid", monkeypatch)
    message, seconds = unreachable()
    assert "no answer in 0.5 s" in message and seconds < 10


def test_a_hub_that_is_down_is_unreachable(start):
    start({}, status={"gpt2": (503, "")})
    message, seconds = unreachable()
    assert "it answers 503" in message and seconds < 15


def test_a_page_that_is_no_hub_is_unreachable(start, monkeypatch):
    """Such as the log-in page of a hotel: it answers, but without the hub's headers."""
    hub = start({"gpt2": {"config.json": b"{}"}})
    monkeypatch.setattr(Handler, "file", lambda self, *_: self.head(200))
    assert "cannot be reached" in unreachable()[0] and hub.requests


def test_offline_without_a_cache_is_unreachable_and_asks_nobody(whole, start, monkeypatch):
    hub = start({"gpt2": whole})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in unreachable()[0]
    assert not hub.requests


@pytest.mark.parametrize(
    "address", ["not a url", "http://[", "ftp://x", "", "http://", "http://a:b", "http://a\nb"]
)
def test_an_address_of_the_hub_that_is_none_is_refused(address, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(ValueError, match="HF_ENDPOINT must be an address such as .*, got "):
        GPT.from_pretrained("gpt2")
    assert GPT.from_pretrained("names").tokenizer  # which needs no hub


# processes of their own, with the environment variables that a user sets

PROGRAM = "from mingpt.model import GPT; print(GPT.from_pretrained('gpt2').source)"


def process(**variables):
    environment = {k: value for k, value in os.environ.items() if not k.startswith("HF_")}
    environment["PYTHONPATH"] = str(Path(pretrained.__file__).parents[1])
    environment |= {name: str(value) for name, value in variables.items()}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)


def test_two_processes_at_once_both_get_the_model_and_a_third_needs_no_hub(whole, start, tmp_path):
    hub = start({"gpt2": whole})
    home = tmp_path / "home"
    both = [process(HF_ENDPOINT=hub.url, HF_HOME=home) for _ in range(2)]
    for out, err in [one.communicate() for one in both]:
        assert (err, out.split(",")[0]) == ("", "gpt2")
    out, err = process(HF_ENDPOINT=nowhere(), HF_HOME=home, HF_HUB_OFFLINE=1).communicate()
    assert (out, err) == (f"gpt2, from the cache {home}/hub\n", "")


def test_a_process_killed_in_the_middle_of_a_download_leaves_nothing_that_is_taken_for_whole(
    whole, start, tmp_path
):
    hub = start({"gpt2": whole})
    hub.held["model.safetensors"] = 9000
    killed = process(HF_ENDPOINT=hub.url, HF_HUB_CACHE=constants.HF_HUB_CACHE)
    while not hub.count("GET", "model.safetensors"):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    hub.held.clear()
    assert same(GPT.from_pretrained("gpt2"), whole, tmp_path)
    assert hub.count("GET", "model.safetensors") == 2
