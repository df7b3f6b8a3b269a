"""The way to an operator: through torch's dispatcher, or straight to it where the dispatcher has nothing to do.

For plain CPU or GPU tensors with no mode, transform, tracer or profiler at work the dispatcher would only pass the call
on, and its detour through Python takes as long as a small layer. Everything else goes through it: subclasses, fake and
wrapped tensors, views with a lazy negation, dispatch modes, functorch, compilation, tracing, profiling.
"""

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn import Parameter

from . import registration
from .geometry import Geometry

_keys = torch._C._dispatch_keys
_included = torch._C._dispatch_tls_local_include_set
_NOTHING_ELSE = _included().raw_repr()  # numbers: sets of torch before 2.7 are equal only to themselves
_operators = torch.ops.torchadder


def keys_of_plain(backend: str) -> int:
    """The dispatch keys of a tensor that is nothing more than one of a backend, "CPU" or "CUDA", as torch's number."""
    of = torch._C.DispatchKey
    keys = torch._C.DispatchKeySet(of.__members__[backend])
    for key in ("ADInplaceOrView", f"Autograd{backend}", f"Autocast{backend}"):
        keys = keys.add(of.__members__[key])
    return keys.raw_repr()


_PLAIN_CPU, _PLAIN_GPU = keys_of_plain("CPU"), keys_of_plain("CUDA")


def passes_through(a: Tensor, b: Tensor, c: Tensor | None) -> bool:
    """Whether the dispatcher would do nothing but call the implementation."""
    if torch.compiler.is_compiling():
        return False
    plain = _PLAIN_CPU if a.is_cpu else _PLAIN_GPU
    device = a.device
    return (
        _keys(a).raw_repr() == plain
        and _is_plain(b, device, plain)
        and (c is None or _is_plain(c, device, plain))
        and _included().raw_repr() == _NOTHING_ELSE
        and not profiler._is_profiler_enabled
    )


def _is_plain(tensor: Tensor, device: torch.device, plain: int) -> bool:
    """Of a parameter less is asked, and more quickly: no transform wraps one, and a subclass is of its own type."""
    if tensor.device != device:
        return False
    return (type(tensor) is Parameter and not tensor.is_neg()) or _keys(tensor).raw_repr() == plain


def adder_conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, recenter: bool) -> Tensor:
    """torchadder::adder_conv."""
    if passes_through(x, weight, bias):
        return registration.forward(x, weight, bias, geometry, recenter)
    return _operators.adder_conv.default(x, weight, bias, *geometry, recenter)


def adder_conv_grad_input(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str) -> Tensor:
    """torchadder::adder_conv_grad_input."""
    if passes_through(grad, x, weight):
        return registration.grad_input(grad, x, weight, geometry, rule)
    return _operators.adder_conv_grad_input.default(grad, x, weight, *geometry, rule)


def adder_conv_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str) -> Tensor:
    """torchadder::adder_conv_grad_weight."""
    if passes_through(grad, x, weight):
        return registration.grad_weight(grad, x, weight, geometry, rule)
    return _operators.adder_conv_grad_weight.default(grad, x, weight, *geometry, rule)
