"""Deterministic mode: on within, as it was afterwards."""

import contextlib
import dataclasses
import os

import pytest
import torch

from torchadder.train import Progress, Run, train
from torchadder.train.determinism import deterministic_algorithms


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


class Look(Progress):
    def started(self, recipe, model, epochs_done, steps_an_epoch):
        self.on = torch.are_deterministic_algorithms_enabled()
        self.measures = torch.backends.cudnn.benchmark


@pytest.mark.parametrize("on", [False, True])
def test_training_is_deterministic_where_asked(tiny_recipe, tmp_path, on):
    look = Look()
    recipe = dataclasses.replace(tiny_recipe, epochs=1, deterministic=on)
    train(Run.open(tmp_path / "run", recipe), progress=look)
    assert look.on == on
    assert look.measures != on
    assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_as_it_was_after_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with contextlib.suppress(KeyError), deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
