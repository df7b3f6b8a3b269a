"""The GPU backend: which kernels compute on a GPU, and what they are handed.

    "cuda"    CUDA C++, compiled by NVRTC on first use: NVIDIA; needs cuda.core and no compiler
    "triton"  Triton: every GPU that it compiles for; it needs a C compiler on the machine

The first that is at hand runs; TORCHADDER_GPU names one. Where none is, the plain-torch reference computes.
Activations are float32, float16 or bfloat16 and keep their dtype; weights, sums and weight gradients are float32.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from functools import cache
from importlib.metadata import version
from types import ModuleType

import torch
from torch import Tensor

from ...errors import UserError
from ..geometry import Geometry

ROUTES = ("cuda", "triton", "reference")
CUDA_CORE = 1  # the oldest major version: before it, much was renamed
TRITON = (3, 3)  # the oldest that compiles the kernels
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def runs(x: Tensor) -> bool:
    """Whether the kernels here compute on this tensor."""
    return x.is_cuda and x.dtype in DTYPES and route() != "reference"


@cache
def route() -> str:
    """Which of ROUTES serves GPU tensors here. Raises UserError where TORCHADDER_GPU names one that cannot."""
    wanted = os.environ.get("TORCHADDER_GPU", "")
    if wanted not in ("", *ROUTES):
        raise UserError(f"TORCHADDER_GPU={wanted}: choose one of {', '.join(ROUTES)}")
    reasons = lacking()
    if reasons.get(wanted):
        raise UserError(f"TORCHADDER_GPU={wanted}: {reasons[wanted]}")
    if wanted:
        return wanted
    for name, lacks in reasons.items():
        if not lacks:
            return name
    warnings.warn(
        f"no GPU kernels: {'; '.join(lack for lack in reasons.values() if lack)}; adder layers run on a slow reference",
        RuntimeWarning,
        stacklevel=2,
    )
    return "reference"


def lacking() -> dict[str, str | None]:
    """What each route that has kernels would need and does not find here; None: nothing."""
    return {"cuda": _cuda_lacks(), "triton": _triton_lacks()}


def issue_limit(device: torch.device) -> float:
    """Element operations a second that a GPU can issue, measured; needs the route "cuda".

    An element takes two FP32 instructions: FADD and FADD in forward, FADD.SAT and FFMA in grad_input.
    """
    from . import nvrtc

    return nvrtc.issue_limit(device)


def _cuda_lacks() -> str | None:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    extra = f"cu{torch.version.cuda.partition('.')[0]}"
    if any(importlib.util.find_spec(name) is None for name in ("cuda", "cuda.core", "cuda.bindings")):
        return f'cuda.core is not installed with what it needs (pip install "cuda-core[{extra}]")'
    found = version("cuda-core")
    if int(found.partition(".")[0]) < CUDA_CORE:
        return f'cuda.core {found} is too old (pip install "cuda-core[{extra}]>={CUDA_CORE}")'
    return None


def _triton_lacks() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < TRITON:
        return f"Triton {triton.__version__} is too old (3.3 or later)"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "Triton finds no C compiler"
    return None


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, recenter: bool, layout: torch.memory_format
) -> Tensor:
    """Y of torchadder::adder_conv, of x's dtype; weight and bias are float32."""
    if recenter:
        constant = weight.abs().flatten(1).sum(1)
        bias = constant if bias is None else bias + constant
    return _kernels().forward(x, weight, bias, geometry, layout)


def grad_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str, layout: torch.memory_format
) -> Tensor:
    """dX of torchadder::adder_conv_grad_input, of x's dtype; rule is "hardtanh" or "sign"."""
    return _kernels().grad_input(grad, x, weight, geometry, rule, layout)


def grad_weight_sign(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, layout: torch.memory_format
) -> Tensor:
    """dW of torchadder::adder_conv_grad_weight under the rule "sign", float32."""
    return _kernels().grad_weight_sign(grad, x, weight, geometry, layout)


def _kernels() -> ModuleType:
    if route() == "cuda":
        from . import cuda

        return cuda
    from . import triton

    return triton
