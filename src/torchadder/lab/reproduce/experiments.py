"""Define the tables of the paper: each row is a recipe with changes and, if the paper has one, its accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchadder.errors import UserError
from torchadder.train.recipe import GRADIENTS, Recipe, get_recipe

PAPER = "Chen et al., CVPR 2020, [arXiv:1912.13200](https://arxiv.org/abs/1912.13200)"
# The best η of the sweep `torchadder reproduce eta_sign`.
SIGN_ETA = 0.01
# The recipe of the binary networks; docs/decisions.md, Training, gives the reason.
BINARY: Mapping[str, Any] = {"optimizer": "adam", "lr": 0.003, "weight_decay": 0.0}
JPEG = "imagefolder:cifar10-jpeg,normalize=cifar"


@dataclass(frozen=True)
class Row:
    """Hold one row: the recipe of that name with ``changes``, and the paper's test accuracies in percent."""

    label: str
    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    paper_top5: float | None = None

    def recipe_for(self, seed: int = 0, epochs: int | None = None) -> Recipe:
        """Return the recipe of one run, shortened to ``epochs`` if given. Raises UserError for too few epochs."""
        shortened = {} if epochs is None else {"epochs": epochs}
        return get_recipe(self.recipe, {**self.changes, "seed": seed, **shortened})

    def gap(self, accuracy: float) -> float | None:
        """Return ``accuracy`` minus the paper's in percentage points, both rounded as printed; None without a paper."""
        return None if self.paper is None else round(round(accuracy, 2) - self.paper, 2) + 0.0  # no -0.0


@dataclass(frozen=True)
class Experiment:
    """Hold one table: its rows, the default number of seeds of each row, and the source of the paper's numbers."""

    name: str
    title: str
    rows: tuple[Row, ...]
    seeds: int
    source: str | None = PAPER
    note: str = ""

    @property
    def epochs(self) -> int:
        """Return the epochs of the full recipe, which are the same for all rows."""
        return self.rows[0].recipe_for().epochs


Numbers = tuple[float | None, ...]
NONE: Numbers = (None,) * 3


def _networks(
    recipe: str, papers: Numbers = NONE, model: str = "", top5: Numbers = NONE, **changes: Any
) -> tuple[Row, ...]:
    """Return the rows of CNN, AdderNet and binary network on one recipe, with the paper's accuracies in this order.

    The binary network has its own optimizer: a weight changes its sign only after many small steps in one direction,
    and Adam scales small gradients up.
    """
    networks: dict[str, dict[str, Any]] = {
        "CNN": {"op": "conv"},
        "AdderNet": {"op": "adder"},
        "BNN": {"op": "binary", **BINARY},
    }
    return tuple(
        Row(f"{model} {network}".strip(), recipe, {**own, **changes}, *numbers)
        for (network, own), *numbers in zip(networks.items(), papers, top5, strict=True)
    )


def _adder(label: str, grad: str, paper: float | None = None, **changes: Any) -> Row:
    """Return the row of an AdderNet on MNIST with these gradients."""
    return Row(label, "lenet5bn-mnist", {"op": "adder", **GRADIENTS[grad], **changes}, paper)


def _etas(grad: str, papers: Mapping[float, float | None]) -> tuple[Row, ...]:
    return tuple(_adder(f"η = {eta:g}", grad, paper, lr_scheme="alr", eta=eta) for eta, paper in papers.items())


_TABLES = (
    Experiment(
        "mnist",
        "MNIST, LeNet-5-BN",
        _networks("lenet5bn-mnist", (99.40, 99.40, None)),
        seeds=3,
        note="The paper has no binary network on MNIST.",
    ),
    Experiment(
        "fashion_mnist",
        "Fashion-MNIST, LeNet-5-BN",
        _networks("lenet5bn-fashion_mnist"),
        seeds=3,
        source=None,
        note="The paper has no Fashion-MNIST; the recipe is that of MNIST.",
    ),
    Experiment(
        "ablation",
        "Gradients and learning rates of the adder layers, LeNet-5-BN on MNIST",
        (
            _adder("full gradient, ALR η=0.1", "full", 99.40, lr_scheme="alr", eta=0.1),
            _adder("full gradient, ILR ×100", "full", 98.99, lr_scheme="ilr", ilr_factor=100.0),
            _adder(f"sign gradient, ALR η={SIGN_ETA:g}", "sign", 97.99, lr_scheme="alr", eta=SIGN_ETA),
            _adder("sign gradient, ILR ×100", "sign", 97.72, lr_scheme="ilr", ilr_factor=100.0),
        ),
        seeds=3,
        note="ALR is the adaptive learning rate by layer, ILR one constant factor on the gradients. The sign gradient "
        "needs an η of its own under ALR; the paper does not say which it had.",
    ),
    Experiment(
        "eta",
        "η of the adaptive learning rate, LeNet-5-BN on MNIST",
        _etas("full", {1.0: 99.26, 0.5: 99.30, 0.2: 99.35, 0.1: 99.40, 0.05: 99.32}),
        seeds=1,
        source=f"{PAPER}, quoted at second hand",
    ),
    Experiment(
        "eta_sign",
        "η of the adaptive learning rate with the sign gradient, LeNet-5-BN on MNIST",
        _etas("sign", dict.fromkeys((0.1, 0.05, 0.02, 0.01, 0.005))),
        seeds=1,
        source=None,
        note="The paper has no such table.",
    ),
    Experiment(
        "cifar10_jpeg",
        "CIFAR-10 (JPEG), ResNet-20",
        _networks("resnet20-cifar10", dataset=JPEG, norm_batches=0),
        seeds=1,
        source=None,
        note="The recipe is that of CIFAR-10, but all images were encoded again as JPEG of quality 75, which costs "
        "accuracy: these rows compare with each other and with no other table. The images are looked for in a folder "
        "`cifar10-jpeg`, as `train/CLASS/` and `test/CLASS/`.",
    ),
    Experiment(
        "cifar10",
        "CIFAR-10",
        (
            *_networks("vgg_small-cifar10", (93.80, 93.72, 89.80), "VGG-small"),
            *_networks("resnet20-cifar10", (92.25, 91.84, 84.87), "ResNet-20"),
            *_networks("resnet32-cifar10", (93.29, 93.01, 86.74), "ResNet-32"),
        ),
        seeds=1,
    ),
    Experiment(
        "cifar100",
        "CIFAR-100",
        (
            *_networks("vgg_small-cifar100", (72.73, 72.64, 65.41), "VGG-small"),
            *_networks("resnet20-cifar100", (68.14, 67.60, 54.14), "ResNet-20"),
            *_networks("resnet32-cifar100", (69.74, 69.02, 56.21), "ResNet-32"),
        ),
        seeds=1,
    ),
    Experiment(
        "imagenet",
        "ImageNet",
        (
            *_networks("resnet18-imagenet", (69.8, 67.0, 51.2), "ResNet-18", (89.1, 87.6, 73.2)),
            *_networks("resnet50-imagenet", (76.2, 74.9, 55.8), "ResNet-50", (92.9, 91.7, 78.4)),
        ),
        seeds=1,
        note="The first version of the paper has 66.8 and 87.4 for the ResNet-18 AdderNet.",
    ),
)
EXPERIMENTS: dict[str, Experiment] = {table.name: table for table in _TABLES}


def get_experiment(name: str) -> Experiment:
    """Return the table of that name. Raises UserError for an unknown one."""
    if name not in EXPERIMENTS:
        raise UserError(f"table={name} is unknown: expected one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
