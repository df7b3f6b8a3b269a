"""Test the names of trained networks: a function of the user builds one, and each mistake gets one line."""

import pytest
import torch
from torch import nn

from torchadder import convert
from torchadder.errors import UserError
from torchadder.models.trained import is_function, open_trained


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


class Inner(nn.Module):
    """Keep all parameters below one name, which a file may lack."""

    def __init__(self):
        super().__init__()
        self.model = net()


def other():
    return nn.Linear(1, 1)


def number():
    return 3


def failing():
    raise RuntimeError("two\nlines")


def demanding(classes):
    return nn.Linear(1, classes)


@pytest.fixture
def weights(tmp_path):
    """Write a state dict without the counter of its normalisation."""
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
@pytest.mark.parametrize("name", ["net", "Inner"])
def test_a_function_and_its_weights(weights, name, prefix):
    state = {f"{prefix}{key}": tensor for key, tensor in torch.load(weights).items()}
    torch.save({"epoch": 3, "state_dict": state}, weights)
    model, about = open_trained(f"{__name__}:{name}", weights)
    assert not model.training
    assert about.model == {"name": f"{__name__}:{name}"}
    assert torch.equal(next(model.parameters()), next(iter(state.values())))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("number", "returns a value of type int, expected a torch.nn.Module"),
        ("failing", r"does not run without arguments \(RuntimeError: two lines\)"),
        ("demanding", r"does not run without arguments \(TypeError: demanding\(\) missing 1"),
        ("nothing", "has no attribute 'nothing'"),
        ("other", "weights.pt does not fit the network of .*:other: missing weight, bias; unexpected 0.weight"),
    ],
)
def test_a_wrong_function_gets_one_line(weights, name, words):
    with pytest.raises(UserError, match=words) as caught:
        open_trained(f"{__name__}:{name}", weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("no_such_module:net", "weights.pt", "No module named 'no_such_module'; run the command in its folder"),
        (f"{__name__}:net", None, "builds a network without trained weights"),
        (f"{__name__}:net", "nothing.pt", "weights=.*nothing.pt: no such file"),
        ("run", "weights.pt", "weights=.*weights.pt is for package.module:function; run holds its own weights"),
        ("run", None, "no checkpoint at run"),
    ],
)
def test_wrong_files_get_one_line(weights, name, file, words):
    with pytest.raises(UserError, match=words):
        open_trained(name, file and weights.with_name(file))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def adder_net():
    return convert(cnn(), rescale=True)


@pytest.mark.parametrize(
    ("made", "named", "words"),
    [
        (
            adder_net,
            "cnn",
            "no adder layers, but the filters in .*weights.pt are as large as those of an AdderNet: call",
        ),
        (cnn, "adder_net", "adder layers, but the filters in .*weights.pt are as small as those of a CNN: leave"),
    ],
)
def test_weights_of_the_other_operator(tmp_path, made, named, words):
    torch.save(made().state_dict(), tmp_path / "weights.pt")
    with pytest.warns(UserWarning, match=words):
        open_trained(f"{__name__}:{named}", tmp_path / "weights.pt")


@pytest.mark.parametrize("function", [cnn, adder_net])
def test_weights_of_the_same_operator(tmp_path, function):
    torch.save(function().state_dict(), tmp_path / "weights.pt")
    open_trained(f"{__name__}:{function.__name__}", tmp_path / "weights.pt")  # a warning would be an error


@pytest.mark.parametrize("name", ["run", "runs/a:b", "C:\\\\run", "a:b:c", "a.pt", ":b", "a:", "1a:b"])
def test_other_names_are_no_functions(name):
    assert not is_function(name)
