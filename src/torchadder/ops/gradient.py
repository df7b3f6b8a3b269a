"""Wire the gradient rule of an operator, once for everything that torch does with a gradient.

Torch has two public facilities, and neither covers all uses. torch.library.register_autograd gives the operator itself
a gradient, which compiled, exported and traced programs need: they hold the operator and nothing else. But under the
transforms of torch.func it fails (vmap of grad) or ignores the tangents (jvp), and it slows every eager call.
An autograd.Function works there, and takes a fraction of that time. Both get the same two functions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Save = Callable[[Any, tuple[Any, ...], Tensor], None]
Backward = Callable[[Any, Tensor], tuple[Tensor | None, ...]]


def differentiable(operator: Any, save: Save, backward: Backward, library: torch.library.Library) -> Any:
    """Register the gradient of an operator; return a function of the operator's arguments, all positional.

    Args:
        operator: an overload that `library` defines, torch.ops.<namespace>.<name>.default.
        save: setup_context(ctx, inputs, output) as for register_autograd and autograd.Function.
        backward: (ctx, grad of the output) -> a gradient, or None, for each argument. Second derivatives do not exist:
            it computes the gradients through `once`.
    """

    def wide_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients outside of autocast, which would round the products of float32 tensors to 16 bits."""
        kind = grad.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return backward(ctx, grad)
        with torch.autocast(kind, enabled=False):
            return backward(ctx, grad)

    torch.library.register_autograd(operator.name(), wide_backward, setup_context=save, lib=library)

    class Rule(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
            return operator(x, weight, bias, *options)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            x, weight, bias, options = inputs
            save(ctx, (x, weight, bias, *options), output)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return wide_backward(ctx, grad)[:4]

    class EagerRule(torch.autograd.Function):  # A call without setup_context is cheaper.
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
            output = operator(x, weight, bias, *options)
            save(ctx, (x, weight, bias, *options), output)
            return output

        backward = Rule.backward

    def call(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return operator(x, weight, bias, *options)
        try:
            return EagerRule.apply(x, weight, bias, options)
        except RuntimeError as error:  # torch.func's transforms refuse a Function without setup_context.
            if "setup_context" not in str(error):
                raise
            return Rule.apply(x, weight, bias, options)

    return call


def once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments), whose derivative is an error.

    torch.autograd.function.once_differentiable is not supported by torch.func's transforms.
    """
    return _Once.apply(function, *arguments) if torch.is_grad_enabled() else function(*arguments)


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("the gradient of this layer has no derivative: compute first derivatives only")
