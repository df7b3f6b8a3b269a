"""Who takes part in latency: every network in every runtime; and one of them in its process, taking turns."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_mask, networks
from .runtimes import Session, open_engine, open_onnx_runtime, open_openvino, open_torch

EXPORT = ("onnx", "onnxscript")
ALIKE = {"fp32": 0.999, "bf16": 0.98, "int8": 0.9}  # least cosine between logits and those of the network in torch


@dataclass(frozen=True)
class Candidate:
    """A network of one operator in one runtime; ``open`` gives None where the machine has no use for it."""

    key: str
    title: str
    op: str
    runtime: str
    precision: str
    open: Callable[[Path, Tensor, int], Session | None]
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What it needs of the extra [bench] and does not find."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _cnn(key: str, runtime: str, precision: str, opened: Callable[..., Session | None], *packages: str) -> Candidate:
    return Candidate(key, f"CNN, {runtime} {precision}", "conv", runtime, precision, opened, packages)


U8 = "adder_u8"
CANDIDATES = (
    Candidate(
        *("adder_fp32", "AdderNet fp32 (torch + our kernels)", "adder", "torch", "fp32"),
        partial(open_torch, networks.ADDER),
    ),
    Candidate(U8, "AdderNet u8 (engine)", "adder", "engine", "u8", partial(open_engine, networks.ADDER_U8)),
    Candidate("xnor", "XNOR (engine)", "binary", "engine", "u8", partial(open_engine, networks.BINARY_U8)),
    _cnn("engine_int8", "our engine", "int8", partial(open_engine, networks.CONV_U8)),
    _cnn("torch_fp32", "torch", "fp32", partial(open_torch, networks.CONV)),
    _cnn("onnxruntime_fp32", "ONNX Runtime", "fp32", partial(open_onnx_runtime, networks.ONNX), *EXPORT, "onnxruntime"),
    _cnn(
        *("onnxruntime_int8", "ONNX Runtime", "int8", partial(open_onnx_runtime, networks.ONNX_INT8)),
        *(*EXPORT, "onnxruntime"),
    ),
    _cnn("openvino_fp32", "OpenVINO", "fp32", partial(open_openvino, networks.ONNX, "f32"), *EXPORT, "openvino"),
    _cnn("openvino_bf16", "OpenVINO", "bf16", partial(open_openvino, networks.ONNX, "bf16"), *EXPORT, "openvino"),
    _cnn(
        *("openvino_int8", "OpenVINO", "int8", partial(open_openvino, networks.ONNX_INT8, None)),
        *(*EXPORT, "onnxruntime", "openvino"),
    ),
)


class Contestant:
    """A candidate in a process of its own: it opens its network, then takes turns."""

    def __init__(self) -> None:
        cpu_mask.check()
        self._session: Session | None = None
        self._images: Tensor | None = None  # runtimes read them where they are, and do not keep them
        self._each = 0.0

    def open(self, key: str, folder: str, batch: int, threads: int) -> dict[str, Any] | None:
        """Make a network of ``folder`` ready for ``batch`` images; None where this candidate has no place here.

        Raises RuntimeError where its logits are not those of the network.
        """
        candidate = next(candidate for candidate in CANDIDATES if candidate.key == key)
        known = networks.reference(Path(folder))
        chosen = torch.arange(batch) % len(known["images"])
        self._session = None  # and its memory, before the next one takes some
        gc.enable()
        gc.collect()
        with torch.inference_mode():
            self._images = known["images"][chosen]
            session = candidate.open(Path(folder), self._images, threads)
            if session is None:
                return None
            session.call()
            _check(candidate, session.logits(), known[candidate.op][chosen])
            start = time.perf_counter()
            session.call()
        self._session, self._each = session, time.perf_counter() - start
        gc.collect()
        gc.disable()
        versions = {name: version(name) for name in ("torch", *candidate.packages)}
        return {"kernels": session.kernels, "versions": versions}

    def turn(self, least: float) -> float:
        """Seconds a call: of as many as fill ``least`` seconds, after half as many that are not counted.

        Those bring caches and clock back and outlast the threads of the one before, which spin for a while.
        """
        if self._session is None:
            raise RuntimeError("turn before open")
        call = self._session.call
        count = max(1, round(least / max(self._each, 1e-7)))
        with torch.inference_mode():
            for _ in range(count // 2):
                call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            self._each = (time.perf_counter() - start) / count
        return self._each


def _check(candidate: Candidate, logits: Tensor, expected: Tensor) -> None:
    alike = float(F.cosine_similarity(logits.flatten(), expected.flatten(), dim=0))
    if not alike >= ALIKE.get(candidate.precision, -1):
        raise RuntimeError(f"computes another network: cosine of the logits is {alike:.3f}")
