"""Run a quantized network on the native kernels: the 8-bit integer engine, bit-equal to the program in torch.

    engine = Engine("net.tadder", threads=4)
    logits = engine(images)  # (N, C, H, W) -> float32 (N, classes)

A Classifier also prepares image files, as the .tadder file describes.
"""

from __future__ import annotations

import ctypes
import functools
import json
import operator
import statistics
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from torchadder import kernels
from torchadder.data.preprocessing import Preprocessing
from torchadder.errors import UserError
from torchadder.quant import file
from torchadder.quant.program import Program, with_all_axes

__all__ = ["Classifier", "Engine"]


class Engine:
    """Run an integer program natively.

    Args:
        source: a ``.tadder`` file, which may come from a stranger, its content as bytes, or a Program.
        threads: how many share the images of a batch, or the work of a single image. Default:
            torch.get_num_threads().
        isa: "reference", "avx2", "avx2max", "avx512", "avx512vnni", "neon" or "neondot"; default: the best that this
            CPU runs (and torchadder.kernels allows).
        keep_values: keep every intermediate value in memory, for ``values``.

    Raises UserError where the file is missing or damaged, or an argument is out of range.

    A copy, also a pickled one in another process, is an engine of its own, made from the content of the file, which an
    engine keeps. Calls of one engine from several threads run one after the other: give each thread a copy.
    ``close()``, or the end of a ``with`` block, frees the memory.

    Attributes:
        shape: (C, H, W) of an image. classes: number of logits. threads: as given.
        about: text and numbers that the file keeps beside the program, see quant.file.
        file_bytes, weight_bytes, arena_bytes: memory in bytes of the content, the packed weights, the values.
    """

    def __init__(
        self,
        source: str | Path | bytes | bytearray | memoryview | Program,
        threads: int | None = None,
        isa: str | None = None,
        keep_values: bool = False,
    ):
        if not isinstance(isa, str | None):
            raise TypeError(f"isa={isa!r}: expected a name, such as 'avx2'")
        self.threads = torch.get_num_threads() if threads is None else operator.index(threads)
        if not 1 <= self.threads <= 1024:
            raise UserError(f"threads={threads} is out of range: expected 1 to 1024")
        if isinstance(source, Program | bytes | bytearray | memoryview):
            self._name = "the program"
            content = source.to_bytes() if isinstance(source, Program) else bytes(source)
        else:
            self._name = str(source)
            content = file.read(source)
        self._handle: _Handle | None = _Handle(content, self._name, self.threads, isa, keep_values)
        self._made_from: tuple[Any, ...] = (content, self.threads, isa, keep_values)
        self.about: dict[str, Any] = dict(file.head_of(content, self._name)["about"])
        found = _library().torchadder_engine_describe(self._handle)
        self.shape = (found.channels, found.height, found.width)
        self.classes = found.classes
        self.file_bytes, self.weight_bytes, self.arena_bytes = found.file_bytes, found.weight_bytes, found.arena_bytes
        self._steps = found.steps

    def close(self) -> None:
        """Free the memory, once calls in other threads have returned. Every later use raises UserError."""
        self._handle, self._made_from = None, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        self._opened()
        return type(self), self._made_from

    def __call__(self, images: Tensor | np.ndarray, *, quantized: bool = False) -> Tensor:
        """Return logits float32 (N, classes) of images (N, C, H, W); rows (N, C, L) have height 1, vectors one pixel.

        Args:
            images: floating point as the network takes them, or uint8 pixels where the file has mean and std. An
                infinite number becomes the nearest quantized value, NaN becomes quantized value 0.
            quantized: images are uint8 and quantized values already.
        """
        return self._run(images, quantized, None)

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """Tell how pixels become the input of the network. Raises UserError where the file does not say it."""
        try:
            return Preprocessing.from_dict(self.about, self.shape[0])
        except ValueError as error:
            raise UserError(
                f"cannot tell from {self._name} how to prepare an image: {error}; quantize it again, or save it from "
                "Python with mean and std"
            ) from error

    def benchmark(self, batch: int = 1, repetitions: int = 51) -> float:
        """Return the latency: the median seconds of a call with ``batch`` random images, after one call to warm up."""
        random = torch.Generator().manual_seed(0)
        if min(batch, repetitions) < 1:
            raise UserError(f"batch={batch}, repetitions={repetitions}: expected at least 1 of both")
        images = torch.rand(batch, *self.shape, generator=random, dtype=torch.float32, device="cpu")
        self(images)
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            self(images)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def profile(self, images: Tensor | np.ndarray, *, quantized: bool = False) -> list[float]:
        """Return the seconds that one thread spends on quantizing the input and on each step, over all images.

        They are 0 for a pooling that the layer before it computes.
        """
        seconds = (ctypes.c_double * (1 + self._steps))()
        self._run(images, quantized, seconds)
        return [*seconds]

    def kernels(self) -> list[str]:
        """Return the name of the kernel that each step runs on, in order."""
        handle = self._opened()
        return [_library().torchadder_engine_kernel(handle, step).decode() for step in range(self._steps)]

    def values(self, image: Tensor | np.ndarray, *, quantized: bool = False) -> list[Tensor]:
        """Return the quantized values, uint8 (C, H, W), of the input and of each step but the last, for one image.

        ``image`` is (1, C, H, W). Raises UserError for more images, or for an engine without keep_values.
        """
        if len(image) != 1:
            raise UserError(f"expected one image, got {len(image)}")
        self(image, quantized=quantized)
        handle, found = self._opened(), []
        for index in range(self._steps):
            shape = (ctypes.c_int64 * 3)()
            if _library().torchadder_engine_value(handle, index, shape, None):
                raise UserError(_last_error())
            q = torch.empty(tuple(shape), dtype=torch.uint8, device="cpu")
            _library().torchadder_engine_value(handle, index, shape, q.data_ptr())
            found.append(q)
        return found

    def _opened(self) -> _Handle:
        if self._handle is None:
            raise UserError("the engine is closed: make a new one with Engine(...)")
        return self._handle

    def _run(self, images: Tensor | np.ndarray, quantized: bool, seconds: Any) -> Tensor:
        handle = self._opened()  # this reference keeps it while the call runs
        images = self._dense(images, quantized)
        count = images.shape[0]
        logits = torch.empty(count, self.classes, dtype=torch.float32, device="cpu")
        native = _library()
        run = native.torchadder_engine_run_u8 if quantized else native.torchadder_engine_run_f32
        try:
            pointers = images.data_ptr(), logits.data_ptr()
        except RuntimeError:
            pointers = 0, 0
        if count and not all(pointers):
            raise TypeError("images hold no numbers: an engine does not run under torch.func, export or a fake mode")
        if run(handle, pointers[0], count, pointers[1], seconds):
            raise RuntimeError(_last_error())
        return logits

    def _dense(self, images: Tensor | np.ndarray, quantized: bool) -> Tensor:
        """Return images as the native code reads them: contiguous, uint8 if they are quantized values, else float32."""
        if not isinstance(images, Tensor):
            try:
                array = np.asarray(images)
            except ValueError as error:  # as for the images and labels of a loader
                raise TypeError(f"expected an array of images, got a {type(images).__name__} of several") from error
            if array.dtype.kind not in "fu" or array.dtype.itemsize > 8:  # torch has no longdouble
                raise TypeError(f"expected images of floating point or uint8, got {array.dtype}")
            # torch takes no other byte order and no negative strides, and warns of arrays that it cannot write.
            images = torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ("C", "W")))
        elif images.layout is not torch.strided or images.is_nested:
            raise TypeError("expected images in a dense tensor, got a sparse or nested one")
        if images.shape[1:] != self.shape:
            images = with_all_axes(images, self.shape)
        if not images.is_cpu:
            raise TypeError(f"expected images on the CPU, got {images.device}")
        if quantized and images.dtype != torch.uint8:
            raise TypeError(f"quantized=True: expected uint8 images, got {images.dtype}")
        if not quantized and images.dtype == torch.uint8:
            try:
                images = self.preprocessing.normalization(images)
            except UserError as error:
                raise UserError(f"images are uint8: {error}, or pass quantized=True if they are no pixels") from error
        elif not quantized and not images.is_floating_point():
            raise TypeError(f"expected images of floating point or uint8, got {images.dtype}")
        if not quantized and images.dtype != torch.float32:
            images = images.to(torch.float32)
        return images.resolve_neg().contiguous()


class _Handle:
    """Own a native engine, which is freed with the last reference. ctypes passes it as a pointer."""

    _as_parameter_: int | None = None

    def __init__(self, content: bytes, name: str, threads: int, isa: str | None, keep_values: bool):
        native, wanted = _library(), None if isa is None else isa.encode()
        self._free = native.torchadder_engine_free
        self._as_parameter_ = native.torchadder_engine_read(content, len(content), threads, wanted, keep_values)
        if not self._as_parameter_:
            reason = _last_error()
            file.check(content, name)
            raise UserError(f"cannot run {name}: {reason}")  # the file is sound, an argument is not

    def __del__(self) -> None:
        if self._as_parameter_:
            self._free(self._as_parameter_)


class Classifier:
    """Open a ``.tadder`` file that says how to prepare images, as Program.save with mean and std writes it.

    Attributes:
        engine: computes the logits. preprocessing: makes its input from an image file.
        names: of the classes; their numbers where the file has no names.

    Raises UserError where the file is damaged, or does not say how to prepare an image.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        self.engine = Engine(path, threads)
        self.preprocessing = self.engine.preprocessing
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
