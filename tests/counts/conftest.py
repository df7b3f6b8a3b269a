"""Models without memory: a count needs shapes only, and ImageNet's networks are slow."""

import pytest
import torch

from torchadder.models import create_model


@pytest.fixture
def on_meta():
    def create(name, op):
        with torch.device("meta"):
            return create_model(name, op=op)

    return create
