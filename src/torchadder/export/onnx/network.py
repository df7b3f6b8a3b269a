"""Export a network in floating point by torch's own exporter, with one node for each adder or binary layer."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from torchadder.errors import UserError, in_one_line
from torchadder.export.onnx import functions

DTYPES = (torch.float32, torch.float64)
AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}  # of the images, for a viewer
MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
MOST_BYTES = 2**31 - 2**20  # of tensors; protobuf's limit is 2 GiB


def network_to_onnx(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Any:
    """Return an onnx.ModelProto of what ``model`` computes in evaluation mode. Raises UserError as export_onnx."""
    inputs = _inputs(example)
    name = type(model).__name__
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    if narrow := {str(t.dtype) for t in (*inputs, *tensors) if t.is_floating_point() and t.dtype not in DTYPES}:
        found = ", ".join(sorted(narrow))
        raise UserError(f"{name} has {found}: expected float32, cast model and example with .float()")
    if sum(tensor.nbytes for tensor in tensors) > MOST_BYTES:
        raise UserError(f"{name} has more than 2 GiB of weights, which one ONNX file does not hold")
    with _evaluating(model), torch.no_grad():
        try:
            model(*inputs)
        except Exception as error:  # a model's own code may raise anything
            shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in inputs)
            raise UserError(f"example={shapes}: {name} does not run on it ({in_one_line(error)})") from error
        try:
            exported = _export(model, inputs)
        except Exception as error:
            raise UserError(f"{name} has no ONNX form: {_reason(error)}") from error
    return _with_functions(_with_axis_names(exported.model_proto))


def _inputs(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the inputs in a tuple, with two images where there is one: torch.export takes 1 for a constant."""
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    for tensor in inputs:
        if not isinstance(tensor, Tensor) or tensor.dim() < 1 or not tensor.numel():
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"example={shape}: expected a tensor with at least one image, or a tuple of such")
    return tuple(t.expand(2, *t.shape[1:]) if len(t) == 1 else t for t in (t.detach() for t in inputs))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and each of its modules back at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns that torchvision is missing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it calls itself
            free = {0, 2, 3, 4} if _takes_other_sizes(model, inputs) else {0}
            dynamic = tuple({a: Dim.AUTO for a in range(t.dim()) if a in free} for t in inputs)
            traced = torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=False)
            return torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=functions.OPSET,
                input_names=["images"],
                output_names=["logits"],
                custom_translation_table=_translations(),
                verbose=False,
            )
    finally:
        exporter.setLevel(level)


def _takes_other_sizes(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Return whether ``model`` runs on an image of twice the size: what flattens its images into a layer does not.

    torch.export does not tell: it records that only a multiple of the layer's inputs is wrong.
    """
    larger = [t[:1].repeat(1, *[1] * (t.dim() > 1), *[2] * (t.dim() - 2)) for t in inputs]
    try:
        model(*larger)
    except Exception:  # a model's own code may raise anything
        return False
    return True


def _reason(error: BaseException) -> str:
    """Return why the exporter failed: the operator that it lacks, or the innermost error in one line."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for found in chain:
        if "data-dependent" in str(found):
            return "its forward takes a number from the values of an image, to branch on it for example"
        if match := MISSING.search(str(found)):
            return f"nothing in ONNX computes {match[1].replace('.', '::', 1)}, replace it"
    return in_one_line(chain[-1])


def _translations() -> dict[Any, Any]:
    """Return the ONNX node of each of our operators, for the exporter."""
    from onnxscript.values import Op, Opset

    opset = Opset(functions.DOMAIN, functions.VERSION)
    operators = {name: Op(opset, name, functions.schema(name)) for name in functions.FUNCTIONS}

    def call(kind: str, inputs: Sequence[Any], geometry: Sequence[Any], **attributes: int) -> Any:
        stride, padding, dilation, groups = geometry
        if stride:
            axes = {"strides": [*stride], "pads": [*padding, *padding], "dilations": [*dilation], "group": groups}
            return operators[f"{kind}Conv"](*inputs, **axes, **attributes)
        return operators[f"{kind}Linear"](*inputs, **attributes)

    def adder(x, weight, bias, *options):  # type: ignore[no-untyped-def]
        return call("Adder", (x, weight, _bias(weight, bias)), options[:4], recenter=int(options[4]))

    def binary(x, weight, bias, *geometry):  # type: ignore[no-untyped-def]
        return call("Binary", (x, weight, _bias(weight, bias)), geometry)

    return {torch.ops.torchadder.adder_conv.default: adder, torch.ops.torchadder.binary_conv.default: binary}


def _bias(weight: Any, bias: Any) -> Any:
    """Return the bias of a layer, or zeros: a function in ONNX has no optional inputs."""
    from onnx import numpy_helper
    from onnxscript import opset18

    if bias is not None:
        return bias
    zeros = torch.zeros(weight.shape[0]).numpy().astype(weight.dtype.numpy())
    return opset18.Constant(value=numpy_helper.from_array(zeros))


def _with_axis_names(model: Any) -> Any:
    """Name the axes of the images that may have any size: batch, height, width."""
    axes = model.graph.input[0].type.tensor_type.shape.dim
    known = ("batch", "channels", *AXES.get(len(axes) - 2, ()))
    names = {axis.dim_param: name for axis, name in zip(axes, known, strict=False) if axis.dim_param}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), axis.dim_param)
    return model


def _with_functions(model: Any) -> Any:
    used = dict.fromkeys(node.op_type for node in model.graph.node if node.domain == functions.DOMAIN)
    model.functions.extend(map(functions.function, used))
    return model
