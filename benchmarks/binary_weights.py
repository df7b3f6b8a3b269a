"""Train ResNet-8 with binary weights: each filter has one size and only the signs of its weights, as in XNOR-Net's BWN.

Activations stay float32 and gradients pass straight through. docs/results.md compares the AdderNet with it.

    python benchmarks/binary_weights.py --dataset imagefolder:cifar10-jpeg,normalize=cifar --out runs/binary-weights
    python benchmarks/collect.py runs/binary-weights -o results/binary-weights.json

The same command continues after an interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchadder.models.registry import Layers, Model, register
from torchadder.models.resnet import BasicBlock, resnet8
from torchadder.train import Run, get_recipe, train

NAME = "resnet8_binary_weights"


class BinaryWeight(nn.Module):
    """Give each filter its signs, times the mean size of its weights."""

    def forward(self, weight: Tensor) -> Tensor:
        size = weight.abs().mean((1, 2, 3), keepdim=True)
        return weight + (size * weight.sign() - weight).detach()


@register(NAME, num_classes=10, in_chans=3, size=32)
def resnet8_binary_weights(layers: Layers, num_classes: int, in_chans: int) -> Model:
    """Build ResNet-8; its first and its last layer stay as they are, as in an AdderNet."""
    model = resnet8(layers, num_classes, in_chans)
    for block in model.modules():
        if isinstance(block, BasicBlock):
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d):
                    parametrize.register_parametrization(layer, "weight", BinaryWeight())
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data", type=Path, help="folder with its files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/binary-weights"))
    arguments = parser.parse_args()
    changes = {"model": NAME, "op": "conv", "dataset": arguments.dataset, "epochs": arguments.epochs}
    recipe = get_recipe("resnet8-cifar10-short", changes)
    run = Run.open(arguments.out, recipe, resume=(arguments.out / "last.pt").exists())
    outcome = train(run, data_dir=arguments.data)
    print(f"{outcome.accuracy:.2f}% after {recipe.epochs} epochs")


if __name__ == "__main__":
    main()
