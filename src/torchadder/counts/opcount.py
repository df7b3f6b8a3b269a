"""Operation counts: multiplications, additions and XNORs of a network, counted while it runs on one image.

The convention, per image, in inference:

    convolution, linear, matrix product    1 multiplication and 1 addition per multiply-accumulate
    adder layer, |x - w| accumulated       2 additions per element (subtract, accumulate), 0 multiplications
    binary layer, XNOR and popcount        1 XNOR and 1 addition (accumulate) per element; the scale of a filter
                                           folds into the normalisation that follows and is not counted
    padded positions                       counted as any other
    bias, batch normalisation              not counted: in inference they fold into the layer before them. The
                                           paper leaves them out too, as negligible.
    activation, pooling, residual sum,     not counted, as in the paper
    other element-wise work, reduction

So #Mul + #Add + #XNOR are the flops of torch.utils.flop_counter.FlopCounterMode, whose formulas these are (for our
operators: torchadder.counts.flops), with attention as the matrix products that it stands for. Activations are the
elements that the counted operators put out (Radosavovic et al., "Designing Network Design Spaces", 2020), 4 bytes each
in float32. A layer that runs twice has its operations and activations counted twice and its parameters once.

Counted is what runs, not what the modules are called: a subclass, a functional call and attention count like
the layers they amount to. What runs or holds parameters and has no rule here is named in the result, never
silently zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from torchadder.counts.flops import ADDER_CONV, BINARY_CONV
from torchadder.counts.paper import published
from torchadder.counts.table import Row, Summary
from torchadder.errors import UserError
from torchadder.nn import Adder, Binary

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_WEIGHT_MAKERS = (nn.utils.parametrize.ParametrizationList,)  # in inference the weight that they make is fixed
_FREE_MODULES = (*_NORMALISATIONS, *_WEIGHT_MAKERS, nn.PReLU, nn.Embedding)

# Free by the convention, beside views and what is tagged element-wise: memory, padding and resizing, normalisation and
# activation, pooling, reduction. Without the underscores that mark an operator as internal or in-place.
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


def summary(model: nn.Module, input_size: Sequence[int] | None = None, *, input_data: Any = None) -> Summary:
    """Count the operations, parameters and activations of ``model``, by layer and in total, for one input.

    Args:
        model: any nn.Module. It runs once, without gradients, in evaluation mode, on one input of zeros, in
            its own dtype and on its own device; parameters, buffers and training flags are left as they were.
        input_size: shape of one input without the batch, e.g. (3, 32, 32). None: ``model.input_size``, which
            the models of ``create_model`` have.
        input_data: in place of a size, for models that take anything else: a tensor, a tuple of positional or a
            dictionary of keyword arguments, with a batch of one. The counts are those of this call.

    Raises UserError for a size that is not made of positive integers, and inputs that the model does not run on.
    """
    if input_data is None:
        size = _size(getattr(model, "input_size", None) if input_size is None else input_size)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        input_data = torch.zeros(1, *size, dtype=like.dtype, device=like.device)
    elif input_size is None:
        size = None
    else:
        raise UserError(f"input_size={input_size} and input_data exclude each other: give one of them")
    counter = _Counter(model)
    with _evaluating(model), _plain_attention(), counter.watching(), torch.no_grad(), counter:
        try:
            _call(model, input_data)
        except Exception as error:  # a forward may raise anything
            given = "input_data" if size is None else "an input of " + "x".join(map(str, size))
            hint = "" if size is None or hasattr(model, "input_size") else "; or give input_data"
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{type(model).__name__} does not run on {given}: {reason}{hint}") from error
    config = getattr(model, "config", None)
    if not (isinstance(config, dict) and {"name", "op", "num_classes"} <= config.keys() and config["op"] == _op(model)):
        config = {}  # somebody else's, or the model was converted since
    return Summary(
        model=config.get("name", type(model).__name__),
        op=config.get("op"),
        input_size=size,
        rows=counter.finished_rows(),
        paper=published(config, size) if config and size else None,
    )


def _op(model: nn.Module) -> str:
    """The operator that a network of the registry was built for, by its layers."""
    kinds = {"adder": Adder, "binary": Binary}
    return next((op for op, kind in kinds.items() if any(isinstance(m, kind) for m in model.modules())), "conv")


def _size(values: Any) -> tuple[int, ...]:
    size = tuple(values) if isinstance(values, Sequence) else ()
    if not size or not all(isinstance(n, int) and n > 0 for n in size):
        raise UserError(
            f"input_size must be the shape of one input, e.g. (3, 32, 32), got {values}; or give input_data"
        )
    return size


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)


class _Counter(TorchDispatchMode):
    """Sees every operator below autograd and books it on the innermost module that is running."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.rows = {m: Row(name or "(model)", type(m).__name__) for name, m in model.named_modules()}
        self.running: list[nn.Module] = [model]
        self.ran: set[nn.Module] = set()
        self.computed: set[nn.Module] = set()  # a counted operator ran in it, or in a module that it called
        self.storages: set[int | None] = set()  # of the tensors that counted operators took

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every module that tell which one is running."""

        def enter(module: nn.Module, args: Any) -> None:
            self.running.append(module)
            self.ran.add(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()
            first = _first_tensor(output)
            if first is not None:
                self.rows[module].output = tuple(first.shape[1:])

        handles: list[Any] = []
        for module in self.rows:
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = func.overloadpacket
        if operator not in flop_registry:
            with self:  # inference mode hands over aten.linear and the like in one piece
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        row = self.rows[self.running[-1]]
        if operator in flop_registry:
            flops = flop_registry[operator](*args, **kwargs, out_val=out)
            row.mul += 0 if operator in (ADDER_CONV, BINARY_CONV) else flops // 2
            row.xnor += flops // 2 if operator is BINARY_CONV else 0
            row.add += flops if operator is ADDER_CONV else flops // 2
            row.activations += 0 if (first := _first_tensor(out)) is None else first.numel()
            self.computed.update(self.running)
            self.storages.update(map(_storage, tree_leaves((args, kwargs))))
        elif not _is_free(func, args):
            why = f"no rule for {operator}"
            if why not in row.unknown:
                row.unknown.append(why)
        return out

    def finished_rows(self) -> list[Row]:
        """The rows worth printing, with a reason on each that holds parameters but was not counted."""
        seen: set[Tensor] = set()
        for module, row in self.rows.items():
            own = [p for p in module.parameters(recurse=False) if p not in seen]  # tied weights count once
            seen.update(own)
            row.parameters = sum(p.numel() for p in own)
            row.free = isinstance(module, _FREE_MODULES) and module not in self.computed
            counted = module in self.computed or any(_storage(p) in self.storages for p in own)
            if row.parameters and not (row.free or row.unknown or counted):
                ran = "ran no operator with a rule" if module in self.ran else "did not run"
                row.unknown.append(f"holds parameters and {ran}")
        return [row for row in self.rows.values() if row.parameters or row.mul or row.add or row.unknown]


def _first_tensor(values: Any) -> Tensor | None:
    return next((leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)), None)


def _storage(value: Any) -> int | None:
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _is_free(func: Any, args: Any) -> bool:
    """Views, element-wise operators and what makes tensors from none: costless by the convention."""
    return (
        func.is_view
        or torch.Tag.pointwise in func.tags
        or func.overloadpacket.__name__.strip("_") in _FREE_OPS
        or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(args))
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as its matrix products: fused kernels differ by device, and few have a rule."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
