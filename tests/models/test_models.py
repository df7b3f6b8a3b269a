"""The registry and the networks: exact shapes, names and parameters, and what is refused."""

import json

import pytest
import torch
from torch import nn

from torchadder.errors import UserError
from torchadder.models import create_model, list_models
from torchadder.models.registry import register
from torchadder.nn import Adder, AdderConv2d, AdderLinear, GradientRule

SHAPES = [  # name, parameters, adder layers, ordinary products that stay
    ("lenet5bn", 61_942, 5, 0),
    ("resnet20", 272_484, 20, 2),
    ("resnet32", 466_916, 32, 2),
]

REFUSED = [  # arguments -> the words that the message must contain
    ({"name": "lenet6"}, "unknown model 'lenet6'; known: lenet5bn"),
    ({"name": "lenet5bn", "op": "xor"}, "unknown op 'xor'; known: adder, conv"),
    ({"name": "lenet5bn", "op": "binary"}, "'binary' comes with a later release"),
    ({"name": "lenet5bn", "num_classes": 0}, "num_classes must be at least 1, got 0"),
    ({"name": "resnet20", "in_chans": -3}, "in_chans must be at least 1, got -3"),
    (
        {"name": "resnet20", "op": "conv", "grad": GradientRule("sign", "sign")},
        "op 'conv' has no gradient rule",
    ),
    ({"name": "resnet20", "grad": {"weight": "half"}}, "'half'"),
    ({"name": "resnet20", "grad": {"bias": "full"}}, "bias"),
]


def products(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Conv2d, nn.Linear)
    return [m for m in model.modules() if isinstance(m, kinds) and not isinstance(m, Adder)]


@pytest.mark.parametrize(("name", "parameters", "adders", "kept"), SHAPES)
def test_adder_network_and_twin_differ_only_in_the_layer(name, parameters, adders, kept):
    adder, conv = create_model(name), create_model(name, op="conv")
    assert sum(isinstance(m, Adder) for m in adder.modules()) == adders
    assert len(products(adder)) == kept
    assert len(products(conv)) == adders + kept
    assert not any(isinstance(m, Adder) for m in conv.modules())
    shapes = {key: tuple(value.shape) for key, value in adder.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in conv.state_dict().items()}
    for model in (adder, conv):
        assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("op", ["adder", "conv"])
def test_logits_and_gradients_of_other_tasks(name, op):
    model = create_model(name, op=op, num_classes=7, in_chans=2)
    logits = model(torch.randn(3, *model.input_size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_no_product_has_a_bias_and_a_normalisation_ends_the_network(name):
    layers = [m for m in create_model(name).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all(layer.bias is None for layer in layers)
    model = create_model(name, op="conv").train()
    logits = model(torch.randn(64, *model.input_size))
    torch.testing.assert_close(logits.mean(0), torch.zeros(10), atol=1e-4, rtol=0)  # BN on the logits


def test_lenet5bn_is_the_paper_s_sequence():
    text = " ".join(type(m).__name__ for m in create_model("lenet5bn"))
    assert text == (
        "AdderConv2d BatchNorm2d ReLU MaxPool2d AdderConv2d BatchNorm2d ReLU MaxPool2d "
        "AdderConv2d BatchNorm2d ReLU Flatten AdderLinear BatchNorm1d ReLU AdderLinear BatchNorm1d"
    )


def test_resnet20_has_the_names_of_the_official_checkpoint():
    model = create_model("resnet20")
    layers = {name for name, module in model.named_modules() if isinstance(module, AdderConv2d)}
    blocks = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3) for block in (0, 1, 2) for i in (1, 2)]
    assert layers == {*blocks, "layer2.0.downsample.0", "layer3.0.downsample.0"}
    state = model.state_dict()
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert state["fc.weight"].shape == (10, 64, 1, 1)
    assert state["bn2.weight"].shape == (10,)


def test_adder_weights_start_as_standard_normal():
    torch.manual_seed(0)
    model = create_model("lenet5bn")
    weight = model.get_submodule("conv3").weight
    assert abs(weight.mean()) < 0.02
    assert abs(weight.std() - 1) < 0.02


@pytest.mark.parametrize("op", ["adder", "conv"])
def test_config_survives_json_and_rebuilds_the_model(op):
    grad = GradientRule(weight="sign", input="sign") if op == "adder" else None
    model = create_model("lenet5bn", op=op, num_classes=4, in_chans=3, grad=grad)
    again = create_model(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert again.input_size == (3, 32, 32)
    assert again.load_state_dict(model.state_dict())
    rules = {m.grad for m in again.modules() if isinstance(m, (AdderConv2d, AdderLinear))}
    assert rules == ({grad} if grad else set())


def test_config_names_the_default_rule():
    assert create_model("lenet5bn").config == {
        "name": "lenet5bn",
        "op": "adder",
        "num_classes": 10,
        "in_chans": 1,
        "grad": {"weight": "full", "input": "hardtanh"},
    }
    assert create_model("lenet5bn", op="conv").config["grad"] is None


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused(arguments, words):
    with pytest.raises(UserError) as refusal:
        create_model(**arguments)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="lenet5bn"):
        register("lenet5bn", num_classes=10, in_chans=1, size=32)(lambda layers, classes, channels: None)
