"""The weights of a network by layer, and the two densities that the paper compares them with: Laplace, Gaussian."""

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
    """A distribution fitted by maximum likelihood.

    ``log_likelihood``: of the weights that it was fitted to, the mean of one weight, in nats.
    """

    name: ClassVar[str]
    location: float
    scale: float
    log_likelihood: float

    def density(self, x: Tensor) -> Tensor:
        """At each of ``x``, of any shape."""
        raise NotImplementedError


class Laplace(Fit):
    """exp(-|x - m| / b) / 2b, with m the median and b the mean of |x - m|; log-likelihood -log 2b - 1."""

    name = "Laplace"

    @classmethod
    def fit(cls, values: Tensor) -> Laplace:
        """Raises ValueError where ``values`` are all equal."""
        wide = values.double()
        median = wide.median()
        scale = _spread((wide - median).abs().mean())
        return cls(median.item(), scale, -math.log(2 * scale) - 1)

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-(x - self.location).abs() / self.scale) / (2 * self.scale)


class Gaussian(Fit):
    """exp(-(x - m)^2 / 2s^2) / sqrt(2 pi s^2), with m the mean and s^2 the mean of (x - m)^2.

    Its log-likelihood is -log(2 pi s^2) / 2 - 1 / 2.
    """

    name = "Gaussian"

    @classmethod
    def fit(cls, values: Tensor) -> Gaussian:
        """Raises ValueError where ``values`` are all equal."""
        wide = values.double()
        scale = _spread(wide.std(correction=0))
        return cls(wide.mean().item(), scale, -math.log(2 * math.pi * scale**2) / 2 - 0.5)

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-(((x - self.location) / self.scale) ** 2) / 2) / (math.sqrt(2 * math.pi) * self.scale)


@dataclass(frozen=True)
class LayerWeights:
    """The weights of a layer, float32 (n,), and what fits them.

    ``kind``: the operator of the layer, "adder", "conv" (of linear layers as well) or "binary"; of the last these are
    the float weights that training keeps, of which the layer uses sign and mean.
    """

    name: str
    kind: str
    values: Tensor
    laplace: Laplace
    gaussian: Gaussian

    @property
    def better(self) -> Fit:
        """The likelier of the two fits."""
        return max(self.laplace, self.gaussian, key=lambda fit: fit.log_likelihood)


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of ``model`` of whatever operator, by name, in the order of definition."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def kind_of(layer: nn.Module) -> str:
    """The operator of one of those layers: "adder", "conv" or "binary"."""
    return "adder" if isinstance(layer, Adder) else "binary" if isinstance(layer, Binary) else "conv"


def fits(model: nn.Module) -> list[LayerWeights]:
    """The weights of each convolution and linear layer of ``model``, in the order of definition, with both fits.

    Raises UserError for a layer whose weights are all equal, to which no density fits.
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


def _spread(scale: Tensor) -> float:
    if not (scale > 0 and scale.isfinite()):
        raise ValueError("expected finite values that are not all equal")
    return scale.item()
