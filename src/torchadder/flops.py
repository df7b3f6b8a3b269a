"""Count multiplications, additions and XNORs operator by operator, while a network runs.

The convention, per image, in inference:

    convolution, linear, matrix product    1 multiplication and 1 addition per multiply-accumulate
    adder layer, |x - w| accumulated       2 additions per element (subtract, accumulate), 0 multiplications
    binary layer, XNOR and popcount        1 XNOR and 1 addition (accumulate) per element; the scale of a filter
                                           folds into the normalisation that follows and is not counted
    padded positions                       counted like any other position
    bias, batch normalisation              not counted: in inference they fold into the layer before them. The
                                           paper leaves them out too, as negligible.
    activation, pooling, residual sum,     not counted, as in the paper
    other element-wise work, reduction

#Mul + #Add + #XNOR are therefore the flops of torch.utils.flop_counter.FlopCounterMode, whose formulas this module
uses, with attention counted as the matrix products that it stands for. Activations are the output elements of the
counted operators (Radosavovic et al., "Designing Network Design Spaces", 2020), 4 bytes each in float32. For a layer
that runs twice, operations and activations count twice and parameters once.

It counts the operators that run, whatever the names of the modules: a subclass, a functional call and attention count
like the layers that they are equal to. Where an operator or a module with parameters has no rule, the summary names it
instead of counting 0.

Importing this module registers the library's own operators with FlopCounterMode. It counts 2 flops for each
multiply-accumulate of a convolution, forward and in each gradient. The library's operators count 2 flops in its place,
so that an AdderNet, a binary network and their CNN counterpart have the same number of flops:

    adder_conv           subtract, accumulate
    binary_conv          XNOR, accumulate (popcount)
    adder_conv_grad_*    multiply by dY, accumulate

Work that is done once per element of a tensor is left out, as for a convolution: bias, scale of a binary filter, the
correction -W * sum(dY) of the weight gradient, HardTanh or sign of the difference that dY multiplies. The products
that a gradient operator computes internally count as that operator, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode  # torch documents it under this name ("Extending PyTorch")
from torch.utils.flop_counter import flop_registry, register_flop_formula

from torchadder import ops  # noqa: F401  defines the operators

_ADDER_CONV = torch.ops.torchadder.adder_conv
_BINARY_CONV = torch.ops.torchadder.binary_conv
_GRADIENTS = (torch.ops.torchadder.adder_conv_grad_input, torch.ops.torchadder.adder_conv_grad_weight)

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (
    *_BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_WEIGHT_MAKERS = (nn.utils.parametrize.ParametrizationList,)  # in inference the weight that they make is constant
_FREE_MODULES = (*_NORMS, *_WEIGHT_MAKERS, nn.PReLU, nn.Embedding)

# Operators that cost nothing by the convention, beside views and those tagged element-wise: memory, padding and
# resizing, normalisation and activation, pooling, reduction. The names lack the underscores of internal and in-place
# operators.
_FREE_OPS = frozenset(
    """
    empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full copy to_copy unsafe_view as_strided
    cat stack repeat roll flip tril triu index unsafe_index index_select index_put gather scatter embedding im2col
    pixel_shuffle pixel_unshuffle channel_shuffle constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    native_batch_norm native_batch_norm_legit native_batch_norm_legit_no_training batch_norm_no_update cudnn_batch_norm
    native_group_norm native_layer_norm fused_rms_norm weight_norm_interface softmax safe_softmax log_softmax
    hardswish glu prelu_kernel rrelu_with_noise log_sigmoid_forward
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d fractional_max_pool2d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
    mean sum var var_mean std linalg_vector_norm cumsum amax amin max min argmax argmin any all local_scalar_dense
    """.split()  # noqa: SIM905  (as a list of strings: a hundred lines)
)


@dataclass
class Row:
    """Hold the counts of one module that computes or holds parameters.

    ``free``: the convention does not count it. ``unknown``: one reason for each operation that has no rule.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None = None  # shape for one example; None without a tensor as output, or without a run
    activations: int = 0  # output elements of its counted operators
    parameters: int = 0
    mul: int = 0
    add: int = 0
    xnor: int = 0
    free: bool = False
    unknown: list[str] = field(default_factory=list)


