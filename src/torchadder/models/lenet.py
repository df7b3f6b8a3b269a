"""Define the LeNets for MNIST: LeNet-5 with batch normalisation, and LeNet++.

Every layer has the operator of the network, except the first and the last layer of a binary network, which are
ordinary ones.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from torchadder.nn import Adder

from .registry import Layers, Model, register


class LeNet5BN(nn.Sequential, Model):
    """Build LeNet-5-BN (paper, section 4.1).

    C5(6)-BN-ReLU-MP2, C5(16)-BN-ReLU-MP2, C5(120)-BN-ReLU, FC84-BN-ReLU, FC-BN.

    Shapes: (N, in_chans, 32, 32) -> (N, num_classes). fc1 raises an error for other sizes: the third convolution
    must end at one pixel. No layer has a bias, since a batch normalisation follows each.
    """

    def __init__(self, layers: Layers, num_classes: int, in_chans: int):
        super().__init__(
            OrderedDict(
                conv1=layers.first(in_chans, 6, 5, bias=False),  # 32 -> 28
                bn1=nn.BatchNorm2d(6),
                relu1=layers.activation(),
                pool1=nn.MaxPool2d(2),  # 28 -> 14
                conv2=layers.conv2d(6, 16, 5, bias=False),  # 14 -> 10
                bn2=nn.BatchNorm2d(16),
                relu2=layers.activation(),
                pool2=nn.MaxPool2d(2),  # 10 -> 5
                conv3=layers.conv2d(16, 120, 5, bias=False),  # 5 -> 1
                bn3=nn.BatchNorm2d(120),
                relu3=layers.activation(),
                flatten=nn.Flatten(),
                fc1=layers.linear(120, 84, bias=False),
                bn4=nn.BatchNorm1d(84),
                relu4=layers.activation(),
                fc2=layers.last(84, num_classes, bias=False),
                bn5=nn.BatchNorm1d(num_classes),  # Without it the logits of an adder layer are negative and large.
            )
        )


class LeNetPP(Model):
    """Build LeNet++. Its features have two or three dimensions, so that they can be drawn.

    Three stages of two 5x5 layers, 2x32C5-MP2-2x64C5-MP2-2x128C5-MP2, a feature layer with 2 or 3 outputs and the
    classifier. BN follows every layer except an ordinary classifier; an activation follows every convolution. Widths
    and kernels are those of "A Discriminative Feature Learning Approach for Deep Face Recognition", Wen et al.,
    ECCV 2016, which the paper follows. That network has PReLU and no BN; an adder layer needs BN. No BN follows an
    ordinary classifier, because it would shift each class, and the angle alone would no longer separate the classes.

    Shapes: (N, in_chans, 32, 32) -> (N, num_classes). The feature layer raises an error for other sizes.
    """

    def __init__(self, layers: Layers, num_classes: int, in_chans: int, dimensions: int):
        super().__init__()
        self.stages = nn.Sequential()
        channels = in_chans
        for i, width in enumerate((32, 32, 64, 64, 128, 128), 1):
            conv2d = layers.first if i == 1 else layers.conv2d
            self.stages.add_module(f"conv{i}", conv2d(channels, width, 5, padding=2, bias=False))
            self.stages.add_module(f"bn{i}", nn.BatchNorm2d(width))
            self.stages.add_module(f"relu{i}", layers.activation())
            if i % 2 == 0:
                self.stages.add_module(f"pool{i // 2}", nn.MaxPool2d(2))  # 32 -> 16 -> 8 -> 4
            channels = width
        self.stages.add_module("flatten", nn.Flatten())
        self.feature = layers.linear(channels * 4 * 4, dimensions, bias=False)
        self.bn7 = nn.BatchNorm1d(dimensions)
        self.fc = layers.last(dimensions, num_classes, bias=False)
        self.bn8 = nn.BatchNorm1d(num_classes) if isinstance(self.fc, Adder) else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """Return the inputs of the classifier: (N, in_chans, 32, 32) -> (N, 2), or (N, 3) for lenetpp_3d."""
        return self.bn7(self.feature(self.stages(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn8(self.fc(self.features(x)))


@register("lenet5bn", num_classes=10, in_chans=1, size=32)
def lenet5bn(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return LeNet5BN(layers, num_classes, in_chans)


@register("lenetpp", num_classes=10, in_chans=1, size=32)
def lenetpp(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return LeNetPP(layers, num_classes, in_chans, dimensions=2)


@register("lenetpp_3d", num_classes=10, in_chans=1, size=32)
def lenetpp_3d(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return LeNetPP(layers, num_classes, in_chans, dimensions=3)
