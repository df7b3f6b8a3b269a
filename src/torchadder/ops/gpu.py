"""Route GPU tensors to the Triton kernels, or to the plain-torch reference where Triton cannot run.

Activations are float32, float16 or bfloat16 and keep their dtype; weights, accumulators and weight gradients are
float32. No GPU has run these kernels yet: they are tested in Triton's interpreter and compiled for GPUs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from .geometry import Geometry

TRITON = (3, 3)  # the oldest version that compiles the kernels
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def runs(x: Tensor) -> bool:
    """Return True where the Triton kernels compute on this tensor."""
    return x.is_cuda and x.dtype in DTYPES and route() == "triton"


@cache
def route() -> str:
    """Return "triton", or "reference" with a warning where Triton cannot run."""
    reason = triton_problem()
    if reason is None:
        return "triton"
    warnings.warn(f"no GPU kernels: {reason}; adder layers run on a slow reference", RuntimeWarning, stacklevel=2)
    return "reference"


def triton_problem() -> str | None:
    """Return why Triton cannot run here, or None where it can."""
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
    """Compute Y of torchadder::adder_conv, of x's dtype; weight and bias are float32."""
    if recenter:
        constant = weight.abs().flatten(1).sum(1)
        bias = constant if bias is None else bias + constant
    return _kernels().forward(x, weight, bias, geometry, layout)


def grad_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str, layout: torch.memory_format
) -> Tensor:
    """Compute dX of torchadder::adder_conv_grad_input, of x's dtype; rule is "hardtanh" or "sign"."""
    return _kernels().grad_input(grad, x, weight, geometry, rule, layout)


def grad_weight_sign(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, layout: torch.memory_format
) -> Tensor:
    """Compute dW of torchadder::adder_conv_grad_weight under the rule "sign", float32."""
    return _kernels().grad_weight_sign(grad, x, weight, geometry, layout)


def _kernels() -> ModuleType:
    from . import triton

    return triton
