"""Define the ResNets for CIFAR and ImageNet. The first and the last layer are ordinary convolutions.

Module names are those of the AdderNet authors' code, so that its checkpoints map key by key (`.adder` -> `.weight`).
The blocks are those of "Deep Residual Learning for Image Recognition", He et al., CVPR 2016, arXiv 1512.03385.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from .registry import Layers, Model, register


class BasicBlock(nn.Module):
    """Add two 3x3 layers to a shortcut: (N, C_in, H, W) -> (N, channels, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, layers: Layers, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = layers.conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = layers.conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = layers.activation()
        self.downsample = _shortcut(layers, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """Add layers of 1x1, 3x3 and 1x1 to a shortcut: (N, C_in, H, W) -> (N, 4 * channels, H / stride, W / stride).

    The 3x3 layer has the stride, as in the authors' code and torchvision; He et al. have it in the first 1x1 layer.
    """

    expansion = 4

    def __init__(self, layers: Layers, in_channels: int, channels: int, stride: int):
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = layers.conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = layers.conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = layers.conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = layers.activation()
        self.downsample = _shortcut(layers, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


def _shortcut(layers: Layers, in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    projection = layers.conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(channels))


class ResNet(nn.Sequential, Model):
    """Build a ResNet: stem, stages of blocks, average pool, 1x1 classifier, BN on the logits.

    Shapes: (N, in_chans, H, W) -> (N, num_classes), any H and W.

    Args:
        stem: the first convolution. The first stage has its width; each further stage has twice the width of the
            one before it, and half its size.
        depths: number of blocks in each stage.
        pool: the pooling after the stem.
        bias: give the classifier a bias. It has no effect, since BN follows, but the authors' ResNet-50 has one.
    """

    def __init__(
        self,
        layers: Layers,
        block: type[BasicBlock] | type[Bottleneck],
        stem: nn.Conv2d,
        depths: Sequence[int],
        num_classes: int,
        *,
        pool: nn.Module,
        bias: bool,
    ):
        modules: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=stem,
            bn1=nn.BatchNorm2d(stem.out_channels),
            relu=layers.activation(),
            maxpool=pool,
        )
        in_channels = stem.out_channels
        for i, depth in enumerate(depths):
            channels = stem.out_channels * 2**i
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(block(layers, in_channels, channels, stride=2 if i > 0 and j == 0 else 1))
                in_channels = block.expansion * channels
            modules[f"layer{i + 1}"] = stage
        modules["avgpool"] = nn.AdaptiveAvgPool2d(1)
        modules["fc"] = nn.Conv2d(in_channels, num_classes, 1, bias=bias)
        modules["bn2"] = nn.BatchNorm2d(num_classes)
        modules["flatten"] = nn.Flatten()
        super().__init__(modules)


def _cifar(layers: Layers, depths: Sequence[int], num_classes: int, in_chans: int) -> Model:
    stem = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
    return ResNet(layers, BasicBlock, stem, depths, num_classes, pool=nn.Identity(), bias=False)


def _imagenet(
    layers: Layers,
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    num_classes: int,
    in_chans: int,
) -> Model:
    stem = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)  # 224 -> 112
    pool = nn.MaxPool2d(3, stride=2, padding=1)  # 112 -> 56
    return ResNet(layers, block, stem, depths, num_classes, pool=pool, bias=True)


@register("resnet8", num_classes=10, in_chans=3, size=32)
def resnet8(layers: Layers, num_classes: int, in_chans: int) -> Model:
    """Build ResNet-8 of MLPerf Tiny (arXiv 2106.07597), with a normalisation in the shortcuts: adder layers need it."""
    return _cifar(layers, (1, 1, 1), num_classes, in_chans)


@register("resnet20", num_classes=10, in_chans=3, size=32)
def resnet20(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return _cifar(layers, (3, 3, 3), num_classes, in_chans)


@register("resnet32", num_classes=10, in_chans=3, size=32)
def resnet32(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return _cifar(layers, (5, 5, 5), num_classes, in_chans)


@register("resnet18", num_classes=1000, in_chans=3, size=224)
def resnet18(layers: Layers, num_classes: int, in_chans: int) -> Model:
    """Build ResNet-18; the authors' code has none, so stem and head are those of its ResNet-50."""
    return _imagenet(layers, BasicBlock, (2, 2, 2, 2), num_classes, in_chans)


@register("resnet50", num_classes=1000, in_chans=3, size=224)
def resnet50(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return _imagenet(layers, Bottleneck, (3, 4, 6, 3), num_classes, in_chans)
