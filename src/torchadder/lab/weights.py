"""Fit Laplace and Gaussian densities to the weights of each layer, the two that the AdderNet paper compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, distributions, nn

from torchadder.errors import UserError
from torchadder.nn import Adder, Binary

LAPLACE, GAUSSIAN = "Laplace", "Gaussian"
_DENSITIES = {LAPLACE: distributions.Laplace, GAUSSIAN: distributions.Normal}


class Fit(NamedTuple):
    """Hold a density that was fitted by maximum likelihood.

    ``name``: LAPLACE, with median and mean distance from it as parameters, or GAUSSIAN, with mean and standard
    deviation. ``log_likelihood``: mean log-likelihood of one of the fitted values, in nats.
    """

    name: str
    location: float
    scale: float
    log_likelihood: float

    def density(self, x: Tensor) -> Tensor:
        """Return the probability density at each element of ``x``, in the shape of ``x``."""
        return _DENSITIES[self.name](self.location, self.scale).log_prob(x).exp()


def fit(name: str, values: Tensor) -> Fit:
    """Fit the density ``name`` to ``values``. Raises ValueError if they are all equal or not finite."""
    wide = values.double()
    location = wide.median() if name == LAPLACE else wide.mean()
    distance = wide - location
    scale = distance.abs().mean() if name == LAPLACE else distance.square().mean().sqrt()
    if not (scale > 0 and scale.isfinite()):
        raise ValueError("expected finite values that are not all equal")
    likelihood = _DENSITIES[name](location, scale).log_prob(wide).mean()
    return Fit(name, location.item(), scale.item(), likelihood.item())


@dataclass(frozen=True)
class LayerWeights:
    """Hold the weights of a layer, float32 (n,), and both fits.

    ``kind``: the operator of the layer: "adder", "conv" (linear layers too) or "binary". A binary layer uses only the
    sign and the mean of these float weights, which training updates.
    """

    name: str
    kind: str
    values: Tensor
    laplace: Fit
    gaussian: Fit

    @property
    def better(self) -> Fit:
        """Return the fit with the larger likelihood."""
        return max(self.laplace, self.gaussian, key=lambda fit: fit.log_likelihood)


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers of ``model``, of any operator, by name in order of definition."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def kind_of(layer: nn.Module) -> str:
    """Return the operator of a convolution or linear layer: "adder", "conv" or "binary"."""
    return "adder" if isinstance(layer, Adder) else "binary" if isinstance(layer, Binary) else "conv"


def fits(model: nn.Module) -> list[LayerWeights]:
    """Fit both densities to each convolution and linear layer of ``model``, in order of definition.

    Raises UserError if the weights of a layer are all equal or not finite.
    """
    found = []
    for name, layer in weighted_layers(model).items():
        values = layer.weight.detach().float().flatten().cpu()  # type: ignore[operator]
        try:
            laplace, gaussian = fit(LAPLACE, values), fit(GAUSSIAN, values)
        except ValueError as error:
            raise UserError(f"the weights of layer {name} fit no density: {error}") from error
        found.append(LayerWeights(name, kind_of(layer), values, laplace, gaussian))
    return found
