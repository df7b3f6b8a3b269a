"""Run `torchadder export`: write a network in a form that runs without torchadder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from torchadder import files
from torchadder.cli.options import SUFFIX
from torchadder.errors import UserError

FORMS = ("c", "onnx")


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar=f"RUN|CHECKPOINT|FILE{SUFFIX}",
            help="An integer program, as quantize writes it, or pico or pico_wide of the package; for onnx also a "
            "trained model: a run directory, or what eval takes.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(metavar="|".join(FORMS), help="c: C99 source code for microcontrollers. onnx: for ONNX Runtime."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="c: the folder that gets the files. onnx: the file.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="c: name of the files and prefix of the functions (default: net).")
    ] = None,
    max_flash: Annotated[
        int | None, typer.Option(min=0, help="c: the most bytes of constant tables.", show_default=False)
    ] = None,
    max_ram: Annotated[int | None, typer.Option(min=0, help="c: the most bytes of arena.", show_default=False)] = None,
) -> None:
    """Write a network as one C99 file that needs no library and allocates nothing, or as an ONNX file."""
    if to not in FORMS:
        raise UserError(f"to={to!r}: expected {' or '.join(FORMS)}")
    from torchadder.models.pretrained import find_program

    source = find_program(source)
    if to == "c":
        from torchadder.export import export_c

        name = "net" if name is None else name
        draft = export_c(source, out, name=name, max_flash=max_flash, max_ram=max_ram)
        print(f"{out / name}.c  {draft.flash:,} bytes of constant tables, {draft.arena:,} bytes of arena")
        return
    for option, value in (("name", name), ("max_flash", max_flash), ("max_ram", max_ram)):
        if value is not None:
            raise UserError(f"{option}={value}: is for C, leave it out")
    files.check_writable(out, ".onnx")
    import torch

    from torchadder.export import export_onnx
    from torchadder.models.trained import is_function, open_trained
    from torchadder.quant.file import is_program

    if source.endswith(SUFFIX) or is_program(source):
        export_onnx(source, None, out)
    elif is_function(source):
        raise UserError(f"{source}: the size of its images is not known; use torchadder.export_onnx in Python")
    else:
        model, _ = open_trained(source)
        size: Any = model.input_size
        export_onnx(model, torch.zeros(2, *size), out)
    print(f"{out}  {out.stat().st_size:,} bytes")
