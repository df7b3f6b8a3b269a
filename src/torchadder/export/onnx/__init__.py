"""Write networks as ONNX files, which ONNX Runtime runs as they are.

    export_onnx(model, torch.zeros(1, 3, 32, 32), "net.onnx")  # in floating point
    export_onnx("net.tadder", None, "net.onnx")                # an integer program, whose logits are exactly Engine's

An adder layer is one node of domain ``torchadder``. functions defines such nodes by standard operators; network exports
a model in floating point, program an integer program.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from torchadder import files
from torchadder.errors import UserError, in_one_line
from torchadder.quant import file
from torchadder.quant.program import Program

__all__ = ["export_onnx"]

PACKAGES = ("onnx", "onnxscript")  # the extra [onnx]


def export_onnx(model: nn.Module | str | Path, example: Tensor | Sequence[Tensor] | None, path: str | Path) -> None:
    """Write ``model`` as an ONNX file with input ``images`` and output ``logits``, of opset 18.

        torchadder.export_onnx(model, torch.zeros(1, 3, 32, 32), "net.onnx")

    Args:
        model: a network that torch.export traces; it is exported in evaluation mode and stays as it is. Or an integer
            program: a Program, or the path of a ``.tadder`` file, which may come from a stranger.
        example: a batch of images as the model takes them, (N, C, ...) in float32 or float64, or a tuple of the model's
            inputs. The file takes any number of images, and any height and width where the model runs on images of
            twice the size. None for an integer program, which has one size of image.
        path: the file, whose name ends in .onnx; an old one is replaced whole or not at all.

    What a ``.tadder`` file keeps beside the program (mean, std, class names) becomes the metadata of the ONNX file.

    Raises UserError where onnx or onnxscript is missing, the model does not run on the example or has a part without
    ONNX form, and where the file cannot be written. Nothing is written then.
    """
    path = Path(path)
    files.check_writable(path, ".onnx", "path")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"to write an ONNX file, install {' and '.join(missing)}: pip install 'torchadder[onnx]'")
    import onnx

    if isinstance(model, nn.Module) and not isinstance(model, Program):
        from torchadder.export.onnx.network import network_to_onnx

        if example is None:
            raise UserError(f"example={example}: expected a batch of images as {type(model).__name__} takes them")
        written = network_to_onnx(model, example)
    else:
        from torchadder.export.onnx.program import program_to_onnx

        if isinstance(model, Program):
            written = program_to_onnx(model)
        else:
            content = file.read(model)
            written = program_to_onnx(Program.from_bytes(content, model))
            about = file.head_of(content, model)["about"]
            onnx.helper.set_model_props(written, {name: str(value) for name, value in about.items()})
    onnx.checker.check_model(written, full_check=True)
    try:
        files.write_bytes(path, written.SerializeToString())
    except OSError as error:
        raise UserError(f"path={path}: cannot be written ({in_one_line(error)})") from error
