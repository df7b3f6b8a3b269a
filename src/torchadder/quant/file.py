"""Read and write ``.tadder`` files: a quantized network as safetensors, with a description of its steps as metadata.

    metadata   tadder: JSON {"version", "input", "steps", "about"}, called the head here; it is one entry, because
               safetensors does not fix the order of several
    tensors    input.scale, input.zero float32 (C,); of step i, as its kind needs: i.weight or i.packed, i.zero,
               i.multiplier, i.offset, i.shift, i.factor, i.gain, i.bias, i.table

Weights that fit into 4 bits are packed, two in a byte of i.packed, the lower half first: those of an adder layer are 0
to 15, others -8 to 7, among them the signs of binary layers. An odd number ends with half a byte of 0. The step then
has "filters", the shape of the weights, and the version is 3; a file without packed weights has version 2.

In the file zero_point is called "zero", qmax "highest", pre_shift "pre", and the scale of the logits "gain". "about"
holds text and numbers by name, which the program runs without:

    mode, mean, std, part                     how an image file becomes the input, see data.preprocessing
    classes                                   JSON list of the names of the classes

The command line adds:

    torchadder, model, op, dataset            the version, and what was quantized
    bits, method, calibration_images          how it was quantized, as in torchadder.quantize
    finetune_epochs, finetune_lr              how it was fine-tuned; no learning rate for 0 epochs
    finetune_target                           "answers" if it was fine-tuned to those of the model, without labels
    float_accuracy                            accuracy of the float model in percent, if it was tested

A file may come from a stranger. The native engine holds the rules of a sound file and checks every number before use;
Python reads only what the engine has accepted.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from torchadder import kernels
from torchadder.data.preprocessing import CENTRE, MODES, WHOLE, Preprocessing
from torchadder.data.registry import Normalization
from torchadder.errors import UserError, in_one_line

FORMAT, SUFFIX = "tadder", ".tadder"
VERSION, PACKED = 2, 3  # of files without and with packed weights; those of version 1 are read, too
OTHERS = {  # how files begin that people take for a program
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"PK": "a checkpoint or another zip archive",
    b"\x80": "a checkpoint or another pickle",
}
MAX_HEAD = 1 << 26  # bytes; no head of a program is as long
MAX_PATH = 4096  # characters; no system opens a longer one
ByChannel = float | Sequence[float] | Tensor
Classes = Sequence[str] | Mapping[str, int]  # the names in order, or each name's number


def pack(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a file with this head and these tensors."""
    # Clones, because safetensors refuses tensors that share memory.
    own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    return safetensors.torch.save(own, {FORMAT: json.dumps(head)})


def pack_weight(weight: Tensor) -> Tensor | None:
    """Return the weights of a layer, two in a byte, uint8 (half as many,); None where they need more than 4 bits."""
    low, high = (0, 15) if weight.dtype == torch.uint8 else (-8, 7)
    if not low <= int(weight.min()) <= int(weight.max()) <= high:
        return None
    halves = F.pad(weight.flatten(), (0, weight.numel() % 2)) & 15
    return (halves[::2] | halves[1::2] << 4).view(torch.uint8)


def unpack_weight(packed: Tensor, shape: Sequence[int], signed: bool) -> Tensor:
    """Return the weights that pack_weight packed, int8 if ``signed``, else uint8."""
    halves = torch.stack([packed & 15, packed >> 4], 1).flatten()[: math.prod(shape)]
    if signed:
        halves = (halves ^ 8).view(torch.int8) - 8
    return halves.view(*shape)


def is_program(path: str | Path) -> bool:
    """Return whether the content of a file is that of a program, sound or not, whatever its name."""
    try:
        with open(path, "rb") as opened:
            return _begins_program(opened)
    except OSError:
        return False


