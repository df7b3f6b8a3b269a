"""Define the flags that several verbs share: those of a recipe, made from its dataclass, and those of a data set.

The names that help texts list are repeated here, because reading the registries would import torch, which takes
seconds. tests/cli/test_app.py compares them with the registries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from torchadder.train.recipe import allowed_values, default_value, options

MODELS = (
    *("ds_cnn", "lenet5bn", "lenetpp", "lenetpp_3d", "mobilenetv1_025", "pico", "pico_wide", "resnet18", "resnet20"),
    *("resnet32", "resnet50", "resnet8", "vgg_small"),
)
OPS = ("adder", "conv", "binary")
DATASETS = (
    *("cifar10", "cifar100", "fashion_mnist", "hf:NAME", "imagefolder:DIR", "imagenet", "mnist", "mnist28"),
    "wds:SHARDS",
)
METHODS = ("mse", "max", "percentile")
FIGURES = ("features", "filters", "weights", "curves", "gradients", "outputs")
TABLES = (
    *("mnist", "fashion_mnist", "ablation", "eta", "eta_sign"),
    *("cifar10_jpeg", "cifar10", "cifar100", "imagenet"),
)
SUFFIX = ".tadder"

KINDS = (
    "A run directory or a checkpoint file of one, a directory written by save_pretrained, a safetensors file, a state "
    "dict, also in the names of the AdderNet authors, a trained network of the package such as lenet5bn-adder, or "
    "package.module:function, which builds a network of yours"
)
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The state dict for package.module:function.", show_default=False),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"One of: {', '.join(DATASETS)} (default: the one that the model was trained on, if it says so).",
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the data files (default: $TORCHADDER_DATA, the cache, or fetched).", show_default=False
    ),
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Accept data files that hold only a part of the published images.")
]
OnError = Annotated[str, typer.Option(help="What to do about an image that does not decode: stop or skip.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode streamed images; results stay the same (default: one a processor, at most 8).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object and nothing else.")]


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with a flag for each option of Recipe, in the place of its parameter `changes`.

    The flags that the user gives arrive in `changes`, a dictionary from field to value.
    """
    parameters = list(inspect.signature(command, eval_str=True).parameters.values())
    place = [p.name for p in parameters].index("changes")
    flags = []
    for option in options():
        kind: Any = type(option.default)
        allowed = "" if kind is bool else f"{allowed_values(option)}; "
        text = f"{option.metadata['help']} ({allowed}default {default_value(option)})"
        info = typer.Option(help=text, rich_help_panel=option.metadata["group"], show_default=False)
        annotation = Annotated[Optional[kind], info]  # noqa: UP045  a type known at run time
        flags.append(
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )

    def with_options(**given: Any) -> None:
        changes = {f.name: value for f in flags if (value := given.pop(f.name)) is not None}
        command(**given, changes=changes)

    parameters[place : place + 1] = flags
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    with_options.__doc__ = command.__doc__
    return with_options
