"""Measure single layers: the adder operators against torch's convolution, and against the formulas of other code.

`measure` times the operators on the layer shapes of a model, `measure_formulas` the forward pass against broadcasting
and torch.cdist, `measure_modules` whole modules of every kind (1-d, 3-d, grouped, depthwise, tiny).

A rate counts element operations a second: N * C_out * H_out * W_out * C_in / groups * kh * kw, the number of |x - w|
that the definition asks for, taps in the padding included, whatever a kernel really computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder import nn as adder_nn
from torchadder import ops
from torchadder.models import create_model
from torchadder.ops.geometry import Geometry

from .timing import Calls, Device, best_by_prefix, interleaved, medians, threads

PASSES = ("forward", "grad_input", "grad_weight")
MODULE_PASSES = ("forward", "step")  # step: forward, and the gradients of input, weight and bias
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CPU = torch.device("cpu")

Show = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class LayerShape:
    """Hold the shape of a square convolution, and how often a model has it; ``count`` does not matter for equality."""

    c_in: int
    c_out: int
    kernel: int
    stride: int
    padding: int
    size: int
    count: int = field(default=1, compare=False)

    @property
    def geometry(self) -> Geometry:
        return Geometry((self.stride,) * 2, (self.padding,) * 2, (1, 1))

    @property
    def size_out(self) -> int:
        return self.geometry.output_size((self.size,) * 2, (self.kernel,) * 2)[0]

    def operations(self, batch: int) -> int:
        """Return the element operations of one forward pass."""
        return batch * self.c_out * self.size_out**2 * self.c_in * self.kernel**2

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.c_in}->{self.c_out} {self.kernel}x{self.kernel}{stride} @{self.size}"


def layers_of(name: str) -> list[LayerShape]:
    """Return the distinct adder layers of a model, in order of execution."""
    model = create_model(name, op="adder").eval()
    found: dict[LayerShape, int] = {}

    def note(layer: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        size = inputs[0].shape[-1]
        shape = LayerShape(
            layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0], size
        )
        found[shape] = found.get(shape, 0) + 1

    for module in model.modules():
        if isinstance(module, adder_nn.AdderConv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, *model.input_size))
    return [LayerShape(**{**asdict(shape), "count": count}) for shape, count in found.items()]


def measure(
    shapes: Iterable[LayerShape],
    batches: Iterable[int],
    devices: Iterable[Device],
    passes: Iterable[str],
    repetitions: int,
    show: Show,
) -> list[Row]:
    """Return one row for each shape, batch, device and pass, with the seconds of each operator in each memory format.

    `ratio` is the adder's median over the convolution's, each in its better format.
    """
    rows = []
    for shape, batch, device, pass_name in product(shapes, batches, devices, passes):
        show(f"{shape}, batch {batch}, {device}, {pass_name}")
        with device.settings(), torch.no_grad():
            calls = candidates(shape, batch, pass_name, device.device)
            seconds = interleaved(calls, repetitions, device.clock)
        best = best_by_prefix(medians(seconds))
        row = {
            **_fields(shape, batch, device, pass_name),
            "seconds": seconds,
            **{f"{op}_ms": value * 1e3 for op, value in best.items()},
            **{f"{op}_giga_ops": shape.operations(batch) / value / 1e9 for op, value in best.items()},
            "ratio": best["adder"] / best["conv"],
        }
        rows.append(row)
    return rows


def candidates(shape: LayerShape, batch: int, pass_name: str, device: torch.device = CPU) -> Calls:
    """Return adder operator and torch convolution as calls, each with all tensors in either memory format."""
    calls: Calls = {}
    geometry = shape.geometry
    mask = [pass_name == "grad_input", pass_name == "grad_weight", False]
    for name, layout in FORMATS.items():
        x, weight, grad = (t.contiguous(memory_format=layout) for t in _tensors(shape, batch, device))
        if pass_name == "forward":
            calls[f"adder {name}"] = partial(ops.adder_conv, x, weight, None, geometry, False)
            calls[f"conv {name}"] = partial(F.conv2d, x, weight, None, *geometry)
        else:
            backward = ops.adder_conv_grad_input if pass_name == "grad_input" else ops.adder_conv_grad_weight
            rule = "hardtanh" if pass_name == "grad_input" else "full"
            calls[f"adder {name}"] = partial(backward, grad, x, weight, geometry, rule)
            stride, padding, dilation, groups = geometry
            options = (None, stride, padding, dilation, False, (0, 0), groups, mask)
            calls[f"conv {name}"] = partial(torch.ops.aten.convolution_backward, grad, x, weight, *options)
    return calls


def measure_formulas(
    shape: LayerShape, batch: int, devices: Iterable[Device], repetitions: int, show: Show
) -> list[Row]:
    """Time the forward pass against the formulas that other code uses: broadcasting, and torch.cdist(p=1).

    Return one row for each device. Broadcasting needs memory for two float32 numbers for each |x - w|.
    """
    rows = []
    for device in devices:
        show(f"{shape}, batch {batch}, {device}, formulas")
        x, weight, _ = _tensors(shape, batch, device.device)
        nhwc, w_nhwc = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        calls: Calls = {
            "adder channels_last": partial(ops.adder_conv, nhwc, w_nhwc, None, shape.geometry, False),
            "broadcast": partial(broadcast, x, weight, shape),
            "cdist": partial(cdist, x, weight, shape),
        }
        with device.settings(), torch.no_grad():
            results = [call() for call in calls.values()]
            if not all(torch.allclose(results[0], other, rtol=1e-4, atol=1e-3) for other in results[1:]):  # type: ignore[arg-type]
                raise RuntimeError("the formulas do not agree")
            del results
            seconds = interleaved(calls, repetitions, device.clock)
        median = medians(seconds)
        speedup = {name: median[name] / median["adder channels_last"] for name in ("broadcast", "cdist")}
        rows.append({**_fields(shape, batch, device, "forward"), "seconds": seconds, "speedup": speedup})
    return rows


def broadcast(x: Tensor, weight: Tensor, shape: LayerShape) -> Tensor:
    """Compute the layer as the published code does: patches and filters broadcast to (C_out, K, positions)."""
    patches = F.unfold(x, shape.kernel, padding=shape.padding, stride=shape.stride)
    columns = patches.permute(1, 2, 0).reshape(patches.shape[1], -1)
    y = -(weight.view(shape.c_out, -1, 1) - columns.unsqueeze(0)).abs().sum(1)
    return y.view(shape.c_out, shape.size_out, shape.size_out, -1).permute(3, 0, 1, 2).contiguous()


def cdist(x: Tensor, weight: Tensor, shape: LayerShape) -> Tensor:
    """Compute the layer by torch.cdist(p=1) between patches and filters."""
    patches = F.unfold(x, shape.kernel, padding=shape.padding, stride=shape.stride).transpose(1, 2)
    y = -torch.cdist(patches, weight.flatten(1).expand(x.shape[0], -1, -1).contiguous(), p=1.0)
    return y.transpose(1, 2).view(-1, shape.c_out, shape.size_out, shape.size_out)


def _tensors(shape: LayerShape, batch: int, device: torch.device = CPU) -> tuple[Tensor, Tensor, Tensor]:
    """Return random input (not negative), weight and gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (
        (batch, shape.c_in, shape.size, shape.size),
        (shape.c_out, shape.c_in, shape.kernel, shape.kernel),
        (batch, shape.c_out, shape.size_out, shape.size_out),
    )
    x, weight, grad = (torch.randn(size, generator=generator, device=device) for size in sizes)
    return x.relu(), weight, grad


