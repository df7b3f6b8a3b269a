"""The networks of the paper, each as AdderNet and as its CNN twin, by name."""

from . import lenet, resnet  # noqa: F401  importing a family registers its names
from .registry import Model, create_model, list_models

__all__ = ["Model", "create_model", "list_models"]
