"""Define the adder layers: torch.nn's layers with the negative L1 distance in place of the product.

"AdderNet: Do We Really Need Multiplications in Deep Learning?", Chen et al., CVPR 2020, arXiv 1912.13200.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchadder import functional as F
from torchadder.functional import DEFAULT_RULE, GradientRule
from torchadder.functional.adder import check_rule
from torchadder.ops.geometry import pad_by_mode

# Adder weights start with a root mean square of 1 and grow while they are trained. Those of trained CNNs, and what
# initialisations for convolutions give, are below this.
SMALL = 0.5


def root_mean_square(weight: Tensor) -> Tensor:
    """Return the root mean square of ``weight``, computed in float32."""
    return weight.detach().float().square().mean().sqrt()


class Adder(nn.Module):
    """Hold what all adder layers share. A subclass adds the layer of torch.nn whose arguments it takes.

    Each layer marks its weight, `weight.adder = True`: torchadder.AdaptiveLR finds it in an optimiser by this mark.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        counterpart = next(c for c in cls.__mro__ if c.__module__.startswith("torch.nn.modules."))
        if counterpart is not nn.Module and "__init__" not in vars(cls):
            added = [p for p in inspect.signature(Adder).parameters.values() if p.kind is p.KEYWORD_ONLY]
            parameters = [*inspect.signature(counterpart).parameters.values(), *added]
            cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, grad: GradientRule = DEFAULT_RULE, recenter: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_rule(grad)
        self.grad, self.recenter = grad, recenter

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if name == "weight" and param is not None:
            param.adder = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        """Do as nn.Module does. Because it is overridden, fully_shard sets parameters by register_parameter."""
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self._mark()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._mark()

    def _mark(self) -> None:
        """Mark the weight again: copies, pickles, to_empty() and swap_tensors() make a new one, without the mark."""
        for name, param in self.named_parameters():
            if name in ("weight", "weight_orig", "parametrizations.weight.original"):  # plain, pruned, parametrized
                param.adder = True  # type: ignore[attr-defined]

    def _rule(self) -> GradientRule:
        """Return the rule to compute with: evaluation is in float32."""
        if self.training or self.grad.numbers == DEFAULT_RULE.numbers:
            return self.grad
        return GradientRule(self.grad.weight, self.grad.input)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)  # type: ignore[arg-type]  # The paper: N(0, 1) for any fan-in.
        if self.bias is not None:
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.grad != DEFAULT_RULE:
            changed = {k: v for k, v in self.grad._asdict().items() if v != getattr(DEFAULT_RULE, k)}
            text += f", grad=GradientRule({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
        return text + ", recenter=True" if self.recenter else text


class _AdderConv(Adder):
    """Define the forward pass of the adder convolutions."""

    _operator: str  # The name in torchadder.functional, looked up at each call because torch.fx replaces it there.

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = pad_by_mode(input, self.kernel_size, padding, self.dilation, self.padding_mode)  # type: ignore[arg-type]
            padding = 0  # type: ignore[assignment]
        return getattr(F, self._operator)(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            grad=self._rule(),
            recenter=self.recenter,
        )


class AdderConv1d(_AdderConv, nn.Conv1d):
    """Convolve in 1-d by negative L1 distance; the arguments are those of torch.nn.Conv1d.

    Shapes: input (N, C_in, L) or (C_in, L) -> (N, C_out, L_out). The rest is as in AdderConv2d.
    """

    _operator = "adder_conv1d"


class AdderConv2d(_AdderConv, nn.Conv2d):
    """Convolve in 2-d by negative L1 distance; the arguments are those of torch.nn.Conv2d.

        Y[n, o, i, j] = bias[o] - sum_{c, a, b} |X[n, c, i*s + a, j*s + b] - W[o, c, a, b]|     (eq. 2)

    Shapes: input (N, C_in, H, W) or (C_in, H, W) -> (N, C_out, H_out, W_out) as nn.Conv2d, float32. A padded
    position holds 0 and contributes -|W|. Put a normalisation after it, because outputs are all negative and large.
    Keyword-only: `grad`, the gradient rule, and `recenter`, both as in torchadder.functional.adder_conv2d.
    Raises ValueError where nn.Conv2d does, and for an unknown gradient rule.
    """

    _operator = "adder_conv2d"


class AdderConv3d(_AdderConv, nn.Conv3d):
    """Convolve in 3-d by negative L1 distance; the arguments are those of torch.nn.Conv3d.

    Shapes: input (N, C_in, D, H, W) or (C_in, D, H, W) -> (N, C_out, D_out, H_out, W_out). The rest is as in
    AdderConv2d.
    """

    _operator = "adder_conv3d"


class AdderLinear(Adder, nn.Linear):
    """Compute a fully connected layer by negative L1 distance; the arguments are those of torch.nn.Linear.

        Y[..., o] = bias[o] - sum_k |X[..., k] - W[o, k]|

    Shapes: input (..., in_features) -> (..., out_features), float32. `grad`, `recenter` and the need of a
    normalisation are as in AdderConv2d.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.adder_linear(input, self.weight, self.bias, grad=self._rule(), recenter=self.recenter)
