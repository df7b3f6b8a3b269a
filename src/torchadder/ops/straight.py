"""The way to an operator: through torch's dispatcher, or straight to it where the dispatcher has nothing to do.

For plain CPU tensors with no mode, transform, tracer or profiler at work the dispatcher would only pass the call on,
and its detour through Python takes as long as a small layer. Everything else goes through it: subclasses, fake and
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
_PLAIN = _keys(torch.empty(0))  # of a CPU tensor that is nothing more
_NOTHING_ELSE = _included()
_operators = torch.ops.torchadder


def passes_through(a: Tensor, b: Tensor, c: Tensor | None) -> bool:
    """Whether the dispatcher would do nothing but call the implementation.

    Of a parameter less is asked, and more quickly: no transform wraps one, and a subclass of Tensor is of its own type.
    """
    return (
        not torch.compiler.is_compiling()
        and _keys(a) == _PLAIN
        and ((type(b) is Parameter and b.is_cpu and not b.is_neg()) or _keys(b) == _PLAIN)
        and (c is None or (type(c) is Parameter and c.is_cpu and not c.is_neg()) or _keys(c) == _PLAIN)
        and _included() == _NOTHING_ELSE
        and not profiler._is_profiler_enabled
    )


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
