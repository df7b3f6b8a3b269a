"""Every test here sees the recipe on tiny data and runs on one thread."""

import pytest


@pytest.fixture(autouse=True)
def tiny_world(tiny_recipe, one_thread):
    pass
