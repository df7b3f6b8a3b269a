"""Test the fits against other parameters and samples, and the list of layers."""

import pytest
import torch
from torch import distributions

from torchadder.errors import UserError
from torchadder.lab.weights import GAUSSIAN, LAPLACE, fit, fits
from torchadder.models import create_model
from torchadder.nn import AdderLinear

KINDS = [(LAPLACE, distributions.Laplace), (GAUSSIAN, distributions.Normal)]


@pytest.mark.parametrize(("name", "reference"), KINDS)
def test_no_other_parameters_are_likelier(name, reference):
    values = torch.randn(211, generator=torch.Generator().manual_seed(0)).pow(3) + 0.3
    found = fit(name, values)
    location = found.location + torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None, None]
    scale = found.scale * torch.linspace(0.5, 2, 76, dtype=torch.float64)[None, :, None]
    others = reference(location, scale).log_prob(values.double()).mean(-1)
    assert others.max().item() <= found.log_likelihood + 1e-12


@pytest.mark.parametrize(("name", "reference"), KINDS)
def test_a_fit_finds_the_parameters_of_its_sample(name, reference):
    torch.manual_seed(0)
    values = reference(1.5, 0.25).sample((100_000,))
    found = fit(name, values)
    assert (found.location, found.scale) == pytest.approx((1.5, 0.25), abs=0.01)
    assert all(found.log_likelihood >= fit(other, values).log_likelihood for other, _ in KINDS)
    x = torch.linspace(-2, 5, 70_001, dtype=torch.float64)
    assert torch.trapezoid(found.density(x), x).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_layers_have_their_names_operators_and_weights(op):
    model = create_model("lenet5bn", op=op)
    layers = fits(model)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    outermost = "conv" if op == "binary" else op
    assert [layer.kind for layer in layers] == [outermost, op, op, op, outermost]
    for layer in layers:
        assert torch.equal(layer.values, model.get_submodule(layer.name).weight.detach().flatten())
        assert layer.better.log_likelihood == max(layer.laplace.log_likelihood, layer.gaussian.log_likelihood)


def test_fits_do_not_change_the_model():
    layer = AdderLinear(8, 4).double()
    (found,) = fits(layer)
    found.values.zero_()
    assert layer.weight.abs().min() > 0
    assert found.values.dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, 2.0, float("nan")])
def test_equal_or_infinite_weights_are_refused(value):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    torch.nn.init.constant_(model[0].weight, value)
    with pytest.raises(UserError, match="the weights of layer 0 fit no density: expected finite values"):
        fits(model)
