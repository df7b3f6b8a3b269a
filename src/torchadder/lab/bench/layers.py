"""Layer by layer: the adder operators against torch's own convolution, and against the formulas in use elsewhere.

A rate is element operations a second: N * C_out * H_out * W_out * C_in / groups * kh * kw, the number of |x - w| that
the definition asks for, taps in the padding included, whatever a kernel does to get there.

On a GPU a call finds no cache of its tensors, a convolution runs without and with TF32, and a pass that computes one
|x - w| after the other has its share of the limit beside it: two float32 instructions each, FADD and FADD forward,
FADD.SAT and FFMA for the input's gradient, at the rate at which this GPU issues them when it does nothing else.
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

from torchadder import ops
from torchadder.models import create_model
from torchadder.ops.geometry import Geometry

from .devices import Gpu, Place
from .timing import Calls, interleaved, medians

PASSES = ("forward", "grad_input", "grad_weight")
LIMITED = ("forward", "grad_input")  # by the issue of float32 instructions; the other is mostly a convolution's
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class LayerShape:
    """A convolution's shape, and how often a model has it; two of one shape are equal."""

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
        """Element operations of one forward pass."""
        return batch * self.c_out * self.size_out**2 * self.c_in * self.kernel**2

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.c_in}->{self.c_out} {self.kernel}x{self.kernel}{stride} @{self.size}"


def layers_of(name: str) -> list[LayerShape]:
    """The distinct adder layers of a model, in order of execution."""
    model = create_model(name, op="adder").eval()
    found: dict[LayerShape, int] = {}

    def note(module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        shape = LayerShape(
            module.in_channels,
            module.out_channels,
            module.kernel_size[0],
            module.stride[0],
            module.padding[0],
            inputs[0].shape[-1],
        )
        found[shape] = found.get(shape, 0) + 1

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and hasattr(module, "grad"):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, *model.input_size))
    return [LayerShape(**{**asdict(shape), "count": count}) for shape, count in found.items()]