class Counter(TorchDispatchMode):
    """Intercept every operator below autograd, and count it for the innermost module that is running."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.rows = {m: Row(name or "(model)", type(m).__name__) for name, m in model.named_modules()}
        self.running: list[nn.Module] = [model]
        self.ran: set[nn.Module] = set()
        self.computed: set[nn.Module] = set()  # a counted operator ran in it, or in a module that it called
        self.parameters = list(model.parameters())
        self.used: set[Tensor] = set()  # parameters that a counted operator took, as they are or as a view

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Keep hooks on every module that record which one is running."""

        def before(module: nn.Module, args: Any) -> None:
            self.running.append(module)
            self.ran.add(module)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()
            if tensors := _tensors(output):
                self.rows[module].output = tuple(tensors[0].shape[1:])

        handles: list[Any] = []
        for module in self.rows:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = func.overloadpacket
        if operator not in flop_registry:
            with self:  # inference mode does not decompose aten.linear and the like by itself
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        row = self.rows[self.running[-1]]
        if operator in flop_registry:
            flops = flop_registry[operator](*args, **kwargs, out_val=out)
            row.mul += 0 if operator in (_ADDER_CONV, _BINARY_CONV) else flops // 2
            row.xnor += flops // 2 if operator is _BINARY_CONV else 0
            row.add += flops if operator is _ADDER_CONV else flops // 2
            row.activations += sum(tensor.numel() for tensor in _tensors(out)[:1])
            self.computed.update(self.running)
            taken = {tensor.untyped_storage() for tensor in _tensors((args, kwargs))}
            self.used.update(p for p in self.parameters if not is_lazy(p) and p.untyped_storage() in taken)
        elif not _is_free(func, args):
            why = f"no rule for {operator}"
            if why not in row.unknown:
                row.unknown.append(why)
        return out

    def finished_rows(self) -> list[Row]:
        """Return the rows to print, with a reason on each that holds parameters but was not counted."""
        seen: set[Tensor] = set()
        for module, row in self.rows.items():
            own = [p for p in module.parameters(recurse=False) if p not in seen]  # tied weights count once
            seen.update(own)
            row.parameters = sum(p.numel() for p in own)
            row.free = isinstance(module, _FREE_MODULES) and module not in self.computed
            counted = module in self.computed or any(p in self.used for p in own)
            if row.parameters and not (row.free or row.unknown or counted):
                ran = "ran no operator with a rule" if module in self.ran else "did not run"
                row.unknown.append(f"holds parameters and {ran}")
        return [row for row in self.rows.values() if row.parameters or row.mul or row.add or row.unknown]


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in ``value``, which may be nested in sequences and mappings."""
    leaves: list[Any] = []
    map_aggregate(value, leaves.append)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_free(func: Any, args: Any) -> bool:
    """Say whether an operator costs nothing: views, element-wise operators, and those that take no tensor."""
    return (
        func.is_view
        or torch.Tag.pointwise in func.tags
        or func.overloadpacket.__name__.strip("_") in _FREE_OPS
        or not _tensors(args)
    )


def _forward_flops(input: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _gradient_flops(grad: Sequence[int], input: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(grad) * prod(weight[1:])  # each output position is paired with each element of its filter once


for _formula, _operators in ((_forward_flops, (_ADDER_CONV, _BINARY_CONV)), (_gradient_flops, _GRADIENTS)):
    for _operator in _operators:
        if _operator not in flop_registry:  # as after a reload of this module: the registry takes no operator twice
            register_flop_formula(_operator)(_formula)
