"""Test that the fake-quantized network computes as its program does, and has the gradients of the network."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.quant.test_graph import COMPUTED
from tests.quant.test_graph import images as small_images
from tests.quant.test_lowering import correlation, seeded, trained

from torchadder.models import create_model
from torchadder.nn import AdderConv2d
from torchadder.quant.calibration import Recorder, observe
from torchadder.quant.fake_quantized import FakeQuantized, fake_quantize, run_layer
from torchadder.quant.graph import capture
from torchadder.quant.lowering import Lowering
from torchadder.quant.values import QuantizedValue


@pytest.mark.parametrize(
    ("name", "op", "recenter"),
    [
        ("lenet5bn", "adder", False),
        ("lenet5bn", "adder", True),
        ("lenet5bn", "conv", False),
        ("lenet5bn", "binary", False),
        ("resnet20", "adder", False),
    ],
)
def test_the_fake_quantized_network_computes_as_the_program(name, op, recenter):
    """Float32 rounds some values to the neighbour of the exact one, which matters more in a deeper network."""
    torch.manual_seed(0)
    network = create_model(name, op, recenter=recenter)
    images = torch.randn(10, network.config["in_chans"], 32, 32, generator=seeded())
    trained(network, images)
    captured = capture(network, images)
    draft = Lowering(captured, 4, "mse")
    draft.program()
    statistics = observe(Recorder(captured, draft.ranged), [images])
    program = Lowering(captured, 4, "mse", statistics).program()
    rounded = FakeQuantized(captured, Lowering(captured, 4, "mse", statistics))
    with torch.no_grad():
        logits, expected, unrounded = rounded(images), program(images), network(images)
    assert correlation(logits, expected) > (0.8 if name == "resnet20" else 0.98)
    assert (logits - expected).abs().median() < 0.5 * (unrounded - expected).abs().median()


@pytest.mark.parametrize("name", COMPUTED)
def test_steps_of_no_layer_are_fake_quantized(name):
    x = small_images()
    model = trained(COMPUTED[name], x)
    captured = capture(model, x)
    draft = Lowering(captured, 4, "max")
    draft.program()
    lowering = Lowering(captured, 4, "max", observe(Recorder(captured, draft.ranged), [x]))
    rounded = FakeQuantized(captured, lowering)
    with torch.no_grad():
        expected = Lowering(captured, 4, "max", lowering.statistics).program()(x)
        assert correlation(rounded(x), expected) > 0.99
    rounded.training = True
    F.cross_entropy(rounded(x).flatten(1), torch.arange(16) % 3).backward()
    assert all(parameter.grad is not None for parameter in captured.parameters() if parameter.dim() != 3)


VALUE = QuantizedValue(0, (2, 4, 4), torch.tensor([0.5]).double(), torch.tensor([4.0]).double())  # -2 to 5.5 in 4 bits


def test_gradients_go_straight_through_within_the_range():
    x = torch.tensor([-2.3, -1.8, 0.2, 5.4, 5.8], requires_grad=True)
    y = fake_quantize(x, VALUE, 15)
    assert y.tolist() == [-2.0, -2.0, 0.0, 5.5, 5.5]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_zero_is_no_negative_number_before_a_binary_layer():
    halfway = replace(VALUE, zero_point=VALUE.zero_point + 0.5)
    assert float(fake_quantize(torch.zeros(1), halfway, 15)) > 0


@pytest.mark.parametrize("recenter", [False, True])
def test_filters_keep_the_rule_of_their_layer(recenter):
    """Filters beyond the range of the input are not rounded, and keep the rule as well."""
    torch.manual_seed(0)
    layer, plain = (AdderConv2d(2, 3, 3, bias=False, recenter=recenter) for _ in range(2))
    layer.weight.data.mul_(4)
    x = fake_quantize(2 * torch.randn(5, 2, 4, 4), VALUE, 15)
    with torch.no_grad():
        within = (layer.weight > -2) & (layer.weight < 5.5)
        plain.weight.copy_(torch.where(within, (2 * layer.weight).round() / 2, layer.weight))
    captured = capture(layer, x)
    (node,) = captured.nodes
    (weight,) = captured.parameters()
    y = run_layer(node, [x, weight, None, *node.args[3:]], VALUE, 15)
    expected = plain(x)
    (y * torch.arange(3).view(3, 1, 1)).sum().backward()
    (expected * torch.arange(3).view(3, 1, 1)).sum().backward()
    torch.testing.assert_close(weight.grad, plain.weight.grad)
    if recenter:  # the program adds the sum of the filter as it was
        lost = (layer.weight.abs() - plain.weight.abs()).sum((1, 2, 3)).view(3, 1, 1)
        expected = expected + lost
    torch.testing.assert_close(y, expected)
