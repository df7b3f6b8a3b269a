"""List the candidates of the latency benchmark, open each in its runtime, and time it in a process of its own.

Every runtime gets the best settings that it has for this machine. All take contiguous float32 images and return
float32 logits; quantizing and dequantizing are part of the call.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from torchadder import kernels
from torchadder.engine import Engine
from torchadder.models import from_pretrained

from . import cpu_mask, networks
from .layers import FORMATS
from .timing import interleaved, medians

CAPABILITIES = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")  # of torch.cpu
FEW_IMAGES = 8  # enough to choose a memory format
# least cosine similarity of the logits to those of the float network in torch: below it, the network is another one
MIN_COSINE = {"fp32": 0.999, "bf16": 0.98, "int8": 0.9}


class Session(NamedTuple):
    """Hold an opened network: ``call`` runs it on its images, ``logits`` returns the logits of the last call."""

    call: Callable[[], object]
    logits: Callable[[], Tensor]
    kernels: list[str]


def open_torch(name: str, folder: Path, images: Tensor, threads: int) -> Session:
    """Open a checkpoint in torch, uncompiled, in its faster memory format.

    A CNN has its batch normalisation folded into its convolutions and fully connected layers.
    """
    torch.set_num_threads(threads)
    model: nn.Module = from_pretrained(folder / name)
    if name != networks.ADDER:
        model = _folded(model)
    models = {key: copy.deepcopy(model).to(memory_format=layout) for key, layout in FORMATS.items()}  # type: ignore[call-overload]
    inputs = {key: images.contiguous(memory_format=layout) for key, layout in FORMATS.items()}
    few = {key: partial(models[key], inputs[key][:FEW_IMAGES].clone(memory_format=FORMATS[key])) for key in FORMATS}
    median = medians(interleaved(few, repetitions=3))
    faster = min(FORMATS, key=lambda key: median[key])
    call = partial(models[faster], inputs[faster])
    if name == networks.ADDER:
        used = [name for name in kernels.names(in_use=True) if name.startswith("forward_f32_")]
    else:
        used = [f"oneDNN and ATen, {torch.backends.cpu.get_cpu_capability()}"]
    return Session(call, call, [*used, faster])


def _folded(model: nn.Module) -> nn.Module:
    """Return ``model`` with batch normalisation folded into the weights before it."""
    traced = fx.symbolic_trace(model)
    for node in traced.graph.nodes:
        norm = traced.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        source = node.args[0]
        layer = traced.get_submodule(source.target)
        if isinstance(layer, nn.Conv2d):
            traced.set_submodule(source.target, fuse_conv_bn_eval(layer, norm))
        elif isinstance(layer, nn.Linear):
            traced.set_submodule(source.target, fuse_linear_bn_eval(layer, norm))
        else:
            continue
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced


def open_engine(name: str, folder: Path, images: Tensor, threads: int) -> Session:
    """Open a .tadder file in the integer engine."""
    engine = Engine(folder / name, threads=threads)
    call = partial(engine, images)
    return Session(call, call, list(dict.fromkeys(engine.kernels())))


def open_onnx_runtime(name: str, folder: Path, images: Tensor, threads: int) -> Session:
    """Open an ONNX file in ONNX Runtime. Raises RuntimeError if a convolution of the int8 network is not int8."""
    import onnx
    import onnxruntime as ort

    optimized = folder / f"optimized-{threads}-{len(images)}-{name}"
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name("batch", len(images))
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(optimized).graph.node
    optimized.unlink()
    used = [f"{node.domain.removeprefix('com.microsoft')}.{node.op_type}".strip(".") for node in nodes]
    if name == networks.ONNX_INT8 and any("Conv" in operator and "QLinear" not in operator for operator in used):
        raise RuntimeError(f"convolutions that are not int8: {', '.join(used)}")
    (logits,) = session.run(None, {"images": images.numpy()})
    bound = session.io_binding()
    output = ort.OrtValue.ortvalue_from_numpy(logits)
    bound.bind_ortvalue_input("images", ort.OrtValue.ortvalue_from_numpy(images.numpy()))
    bound.bind_ortvalue_output("logits", output)
    return Session(
        call=partial(session.run_with_iobinding, bound),
        logits=lambda: torch.from_numpy(output.numpy()),
        kernels=[*(f"{provider} ({_cpu()})" for provider in session.get_providers()), *dict.fromkeys(used)],
    )


def open_openvino(name: str, hint: str | None, folder: Path, images: Tensor, threads: int) -> Session | None:
    """Open an ONNX file in OpenVINO; None if it does not compute in bf16 although the hint says so.

    Raises RuntimeError if a convolution of the int8 network is not int8.

    Args:
        hint: "f32" allows no other precision; "bf16" expects that OpenVINO chooses it here; None leaves the choice.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / name)
    model.reshape(list(images.shape))
    # A pinned thread waits if something else runs on its core; on a quiet machine pinning gains nothing.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    if hint == "f32":
        settings["INFERENCE_PRECISION_HINT"] = hint
    compiled = core.compile_model(model, "CPU", settings)
    if hint == "bf16" and compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        return None
    about = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    used = [(entry["layerType"].astype(str), entry["primitiveType"].astype(str)) for entry in about]
    if name == networks.ONNX_INT8:
        wide = [kernel for layer, kernel in used if layer == "Convolution" and not kernel.lower().endswith("i8")]
        if wide:
            raise RuntimeError(f"convolutions that are not int8: {', '.join(wide)}")
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(images.numpy(), shared_memory=True))
    return Session(
        call=partial(request.infer, share_outputs=True),
        logits=lambda: torch.tensor(request.get_output_tensor().data),
        kernels=list(dict.fromkeys(kernel for _, kernel in used if not kernel.startswith("unknown"))),
    )


