"""Check this installation: versions, processor, GPUs, data, and its kernels against the brute-force reference."""

from __future__ import annotations

import os
import platform
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchadder import functional, kernels
from torchadder.bruteforce import Case, brute_force, brute_force_rounded
from torchadder.data import mnist
from torchadder.environment import describe_environment, describe_gpu, lacks_gpu
from torchadder.errors import UserError
from torchadder.functional import GradientRule
from torchadder.ops import triton
from torchadder.ops.geometry import CHANNELS_LAST
from torchadder.version import __version__

OPTIONAL = {
    "cli": ("typer", "rich"),
    "images": ("pillow",),
    "plot": ("matplotlib",),
    "report": ("jinja2", "altair", "vl-convert-python"),
    "onnx": ("onnx", "onnxscript"),
    "bench": ("onnxruntime", "openvino"),
    "log": ("tensorboard",),
    "hf": ("huggingface_hub",),
    "dev": ("pytest", "ruff", "mypy", "clang-format"),
}
TOLERANCE = 1e-4  # of the largest value: errors of fp32 kernels are 100 times smaller, those of a wrong one far larger
GPU_TOLERANCES = {torch.float32: TOLERANCE, torch.bfloat16: 2**-7}  # twice the largest error of rounding a result
CPU = torch.device("cpu")