def _fields(shape: LayerShape, batch: int, device: Device, pass_name: str) -> Row:
    return {"layer": str(shape), **asdict(shape), "batch": batch, **device.fields, "pass": pass_name}


@dataclass(frozen=True)
class LayerCase:
    """Hold a layer of one, two or three dimensions with a square kernel, and the size of an input for it."""

    title: str
    batch: int
    c_in: int
    c_out: int
    kernel: int
    size: tuple[int, ...]
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        groups = "" if self.groups == 1 else f", {self.groups} groups"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        kernel, size = "x".join([str(self.kernel)] * len(self.size)), "x".join(map(str, self.size))
        return f"{self.title}: {self.c_in}->{self.c_out} {kernel}{stride}{groups} on {self.batch}x{self.c_in}x{size}"

    def layers(self) -> dict[str, nn.Module]:
        """Return the adder layer and torch's layer, with the bias that each has by default."""
        options: dict[str, Any] = {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups}
        return {
            op: getattr(module, f"{prefix}Conv{len(self.size)}d")(self.c_in, self.c_out, self.kernel, **options)
            for op, module, prefix in (("adder", adder_nn, "Adder"), ("conv", nn, ""))
        }


CASES = (
    LayerCase("tiny", 1, 8, 8, 3, (4, 4)),
    LayerCase("tiny 1x1", 1, 8, 8, 1, (4, 4)),
    LayerCase("1-d", 16, 64, 64, 9, (256,)),
    LayerCase("1-d, strided", 8, 32, 64, 16, (1024,), stride=4),
    LayerCase("1-d, depthwise", 16, 128, 128, 7, (256,), groups=128),
    LayerCase("3-d", 4, 16, 32, 3, (8, 16, 16)),
    LayerCase("3-d", 2, 64, 64, 3, (8, 8, 8)),
    LayerCase("3-d, stem", 4, 3, 32, 3, (16, 32, 32), stride=2),
    LayerCase("3-d, depthwise", 4, 64, 64, 3, (8, 8, 8), groups=64),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=2),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=4),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=8),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=16),
    LayerCase("grouped, ResNeXt", 8, 128, 128, 3, (28, 28), groups=32),
    LayerCase("grouped, ShuffleNet", 16, 60, 60, 1, (28, 28), groups=3),
    LayerCase("2 filters a channel", 16, 32, 64, 3, (28, 28), groups=32),
    LayerCase("depthwise", 16, 64, 64, 3, (28, 28), groups=64),
    LayerCase("depthwise, strided", 16, 64, 64, 3, (28, 28), stride=2, groups=64),
    LayerCase("depthwise, ConvNeXt", 8, 96, 96, 7, (28, 28), groups=96),
)


