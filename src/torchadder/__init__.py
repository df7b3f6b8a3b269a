"""PyTorch layers that add instead of multiply, with native kernels that make it pay."""

from . import kernels
from .convert import convert
from .counts import summary
from .engine import Engine
from .models import create_model, from_pretrained, list_models
from .models.checkpoint import load_checkpoint
from .nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear
from .optim import AdaptiveLR
from .quant import quantize
from .version import __version__

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
    "from_pretrained",
    "kernels",
    "list_models",
    "load_checkpoint",
    "quantize",
    "summary",
]
