"""What several folders of tests share: a tiny learnable data set with a recipe on it, and one thread."""

import pytest
import torch

from torchadder.data import Dataset, Split
from torchadder.data import registry as datasets
from torchadder.train import RECIPES, Recipe


def tiny(data_dir=None):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 1, 32, 32, generator=generator)

    def split(n):
        labels = torch.randint(0, 10, (n,), generator=generator)
        return Split(centres[labels] + 0.5 * torch.randn(n, 1, 32, 32, generator=generator), labels)

    return Dataset("tiny", 10, 1, split(50), split(30))


@pytest.fixture
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(datasets._DATASETS, "tiny", tiny)
    recipe = Recipe("lenet5bn-tiny", model="lenet5bn", dataset="tiny", epochs=3, batch_size=16)
    monkeypatch.setitem(RECIPES, recipe.name, recipe)
    return recipe


@pytest.fixture
def one_thread():
    """Tiny layers on a busy machine: threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
