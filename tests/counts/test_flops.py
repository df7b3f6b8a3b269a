"""The operators under torch's FlopCounterMode: by hand, against the CNN twin, whatever imports them."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchadder import create_model
from torchadder.counts import flops
from torchadder.functional import GradientRule
from torchadder.nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear

RULES = [GradientRule(), GradientRule("sign", "sign"), GradientRule("full", "full")]

LAYERS = [  # layer, input, elements: output values * values of a filter
    (lambda: AdderConv2d(3, 5, 3), (2, 3, 7, 9), 2 * 5 * 5 * 7 * 27),
    (lambda: AdderConv2d(4, 6, (1, 3), stride=2, padding=1, groups=2), (2, 4, 7, 9), 2 * 6 * 5 * 5 * 6),
    (lambda: AdderConv2d(3, 5, 3, padding="same", padding_mode="circular"), (1, 3, 7, 9), 5 * 7 * 9 * 27),
    (lambda: AdderConv1d(4, 6, 3, groups=2, dilation=2), (2, 4, 9), 2 * 6 * 5 * 6),
    (lambda: AdderConv3d(2, 3, (1, 2, 3)), (1, 2, 3, 4, 5), 3 * 3 * 3 * 3 * 12),
    (lambda: AdderLinear(11, 13), (7, 11), 7 * 13 * 11),
    (lambda: BinaryConv2d(4, 6, 3, groups=2), (2, 4, 7, 9), 2 * 6 * 5 * 7 * 18),
    (lambda: BinaryLinear(11, 13), (7, 11), 7 * 13 * 11),
]


def flops_of(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(("layer", "shape", "elements"), LAYERS)
def test_forward_has_two_an_element(layer, shape, elements):
    layer = layer()
    assert flops_of(lambda: layer(torch.randn(shape))) == 2 * elements


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("layer", "shape", "elements"), LAYERS[:6])
def test_each_gradient_has_two_an_element(layer, shape, elements, rule):
    layer = layer()
    layer.grad = rule
    y = layer(torch.randn(shape, requires_grad=True))
    assert flops_of(lambda: y.sum().backward()) == 4 * elements
    y = layer(torch.randn(shape))
    assert flops_of(lambda: y.sum().backward()) == 2 * elements  # that of the weight


@pytest.mark.parametrize("name", ["lenet5bn", "resnet20"])
def test_a_training_step_has_the_flops_of_the_cnn_twin(name):
    def step(op):
        model = create_model(name, op=op)
        return flops_of(lambda: model(torch.randn(2, *model.input_size)).sum().backward())

    assert step("adder") == step("binary") == step("conv")


def test_named_arguments():
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(4, 2, 3, 3)
    geometry = dict(stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=1)
    call = torch.ops.torchadder.adder_conv
    assert flops_of(lambda: call(input=x, weight=weight, bias=None, recenter=False, **geometry)) == 2 * 4 * 18


def test_flops_are_booked_on_the_layer():
    model = nn.Sequential(AdderConv2d(3, 5, 3), nn.Flatten(), AdderLinear(20, 2))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 4, 4))
    counts = counter.get_flop_counts()
    assert counts["Sequential.0"] == {torch.ops.torchadder.adder_conv: 2 * 20 * 27}
    assert counts["Sequential.2"] == {torch.ops.torchadder.adder_conv: 2 * 2 * 20}


def test_a_reload_registers_nothing_twice():
    before = dict(flops.flop_registry)
    importlib.reload(flops)
    assert flops.flop_registry == before


def test_importing_the_package_is_enough():
    code = (
        "import torchadder; from torch.utils.flop_counter import flop_registry as known; ops = torch.ops.torchadder; "
        "names = 'adder_conv', 'adder_conv_grad_input', 'adder_conv_grad_weight', 'binary_conv'; "
        "assert all(getattr(ops, name) in known for name in names)"
    )
    subprocess.run([sys.executable, "-c", f"import torch; {code}"], check=True)
