"""Write the networks that latency compares: one architecture as AdderNet, binary network, CNN and ONNX file.

Weights are random. Batch normalisation has the statistics of random images, which calibrate int8 as well. Speed
depends on neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from torchadder.models import create_model
from torchadder.models.registry import OPS, Model
from torchadder.quant import quantize

IMAGES = 16
ADDER, CONV = "adder", "conv"
ADDER_U8, CONV_U8, BINARY_U8 = (f"{op}.tadder" for op in ("adder", "conv", "binary"))
ONNX, ONNX_INT8, REFERENCE = "conv.onnx", "conv-int8.onnx", "reference.safetensors"


def with_statistics(model: Model, images: Tensor) -> Model:
    """Return ``model`` in evaluation mode, its batch normalisation with the statistics of ``images``."""
    update_bn([images], model)
    return model.eval()


class NetworkWriter:
    """Write networks in a process of its own, because the exporters import much and print warnings."""

    def write(self, name: str, folder: str, onnx: bool, int8: bool) -> None:
        """Write the networks of the model ``name`` into ``folder``, with reference images and logits."""
        path = Path(folder)
        torch.manual_seed(0)
        models = {op: create_model(name, op=op) for op in OPS}
        images = torch.randn(IMAGES, *models["conv"].input_size)
        for model in models.values():
            with_statistics(model, images)
        models["adder"].save_pretrained(path / ADDER)
        models["conv"].save_pretrained(path / CONV)
        for op, model in models.items():
            quantize(model, [images]).save(path / f"{op}.tadder")
        with torch.no_grad():
            logits = {op: model(images) for op, model in models.items()}
        safetensors.torch.save_file({"images": images, **logits}, path / REFERENCE)
        if onnx:
            _export(models["conv"], images, path / ONNX)
        if int8:
            _quantize_onnx(path / ONNX, images, path / ONNX_INT8)


def reference(folder: Path) -> dict[str, Tensor]:
    """Return "images" (N, C, H, W) and, by operator, the logits (N, classes) of the float networks for them."""
    return safetensors.torch.load_file(folder / REFERENCE)


def _export(model: Model, images: Tensor, path: Path) -> None:
    import onnx

    torch.onnx.export(
        model,
        (images[:2],),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    exported = onnx.load(path)
    for node in exported.graph.node:
        if node.op_type == "ReduceMean":  # runtimes have a kernel for the average pool under its own name
            pool = onnx.helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)
            node.CopyFrom(pool)
    onnx.save(exported, path)


def _quantize_onnx(source: Path, images: Tensor, path: Path) -> None:
    """Quantize the ONNX file statically (QDQ, filters by channel), calibrated on ``images``.

    Filters use 7 of 8 bits: without VNNI the sum of two full products saturates, and a ResNet-20's logits are noise.
    The images are quantized symmetrically: with a zero point other than 0, OpenVINO's first layer takes twice as long.
    Neither choice makes a runtime slower; models quantized by NNCF run on the same kernels and are no faster.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._images = iter(images.split(1))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {"images": image.numpy()}

    symmetric = {"quant_type": quantization.QuantType.QInt8, "symmetric": True}
    quantization.quantize_static(
        source,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"TensorQuantOverrides": {"images": [symmetric]}},
    )
