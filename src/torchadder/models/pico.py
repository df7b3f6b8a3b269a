"""Define the pico networks: digits of MNIST on a microcontroller, in a few kB.

Every layer has the operator of the network, except the first and the last layer of a binary network, as in the LeNets.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .registry import Layers, Model, register


class Pico(nn.Sequential, Model):
    """Build a pico network: C4/2-BN-ReLU-MP2, C3-BN-ReLU-MP2, C3-BN-ReLU, FC-BN.

    The 16 pixels of a first patch fill one round of the exported inner loop, and each layer can be computed together
    with the pooling after it, so that only the smaller map needs memory. Most weights are in the last convolution,
    which runs at one pixel.

    Shapes: (N, in_chans, 28, 28) or (N, in_chans, 32, 32) -> (N, num_classes). fc raises an error for most other sizes.
    """

    def __init__(self, layers: Layers, num_classes: int, in_chans: int, widths: tuple[int, int, int]):
        first, second, third = widths
        super().__init__(
            OrderedDict(
                conv1=layers.first(in_chans, first, 4, stride=2, bias=False),  # 28 -> 13, 32 -> 15
                bn1=nn.BatchNorm2d(first),
                relu1=layers.activation(),
                pool1=nn.MaxPool2d(2),  # 6 or 7
                conv2=layers.conv2d(first, second, 3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(second),
                relu2=layers.activation(),
                pool2=nn.MaxPool2d(2),  # 3
                conv3=layers.conv2d(second, third, 3, bias=False),  # 3 -> 1
                bn3=nn.BatchNorm2d(third),
                relu3=layers.activation(),
                flatten=nn.Flatten(),
                fc=layers.last(third, num_classes, bias=False),
                bn4=nn.BatchNorm1d(num_classes),
            )
        )


@register("pico", num_classes=10, in_chans=1, size=28)
def pico(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return Pico(layers, num_classes, in_chans, widths=(10, 18, 96))


@register("pico_wide", num_classes=10, in_chans=1, size=32)
def pico_wide(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return Pico(layers, num_classes, in_chans, widths=(24, 36, 112))