def _cpu() -> str:
    """Return the instruction sets that matter here, as a library of this process sees them."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return torch.backends.cpu.get_cpu_capability()
    found = torch.cpu.get_capabilities()
    return ", ".join(name for name in CAPABILITIES if found.get(name)) or torch.backends.cpu.get_cpu_capability()


@dataclass(frozen=True)
class Candidate:
    """Describe a network of one operator in one runtime.

    ``open`` takes folder, images and threads; it returns None if this machine does not support the candidate.
    ``packages`` are those of the extra [bench] that it needs.
    """

    key: str
    title: str
    op: str
    runtime: str
    precision: str
    open: Callable[[Path, Tensor, int], Session | None]
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _cnn(key: str, runtime: str, precision: str, opener: Callable[..., Session | None], *packages: str) -> Candidate:
    return Candidate(key, f"CNN, {runtime} {precision}", "conv", runtime, precision, opener, packages)


# the packages that ONNX files, and int8 ONNX files, need
EXPORT = ("onnx", "onnxscript")
INT8 = (*EXPORT, "onnxruntime")
ADDER_U8 = "adder_u8"
CANDIDATES = (
    Candidate(
        *("adder_fp32", "AdderNet fp32 (torch + our kernels)", "adder", "torch", "fp32"),
        partial(open_torch, networks.ADDER),
    ),
    Candidate(ADDER_U8, "AdderNet u8 (engine)", "adder", "engine", "u8", partial(open_engine, networks.ADDER_U8)),
    Candidate("xnor", "XNOR (engine)", "binary", "engine", "u8", partial(open_engine, networks.BINARY_U8)),
    _cnn("engine_int8", "our engine", "int8", partial(open_engine, networks.CONV_U8)),
    _cnn("torch_fp32", "torch", "fp32", partial(open_torch, networks.CONV)),
    _cnn("onnxruntime_fp32", "ONNX Runtime", "fp32", partial(open_onnx_runtime, networks.ONNX), *INT8),
    _cnn("onnxruntime_int8", "ONNX Runtime", "int8", partial(open_onnx_runtime, networks.ONNX_INT8), *INT8),
    _cnn("openvino_fp32", "OpenVINO", "fp32", partial(open_openvino, networks.ONNX, "f32"), *EXPORT, "openvino"),
    _cnn("openvino_bf16", "OpenVINO", "bf16", partial(open_openvino, networks.ONNX, "bf16"), *EXPORT, "openvino"),
    _cnn("openvino_int8", "OpenVINO", "int8", partial(open_openvino, networks.ONNX_INT8, None), *INT8, "openvino"),
)


class Worker:
    """Run one candidate in a process of its own: open its network, then time it once for each repetition."""

    def __init__(self) -> None:
        cpu_mask.check()
        self._session: Session | None = None
        self._images: Tensor | None = None  # runtimes read them in place and do not keep them alive
        self._seconds = 0.0  # of one call, as last measured

    def open(self, key: str, folder: str, batch: int, threads: int) -> dict[str, Any] | None:
        """Prepare a network of ``folder`` for ``batch`` images; None if this machine does not support the candidate.

        Raises RuntimeError if its logits are not those of the network.
        """
        candidate = next(candidate for candidate in CANDIDATES if candidate.key == key)
        known = networks.reference(Path(folder))
        chosen = torch.arange(batch) % len(known["images"])
        self._session = None  # frees the memory of the last session before the new one allocates
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
        self._session, self._seconds = session, time.perf_counter() - start
        gc.collect()
        gc.disable()
        versions = {name: version(name) for name in ("torch", *candidate.packages)}
        return {"kernels": session.kernels, "versions": versions}

    def repeat(self, min_seconds: float) -> float:
        """Return the seconds for one call, averaged over as many calls as fill ``min_seconds``.

        Half as many calls run first and are not counted: they fill the caches and raise the clock, while the threads of
        the candidate before, which spin for a while, come to rest.
        """
        if self._session is None:
            raise RuntimeError("repeat before open")
        call = self._session.call
        count = max(1, round(min_seconds / max(self._seconds, 1e-7)))
        with torch.inference_mode():
            for _ in range(count // 2):
                call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            self._seconds = (time.perf_counter() - start) / count
        return self._seconds


def _check(candidate: Candidate, logits: Tensor, expected: Tensor) -> None:
    cosine = float(F.cosine_similarity(logits.flatten(), expected.flatten(), dim=0))
    if not cosine >= MIN_COSINE.get(candidate.precision, -1):
        raise RuntimeError(f"computes another network: cosine of the logits is {cosine:.3f}")
