"""Hold a quantized network: the integer program that ``quantize`` makes.

Value 0 is the quantized images, value i + 1 the output of step i; see steps for what these compute.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchadder import files
from torchadder.errors import UserError
from torchadder.functional import autocast
from torchadder.quant import file
from torchadder.quant.steps import AveragePool, Concat, Layer, Logits, MaxPool, Requantization, Step, Table, by_channel

MIN_COMMON = 0.55  # of the ranges of pixels and of calibration images, what both must cover; see decisions.md
ON_DISK = {"zero_point": "zero", "scale": "gain"}  # names that a step's tensors have in a file, where they differ
AXES = ("kernel", "stride", "padding", "dilation", "groups")


class Program(nn.Module):
    """Run a quantized network in torch: quantize the images, run the steps, return the logits.

    ``forward`` takes images (N, C, H, W), floating point as the network takes them, or with quantized=True uint8, which
    are quantized values already. It returns logits float32 (N, classes). The program of a network of rows (N, C, L) or
    vectors (N, C) takes these, too: its height, or height and width, are 1.

    Attributes:
        shape: (C, H, W) of an image. classes: number of logits.
        scale, zero_point: of the input, float32 (C,); a zero point may lie between two integers.
        qmax: the largest quantized value of the input.
        steps: the Step modules in order.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, shape: tuple[int, int, int], scale: Tensor, zero_point: Tensor, steps: Sequence[Step], qmax: int = 255
    ):
        super().__init__()
        self.shape, self.qmax = shape, qmax
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.steps = nn.ModuleList(steps)

    @property
    def classes(self) -> int:
        return len(self.steps[-1].weight)  # type: ignore[arg-type]  # the last step is a Layer

    def quantize(self, images: Tensor) -> Tensor:
        """Return the quantized values, uint8, of float images (N, C, ...) with any axes after the channels."""
        axes = images.dim() - 2
        q = images.float() / by_channel(self.scale, axes) + by_channel(self.zero_point, axes)
        return q.round_().clamp_(0, self.qmax).nan_to_num_(0).to(torch.uint8)

    @torch.no_grad()
    def forward(self, images: Tensor, quantized: bool = False) -> Tensor:
        self._check_dtype()
        if not isinstance(images, Tensor):
            raise TypeError(f"images are of type {type(images).__name__}: expected a tensor")
        if images.layout is not torch.strided or images.is_nested:
            raise TypeError("expected images in a dense tensor, got a sparse or nested one")
        if autocast.is_on(images):  # it would round the integers
            with torch.autocast(images.device.type, enabled=False):
                return self(images, quantized)
        images = with_all_axes(images, self.shape)
        if quantized != (images.dtype == torch.uint8) or not (quantized or images.is_floating_point()):
            expected = "uint8 with quantized=True" if quantized else "floating point, or uint8 with quantized=True"
            raise TypeError(f"images are {images.dtype}: expected {expected}")
        values = [images if quantized else self.quantize(images)]
        for step in self.steps:
            values.append(step(*(values[i] for i in step.sources)))  # type: ignore[union-attr]  # each is a Step
        return values[-1].flatten(1)

    def save(
        self,
        path: str | Path,
        *,
        mean: file.ByChannel | None = None,
        std: file.ByChannel | None = None,
        classes: file.Classes | None = None,
        part: str = "whole",
        about: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Write a ``.tadder`` file that Engine, the command line and the C interface run.

            program.save("digits.tadder", mean=[0.1307], std=[0.3081], classes=["zero", "one", ...])

        Args:
            path: the file; an old one is replaced whole or not at all.
            mean, std: one number a channel; the network was trained on (pixel / 255 - mean) / std. predict and the C
                example need both. Images of one channel are grey, images of three are RGB.
            classes: the names of the classes by label, or a dict name -> label; without them predict prints numbers.
            part: "whole" resizes an image file to the size of the program, "centre" crops its centre first, as
                evaluation on ImageNet does.
            about: further text and numbers to keep, by name; ``Engine.about`` returns them.

        Raises:
            UserError: an argument does not fit the program, or the file cannot be written.
        """
        for name, value in (about or {}).items():
            if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(f"about: {name}={value!r} is neither text nor a finite number")
        images = file.describe_images(self.shape[0], self.classes, mean, std, classes, part)
        if mean is not None and std is not None:
            self._compare_with_pixels(mean, std)
        content = self.to_bytes({**(about or {}), **images})
        try:
            files.write_bytes(Path(path), content)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error

    def _compare_with_pixels(self, mean: file.ByChannel, std: file.ByChannel) -> None:
        """Warn where pixels normalised by ``mean`` and ``std`` lie elsewhere than the images of the calibration."""
        mean, std = (torch.as_tensor(numbers, dtype=torch.float32).flatten().cpu() for numbers in (mean, std))
        black, white = (0 - mean) / std, (1 - mean) / std
        scale, zero_point = self.scale.cpu(), self.zero_point.cpu()
        low, high = -zero_point * scale, (self.qmax - zero_point) * scale
        common = torch.minimum(high, white) - torch.maximum(low, black)
        share = common / (torch.maximum(high, white) - torch.minimum(low, black))
        if not (share > MIN_COMMON).any():
            calibrated, pixels = (f"{a.min():.2g} to {b.max():.2g}" for a, b in ((low, high), (black, white)))
            warnings.warn(
                f"the images of the calibration cover {calibrated}, but pixels with this mean and std are {pixels}: "
                "expected the same normalisation for both",
                stacklevel=3,
            )

    def to_bytes(self, about: Mapping[str, str | int | float] | None = None) -> bytes:
        """Return the content of the program's file; ``about`` is kept in it as it is."""
        self._check_dtype()
        tensors = {"input.scale": self.scale, "input.zero": self.zero_point}
        descriptions = [_description(step) for step in self.steps]
        for number, step in enumerate(self.steps):
            for name, value in step.named_buffers():
                name = name.rpartition(".")[2]
                if name == "weight" and (packed := file.pack_weight(value)) is not None:
                    descriptions[number]["filters"] = [*value.shape]
                    name, value = "packed", packed
                tensors[f"{number}.{ON_DISK.get(name, name)}"] = value
        head = {
            "version": file.PACKED if any("filters" in about for about in descriptions) else file.VERSION,
            "input": {"shape": [*self.shape], "highest": self.qmax},
            "steps": descriptions,
            "about": dict(about or {}),
        }
        return file.pack(head, tensors)

    def _check_dtype(self) -> None:
        if self.scale.dtype is not torch.float32:
            raise UserError(f"the program was cast to {self.scale.dtype}, which rounds its numbers: quantize again")

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Return the program of a ``.tadder`` file, which may come from a stranger: the native engine checks it first.

        What the file keeps beside it (mean, std, class names) is in ``Engine(path).about``; pass it to ``save`` again.

        Raises UserError where the file cannot be read or is damaged.
        """
        return cls.from_bytes(file.read(path), path)

    @classmethod
    def from_bytes(cls, content: bytes, name: str | Path = "the program") -> Program:
        """Return the program of the content of a file, called ``name`` in messages; otherwise as ``load``."""
        file.check(content, name)
        head, tensors = file.unpack(content, name)
        steps = [_step(number, about, tensors) for number, about in enumerate(head["steps"])]
        channels, height, width = head["input"]["shape"]
        scale, zero_point = tensors["input.scale"], tensors["input.zero"]
        return cls((channels, height, width), scale, zero_point, steps, head["input"]["highest"])


def with_all_axes(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return images (N, C, H, W), of which a height of 1, and with it a width of 1, may be left out.

    Raises UserError where they do not have the shape (C, H, W).
    """
    axes = 3 - (shape[1] == 1) - (shape[1:] == (1, 1))
    if tuple(images.shape[1:]) not in (shape, *[(shape[0], *shape[2:])[:length] for length in range(axes, 3)]):
        raise UserError(f"expected images (N, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    return images.view(len(images), *shape) if images.dim() < 4 else images


def _description(step: Any) -> dict[str, Any]:
    """Return the entry of ``step`` in the head of a file."""
    about = {"op": step.kind, "sources": step.sources}
    for name in AXES:
        value = getattr(step, name, None)
        if value is not None and value != step.defaults.get(name):
            about[name] = value
    epilogue = getattr(step, "epilogue", None)
    if isinstance(epilogue, Requantization):
        about |= {"highest": epilogue.qmax, "pre": epilogue.pre_shift}
    return about


def _step(number: int, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Step:
    """Return step ``number`` of a file that the native engine has accepted."""
    own: Any = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{number}.")}
    axes: Any = {name: tuple(value) if isinstance(value := about.get(name), list) else value for name in AXES}
    sources, kernel, stride = about["sources"], axes["kernel"], axes["stride"]
    padding: Any = axes["padding"] or 0
    epilogue: Any = None
    if "gain" in own:
        epilogue = Logits(own["gain"], own["bias"])
    elif "multiplier" in own:
        numbers = own["multiplier"], own["offset"], own["shift"], own.get("factor")
        epilogue = Requantization(*numbers, about["highest"], about["pre"])
    match about["op"]:
        case "max_pool":
            return MaxPool(sources, kernel, stride, padding)
        case "average_pool":
            return AveragePool(sources, kernel, stride, epilogue, padding)
        case "concat":
            return Concat(sources, epilogue)
        case "table":
            return Table(sources, own["table"])
        case kind:
            zero_point = own["zero"]
            if "packed" in own:
                weight = file.unpack_weight(own["packed"], about["filters"], signed=kind != "adder")
            else:
                weight = own["weight"]
            taps = axes["dilation"] or (1, 1), axes["groups"] or 1
            return Layer(kind, sources, weight, zero_point, stride, padding, epilogue, *taps)