def _begins_program(opened: BinaryIO) -> bool:
    try:
        size = int.from_bytes(opened.read(8), "little")
        return size < MAX_HEAD and FORMAT in json.loads(opened.read(size))["__metadata__"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def read(path: str | Path) -> bytes:
    """Return the content of a file. Raises UserError where it cannot be read, TypeError for what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"source is of type {type(path).__name__}: expected a {SUFFIX} file, as quantize makes one")
    if not str(path) or "\0" in str(path) or len(str(path)) > MAX_PATH or os.path.isdir(path):
        raise UserError(
            f"cannot read {str(path)[:100]!r}: expected the path of a {SUFFIX} file, which torchadder quantize makes"
        )
    try:
        return Path(path).read_bytes()
    except OSError as error:
        expected = "" if str(path).endswith(SUFFIX) else f"; expected a {SUFFIX} file, which torchadder quantize makes"
        raise UserError(f"cannot read {path}: {error.strerror or error}{expected}") from error


def refusal(content: bytes) -> str:
    """Return why the native engine does not accept ``content`` as a program, "" where it does."""
    native = kernels.library()
    native.torchadder_engine_check.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    if native.torchadder_engine_check(content, len(content)):
        return str(native.torchadder_last_error().decode(errors="replace"))
    return ""


def check(content: bytes, path: str | Path) -> None:
    """Raise UserError where ``content``, read from ``path``, is not a program that the native engine accepts."""
    if reason := refusal(content):
        kind = next((kind for begin, kind in OTHERS.items() if content.startswith(begin)), "")
        kind = "a checkpoint" if content[8:9] == b"{" else kind
        if kind and not _begins_program(io.BytesIO(content)):
            reason = f"it is {kind}, expected FILE{SUFFIX}, which quantize makes of a checkpoint"
        raise UserError(f"{path} is not a valid program: {reason}")


def unpack(content: bytes, path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the head and the tensors by name of a file that the native engine has accepted."""
    try:
        return head_of(content, path), safetensors.torch.load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is not a valid program: {in_one_line(error)}") from error


def head_of(content: bytes, path: str | Path) -> dict[str, Any]:
    """Return the head of a file that the native engine has accepted. Raises UserError where Python cannot parse it."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return dict(json.loads(header["__metadata__"][FORMAT]))
    except ValueError as error:
        raise UserError(f"{path} is not a valid program: its head is not JSON ({str(error)[:100]})") from error


def describe_images(
    channels: int,
    outputs: int,
    mean: ByChannel | None = None,
    std: ByChannel | None = None,
    classes: Classes | None = None,
    part: str = WHOLE,
) -> dict[str, str]:
    """Return the entries of "about" that say how images are prepared and what the classes are called.

    Arguments as in Program.save. Raises UserError where they do not fit a program with ``channels`` input channels and
    ``outputs`` logits.
    """
    about = {}
    if (mean is None) != (std is None):
        raise UserError("mean and std belong together: pass both, one number a channel, or neither")
    if mean is not None and std is not None:
        if channels not in MODES:
            raise UserError(f"mean and std are for grey or RGB images: the program takes {channels} channels")
        if part not in (WHOLE, CENTRE):
            raise UserError(f"part={part!r} is unknown: expected {WHOLE} or {CENTRE}")
        numbers = _numbers("mean", mean, channels), _numbers("std", std, channels)
        advice = "of pixels / 255; divide those of pixels 0..255 by 255"
        if not 0 <= min(numbers[0]) <= max(numbers[0]) <= 1:
            raise UserError(f"mean={numbers[0]} is out of range: expected numbers from 0 to 1, {advice}")
        if not 0 < min(numbers[1]) <= max(numbers[1]) <= 1:
            raise UserError(f"std={numbers[1]} is out of range: expected numbers above 0 and up to 1, {advice}")
        about = Preprocessing(Normalization.of(*numbers), part).to_dict()
    if classes is not None:
        names: list[object] = [name.rstrip("\r\n") if isinstance(name, str) else name for name in classes]
        if isinstance(classes, Mapping):  # name -> number of the logit, such as class_to_idx of torchvision
            by_number = {number: name for name, number in zip(names, classes.values(), strict=True)}
            names = [by_number.get(number) for number in range(len(names))]
        unordered = isinstance(classes, str | Set)
        if unordered or len(names) != outputs or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"classes={str(classes)[:60]} does not fit: expected {outputs} names in the order of the logits, or a "
                "dict that gives each name its number"
            )
        about["classes"] = json.dumps(names)
    return about


def _numbers(name: str, values: ByChannel, channels: int) -> list[float]:
    found = [float(value) for value in torch.as_tensor(values, dtype=torch.float64).flatten()]
    if len(found) != channels or not all(map(math.isfinite, found)):
        raise UserError(f"{name}={found} does not fit: expected {channels} finite numbers, one a channel")
    return found