def measure(
    shapes: Iterable[LayerShape],
    batches: Iterable[int],
    places: Iterable[Place],
    passes: Iterable[str],
    repetitions: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row for each shape, batch, place and pass: seconds of each side in each memory format.

    `ratio` is the adder's median over torch's, each side in its better format.
    """
    rows = []
    for shape, batch, place, which in product(shapes, batches, places, passes):
        progress(f"{shape}, batch {batch}, {place}, {which}")
        with place.in_use(), torch.no_grad():
            calls = candidates(shape, batch, which, place.device)
            cudnn = {name: call for name, call in calls.items() if which not in LIMITED or name.startswith("conv ")}
            seconds = interleaved(calls | place.rivals(cudnn), repetitions, place.clock(flush=True))
            rows.append(_row(shape, batch, place, which, seconds))
    return rows


def candidates(shape: LayerShape, batch: int, which: str, device: torch.device = CPU) -> Calls:
    """What is timed: adder and torch convolution, each with all tensors in either memory format."""
    calls: Calls = {}
    geometry = shape.geometry
    mask = [which == "grad_input", which == "grad_weight", False]
    for name, layout in FORMATS.items():
        x, weight, grad = (t.contiguous(memory_format=layout) for t in _tensors(shape, batch, device))
        if which == "forward":
            calls[f"adder {name}"] = partial(ops.adder_conv, x, weight, None, geometry, False)
            calls[f"conv {name}"] = partial(F.conv2d, x, weight, None, *geometry)
        else:
            backward = ops.adder_conv_grad_input if which == "grad_input" else ops.adder_conv_grad_weight
            rule = "hardtanh" if which == "grad_input" else "full"
            calls[f"adder {name}"] = partial(backward, grad, x, weight, geometry, rule)
            stride, padding, dilation, groups = geometry
            options = (None, stride, padding, dilation, False, (0, 0), groups, mask)
            calls[f"conv {name}"] = partial(torch.ops.aten.convolution_backward, grad, x, weight, *options)
    return calls


def measure_formulas(
    shape: LayerShape, batch: int, places: Iterable[Place], repetitions: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The forward pass against the formulas that other implementations use: broadcasting, and torch.cdist(p=1).

    On a GPU the batch is as large as broadcasting's two tensors of a number for each |x - w| allow.
    """
    rows = []
    for place in places:
        batch = place.most(batch, 3 * 4 * shape.operations(1))  # (a third for all the rest)
        progress(f"{shape}, batch {batch}, {place}, formulas")
        x, weight, _ = _tensors(shape, batch, place.device)
        nhwc, w_nhwc = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        calls: Calls = {
            "adder channels_last": partial(ops.adder_conv, nhwc, w_nhwc, None, shape.geometry, False),
            "broadcast": partial(broadcast, x, weight, shape),
            "cdist": partial(cdist, x, weight, shape),
        }
        with place.in_use(), torch.no_grad():
            results = [call() for call in calls.values()]
            if not all(torch.allclose(results[0], other, rtol=1e-4, atol=1e-3) for other in results[1:]):  # type: ignore[arg-type]
                raise RuntimeError("the formulas do not agree")
            del results
            middle = medians(seconds := interleaved(calls, repetitions, place.clock(flush=True)))
        rows.append(
            {
                **_about(shape, batch, place, "forward"),
                "seconds": seconds,
                "speedup": {name: middle[name] / middle["adder channels_last"] for name in ("broadcast", "cdist")},
            }
        )
    return rows


def broadcast(x: Tensor, weight: Tensor, shape: LayerShape) -> Tensor:
    """The formula of the published code: patches and filters broadcast into one tensor (C_out, K, positions)."""
    patches = F.unfold(x, shape.kernel, padding=shape.padding, stride=shape.stride)
    columns = patches.permute(1, 2, 0).reshape(patches.shape[1], -1)
    y = -(weight.view(shape.c_out, -1, 1) - columns.unsqueeze(0)).abs().sum(1)
    return y.view(shape.c_out, shape.size_out, shape.size_out, -1).permute(3, 0, 1, 2).contiguous()


def cdist(x: Tensor, weight: Tensor, shape: LayerShape) -> Tensor:
    """Patches against filters by torch.cdist with p=1."""
    patches = F.unfold(x, shape.kernel, padding=shape.padding, stride=shape.stride).transpose(1, 2)
    y = -torch.cdist(patches, weight.flatten(1).expand(x.shape[0], -1, -1).contiguous(), p=1.0)
    return y.transpose(1, 2).view(-1, shape.c_out, shape.size_out, shape.size_out)


def _tensors(shape: LayerShape, batch: int, device: torch.device = CPU) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    sizes = (
        (batch, shape.c_in, shape.size, shape.size),
        (shape.c_out, shape.c_in, shape.kernel, shape.kernel),
        (batch, shape.c_out, shape.size_out, shape.size_out),
    )
    x, weight, grad = (torch.randn(size, generator=generator, device=device) for size in sizes)
    return x.relu(), weight, grad


def _about(shape: LayerShape, batch: int, place: Place, which: str) -> dict[str, Any]:
    return {"layer": str(shape), **asdict(shape), "batch": batch, **place.about, "pass": which}


def _row(shape: LayerShape, batch: int, place: Place, which: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    middle = medians(seconds)
    sides = dict.fromkeys(name.partition(" ")[0] for name in middle)
    best = {side: min(middle[name] for name in middle if name.startswith(f"{side} ")) for side in sides}
    rates = {side: shape.operations(batch) / best[side] for side in sides}
    row = {
        **_about(shape, batch, place, which),
        "seconds": seconds,
        **{f"{side}_ms": best[side] * 1e3 for side in sides},
        **{f"{side}_giga_ops": rates[side] / 1e9 for side in sides},
        "ratio": best["adder"] / best["conv"],
    }
    if isinstance(place, Gpu):
        limit = place.limit if which in LIMITED else None
        row["tf32_ratio"] = best.get("tf32_adder", best["adder"]) / best["tf32"]
        row["limit_giga_ops"] = limit and limit / 1e9
        row["limit_share"] = limit and rates["adder"] / limit
    return row
