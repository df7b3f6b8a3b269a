"""Rescale the gradients of adder weights before each step of any torch optimiser: AdaptiveLR and IncreasedLR."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from torchadder.errors import UserError
from torchadder.nn.adder import SMALL, root_mean_square


def _positive(name: str, value: float) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a number")
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name}={value} is out of range: expected a finite number above 0")
    return value


_attached: WeakKeyDictionary[Optimizer, WeakSet[_AdderGradientHook]] = WeakKeyDictionary()


class _AdderGradientHook:
    """Rescale the gradients of the adder weights just before each step of ``optimizer``.

    A later one for the same weights takes its place.
    """

    def __init__(self, optimizer: Optimizer, params: Iterable[Tensor] | None):
        # A wrapper, as that of accelerate, is a subclass without the state of an optimiser, or no optimiser.
        if not isinstance(optimizer, Optimizer) or "param_groups" not in vars(optimizer):
            raise TypeError(
                f"optimizer is of type {type(optimizer).__name__}: expected the torch optimizer itself, before another "
                "library wraps it"
            )
        if isinstance(params, Tensor):
            raise TypeError("params is a tensor: expected several, params=[weight]")
        if isinstance(optimizer, LBFGS):
            raise UserError(
                f"{type(self).__name__} does not work with LBFGS, which searches along the gradient of the loss and "
                "fails with a rescaled one: take another optimizer"
            )
        self._optimizer, self._stepped = optimizer, False
        self._chosen = None if params is None else list(params)
        present = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if missing := {id(p) for p in self._chosen or ()} - present:
            raise UserError(f"{len(missing)} of the given params are not in the optimizer")
        if not any(True for _ in self._weights()):
            raise UserError(
                f"{type(self).__name__} found no adder weight in the optimizer: build the optimizer from a "
                "model with adder layers, or name the weights with params=[...]"
            )
        self._handle: RemovableHandle | None = None
        self._replace_earlier()
        self._attach()

    def _attach(self) -> None:
        self._handle = self._optimizer.register_step_pre_hook(self._before_step)
        _attached.setdefault(self._optimizer, WeakSet()).add(self)

    def _replace_earlier(self) -> None:
        """Remove earlier hooks of the same weights. Raises UserError for one that has other weights as well."""
        ours = {id(weight) for weight in self._weights()}
        for other in list(_attached.get(self._optimizer, ())):
            theirs = {id(weight) for weight in other._weights()} if other._handle is not None else set()
            if theirs == ours:
                other.remove()
            elif shared := len(ours & theirs):
                kind = type(other).__name__
                raise UserError(f"{shared} of the weights have a rule already: call remove() of that {kind} first")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handle": self._handle is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach a copy to the copy of the optimiser, which has no hooks."""
        vars(self).update({**state, "_handle": None})
        if state["_handle"]:
            self._attach()

    def remove(self) -> None:
        """Detach the hook from the optimiser: later steps use the gradients as they are."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _weights(self) -> Iterator[Tensor]:
        if self._chosen is not None:
            yield from self._chosen
            return
        for group in self._optimizer.param_groups:
            yield from (p for p in group["params"] if getattr(p, "adder", False))

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rescale the gradients; where the step has a closure, let that rescale those that it computes."""
        if not self._stepped:
            self._stepped = True
            self._warn_of_small_filters()
        if any(map(callable, (*args, *kwargs.values()))):
            return tuple(map(self._rescaling, args)), {name: self._rescaling(value) for name, value in kwargs.items()}
        self._rescale_all()
        return args, kwargs

    def _rescaling(self, argument: Any) -> Any:
        """Return a closure that also rescales; any other argument of step() as it is."""
        if not callable(argument):
            return argument

        def closure() -> Any:
            loss = argument()
            self._rescale_all()
            return loss

        return closure

    @torch.no_grad()
    def _rescale_all(self) -> None:
        for weight in self._weights():
            if weight.grad is not None:
                self._rescale(weight.grad)

    def _warn_of_small_filters(self) -> None:
        """Warn where marked weights are much smaller than adder layers make them: training then starts slowly."""
        if self._chosen is None:
            sizes = [root_mean_square(weight).item() for weight in self._weights()]
            if small := [size for size in sizes if size < SMALL]:
                warnings.warn(
                    f"{len(small)} of {len(sizes)} adder weights have a root mean square below {SMALL:g} (the smallest "
                    f"{min(small):.2g}), as torch's convolutions do; adder layers start at 1 and learn slowly from "
                    "less: exclude them from initialisations for convolutions, and convert with rescale=True",
                    stacklevel=2,
                )

    def _rescale(self, grad: Tensor) -> None:
        raise NotImplementedError


