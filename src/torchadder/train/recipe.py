"""Define recipes: all settings that decide the numbers of a training run, in one dataclass with a name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from torchadder.errors import UserError

if TYPE_CHECKING:  # this import loads torch, and the help of the command line must not wait for it
    from torchadder.functional import GradientRule


def _option(
    default: Any,
    help: str,
    group: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float = math.inf,
    above: float | None = None,
    below: float = math.inf,
    form: tuple[str, str] | None = None,
) -> Any:
    """Return a field with its help, its group of options, and its allowed values.

    Allowed are the choices, or the numbers with low <= value <= high and above < value < below, or the strings that
    match ``form[0]``, a regular expression; ``form[1]`` describes it.
    """
    limits = {"choices": choices, "low": low, "high": high, "above": above, "below": below, "form": form}
    return field(default=default, metadata={"help": help, "group": group, **limits})


LARGEST = 2**63 - 1  # integer that torch takes
NORM_BATCHES = 50  # training batches from which the statistics of batch normalisation are estimated

# groups of options
NETWORK, IMAGES, OPTIMISER = "Network", "Images", "Optimiser"
RATE, ADDER, DISTILLATION, NUMBERS = "Learning rate", "Adder layers", "Distillation", "Numbers"
QUANTIZATION = "Quantization"


@dataclass(frozen=True)
class Recipe:
    """Hold the settings of a training run: the same recipe, seed and machine give the same numbers.

    A new field gets the behaviour of earlier versions as its default, so that an old recipe.json keeps its meaning.

    Raises UserError, with the allowed values, for a field that is out of range.
    """

    name: str
    model: str
    dataset: str
    op: str = _option("adder", "Operator of the layers.", NETWORK, choices=("adder", "conv", "binary"))
    sync_bn: bool = _option(
        False, "Normalise over the whole batch of all processes, not over the share of each process.", NETWORK
    )
    norm_batches: int = _option(
        0,
        "Training batches that give batch normalisation its statistics before each test; 0: running averages, as in "
        f"the paper; other images than the recipe's own: {NORM_BATCHES}.",
        NETWORK,
        low=0,
    )
    epochs: int = _option(50, "Passes over the training images.", IMAGES, low=1)
    batch_size: int = _option(
        256, "Images per step, of all processes together; the last partial batch of an epoch is dropped.", IMAGES, low=2
    )
    accumulate: int = _option(
        1,
        "Split each process's share of a batch into this many parts to save memory; gradients add up.",
        IMAGES,
        low=1,
    )
    augment: bool = _option(False, "Vary the training images at random, with the augmentation of the data set.", IMAGES)
    partial: bool = _option(False, "Accept data files with only a part of the published images.", IMAGES)
    on_error: str = _option("stop", "What to do about an image that does not decode.", IMAGES, choices=("stop", "skip"))
    optimizer: str = _option(
        "sgd",
        "Optimiser; adam needs a learning rate of about 0.001, and its step undoes ALR and ILR.",
        OPTIMISER,
        choices=("sgd", "adam"),
    )
    momentum: float = _option(0.9, "Momentum of SGD.", OPTIMISER, low=0, high=1)
    nesterov: bool = _option(True, "Nesterov's form of momentum, for SGD.", OPTIMISER)
    weight_decay: float = _option(5e-4, "Weight decay, on every parameter.", OPTIMISER, low=0)
    clip_grad: float = _option(
        0.0,
        "Largest norm of all gradients together, without those that ALR or ILR rescales; 0: any.",
        OPTIMISER,
        low=0,
    )
    label_smoothing: float = _option(
        0.0, "Share of each label that is spread over all classes.", OPTIMISER, low=0, below=1
    )
    ema: float = _option(
        0.0,
        "Decay per step of the running average of the weights, which is tested and saved in their place; 0: none.",
        OPTIMISER,
        low=0,
        below=1,
    )
    lr: float = _option(0.1, "Highest learning rate.", RATE, above=0)
    schedule: str = _option(
        "cosine",
        "How the rate falls: to 0 along a cosine or a polynomial, or to a tenth at each milestone (step).",
        RATE,
        choices=("cosine", "polynomial", "step"),
    )
    power: float = _option(1.0, "Power of the polynomial.", RATE, above=0)
    milestones: str = _option(
        "",
        "Epochs after which the step schedule lowers the rate.",
        RATE,
        form=(r"([1-9]\d{0,5}(,[1-9]\d{0,5})*)?", "epochs such as 30,60,90"),
    )
    warmup_epochs: int = _option(0, "Epochs at the start in which the rate rises linearly from 0.", RATE, low=0)
    lr_scheme: str = _option(
        "alr",
        "Learning rate of the adder layers: adaptive per layer, increased by a constant, or that of all others.",
        ADDER,
        choices=("alr", "ilr", "plain"),
    )
    eta: float = _option(0.2, "Size of ALR's update.", ADDER, above=0)
    ilr_factor: float = _option(100.0, "ILR's factor on the gradients of the adder weights.", ADDER, above=0)
    weight_grad: str = _option(
        "full", "Gradient to the adder weights: X - F, or its sign.", ADDER, choices=("full", "sign")
    )
    input_grad: str = _option(
        "hardtanh",
        "Gradient to an adder layer's input: F - X clamped to [-1, 1], its sign, or in full.",
        ADDER,
        choices=("hardtanh", "sign", "full"),
    )
    numbers: str = _option(
        "float32",
        "Arithmetic of adder layers in training; int8 rounds inputs and filters to bytes and is faster on a CPU.",
        ADDER,
        choices=("float32", "int8"),
    )
    recenter: bool = _option(False, "Add sum |W| to the outputs of adder layers: small enough for 16 bits.", ADDER)
    teacher: str = _option(
        "",
        "Network whose outputs are learned in addition to the labels; with a progressive teacher also a model's name.",
        DISTILLATION,
        form=(r".*", "a run or a checkpoint"),
    )
    progressive: bool = _option(False, "Train the teacher as well, from the labels, by this recipe.", DISTILLATION)
    temperature: float = _option(4.0, "Divisor of the logits before they are compared.", DISTILLATION, above=0)
    logit_weight: float = _option(1.0, "Weight of the teacher's logits in the loss.", DISTILLATION, low=0)
    feature_weight: float = _option(
        1.0, "Weight of the teacher's features at the ends of stages in the loss.", DISTILLATION, low=0
    )
    precision: str = _option(
        "fp32", "Numbers between layers: float32, or bfloat16 by autocast.", NUMBERS, choices=("fp32", "bf16")
    )
    seed: int = _option(0, "Seed of the first weights and of the order of the images.", NUMBERS, low=0, high=LARGEST)
    deterministic: bool = _option(
        False, "Only algorithms that give the same numbers each time, on a GPU as well.", NUMBERS
    )
    channels_last: bool = _option(False, "Keep images and activations in channels-last memory order.", NUMBERS)
    bits: int = _option(
        8, "Bits of the program that quantize makes of the run, unless told otherwise.", QUANTIZATION, low=2, high=8
    )
    finetune: int = _option(
        0, "Epochs for which quantize trains further with rounded values, unless told otherwise.", QUANTIZATION, low=0
    )

    def __post_init__(self) -> None:
        for option in options():
            value = getattr(self, option.name)
            if not _allowed(option, value):
                most = f"at most {LARGEST}" if type(value) is int and value > LARGEST else allowed_values(option)
                raise UserError(f"{option.name}={value} is out of range: expected {most}")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise UserError(f"momentum={self.momentum:g} has no Nesterov form: expected above 0, or nesterov=False")
        if self.recenter and self.op != "adder":
            raise UserError(f"recenter=True is for adder layers, and op={self.op} has none: leave it out")
        if self.numbers != "float32" and self.op != "adder":
            raise UserError(f"numbers={self.numbers} is for adder layers, and op={self.op} has none: leave it out")
        if self.progressive and not self.teacher:
            raise UserError("progressive=True needs a teacher: pass teacher=RUN, or the name of a model")
        if self.teacher and self.logit_weight == self.feature_weight == 0:
            raise UserError(
                f"teacher={self.teacher} has no effect with logit_weight=0 and feature_weight=0: expected one above 0"
            )
        if 2 * self.accumulate > self.batch_size and self.accumulate > 1:
            raise UserError(
                f"accumulate={self.accumulate} leaves parts of one image: expected at most {self.batch_size // 2}, "
                f"half of batch_size={self.batch_size}"
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs={self.warmup_epochs} is out of range: expected below epochs={self.epochs}")
        if self.schedule == "step" and not self.milestones:
            raise UserError("schedule=step needs the epochs after which the rate falls: pass milestones=30,60,90")

    @property
    def milestone_epochs(self) -> tuple[int, ...]:
        """Return the epochs after which the step schedule lowers the rate."""
        return tuple(int(epoch) for epoch in self.milestones.split(",") if epoch)

    @property
    def gradient_rule(self) -> GradientRule | None:
        """Return the gradient rule of the adder layers; None for a network without them."""
        if self.op != "adder":
            return None
        from torchadder.functional import GradientRule

        return GradientRule(self.weight_grad, self.input_grad, self.numbers)  # type: ignore[arg-type]  # checked above

    def to_json(self) -> str:
        """Return the content of recipe.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe that to_json wrote. Raises UserError for anything else."""
        try:
            return cls(**json.loads(text))
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"no recipe of this version of torchadder ({error})") from error


GRADIENTS = {  # the two gradients of the paper's ablation, by their names in its table
    "full": {"weight_grad": "full", "input_grad": "hardtanh"},
    "sign": {"weight_grad": "sign", "input_grad": "sign"},
}


def options() -> tuple[Field[Any], ...]:
    """Return the fields of Recipe that a user sets, in order; their metadata holds help and allowed values."""
    return tuple(f for f in fields(Recipe) if f.metadata)


def default_value(option: Field[Any]) -> str:
    """Return the default of an option in words: "256", "off", "none", or "by recipe" where long recipes differ."""
    values = {getattr(recipe, option.name) for recipe in _LONG.values()}
    value = values.pop() if len(values) == 1 else "by recipe"
    if isinstance(value, bool):
        return "on" if value else "off"
    return (value or "none") if isinstance(value, str) else f"{value:g}"


def allowed_values(option: Field[Any]) -> str:
    """Return the allowed values of an option in words: "alr, ilr or plain", "at least 1", "above 0", "0 to 1"."""
    choices, low, high, above, below, form = _limits(option)
    if isinstance(option.default, bool):
        return "true or false"
    if choices:
        return ", ".join(choices[:-1]) + " or " + choices[-1]
    if form:
        return form[1]
    if above is not None:
        return f"above {above:g}"
    if below < math.inf:
        return f"at least {low:g} and below {below:g}"
    return f"at least {low:g}" if high in (math.inf, LARGEST) else f"{low:g} to {high:g}"


def _allowed(option: Field[Any], value: Any) -> bool:
    choices, low, high, above, below, form = _limits(option)
    kind: Any = type(option.default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        return False
    if kind is bool:
        return True
    if kind is str:
        return value in choices if choices else re.fullmatch(form[0], value) is not None
    if not (math.isfinite(value) and value <= high and value < below):
        return False
    return (low is None or value >= low) and (above is None or value > above)


def _limits(option: Field[Any]) -> tuple[Any, ...]:
    return tuple(option.metadata[key] for key in ("choices", "low", "high", "above", "below", "form"))


_MNIST = dict(eta=0.1)  # the paper's best value on MNIST, 99.40%; the authors' code has 0.2, which gives 99.35%
_CIFAR = dict(epochs=400, nesterov=False, augment=True, channels_last=True)
_PICO = dict(epochs=30, eta=0.1, augment=True, bits=4, finetune=3)
_SHORT = dict(epochs=20, batch_size=64, norm_batches=NORM_BATCHES)  # why 64: docs/decisions.md, Training
_IMAGENET = dict(epochs=150, weight_decay=1e-4, augment=True, channels_last=True)

_LONG: dict[str, Recipe] = {
    f"{model}-{dataset}": Recipe(f"{model}-{dataset}", model=model, **{"dataset": dataset, **settings})  # type: ignore[arg-type, dict-item]
    for model, dataset, settings in [
        ("lenet5bn", "mnist", _MNIST),
        ("lenetpp", "mnist", _MNIST),
        ("lenetpp_3d", "mnist", _MNIST),
        ("pico", "mnist", {**_PICO, "dataset": "mnist28"}),  # with its input, 2 kB of memory
        ("pico_wide", "mnist", _PICO),
        ("lenet5bn", "fashion_mnist", _MNIST),
        ("vgg_small", "cifar10", _CIFAR),
        ("vgg_small", "cifar100", _CIFAR),
        ("resnet8", "cifar10", _CIFAR),
        ("resnet20", "cifar10", _CIFAR),
        ("resnet20", "cifar100", _CIFAR),
        ("resnet32", "cifar10", _CIFAR),
        ("resnet32", "cifar100", _CIFAR),
        ("resnet18", "imagenet", _IMAGENET),
        ("resnet50", "imagenet", _IMAGENET),
    ]
}
RECIPES: dict[str, Recipe] = _LONG | {
    f"{name}-short": replace(_LONG[name], name=f"{name}-short", **_SHORT)  # type: ignore[arg-type]  # checked by Recipe
    for name in ("resnet8-cifar10", "resnet20-cifar10")
}


def get_recipe(name: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe ``name`` with ``changes``.

    On another data set than its own, which may be small, it has norm_batches=NORM_BATCHES unless ``changes`` says
    otherwise: after few steps the running averages of an AdderNet's statistics are far from the true ones.

    Raises UserError for an unknown name or a bad value.
    """
    if name not in RECIPES:
        raise UserError(f"recipe={name} is unknown: expected one of {', '.join(sorted(RECIPES))}")
    recipe, changes = RECIPES[name], changes or {}
    other = {} if changes.get("dataset", recipe.dataset) == recipe.dataset else {"norm_batches": NORM_BATCHES}
    return replace(recipe, **{**other, **changes})


def differences(ours: Recipe, theirs: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two recipes differ: name -> (ours, theirs)."""
    pairs = {f.name: (getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(Recipe)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