def measure_modules(
    cases: Iterable[LayerCase], thread_counts: Iterable[int], repetitions: int, show: Show
) -> list[Row]:
    """Time whole modules, where torch has little to do (tiny inputs) or no good kernel (groups).

    Return one row for each case, number of threads and pass of MODULE_PASSES. `ratio` is the adder's median over the
    convolution's, each in its better memory format.
    """
    rows = []
    for case, count, pass_name in product(cases, thread_counts, MODULE_PASSES):
        show(f"{case}, {count} threads, {pass_name}")
        with threads(count):
            seconds = interleaved(module_candidates(case, pass_name), repetitions)
        best = best_by_prefix(medians(seconds))
        about = {"layer": str(case), "threads": count, "pass": pass_name, "seconds": seconds}
        milliseconds = {f"{op}_ms": value * 1e3 for op, value in best.items()}
        rows.append({**about, **milliseconds, "ratio": best["adder"] / best["conv"]})
    return rows


def module_candidates(case: LayerCase, pass_name: str) -> Calls:
    """Return both layers as calls, each with input and weight in either memory format; gradients are enabled."""
    calls: Calls = {}
    x = torch.randn(case.batch, case.c_in, *case.size, generator=torch.Generator().manual_seed(0)).relu()
    channels_last = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[len(case.size)]
    for layout in dict.fromkeys((torch.contiguous_format, channels_last)):
        image = x.contiguous(memory_format=layout)
        for op, layer in case.layers().items():
            layer.to(memory_format=layout)  # type: ignore[call-overload]
            if pass_name == "forward":
                calls[f"{op} {layout}"] = partial(layer, image)
            else:
                x_leaf = image.clone().requires_grad_()
                calls[f"{op} {layout}"] = partial(_step, layer, x_leaf, torch.ones_like(layer(x_leaf)))
    return calls


def _step(layer: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)