class AdaptiveLR(_AdderGradientHook):
    """Give each adder layer l its own learning rate (eq. 13): rescale its gradient just before each optimiser step.

        grad_l <- eta * sqrt(k_l) / max(||grad_l||_2, 1e-12) * grad_l     k_l = elements of the weight

    This happens after all-reduce, unscaling and accumulation, so the step does not depend on loss scale, world size or
    the number of micro-batches. Weight decay and momentum see the rescaled gradient.

    It finds the adder weights at each step by the mark ``weight.adder``. Every adder layer sets it, and it survives
    ``.to()``, ``load_state_dict``, deepcopy, pickle and ``fully_shard`` of the model. Pass ``params`` where the
    optimiser holds other tensors than the layers' own weights, as after weight_norm.

    Shapes and dtypes: any; the norm and the product are taken in float32 (float64 for float64 gradients) and
    never leave the device. The norm of a sharded gradient is that of all shards. A zero gradient stays zero, a
    missing one (None) is skipped. NaN or infinity turns into NaN, so that a gradient scaler or the loss check can act
    on it.

    torch drops the hooks of an optimiser when it is copied or pickled: attach a new AdaptiveLR to the copy, or copy
    both in one object, such as a trainer.

    Warns once, at the first step, where adder weights are as small as those of torch's convolutions: an initialisation
    written for convolutions takes adder layers too, and from there they learn slowly.

    Args:
        optimizer: any torch optimiser except LBFGS, stepped with or without a closure.
        eta: the root mean square of each rescaled gradient, > 0; the official code uses 0.2.
        params: the weights to rescale; None finds the marked ones.

    Raises UserError for eta <= 0, when no adder weight is found, for params that the optimiser lacks, and for LBFGS.
    """

    def __init__(self, optimizer: Optimizer, eta: float = 0.2, params: Iterable[Tensor] | None = None):
        self.eta = _positive("eta", eta)
        super().__init__(optimizer, params)

    def _rescale(self, grad: Tensor) -> None:
        wide = torch.promote_types(grad.dtype, torch.float32)
        norm = torch.linalg.vector_norm(grad, dtype=wide)
        # A fused optimiser under GradScaler divides by the loss scale itself, after this hook.
        loss_scale = getattr(self._optimizer, "grad_scale", None)
        if loss_scale is not None:
            norm = norm / loss_scale
        scale = self.eta * math.sqrt(grad.numel()) / norm.clamp_min(1e-12)
        if grad.dtype == wide:
            grad.mul_(scale)
        else:
            grad.copy_(grad.to(wide) * scale)

    def state_dict(self) -> dict[str, float]:
        """Return ``{"eta": eta}``, to be saved beside the optimiser's own state."""
        return {"eta": self.eta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.eta = _positive("eta", state["eta"])


class IncreasedLR(_AdderGradientHook):
    """Multiply the gradients of the adder weights by one constant, grad_l <- factor * grad_l (ILR in the ablation).

    It scales the gradient, not the group's rate: a larger rate would multiply weight decay as well, and the
    filters would shrink to nothing. Arguments and errors as AdaptiveLR.
    """

    def __init__(self, optimizer: Optimizer, factor: float = 100.0, params: Iterable[Tensor] | None = None):
        self.factor = _positive("factor", factor)
        super().__init__(optimizer, params)

    def _rescale(self, grad: Tensor) -> None:
        grad.mul_(self.factor)

    def state_dict(self) -> dict[str, float]:
        """Return ``{"factor": factor}``, to be saved beside the optimiser's own state."""
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor = _positive("factor", state["factor"])
