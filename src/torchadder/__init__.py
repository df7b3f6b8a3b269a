"""PyTorch layers that add instead of multiply, with native kernels that make it pay."""

from . import kernels
from .analysis import summary
from .models import create_model, list_models
from .models.checkpoint import load_checkpoint
from .nn import AdderConv2d, AdderLinear
from .optim import AdaptiveLR
from .version import __version__

__all__ = [
    "AdaptiveLR",
    "AdderConv2d",
    "AdderLinear",
    "__version__",
    "create_model",
    "kernels",
    "list_models",
    "load_checkpoint",
    "summary",
]
