"""The runtimes that latency compares: each opens its network with the best settings that it has for this machine.

All take contiguous float32 images and give float32 logits; what an int8 network does to get there is part of the call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from torchadder import kernels
from torchadder.engine import Engine
from torchadder.models import from_pretrained

from . import networks
from .layers import FORMATS
from .timing import interleaved, medians

SEEN = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")  # of torch.cpu.get_capabilities()
FEW = 8  # images that choose a memory format


class Session(NamedTuple):
    """A network that is ready: ``call`` computes its images, ``logits`` are those of the last call."""

    call: Callable[[], object]
    logits: Callable[[], Tensor]
    kernels: list[str]


def open_torch(name: str, folder: Path, images: Tensor, threads: int) -> Session:
    """In the better memory format; convolutions have their batch normalisation folded in. Not compiled."""
    torch.set_num_threads(threads)
    model: nn.Module = from_pretrained(folder / name)
    ours = name == networks.ADDER
    if not ours:
        model = _folded(model)
    models = {key: copy.deepcopy(model).to(memory_format=layout) for key, layout in FORMATS.items()}  # type: ignore[call-overload]
    inputs = {key: images.contiguous(memory_format=layout) for key, layout in FORMATS.items()}
    few = {key: partial(models[key], inputs[key][:FEW].clone(memory_format=FORMATS[key])) for key in FORMATS}
    middle = medians(interleaved(few, repetitions=3))
    better = min(FORMATS, key=lambda key: middle[key])
    call = partial(models[better], inputs[better])
    if ours:
        used = [name for name in kernels.names(in_use=True) if name.startswith("forward_")]
    else:
        used = [f"oneDNN and ATen, {torch.backends.cpu.get_cpu_capability()}"]
    return Session(call, call, [*used, better])


def _folded(model: nn.Module) -> nn.Module:
    """``model`` with the batch normalisation of its convolutions and fully connected layers in their weights."""
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
    engine = Engine(folder / name, threads=threads)
    call = partial(engine, images)
    return Session(call, call, list(dict.fromkeys(engine.kernels())))


def open_onnx_runtime(name: str, folder: Path, images: Tensor, threads: int) -> Session:
    import onnx
    import onnxruntime as ort

    optimised = folder / f"optimised-{threads}-{len(images)}-{name}"
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name("batch", len(images))
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimised)
    session = ort.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(optimised).graph.node
    optimised.unlink()
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
    """``hint``: "f32" where nothing else may be computed in, "bf16" where that is what OpenVINO itself chooses."""
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / name)
    model.reshape(list(images.shape))
    # (Pinned to a core that something else is busy on, it would wait; pinned or not it is as fast on a quiet machine.)
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
    """The instruction sets that matter here, as a library of this process sees them."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return torch.backends.cpu.get_cpu_capability()
    found = torch.cpu.get_capabilities()
    return ", ".join(name for name in SEEN if found.get(name)) or torch.backends.cpu.get_cpu_capability()
