"""Correct batch normalisation for the rounding of a quantized network, from images without labels.

Rounding shifts the mean of a layer's outputs and adds to their variance. The statistics of the training no longer fit
them, and the error adds up from layer to layer. The statistics of the calibration images would not fit either: they are
few, and not augmented as those of the training were. So the images tell only how far rounding moves the statistics:

    ratio = var(quantized) / var(float)
    var'  = (var + eps) * ratio - eps
    mean' = mean(quantized) - (mean(float) - mean) * sqrt(ratio)

so that mean and variance after the normalisation are those of the float network over the same batch of images, with
all layers before it corrected. The result is the mean over all batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from torchadder.quant.calibration import Recorder
from torchadder.quant.fake_quantized import FakeQuantized
from torchadder.quant.graph import BATCH_NORM, Network
from torchadder.quant.lowering import Lowering

CORRECTED_BELOW = 8  # bits: with 8, rounding moves the statistics too little to be measured on few images
LARGEST_RATIO = 4.0  # of the variances: more comes from channels that hardly vary on the images

Moments = tuple[Tensor, Tensor]  # mean and variance by channel, (C,)


@torch.no_grad()
def correct_normalization(network: Network, lowering: Lowering, batches: Iterable[Tensor]) -> None:
    """Change the running statistics of ``network`` to fit its values after rounding, as the mean over ``batches``.

    ``lowering``: a new one of the network; this may call its ``program``. A normalisation that is used at several
    places keeps its statistics.
    """
    used = Counter(node.args[3] for node in network.nodes if node.target is BATCH_NORM)
    names = {node.name for node in network.nodes if node.target is BATCH_NORM and used[node.args[3]] == 1}
    if not names:
        return
    exact, rounded = _Exact(network, names), _Corrected(network, lowering)
    for images in batches:
        exact(images)
        rounded.exact = exact.moments
        rounded(images)
    for running, sums in rounded.totals.values():
        for statistic, total in zip(running, sums, strict=True):
            statistic.copy_(total / rounded.batches)


class _Exact(Recorder):
    """Keep the moments of what the normalisations take, of the last batch."""

    moments: dict[str, Moments]

    def __call__(self, images: Tensor) -> Tensor:
        self.moments = {}
        return super().__call__(images)

    def compute(self, n: fx.Node) -> Any:
        if n.name in self.names:
            self.moments[n.name] = _moments(self.fetch_args_kwargs_from_env(n)[0][0])
        return super().compute(n)

    def run_node(self, n: fx.Node) -> Any:
        return self.compute(n)  # without keeping values


class _Corrected(FakeQuantized):
    """Normalise by corrected statistics, and sum them up by normalisation in ``totals``, beside the running ones."""

    exact: dict[str, Moments]

    def __init__(self, network: Network, lowering: Lowering):
        super().__init__(network, lowering)
        self.totals: dict[str, tuple[Moments, Moments]] = {}
        self.batches = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.batches += 1
        return super().__call__(images)

    def compute(self, n: fx.Node) -> Any:
        if n.name not in self.exact:
            return super().compute(n)
        x, weight, bias, mean, var, training, momentum, eps, cudnn = self.fetch_args_kwargs_from_env(n)[0]
        (float_mean, float_var), (own_mean, own_var) = self.exact[n.name], _moments(x)
        tiny = torch.finfo(own_var.dtype).tiny
        ratio = ((own_var + tiny) / (float_var + tiny)).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
        corrected_var = ((var + eps) * ratio - eps).clamp(min=0)
        widening = ((corrected_var + eps) / (var + eps)).sqrt()
        corrected = own_mean - (float_mean - mean) * widening, corrected_var
        running, sums = self.totals.get(n.name, ((mean, var), (torch.zeros_like(mean), torch.zeros_like(var))))
        self.totals[n.name] = running, (sums[0] + corrected[0], sums[1] + corrected[1])
        return BATCH_NORM(x, weight, bias, *corrected, training, momentum, eps, cudnn)


def _moments(x: Tensor) -> Moments:
    axes = (0, *range(2, x.dim()))
    var, mean = torch.var_mean(x.double(), axes, correction=0)
    return mean.to(x.dtype), var.to(x.dtype)
