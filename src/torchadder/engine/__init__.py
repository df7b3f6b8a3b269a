"""The integer engine: a quantised network on the native kernels, bit-equal to its torch program."""

from __future__ import annotations

import ctypes
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchadder import kernels
from torchadder.errors import UserError
from torchadder.quant.file import FORMAT, to_bytes
from torchadder.quant.program import Program

__all__ = ["Engine"]


class _Described(ctypes.Structure):
    """torchadder_engine_about of include/torchadder_engine.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("channels", "height", "width", "classes", "file_bytes", "weight_bytes", "arena_bytes")
        ),
        *((name, ctypes.c_int) for name in ("threads", "steps")),
    ]


class Engine:
    """Runs an integer program natively.

    Args:
        source: a ``.tadder`` file, or the Program that torchadder.quantize gives.
        threads: images are shared among them; one image is computed by all. Default: torch.get_num_threads().
        isa: "reference", "avx2", "avx2max", "avx512" or "avx512vnni"; default: the best that this CPU runs (and
            torchadder.kernels allows).
        keep_values: every intermediate value stays in memory, for ``values``.

    Raises UserError where the file is missing or is no sound program; it may come from a stranger.

    Attributes:
        shape: (C, H, W) of an image. classes: logits an image. threads. about: what was kept with the program.
        file_bytes, weight_bytes, arena_bytes: memory, bytes; an inference needs no more than weights and arena.
    """

    def __init__(
        self,
        source: str | Path | Program,
        threads: int | None = None,
        isa: str | None = None,
        keep_values: bool = False,
    ):
        place = f"{source} is" if isinstance(source, (str, Path)) else "this is"
        try:
            content = to_bytes(source) if isinstance(source, Program) else Path(source).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {source}: {error.strerror or error}") from error
        threads = torch.get_num_threads() if threads is None else threads
        if not 1 <= threads <= 1024:
            raise UserError(f"threads={threads} is out of range: expected 1 to 1024")
        native = _library()
        wanted = None if isa is None else isa.encode()
        self._handle = native.torchadder_engine_read(content, len(content), threads, wanted, keep_values)
        if not self._handle:
            raise UserError(f"{place} no sound program: {_last_error()}")
        described = native.torchadder_engine_describe(self._handle)
        self.shape = (described.channels, described.height, described.width)
        self.classes, self.threads = described.classes, described.threads
        self.file_bytes, self.weight_bytes = described.file_bytes, described.weight_bytes
        self.arena_bytes = described.arena_bytes
        self._steps = described.steps
        self.about = _about(content)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _library().torchadder_engine_free(self._handle)

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Logits float32 (N, classes) of images (N, C, H, W): float32 as the network takes them, or codes uint8."""
        return self._run(images, None)

    def profile(self, images: Tensor | np.ndarray) -> list[float]:
        """Seconds that one thread spends on the input and on each step, over all images."""
        seconds = np.zeros(1 + self._steps)
        self._run(images, seconds.ctypes.data)
        return [float(value) for value in seconds]

    def benchmark(self, batch: int = 1, repetitions: int = 11) -> list[float]:
        """Seconds a call on random images, one number a repetition, after one call that is not counted."""
        images = torch.rand(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        self(images)
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            self(images)
            seconds.append(time.perf_counter() - start)
        return seconds

    def kernels(self) -> list[str]:
        """The kernel that each step runs on, in order."""
        names = (_library().torchadder_engine_kernel(self._handle, step) for step in range(self._steps))
        return [name.decode() for name in names]

    def values(self, image: Tensor | np.ndarray) -> list[Tensor]:
        """The codes (C, H, W), uint8, of the input and of each step but the last, for one image (1, C, H, W).

        Raises ValueError for an engine without keep_values, or for more images than one.
        """
        if len(image) != 1:
            raise ValueError(f"expected one image, got {len(image)}")
        self(image)
        found = []
        for index in range(self._steps):
            shape = (ctypes.c_int64 * 3)()
            if _library().torchadder_engine_value(self._handle, index, shape, None):
                raise ValueError(_last_error())
            codes = torch.empty(tuple(shape), dtype=torch.uint8)
            _library().torchadder_engine_value(self._handle, index, shape, codes.data_ptr())
            found.append(codes)
        return found

    def _run(self, images: Tensor | np.ndarray, seconds: int | None) -> Tensor:
        images = torch.as_tensor(images)
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"expected images (N, {', '.join(map(str, self.shape))}), got {tuple(images.shape)}")
        if images.device.type != "cpu" or images.dtype not in (torch.float32, torch.uint8):
            raise TypeError(f"expected float32 images or uint8 codes on the CPU, got {images.dtype} on {images.device}")
        images = images.contiguous()
        logits = torch.empty(len(images), self.classes)
        native = _library()
        run = native.torchadder_engine_run_u8 if images.dtype == torch.uint8 else native.torchadder_engine_run_f32
        if run(self._handle, images.data_ptr(), len(images), logits.data_ptr(), seconds):
            raise RuntimeError(_last_error())
        return logits


@functools.cache
def _library() -> ctypes.CDLL:
    """The native library with the engine's functions declared."""
    native = kernels.library()
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    run = ([pointer, pointer, ctypes.c_int64, pointer, pointer], integer)
    for name, (arguments, result) in {
        "read": ([ctypes.c_char_p, ctypes.c_size_t, integer, ctypes.c_char_p, integer], pointer),
        "free": ([pointer], None),
        "describe": ([pointer], _Described),
        "kernel": ([pointer, integer], ctypes.c_char_p),
        "run_f32": run,
        "run_u8": run,
        "value": ([pointer, integer, pointer, pointer], integer),
    }.items():
        function = getattr(native, f"torchadder_engine_{name}")
        function.argtypes, function.restype = arguments, result
    return native


def _last_error() -> str:
    return kernels.library().torchadder_last_error().decode(errors="replace")


def _about(content: bytes) -> dict[str, Any]:
    """What was kept beside a program that the engine has accepted."""
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(json.loads(head["__metadata__"][FORMAT])["about"])
