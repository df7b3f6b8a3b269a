"""Build the networks of the paper, and of MLPerf Tiny, by name, each as AdderNet, CNN or binary network."""

from . import lenet, mobile, pico, resnet, vgg  # noqa: F401  each registers its names
from .hub import from_pretrained
from .registry import Model, create_model, list_models

__all__ = ["Model", "create_model", "from_pretrained", "list_models"]
