"""Flags that verbs share: those of a recipe, made from the fields of its dataclass, and those of a data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from torchadder.data import list_datasets
from torchadder.train.recipe import allowed_values, default_value, options

WORKERS = "Processes that decode images which stream; they change no number (default: one a processor, 8 at most)."

DatasetName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"One of: {', '.join(list_datasets())} (default: the one it was trained on, where it says so).",
    ),
]
DataFolder = Annotated[
    Path | None, typer.Option(help="Folder with the data files (default $TORCHADDER_DATA, the cache, or fetched).")
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Accept data files that hold only a part of the published images.")
]
OnError = Annotated[str, typer.Option(help="What to do about an image that does not decode: stop or skip.")]
Workers = Annotated[int | None, typer.Option(min=0, help=WORKERS, show_default=False)]


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with a flag for each option of Recipe, in the place of its parameter ``changes``.

    Those that are given arrive as that dict.
    """
    parameters = list(inspect.signature(command).parameters.values())
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
