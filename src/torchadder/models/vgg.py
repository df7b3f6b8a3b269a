"""Define VGG-small for CIFAR: six 3x3 layers and a classifier. The first and the last layer are ordinary ones."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .registry import Layers, Model, register

WIDTHS = (128, 128, 256, 256, 512, 512)


class VGGSmall(nn.Sequential, Model):
    """Build VGG-small (paper, section 4.2): 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-FC.

    BN and an activation follow each 3x3 layer.

    Shapes: (N, in_chans, 32, 32) -> (N, num_classes). fc raises an error for other sizes. The paper only
    writes FC for the classifier; as in the authors' ResNets, no activation but BN follows it.
    """

    def __init__(self, layers: Layers, num_classes: int, in_chans: int):
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_chans
        for i, width in enumerate(WIDTHS, 1):
            conv2d = nn.Conv2d if i == 1 else layers.conv2d
            modules[f"conv{i}"] = conv2d(channels, width, 3, padding=1, bias=False)
            modules[f"bn{i}"] = nn.BatchNorm2d(width)
            modules[f"relu{i}"] = layers.activation()
            if i % 2 == 0:
                modules[f"pool{i // 2}"] = nn.MaxPool2d(2)  # 32 -> 16 -> 8 -> 4
            channels = width
        modules["flatten"] = nn.Flatten()
        modules["fc"] = nn.Linear(channels * 4 * 4, num_classes, bias=False)
        modules["bn7"] = nn.BatchNorm1d(num_classes)
        super().__init__(modules)


@register("vgg_small", num_classes=10, in_chans=3, size=32)
def vgg_small(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return VGGSmall(layers, num_classes, in_chans)
