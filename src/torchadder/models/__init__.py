"""The networks of the paper, each as AdderNet and as its CNN and BNN twins, by name."""

from . import lenet, resnet, vgg  # noqa: F401  importing a family registers its names
from .hub import from_pretrained
from .registry import Model, create_model, list_models

__all__ = ["Model", "create_model", "from_pretrained", "list_models"]
