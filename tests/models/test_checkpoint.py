"""Test checkpoints: saving and loading give the same model, and each damaged or wrong file one line of error."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file

from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.models.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from torchadder.nn import GradientRule


def trained(op="adder", **kwargs):
    torch.manual_seed(3)
    model = create_model("lenet5bn", op=op, **kwargs)
    model(torch.randn(4, 1, 32, 32))  # moves the running statistics
    return model


@pytest.fixture
def run(tmp_path):
    save_checkpoint(tmp_path, trained(), dataset="mnist", epoch=7, accuracy=98.5)
    return tmp_path


@pytest.mark.parametrize("name", [".", "best.safetensors"])
@pytest.mark.parametrize(
    ("op", "kwargs"),
    [
        ("adder", {}),
        ("conv", {"num_classes": 3}),
        ("adder", {"grad": GradientRule(weight="sign", input="sign")}),
    ],
)
def test_the_same_model_comes_back(tmp_path, op, kwargs, name):
    model = trained(op, **kwargs)
    save_checkpoint(tmp_path, model, dataset="mnist", epoch=7, accuracy=98.5)
    loaded, about = read_checkpoint(tmp_path / name)
    assert (about.dataset, about.epoch, about.accuracy) == ("mnist", 7, 98.5)
    assert loaded.config == model.config
    assert not loaded.training
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(loaded(x), model.eval()(x))


def test_a_single_file_needs_no_config_beside_it(run):
    (run / "config.json").unlink()
    assert load_checkpoint(run / "best.safetensors").config["name"] == "lenet5bn"


def test_a_file_without_metadata_takes_the_config_beside_it(run):
    save_file(load_file(run / "best.safetensors"), run / "best.safetensors")
    assert load_checkpoint(run).config["op"] == "adder"


def test_last_state_is_a_checkpoint_too(run):
    about = json.loads((run / "config.json").read_text())
    torch.save({"checkpoint": about, "model": trained().state_dict()}, run / "last.pt")
    assert torch.equal(load_checkpoint(run / "last.pt").fc1.weight, trained().fc1.weight)


@pytest.mark.parametrize("op", ["adder", "conv"])
def test_a_file_without_any_configuration_is_recognised(tmp_path, op):
    save_file(trained(op).state_dict(), tmp_path / "weights.safetensors")
    loaded, about = read_checkpoint(tmp_path / "weights.safetensors", op)
    assert loaded.config == trained(op).config
    assert about.dataset is about.epoch is about.accuracy is None
    assert torch.equal(loaded.fc1.weight, trained(op).fc1.weight)


@pytest.mark.parametrize(
    ("file", "save"),
    [
        ("model.safetensors", lambda state, path: save_file(state, path, {"format": "pt"})),
        ("pytorch_model.bin", torch.save),
    ],
)
def test_a_folder_whose_configuration_names_no_model_is_recognised(tmp_path, file, save):
    (tmp_path / "config.json").write_text('{"num_classes": 10}')
    save(trained().state_dict(), tmp_path / file)
    assert load_checkpoint(tmp_path).config == trained().config


WARNED = [  # operator of the network, and of the call, change to the state dict -> words of the warning
    ("conv", "adder", {}, "loaded as an AdderNet, but its filters are as small .* pass op='conv' or op='binary'"),
    ("adder", "conv", {}, "loaded as op='conv', but its filters are as large .* pass op='adder'"),
    ("adder", "binary", {}, "loaded as op='binary', but its filters are as large .* pass op='adder'"),
    ("adder", "adder", {"bn2.running_var": torch.full((16,), 1e5).half()}, "infinite .* in bn2.running_var:"),
    ("adder", "adder", {"bn2.running_var": torch.full((16,), -1.0)}, "negative variances in bn2.running_var:"),
    ("conv", "conv", {}, None),
    ("adder", "adder", {}, None),
]


@pytest.mark.parametrize(("was", "op", "change", "words"), WARNED)
def test_another_operator_and_lost_numbers_are_named(tmp_path, was, op, change, words):
    torch.save({**trained(was).state_dict(), **change}, tmp_path / "net.pth")
    with nullcontext() if words is None else pytest.warns(UserWarning, match=words) as caught:
        assert load_checkpoint(tmp_path / "net.pth", op).config["op"] == op
    assert words is None or [warning.filename for warning in caught] == [__file__]


def test_a_configuration_decides_the_operator(run):
    assert load_checkpoint(run, op="conv").config["op"] == "adder"


def test_loading_takes_no_random_numbers_and_keeps_the_mark_of_adder_weights(run):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = load_checkpoint(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.fc1.weight.adder
    assert loaded.fc1.weight.requires_grad


def test_loading_imports_neither_the_compiler_nor_the_hub(run):
    """The compiler takes seconds to import; a random number on the meta device would import it."""
    code = f"import sys, torchadder; torchadder.load_checkpoint({str(run)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torchadder.models.hub" in done.stdout.split()
    assert not {"torch._dynamo", "huggingface_hub"} & set(done.stdout.split())


def edit(change):
    """Return a function that changes the tensors in best.safetensors."""

    def apply(run):
        tensors = load_file(run / "best.safetensors")
        change(tensors)
        save_file(tensors, run / "best.safetensors")
        return run

    return apply


def write(name, content):
    def apply(run):
        (run / name).write_bytes(content)
        return run / name

    return apply


def cut(run):
    path = run / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return run


def config(text):
    """Return a function that moves the configuration to config.json, with ``text`` in it."""

    def apply(run):
        (run / "config.json").write_text(text)
        return edit(lambda tensors: None)(run)

    return apply


def pickled(value, **options):
    def apply(run):
        torch.save(value, run / "last.pt", **options)
        return run / "last.pt"

    return apply


def program(run):
    save_file({"a": torch.ones(1)}, run / "run.tadder", {"tadder": "{}"})
    return run / "run.tadder"


def program_of_jit(run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), run / "net")
    return run / "net"


def foreign(text):
    """Return a function that writes a folder as other libraries do."""

    def apply(run):
        (run / "model").mkdir()
        (run / "model/config.json").write_text(text)
        save_file({"embeddings.weight": torch.ones(2, 2)}, run / "model/model.safetensors")
        return run / "model"

    return apply


def only_bias(tensors):
    for name in [name for name in tensors if name != "bn1.bias"]:
        del tensors[name]


def of_classes(count):
    return json.dumps({"model": {"name": "lenet5bn", "num_classes": count}})


def in_two_files(run):
    (run / "model").mkdir()
    (run / "model/model.safetensors.index.json").write_text('{"weight_map": {}}')
    return run / "model"


def state_of_optimizer():
    optimizer = torch.optim.SGD([weight := torch.ones(2, requires_grad=True)], 0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    optimizer.step()
    return optimizer.state_dict()


SGD_STATE = state_of_optimizer()
REFUSED = [  # change to a run directory that returns the path to load -> words in the message
    (lambda run: run / "nowhere", "no checkpoint at .*nowhere; expected a run directory"),
    (lambda run: run / "config.json", "config.json is a text that begins with '{.*, not a checkpoint$"),
    (program, "run.tadder is an integer program, not a checkpoint: torchadder.Engine runs it$"),
    (
        lambda run: (run / "best.safetensors").unlink() or run,
        "holds no best.safetensors or model.safetensors; expected",
    ),
    (write("best.safetensors", b"\xff" * 100), "is no checkpoint, damaged or incomplete: copy or download it again$"),
    (write("net", b""), "net is empty: copy or download it again$"),
    (write("net", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"), ": run git lfs pull$"),
    (write("net.pth", b"\n<!DOCTYPE html>\n<html>"), "is an HTML page, not a checkpoint: download the file itself$"),
    (write("net.pth", b"Entry not found"), "is a text that begins with 'Entry not found', not a checkpoint$"),
    (write("net.pth.gz", b"\x1f\x8b\x08\x00"), r"is compressed \(gzip\): unpack it first$"),
    (cut, r"is damaged or incomplete \(.*\): copy or download it again$"),
    (edit(lambda tensors: tensors.pop("fc2.weight")), "does not fit lenet5bn: missing fc2.weight"),
    (
        edit(lambda tensors: tensors.update(a=torch.ones(1), **{"conv1.weight": torch.ones(6, 1, 3, 3)})),
        r"unexpected a; conv1.weight has shape \(6, 1, 3, 3\), expected \(6, 1, 5, 5\)",
    ),
    (config("[1]"), "does not say which model"),
    (config("{"), "does not say which model"),
    (config('{"model": {"name": "x"}, "dataset": "", "epoch": 1, "accuracy": 1}'), "model=x is unknown"),
    (edit(lambda tensors: tensors.clear()), "holds an empty state dict$"),
    (edit(only_bias), "missing conv1.weight, bn1.weight, .* and 16 more$"),
    (
        edit(lambda tensors: tensors.update({f"extra{i}": torch.ones(1) for i in range(10)})),
        "unexpected extra0, .*extra7 and 2 more$",
    ),
    (
        edit(lambda tensors: tensors.update({"fc1.weight": torch.ones(84, 120, dtype=torch.int32)})),
        "fc1.weight is torch.int32, expected torch.float32",
    ),
    (config(of_classes(10**12)), r"fc2.weight has shape \(10, 84\), expected \(1000000000000, 84\)"),  # no memory
    (config(of_classes(10**40)), "describes no known model"),
    (config('{"model": {"name": "lenet5bn", "grad": 3}}'), "describes no known model"),
    (config(of_classes("10")), "describes no known model"),
    (config('{"model": {"name": "lenet5bn"}, "dataset": ["mnist"]}'), r"no known model \(dataset is \['mnist'\]\)"),
    (config('{"model": 3, "dataset": "mnist", "epoch": 1, "accuracy": 1}'), "describes no known model"),
    (pickled({"model": {}}), "holds an empty state dict$"),
    (pickled({"checkpoint": {"model": {}}, "model": {"conv1.weight": 3}}), "'conv1.weight' is of type int; save"),
    *(
        (pickled(trained().state_dict(), pickle_protocol=protocol, **options), "is pickled in a way .*: save it")
        for protocol in (4, 5)
        for options in ({}, {"_use_new_zipfile_serialization": False})
    ),
    (pickled(trained().state_dict(), pickle_protocol=1), "last.pt is pickled in a way .*: save it with torch.save"),
    (write("net.pkl", pickle.dumps(trained().state_dict(), 2)), "net.pkl is pickled in a way .*: save it with torch"),
    (pickled(SGD_STATE), "last.pt holds the state of an optimizer: save model.state_dict"),
    (pickled({"epoch": 3, "optimizer": SGD_STATE}), "holds no state dict: .*'optimizer' is of type dict"),
    (in_two_files, "holds a model in several files: save it in one"),
    (pickled(trained()), r"last.pt holds a whole object \(LeNet5BN\), whose code was not run: save model.state_dict"),
    (pickled({"model": trained()}), "no state dict: 'model' is of type LeNet5BN; save model.state_dict"),
    (program_of_jit, "net is an exported program or another archive, not a checkpoint: save model.state_dict"),
    (foreign('{"model_type": "resnet"}'), r"config.json is of another library \(model_type='resnet'\): build"),
    (foreign("{}"), "fits no known model; .*its config.json names no model of this library: build"),
]


def test_a_path_that_is_no_utf_8(run, tmp_path):
    path = tmp_path / os.fsdecode(b"r\xfcn.safetensors")
    (run / "best.safetensors").rename(path)
    assert load_checkpoint(path).config["name"] == "lenet5bn"


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_refused(run, change, words):
    path = change(run)
    with pytest.raises(UserError, match=words) as caught:
        load_checkpoint(path)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)
