"""Test the published layout: every model is recognised by its tensors, and no code in a file is run."""

import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from torchadder.errors import UserError
from torchadder.models import create_model, list_models
from torchadder.models.checkpoint import load_checkpoint, read_checkpoint
from torchadder.nn import Adder

CASES = [
    (name, {"num_classes": classes, "in_chans": chans})
    for name in list_models()
    for classes, chans in [(10, 3), (100, 1)]
]


def published(model, prefix="module."):
    """Return the state of ``model`` in the names of the AdderNet authors."""
    adder = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Adder)}
    return OrderedDict(
        (prefix + (key.removesuffix("weight") + "adder" if key in adder else key), value)
        for key, value in model.state_dict().items()
    )


def write(path, content, *, legacy=True):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.fixture
def model():
    torch.manual_seed(3)
    return create_model("lenet5bn", num_classes=7).eval()


@pytest.mark.parametrize(("name", "counts"), CASES)
def test_every_model_is_recognised_by_its_tensors(tmp_path, name, counts):
    state = published(create_model(name, **counts))
    loaded, about = read_checkpoint(write(tmp_path / "model.pth", state))
    assert loaded.config == create_model(name, **counts).config
    assert (about.dataset, about.epoch, about.accuracy) == (None, None, None)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), state.values(), strict=True))


def rename(old, new):
    return lambda state: OrderedDict((key.replace(old, new), value) for key, value in state.items())


def counted(state):
    """Add the buffers of thop, which counts operations."""
    names = [key.rpartition(".")[0] + ".total_params" for key in state]
    return {**state, **dict.fromkeys(["total_ops", *names], torch.zeros(1))}


