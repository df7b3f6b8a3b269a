"""Fit Laplace and Gaussian densities to the weights of each layer, the two that the AdderNet paper compares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from torchadder.errors import UserError
from torchadder.nn import Adder, Binary


@dataclass(frozen=True)
class Fit:
    """Hold a distribution that was fitted by maximum likelihood.

    ``log_likelihood``: mean log-likelihood of one of the fitted values, in nats.
    """

    name: ClassVar[str]
    location: float
    scale: float
    log_likelihood: float

    def density(self, x: Tensor) -> Tensor:
        """Return the probability density at each element of ``x``, in the shape of ``x``."""
        raise NotImplementedError


class Laplace(Fit):
    """Compute exp(-|x - m| / b) / 2b, with m the median and b the mean of |x - m|; log-likelihood -log 2b - 1."""

    name = "Laplace"

    @classmethod
    def fit(cls, values: Tensor) -> Laplace:
        """Fit the density to ``values``. Raises ValueError if they are all equal or not finite."""
        wide = values.double()
        median = wide.median()
        scale = _positive((wide - median).abs().mean())
        return cls(median.item(), scale, -math.log(2 * scale) - 1)

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-(x - self.location).abs() / self.scale) / (2 * self.scale)


class Gaussian(Fit):
    """Compute exp(-(x - m)^2 / 2s^2) / sqrt(2 pi s^2), with m the mean and s^2 the mean of (x - m)^2.

    Its log-likelihood is -log(2 pi s^2) / 2 - 1 / 2.
    """

    name = "Gaussian"

    @classmethod
    def fit(cls, values: Tensor) -> Gaussian:
        """Fit the density to ``values``. Raises ValueError if they are all equal or not finite."""
        wide = values.double()
        scale = _positive(wide.std(correction=0))
        return cls(wide.mean().item(), scale, -math.log(2 * math.pi * scale**2) / 2 - 0.5)

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-(((x - self.location) / self.scale) ** 2) / 2) / (math.sqrt(2 * math.pi) * self.scale)


def _positive(scale: Tensor) -> float:
    if not (scale > 0 and scale.isfinite()):
        raise ValueError("expected finite values that are not all equal")
    return scale.item()


@dataclass(frozen=True)
class LayerWeights:
    """Hold the weights of a layer, float32 (n,), and both fits.

    ``kind``: the operator of the layer: "adder", "conv" (linear layers too) or "binary". A binary layer uses only the
    sign and the mean of these float weights, which training updates.
    """

    name: str
    kind: str
    values: Tensor
    laplace: Laplace
    gaussian: Gaussian

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
            laplace, gaussian = Laplace.fit(values), Gaussian.fit(values)
        except ValueError as error:
            raise UserError(f"the weights of layer {name} fit no density: {error}") from error
        found.append(LayerWeights(name, kind_of(layer), values, laplace, gaussian))
    return found
