"""Give every test here the recipe on tiny data and one thread."""

import contextlib

import pytest
import torch


@pytest.fixture(autouse=True)
def tiny_world(tiny_recipe, one_thread):
    pass


@contextlib.contextmanager
def default_double():
    """Train in float64: models and data take torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def double_precision():
    with default_double():
        yield
