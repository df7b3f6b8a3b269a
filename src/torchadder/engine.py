"""Run a quantized network on the native kernels: the 8-bit integer engine, bit-equal to the program in torch.

    engine = Engine("net.tadder", threads=4)
    logits = engine(images)  # (N, C, H, W) -> float32 (N, classes)

A Classifier also prepares the images, as the file describes.
"""

from __future__ import annotations

import ctypes
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchadder import kernels
from torchadder.data.preprocessing import Preprocessing
from torchadder.errors import UserError
from torchadder.quant import file
from torchadder.quant.program import Program

__all__ = ["Classifier", "Engine"]


class Engine:
    """Run an integer program natively.

    Args:
        source: a ``.tadder`` file, which may come from a stranger, or a Program.
        threads: how many share the images of a batch, or the work of a single image. Default:
            torch.get_num_threads().
        isa: "reference", "avx2", "avx2max", "avx512" or "avx512vnni"; default: the best that this CPU runs (and
            torchadder.kernels allows).
        keep_values: keep every intermediate value in memory, for ``values``.

    Raises UserError where the file is missing or damaged, or an argument is out of range.

    Attributes:
        shape: (C, H, W) of an image. classes: number of logits. threads: as given.
        about: text and numbers that the file keeps beside the program, see quant.file.
        file_bytes, weight_bytes, arena_bytes: memory in bytes; running needs the weights and the arena only.
    """

    def __init__(
        self,
        source: str | Path | Program,
        threads: int | None = None,
        isa: str | None = None,
        keep_values: bool = False,
    ):
        self.threads = torch.get_num_threads() if threads is None else threads
        if not 1 <= self.threads <= 1024:
            raise UserError(f"threads={threads} is out of range: expected 1 to 1024")
        content = source.to_bytes() if isinstance(source, Program) else file.read(source)
        name = "the program" if isinstance(source, Program) else str(source)
        native = _library()
        wanted = None if isa is None else isa.encode()
        self._handle = native.torchadder_engine_read(content, len(content), self.threads, wanted, keep_values)
        if not self._handle:
            reason = _last_error()
            file.check(content, name)
            raise UserError(f"cannot run {name}: {reason}")  # the file is sound, an argument is not
        self.about: dict[str, Any] = dict(file.head_of(content, name)["about"])
        found = native.torchadder_engine_describe(self._handle)
        self.shape = (found.channels, found.height, found.width)
        self.classes = found.classes
        self.file_bytes, self.weight_bytes, self.arena_bytes = found.file_bytes, found.weight_bytes, found.arena_bytes
        self._steps = found.steps

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _library().torchadder_engine_free(self._handle)

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Return logits float32 (N, classes) of images (N, C, H, W).

        Images are float32 as the network takes them, or uint8, which are quantized values already.
        """
        return self._run(images, None)

    def benchmark(self, batch: int = 1, repetitions: int = 51) -> float:
        """Return the latency: the median seconds of a call with ``batch`` random images, after one call to warm up."""
        images = torch.rand(batch, *self.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        self(images)
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            self(images)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def profile(self, images: Tensor | np.ndarray) -> list[float]:
        """Return the seconds that one thread spends on quantizing the input and on each step, over all images."""
        seconds = np.zeros(1 + self._steps)
        self._run(images, seconds.ctypes.data)
        return [float(value) for value in seconds]

    def kernels(self) -> list[str]:
        """Return the name of the kernel that each step runs on, in order."""
        names = (_library().torchadder_engine_kernel(self._handle, step) for step in range(self._steps))
        return [name.decode() for name in names]

    def values(self, image: Tensor | np.ndarray) -> list[Tensor]:
        """Return the quantized values, uint8 (C, H, W), of the input and of each step but the last, for one image.

        ``image`` is (1, C, H, W). Raises UserError for more images, or for an engine without keep_values.
        """
        if len(image) != 1:
            raise UserError(f"expected one image, got {len(image)}")
        self(image)
        found = []
        for index in range(self._steps):
            shape = (ctypes.c_int64 * 3)()
            if _library().torchadder_engine_value(self._handle, index, shape, None):
                raise UserError(_last_error())
            q = torch.empty(tuple(shape), dtype=torch.uint8)
            _library().torchadder_engine_value(self._handle, index, shape, q.data_ptr())
            found.append(q)
        return found

    def _run(self, images: Tensor | np.ndarray, seconds: int | None) -> Tensor:
        images = torch.as_tensor(images)
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            raise UserError(f"expected images (N, {', '.join(map(str, self.shape))}), got {tuple(images.shape)}")
        if images.device.type != "cpu" or images.dtype not in (torch.float32, torch.uint8):
            raise TypeError(f"expected images float32 or uint8 on the CPU, got {images.dtype} on {images.device}")
        images = images.contiguous()
        logits = torch.empty(len(images), self.classes, dtype=torch.float32)
        native = _library()
        run = native.torchadder_engine_run_u8 if images.dtype == torch.uint8 else native.torchadder_engine_run_f32
        if run(self._handle, images.data_ptr(), len(images), logits.data_ptr(), seconds):
            raise RuntimeError(_last_error())
        return logits


class Classifier:
    """Open a ``.tadder`` file that says how to prepare images, as Program.save with mean and std writes it.

    Attributes:
        engine: computes the logits. preprocessing: makes its input from an image file.
        names: of the classes; their numbers where the file has no names.

    Raises UserError where the file is damaged, or does not say how to prepare an image.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        self.engine = Engine(path, threads)
        try:
            self.preprocessing = Preprocessing.from_dict(self.engine.about, self.engine.shape[0])
        except ValueError as error:
            raise UserError(
                f"cannot tell from {path} how to prepare an image: {error}; quantize it again, or save it from Python "
                "with mean and std"
            ) from error
        self.names = _names(self.engine)


def _names(engine: Engine) -> list[str]:
    """Return the names of the classes from the file; their numbers unless it has one name for each logit."""
    numbers = [str(label) for label in range(engine.classes)]
    try:
        names = json.loads(engine.about.get("classes", "[]"))
    except (TypeError, ValueError, RecursionError):
        return numbers
    good = isinstance(names, list) and len(names) == len(numbers) and all(isinstance(name, str) for name in names)
    return names if good else numbers


class _Description(ctypes.Structure):
    """Mirror torchadder_engine_about of include/torchadder_engine.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("channels", "height", "width", "classes", "file_bytes", "weight_bytes", "arena_bytes")
        ),
        *((name, ctypes.c_int) for name in ("threads", "steps")),
    ]


@functools.cache
def _library() -> ctypes.CDLL:
    """Return the native library with the engine's functions declared."""
    native = kernels.library()
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    run = ([pointer, pointer, ctypes.c_int64, pointer, pointer], integer)
    for name, (arguments, result) in {
        "read": ([ctypes.c_char_p, ctypes.c_size_t, integer, ctypes.c_char_p, integer], pointer),
        "free": ([pointer], None),
        "describe": ([pointer], _Description),
        "kernel": ([pointer, integer], ctypes.c_char_p),
        "run_f32": run,
        "run_u8": run,
        "value": ([pointer, integer, pointer, pointer], integer),
    }.items():
        function = getattr(native, f"torchadder_engine_{name}")
        function.argtypes, function.restype = arguments, result
    return native


def _last_error() -> str:
    """Return the reason why the last native call failed, in one line."""
    return kernels.library().torchadder_last_error().decode(errors="replace")
