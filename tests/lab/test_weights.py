"""Test the fits against torch.distributions and against other parameters, and the list of layers."""

import pytest
import torch
from torch import distributions

from torchadder.errors import UserError
from torchadder.lab.weights import Gaussian, Laplace, fits
from torchadder.models import create_model
from torchadder.nn import AdderLinear

KINDS = [(Laplace, distributions.Laplace), (Gaussian, distributions.Normal)]


@pytest.fixture
def values():
    return torch.randn(211, generator=torch.Generator().manual_seed(0)).pow(3) + 0.3


@pytest.mark.parametrize(("kind", "reference"), KINDS)
def test_likelihood_and_density_against_torch(kind, reference, values):
    fit = kind.fit(values)
    expected = reference(torch.tensor(fit.location).double(), torch.tensor(fit.scale).double())
    assert fit.log_likelihood == pytest.approx(expected.log_prob(values.double()).mean().item())
    x = torch.linspace(-4, 4, 31, dtype=torch.float64)
    torch.testing.assert_close(fit.density(x), expected.log_prob(x).exp())


@pytest.mark.parametrize(("kind", "reference"), KINDS)
def test_no_other_parameters_are_likelier(kind, reference, values):
    fit = kind.fit(values)
    location = fit.location + torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None, None]
    scale = fit.scale * torch.linspace(0.5, 2, 76, dtype=torch.float64)[None, :, None]
    others = reference(location, scale).log_prob(values.double()).mean(-1)
    assert others.max().item() <= fit.log_likelihood + 1e-12


@pytest.mark.parametrize(("kind", "reference"), KINDS)
def test_a_fit_finds_the_parameters_of_its_sample(kind, reference):
    torch.manual_seed(0)
    fit = kind.fit(reference(1.5, 0.25).sample((100_000,)))
    assert (fit.location, fit.scale) == pytest.approx((1.5, 0.25), abs=0.01)
    other = next(k for k, _ in KINDS if k is not kind).fit(reference(1.5, 0.25).sample((100_000,)))
    assert fit.log_likelihood > other.log_likelihood


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