CASES = [  # sizes that no tile divides, every option of the geometry once
    Case(2, 3, 5, size=(9, 8), kernel=(3, 3), padding=(1, 1)),
    Case(1, 16, 33, size=(7, 7), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    Case(1, 64, 64, size=(8, 8), kernel=(3, 3), padding=(1, 1)),
    Case(3, 6, 12, size=(11, 13), kernel=(1, 5), stride=(2, 3), padding=(0, 4), groups=3),
    Case(2, 17, 17, size=(8, 9), kernel=(3, 3), dilation=(2, 1), groups=17),
    Case(5, 120, 84, size=(1, 1), kernel=(1, 1)),
    Case(2, 44, 44, size=(7, 9), kernel=(3, 3), padding=(1, 1), groups=11),
    Case(2, 5, 9, size=(31,), kernel=(5,), stride=(2,), padding=(3,)),
    Case(1, 4, 17, size=(5, 6, 7), kernel=(3, 3, 3), padding=(1, 1, 1)),
]


@dataclass
class Check:
    """Hold the result of one check. ``ok``: None where it could not be done on this machine."""

    name: str
    ok: bool | None
    detail: str


@dataclass
class Diagnosis:
    """Hold all results. ``sound``: no check failed; a check that could not be done is no failure."""

    environment: dict[str, Any]
    checks: list[Check]
    optional: dict[str, dict[str, str | None]]

    @property
    def sound(self) -> bool:
        return all(check.ok is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {"sound": self.sound, **asdict(self)}


def diagnose(data_dir: Path | None = None) -> Diagnosis:
    """Check this installation on this machine. ``data_dir``: where to look for data files first. Fetches nothing."""
    checks = [*check_kernels(), *check_gpus(), check_mnist(data_dir)]
    optional = {extra: {name: _version(name) for name in names} for extra, names in OPTIONAL.items()}
    return Diagnosis(_environment(), checks, optional)


def check_kernels() -> list[Check]:
    """Check that the native library loads, and the kernels of each instruction set that it was built with."""
    path = kernels.library_path()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a CPU without kernels, which the check names
            chosen = kernels.variant()
    except UserError as error:
        return [Check("native library", False, str(error))]
    forced = os.environ.get("TORCHADDER_ISA")
    why = f"TORCHADDER_ISA={forced}" if forced else "the best that this CPU runs"
    if ":" in chosen and ":" not in (forced or ""):
        why += "; the fastest of its variants, timed"
        why += ": forward passes on AVX2's kernels" if chosen.endswith(":half") else ""
    if kernels.is_slow(chosen):
        why += f"; {kernels.SLOW}"
    threads = f"{kernels.threads()} thread{'s' if kernels.threads() > 1 else ''}"
    found = Check("native library", True, f"{path}; in use: {chosen} ({why}), {threads}")
    return [found, *(_check_isa(name) for name in kernels.compiled())]


def _check_isa(isa: str) -> Check:
    """Check every kernel of one instruction set, in all variants that can be selected."""
    if isa not in kernels.available():
        return Check(f"kernels {isa}", None, "not checked: this CPU cannot run them")
    errors: dict[str, float] = {}
    checked: set[str] = set()
    for variant in kernels.variants():
        if variant.partition(":")[0] != isa:
            continue
        with kernels.using(variant):
            checked.update(kernels.names(in_use=True))
            for case in CASES:
                for what, error in _errors(case).items():
                    errors[what] = max(error, errors.get(what, 0.0))
    wrong = [what for what, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        return Check(
            f"kernels {isa}", False, f"WRONG against the brute-force reference: {', '.join(wrong)}; please report it"
        )
    detail = f"{len(checked)} kernels, {len(CASES)} shapes, forward and gradients"
    detail += f"; largest relative error {max(errors.values()):.0e}"
    return Check(f"kernels {isa}", True, detail)


def check_gpus() -> list[Check]:
    """Check each GPU that torch can use."""
    if reason := lacks_gpu():
        return [Check("GPU", None, f"not checked: {reason}")]
    return [check_gpu(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]


def check_gpu(device: torch.device) -> Check:
    """Check the results of adder layers on a GPU, and name the route that computes them."""
    name = f"GPU {device.index}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of the reference route, which the check names
            about = describe_gpu(device)
        where = f"{about['name']}, compute capability {about['compute_capability']}, route {about['route']}"
        if about["route"] == "reference":
            where += f", which is slow: {_why_reference()}"
        wrong, largest = compare(device)
    except UserError as error:
        return Check(name, False, str(error))
    except Exception as error:  # from a compiler, a driver or a kernel: any of them means that this GPU is not sound
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")
    if wrong:
        return Check(
            name, False, f"{where}; WRONG against the brute-force reference: {', '.join(wrong)}; please report it"
        )
    errors = ", ".join(f"{error:.0e} in {_called(dtype)}" for dtype, error in largest.items())
    return Check(name, True, f"{where}; {len(CASES)} shapes, forward and gradients; largest relative error {errors}")


def compare(device: torch.device) -> tuple[list[str], dict[torch.dtype, float]]:
    """Compare all shapes, in both memory formats, with the brute-force reference.

    Returns the results that are wrong on the device, and the largest error of each dtype.
    """
    wrong: dict[str, None] = {}
    largest = dict.fromkeys(GPU_TOLERANCES, 0.0)
    for case in CASES:
        for layout in {torch.contiguous_format, CHANNELS_LAST.get(len(case.size), torch.contiguous_format)}:
            for dtype, tolerance in GPU_TOLERANCES.items():
                for what, error in _errors(case, device, dtype, layout).items():
                    largest[dtype] = max(error, largest[dtype])
                    if not error <= tolerance:
                        wrong[f"{what} in {_called(dtype)}"] = None
    return list(wrong), largest


def _why_reference() -> str:
    return triton.problem() or ""


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _errors(
    case: Case,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> dict[str, float]:
    """Return the largest error of each result, relative to the largest value of the reference; recentred in 16 bits."""
    x, weight, grad = (tensor.to(dtype) for tensor in case.tensors())
    truth = brute_force(case, x, weight, grad)
    recenter = dtype is not torch.float32
    constant = weight.double().abs().flatten(1).sum(1).view(-1, *[1] * len(case.size)) if recenter else 0
    x, weight, grad = (tensor.to(device).contiguous(memory_format=layout) for tensor in (x, weight, grad))
    output, hardtanh, _ = _run(case, x, weight, grad, GradientRule(), recenter)
    _, sign, weight_sign = _run(case, x, weight, grad, GradientRule(weight="sign", input="sign"), recenter)
    pairs = {
        "forward": (output, truth.output + constant),
        "input gradient": (hardtanh, truth.grad_input),
        "input gradient (sign)": (sign, truth.grad_input_sign),
        "weight gradient (sign)": (weight_sign, truth.grad_weight_sign),
    }
    if device == CPU and dtype is torch.float32:
        truth = brute_force_rounded(case, x, weight, grad)
        output, dx, _ = _run(case, x, weight, grad, GradientRule(numbers="int8"), recenter)
        pairs |= {"forward (int8)": (output, truth.output), "input gradient (int8)": (dx, truth.grad_input)}
    return {what: _relative_error(ours, theirs) for what, (ours, theirs) in pairs.items()}


def _run(
    case: Case, x: Tensor, weight: Tensor, grad: Tensor, rule: GradientRule, recenter: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    convolution = getattr(functional, f"adder_conv{len(case.size)}d")
    y = convolution(x, weight, None, *case.geometry, grad=rule, recenter=recenter)
    dx, dw = torch.autograd.grad(y, (x, weight), grad)
    return y.detach(), dx, dw


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    error = ((ours.cpu().double() - theirs).abs().max() / theirs.abs().max()).item()
    return float("inf") if error != error else error  # max() of floats would drop a NaN


def check_mnist(data_dir: Path | None = None) -> Check:
    """Check that the four files are there; their content is checked when they are read."""
    try:
        paths = mnist.find_files(mnist.MNIST, data_dir)
    except UserError as error:
        return Check("data mnist", False, str(error))
    if paths is None:
        return Check("data mnist", None, "not found; training fetches it, or set TORCHADDER_DATA to its folder")
    return Check("data mnist", True, f"found in {paths[0].parent}")


def _environment() -> dict[str, Any]:
    try:
        environment = describe_environment()
    except UserError:  # without the native library
        environment = {
            "torchadder": __version__,
            "torch": torch.__version__,
            "numpy": _version("numpy"),
            "python": platform.python_version(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
    return {**environment, "cores": os.cpu_count()}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
