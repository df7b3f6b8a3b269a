"""Test the outputs before normalisation, raw and recentred, against the functions of the layers."""

import math

import pytest
import torch

from torchadder.functional import adder_conv2d
from torchadder.lab.figures import FigureInputs, outputs
from torchadder.models import create_model


@pytest.fixture
def images():
    return torch.rand(7, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def numbers(y):
    """Compute |mean| / std and the rounding error of each channel of (N, C, H, W) in a loop."""
    channels = [y[:, c].flatten().double() for c in range(y.shape[1])]
    spread = [(c.mean().abs() / c.std()).item() for c in channels]
    rounding = [((c.float().bfloat16().double() - c).square().mean().sqrt() / c.std()).item() for c in channels]
    return spread, rounding


def test_raw_and_recentred_against_the_function(images):
    model = create_model("lenet5bn").eval()
    layers = outputs.layer_outputs(model, images)
    assert [layer["name"] for layer in layers] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    weight = model.conv1.weight.detach()
    raw = adder_conv2d(images, weight)
    for form, y in (("raw", raw), ("recentred", raw + weight.abs().sum((1, 2, 3))[:, None, None])):
        spread, rounding = numbers(y)
        assert layers[0][form]["spread"] == pytest.approx(spread, rel=1e-3)
        assert layers[0][form]["rounding"] == pytest.approx(rounding, rel=0.05)


def test_a_recentring_network_has_the_same_statistics(images):
    torch.manual_seed(0)
    plain = create_model("lenet5bn").eval()
    recentring = create_model("lenet5bn", recenter=True).eval()
    recentring.load_state_dict(plain.state_dict())
    ours, theirs = (outputs.layer_outputs(model, images)[0] for model in (plain, recentring))
    for form in ("raw", "recentred"):
        assert ours[form]["spread"] == pytest.approx(theirs[form]["spread"], rel=1e-3)
        assert ours[form]["edges"] == pytest.approx(theirs[form]["edges"], abs=1e-3)


@pytest.mark.parametrize("op", ["conv", "binary"])
def test_only_adder_layers_are_recentred(images, op):
    for layer in outputs.layer_outputs(create_model("lenet5bn", op=op).eval(), images):
        assert "recentred" not in layer


def test_histograms_hold_the_middle_of_the_values(images):
    for layer in outputs.layer_outputs(create_model("lenet5bn").eval(), images):
        for form in ("raw", "recentred"):
            edges, density = (torch.tensor(layer[form][name]) for name in ("edges", "density"))
            assert (density * edges.diff()).sum().item() == pytest.approx(0.998, abs=0.002 + 2 / (7 * 10))


def test_constant_channels_are_left_out(images):
    model = create_model("lenet5bn", op="conv").eval()
    with torch.no_grad():
        model.conv1.weight[2] = 0
    layer = outputs.layer_outputs(model, images)[0]
    assert len(layer["raw"]["spread"]) == 5
    model.conv1.weight.data.zero_()
    layer = outputs.layer_outputs(model, images)[0]
    assert layer["raw"]["spread"] == []
    assert all(map(math.isfinite, layer["raw"]["density"]))


def test_recentring_reduces_mean_and_rounding_error(runs):
    data = outputs.measure(FigureInputs(runs[:1]))
    raw, recentred = (data["panels"][0]["numbers"][form] for form in ("raw", "recentred"))
    assert raw["median"] > 10 * recentred["median"]
    assert raw["rounding"] > 10 * recentred["rounding"]
    assert f"raw {raw['median']:.3g} (largest {raw['largest']:.3g})" in outputs.describe(data)