def without_counters(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def envelope(**entries):
    return lambda state: {"epoch": 3, **{name: state if entry is None else entry for name, entry in entries.items()}}


OTHER = {"conv1.adder": torch.zeros(1)}
WRITTEN = {  # what others write: change to a good state, file name, words of the warning
    "module.": (rename("", ""), "model.pt", None),
    "no prefix": (rename("module.", ""), "model.th", None),
    "module.module.": (rename("module.", "module.module."), "model.ckpt", None),
    "_orig_mod.": (rename("module.", "_orig_mod."), "model.bin", None),
    "compiled parts": (lambda state: rename("fc1.", "fc1._orig_mod.")(rename("module.", "")(state)), "model", None),
    "model.": (rename("module.", "model."), "last.pt", None),
    "net.module.": (rename("module.", "net.module."), "best.safetensors", None),
    "state_dict": (envelope(state_dict=None), "config.json", None),
    "model": (envelope(model=None, args=Namespace(lr=0.1), best=np.float64(3)), "model.pth.tar", None),
    "net": (envelope(net=None, acc=93.1), "ckpt.t7", None),
    "model_state_dict": (envelope(model_state_dict=None, optimizer={"state": {0: OTHER}}), "model.pth", None),
    "state_dict_ema": (envelope(state_dict_ema=None), "model.pth", None),
    "any name": (envelope(student=None), "model.pth", None),
    "in two": (envelope(checkpoint={"weights": OTHER}, model={"net": OTHER}, state_dict=None), "model.pth", "left out"),
    "averaged too": (envelope(state_dict_ema=OTHER, state_dict=None), "model.pth", "left out state_dict_ema$"),
    "thop": (counted, "model.pth", "left out total_ops, module.conv1.total_params, .* and 3 more$"),
    "AveragedModel": (lambda state: {"n_averaged": torch.tensor(3), **state}, "model.pth", "left out n_averaged$"),
    "a criterion beside it": (
        lambda state: {"state_dict": {"criterion.weight": torch.ones(10), **rename("module.", "model.")(state)}},
        "last.ckpt",
        "left out criterion.weight$",
    ),
    "no counters": (without_counters, "model.pth", None),
}


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(("change", "name", "words"), WRITTEN.values(), ids=WRITTEN.keys())
def test_what_others_write_is_loaded(tmp_path, model, change, name, words, legacy):
    path = write(tmp_path / name, change(published(model)), legacy=legacy)
    with pytest.warns(UserWarning, match=words) if words else nullcontext():
        loaded = load_checkpoint(path, op="conv")
    assert loaded.config["op"] == "adder"  # the names say so
    assert not loaded.training
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_without_published_names_the_operator_is_that_of_the_caller(tmp_path, op):
    model = create_model("resnet20", op=op)
    loaded = load_checkpoint(write(tmp_path / "model.pth", model.state_dict()), op)
    assert loaded.config == model.config


def test_half_precision_becomes_float32(tmp_path, model):
    loaded = load_checkpoint(write(tmp_path / "model.pth", published(model.half())))
    assert loaded.fc1.weight.dtype == torch.float32
    assert torch.equal(loaded.fc1.weight, model.fc1.weight.float())


class Code:
    """Make a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def change(**tensors):
    """Return a function that replaces tensors of a state (None: removes them)."""

    def apply(state):
        for name, tensor in tensors.items():
            key = "module." + name.replace("__", ".")
            if tensor is None:
                del state[key]
            else:
                state[key] = tensor
        return state

    return apply


REFUSED = [  # change to a good state -> words in the message
    (change(fc1__adder=None), "model.pth fits no known model; the nearest is lenet5bn: missing fc1.adder$"),
    (change(**{"a\nb": torch.ones(1)}), r"unexpected 'a\\nb'$"),
    (change(fc3__weight=torch.ones(1)), "the nearest is lenet5bn: unexpected fc3.weight$"),
    (change(conv1__adder=torch.ones(6, 1, 3, 3)), r"conv1.adder has shape \(6, 1, 3, 3\), expected \(6, 1, 5, 5\)$"),
    (change(fc1__adder=torch.ones(84)), r"fc1.adder has shape \(84,\), expected \(84, 120\)$"),
    (change(fc1__adder=torch.ones(84, 120).to_sparse()), "fc1.adder is no plain tensor"),
    (change(fc1__adder=torch.ones(84, 120, dtype=torch.complex64)), "fc1.adder is torch.complex64, expected"),
    (change(fc1__adder=torch.ones(1).expand(84, 120)), "fc1.adder repeats its elements"),
    (change(fc1__adder=torch.ones(84, 120, device="meta")), r"fc1.adder is no plain tensor \(.*, meta\)$"),
    (rename("fc1.adder", "fc1.weight"), "missing fc1.adder; unexpected fc1.weight$"),  # another operator there
    (
        rename("module.bn", "module.norm"),
        r"nearest is lenet5bn: missing bn1.weight, .* and 12 more; unexpected norm1.weight, .* and 17 more$",
    ),
    (lambda state: {"weights": torch.ones(2, 2)}, "unexpected weights; if it is of a network of yours, pass package"),
    (lambda state: {**state, "epoch": 3}, "holds no state dict: 'epoch' is of type int; save model.state_dict"),
    (lambda state: {**state, 3: torch.ones(1)}, "holds no state dict: 3 is of type Tensor; save"),
    (lambda state: {"state_dict": {}}, "holds an empty state dict$"),
    (lambda state: [1, 2], "holds no state dict, but a value of type list$"),
    (lambda state: torch.ones(3), "holds no state dict, but a value of type Tensor$"),
]


@pytest.mark.parametrize(("changed", "words"), REFUSED)
def test_refused(tmp_path, model, changed, words):
    path = write(tmp_path / "model.pth", changed(published(model)))
    with pytest.raises(UserError, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", ["xor", ""])
def test_unknown_operator(tmp_path, model, op):
    path = write(tmp_path / "model.pth", model.state_dict())
    with pytest.raises(UserError, match=f"op={op} is unknown"):
        load_checkpoint(path, op)


def test_a_published_checkpoint_that_lies_about_its_size_takes_no_memory(tmp_path, model):
    names = ["fc2__adder", "bn5__weight", "bn5__bias", "bn5__running_mean", "bn5__running_var"]
    huge = {name: torch.ones(1).expand(10**12, *[84] * (name == "fc2__adder")) for name in names}
    with pytest.raises(UserError, match=r"nearest is lenet5bn: fc2.adder repeats its elements .*; bn5.weight repeats"):
        load_checkpoint(write(tmp_path / "model.pth", change(**huge)(published(model))))


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("place", [lambda code: code, lambda code: {"state_dict": {"conv1.adder": code}}])
def test_pickled_code_is_not_run(tmp_path, place, legacy):
    written, path = tmp_path / "written", tmp_path / "model.pth"
    content = place(Code(written))
    if legacy is None:
        path.write_bytes(pickle.dumps(content))
    else:
        write(path, content, legacy=legacy)
    with pytest.raises(UserError, match=r"(holds pickled code \(\w+.mkdir\), which was not run|needs its code)"):
        load_checkpoint(path)
    assert not written.exists()
    pickle.loads(pickle.dumps(content))  # it would have
    assert written.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_damaged_file_gets_one_line(tmp_path, model, legacy):
    path = write(tmp_path / "model.pth", published(model), legacy=legacy)
    whole = path.read_bytes()
    for size in [0, 1, 10, 100, 1000, len(whole) // 2, len(whole) - 100]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model.pth is (no checkpoint|empty|a text).*[^.]$") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
