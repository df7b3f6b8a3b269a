"""ResNet-20 and ResNet-32 for CIFAR: all adder layers except the first and the last, which stay convolutions.

Module names are the official code's, so that its checkpoints map key by key (`.adder` -> `.weight`).
"""

from __future__ import annotations

from torch import Tensor, nn

from .registry import Layers, Model, register


class BasicBlock(nn.Module):
    """Two 3x3 layers beside a shortcut: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride)."""

    def __init__(self, layers: Layers, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = layers.conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = layers.conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = layers.conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class CifarResNet(Model):
    """Convolution stem, stages of 16, 32 and 64 channels, average pool, 1x1 classifier, BN on the logits.

    Shapes: (N, in_chans, H, W) -> (N, num_classes), any H and W; the paper's are 32.
    """

    def __init__(self, layers: Layers, blocks: int, num_classes: int, in_chans: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(layers, blocks, 16, 16, stride=1)
        self.layer2 = _stage(layers, blocks, 16, 32, stride=2)
        self.layer3 = _stage(layers, blocks, 32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(64, num_classes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.bn2(self.fc(self.avgpool(x))).flatten(1)


def _stage(layers: Layers, blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(layers, in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(layers, channels, channels, 1) for _ in range(blocks - 1)))


@register("resnet20", num_classes=10, in_chans=3, size=32)
def resnet20(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return CifarResNet(layers, 3, num_classes, in_chans)


@register("resnet32", num_classes=10, in_chans=3, size=32)
def resnet32(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return CifarResNet(layers, 5, num_classes, in_chans)
