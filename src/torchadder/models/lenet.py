"""LeNet-5 with batch normalisation: the MNIST network, in which every layer is an adder layer."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .registry import Layers, Model, register


class LeNet5BN(nn.Sequential, Model):
    """C5(6)-BN-ReLU-MP2, C5(16)-BN-ReLU-MP2, C5(120)-BN-ReLU, FC84-BN-ReLU, FC-BN (paper, section 4.1).

    Shapes: (N, in_chans, 32, 32) -> (N, num_classes). Other sizes are refused by fc1: the third convolution
    must end at one pixel. No layer has a bias, since a batch normalisation follows each.
    """

    def __init__(self, layers: Layers, num_classes: int, in_chans: int):
        super().__init__(
            OrderedDict(
                conv1=layers.conv2d(in_chans, 6, 5, bias=False),  # 32 -> 28
                bn1=nn.BatchNorm2d(6),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),  # 28 -> 14
                conv2=layers.conv2d(6, 16, 5, bias=False),  # 14 -> 10
                bn2=nn.BatchNorm2d(16),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),  # 10 -> 5
                conv3=layers.conv2d(16, 120, 5, bias=False),  # 5 -> 1
                bn3=nn.BatchNorm2d(120),
                relu3=nn.ReLU(inplace=True),
                flatten=nn.Flatten(),
                fc1=layers.linear(120, 84, bias=False),
                bn4=nn.BatchNorm1d(84),
                relu4=nn.ReLU(inplace=True),
                fc2=layers.linear(84, num_classes, bias=False),
                bn5=nn.BatchNorm1d(num_classes),  # logits of an adder layer are negative and large without it
            )
        )


@register("lenet5bn", num_classes=10, in_chans=1, size=32)
def lenet5bn(layers: Layers, num_classes: int, in_chans: int) -> Model:
    return LeNet5BN(layers, num_classes, in_chans)
