"""Test the correction of batch normalisation for rounding."""

import copy

import pytest
import torch
from tests.quant.test_lowering import seeded, trained
from torch import nn

from torchadder.models import create_model
from torchadder.nn import AdderConv2d
from torchadder.quant import quantize
from torchadder.quant.calibration import Recorder, observe
from torchadder.quant.fake_quantized import FakeQuantized
from torchadder.quant.graph import BATCH_NORM, capture
from torchadder.quant.lowering import Lowering
from torchadder.quant.normalization import correct_normalization


def images(count=16, channels=1):
    return torch.randn(count, channels, 32, 32, generator=seeded())


def prepared(model, x, bits):
    """Return the captured network and a function that gives new lowerings of it."""
    network = capture(model, x)
    draft = Lowering(network, bits, "mse")
    draft.program()
    statistics = observe(Recorder(network, draft.ranged), [x])
    return network, lambda: Lowering(network, bits, "mse", statistics)


def normalized(recorder, x):
    """Return mean and standard deviation by channel of what each normalisation gives."""
    recorder.names = [node.name for node in recorder.network.nodes if node.target is BATCH_NORM]
    with torch.no_grad():
        recorder(x)
    values = [recorder.found[name].movedim(1, 0).flatten(1) for name in recorder.names]
    return torch.cat([value.mean(1) for value in values]), torch.cat([value.std(1) for value in values])


@pytest.mark.parametrize("op", ["adder", "conv"])
@pytest.mark.parametrize("bits", [3, 4])
def test_mean_and_variance_become_those_of_the_float_network(op, bits):
    torch.manual_seed(0)
    x = images()
    network, lowering = prepared(trained(create_model("lenet5bn", op), x), x, bits)
    mean, std = normalized(Recorder(network, ()), x)
    before = normalized(FakeQuantized(network, lowering()), x)
    correct_normalization(network, lowering(), [x])
    after = normalized(FakeQuantized(network, lowering()), x)
    for found, off, expected, left in zip(after, before, (mean, std), (1e-3, 0.2), strict=True):
        assert (found - expected).norm() < left * (off - expected).norm()


def test_what_rounding_does_not_change_stays():
    """Images and filters are integers here, so that 4 bits hold them exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(AdderConv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).eval()
    model[0].weight.data = torch.randint(0, 16, (3, 2, 1, 1)).float()
    x = torch.randint(0, 16, (8, 2, 4, 4)).float()
    x[0, 0, 0] = torch.tensor([0.0, 15.0, 0.0, 15.0])
    network, lowering = prepared(model, x, 4)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    correct_normalization(network, lowering(), [x, x.flip(0)])
    node = next(node for node in network.nodes if node.target is BATCH_NORM)
    mean, var = (network.constants()[argument] for argument in node.args[3:5])
    torch.testing.assert_close(mean, before["1.running_mean"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(var, before["1.running_var"], atol=1e-5, rtol=1e-5)


def test_a_constant_channel_stays_finite():
    model = nn.Sequential(AdderConv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    model[0].weight.data[0] = 1e6
    x = torch.zeros(4, 1, 4, 4)
    x[:2] = torch.rand(2, 1, 4, 4, generator=seeded())
    assert quantize(model.eval(), [x, x], 4)(x).isfinite().all()


def test_a_normalisation_of_two_places_keeps_its_statistics():
    norm = nn.BatchNorm2d(1)
    layers = [AdderConv2d(1, 1, 3, padding=1, bias=False) for _ in range(2)]
    model = nn.Sequential(layers[0], norm, layers[1], norm, nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.rand(4, 1, 4, 4, generator=seeded())
    network, lowering = prepared(model, x, 3)
    correct_normalization(network, lowering(), [x])
    node = next(node for node in network.nodes if node.target is BATCH_NORM)
    assert network.constants()[node.args[3]].tolist() == [0.0]


def test_the_model_stays():
    torch.manual_seed(0)
    x = images()
    model = trained(create_model("lenet5bn"), x)
    before = copy.deepcopy(model.state_dict())
    quantize(model, [x], 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
