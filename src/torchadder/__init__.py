"""PyTorch layers that add instead of multiply, with native kernels that make it pay.

Names are imported when they are first used, so that `torchadder --help` does not wait for `import torch`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = [
    "AdaptiveLR",
    "AdderConv1d",
    "AdderConv2d",
    "AdderConv3d",
    "AdderLinear",
    "BinaryConv2d",
    "BinaryLinear",
    "Engine",
    "__version__",
    "convert",
    "create_model",
    "export_c",
    "export_onnx",
    "from_pretrained",
    "kernels",
    "list_models",
    "load_checkpoint",
    "quantize",
    "summary",
]

if TYPE_CHECKING:
    from torchadder import kernels
    from torchadder.convert import convert
    from torchadder.counts import summary
    from torchadder.engine import Engine
    from torchadder.export import export_c, export_onnx
    from torchadder.models import create_model, from_pretrained, list_models
    from torchadder.models.checkpoint import load_checkpoint
    from torchadder.nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear
    from torchadder.optim import AdaptiveLR
    from torchadder.quant import quantize
    from torchadder.version import __version__
else:
    from torchadder.lazy import import_on_use

    _LAYERS = ("AdderConv1d", "AdderConv2d", "AdderConv3d", "AdderLinear", "BinaryConv2d", "BinaryLinear")
    _MODELS = ("create_model", "from_pretrained", "list_models")
    __getattr__ = import_on_use(
        __name__,
        {
            "AdaptiveLR": "torchadder.optim",
            **dict.fromkeys(_LAYERS, "torchadder.nn"),
            "Engine": "torchadder.engine",
            "__version__": "torchadder.version",
            "convert": "torchadder.convert",
            **dict.fromkeys(_MODELS, "torchadder.models"),
            "export_c": "torchadder.export",
            "export_onnx": "torchadder.export",
            "load_checkpoint": "torchadder.models.checkpoint",
            "quantize": "torchadder.quant",
            "summary": "torchadder.counts",
        },
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keep the function `torchadder.convert`: importing the package of that name would replace it by a module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "convert" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

# A program that has imported torch pays nothing more. Import everything then: the operators have to be registered
# before torch reads a file that names them (torch.export.load).
if "torch" in sys.modules:
    for _name in __all__:
        getattr(sys.modules[__name__], _name)
