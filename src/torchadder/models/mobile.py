"""Define the mobile networks of MLPerf Tiny: DS-CNN for keywords in speech, MobileNet v1 for persons in images.

Their layouts are those of "MLPerf Tiny Benchmark", Banbury et al., arXiv 2106.07597, whose ResNet-8 is in resnet.py. As
in the other networks, the first and the last layer are ordinary ones, and a normalisation ends the network.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .registry import Layers, Model, register


class MobileNetwork(nn.Sequential, Model):
    """Build a network of depthwise separable layers: (N, in_chans, H, W) -> (N, num_classes), any H and W.

    Args:
        stem: the first convolution, with what pads it.
        channels: the outputs of the stem.
        blocks: the outputs and the stride of each depthwise separable layer.
    """

    def __init__(self, layers: Layers, stem: nn.Module, channels: int, blocks: list[tuple[int, int]], num_classes: int):
        modules: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=stem, bn1=nn.BatchNorm2d(channels), relu=layers.activation()
        )
        for number, (out_channels, stride) in enumerate(blocks, 1):
            modules[f"block{number}"] = _separable(layers, channels, out_channels, stride)
            channels = out_channels
        modules["avgpool"] = nn.AdaptiveAvgPool2d(1)
        modules["fc"] = nn.Conv2d(channels, num_classes, 1, bias=False)
        modules["bn2"] = nn.BatchNorm2d(num_classes)
        modules["flatten"] = nn.Flatten()
        super().__init__(modules)


def _separable(layers: Layers, channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Build a depthwise 3x3 layer and a 1x1 layer. The padding is TensorFlow's: with stride 2 none above and left."""
    padding = 1 if stride == 1 else 0
    return nn.Sequential(
        OrderedDict(
            pad=nn.Identity() if padding else nn.ZeroPad2d((0, 1, 0, 1)),
            conv1=layers.conv2d(channels, channels, 3, stride, padding, groups=channels, bias=False),
            bn1=nn.BatchNorm2d(channels),
            relu1=layers.activation(),
            conv2=layers.conv2d(channels, out_channels, 1, bias=False),
            bn2=nn.BatchNorm2d(out_channels),
            relu2=layers.activation(),
        )
    )


@register("ds_cnn", num_classes=12, in_chans=1, size=(49, 10))
def ds_cnn(layers: Layers, num_classes: int, in_chans: int) -> Model:
    """Build DS-CNN for the 12 words of Speech Commands; its images are 49 times 10 numbers of a second of sound."""
    stem = nn.Sequential(nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(in_chans, 64, (10, 4), stride=2, bias=False))
    return MobileNetwork(layers, stem, 64, [(64, 1)] * 4, num_classes)


@register("mobilenetv1_025", num_classes=2, in_chans=3, size=96)
def mobilenetv1_025(layers: Layers, num_classes: int, in_chans: int) -> Model:
    """Build MobileNet v1 with a quarter of its channels, for persons in images (Visual Wake Words)."""
    stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(in_chans, 8, 3, stride=2, bias=False))
    blocks = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    return MobileNetwork(layers, stem, 8, blocks, num_classes)
