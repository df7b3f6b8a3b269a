"""The running average of the weights: which one it is, the statistics that go with it, and that it is what is saved."""

import dataclasses

import pytest
import torch
from tests.conftest import tiny
from torch import nn

from torchadder.data import Batches
from torchadder.models.checkpoint import load_checkpoint
from torchadder.train import Run, evaluate, train
from torchadder.train.averaging import average_of, calibrate


def test_the_average_of_the_weights(tiny_recipe):
    model = nn.Linear(3, 2)
    average = average_of(model, dataclasses.replace(tiny_recipe, ema=0.75))
    expected = None
    for _ in range(5):
        with torch.no_grad():
            model.weight.normal_()
        average.update_parameters(model)
        expected = model.weight.clone() if expected is None else 0.75 * expected + 0.25 * model.weight
    torch.testing.assert_close(average.module.weight, expected)


def test_none_without_a_decay(tiny_recipe):
    assert average_of(nn.Linear(3, 2), tiny_recipe) is None


def test_statistics_are_those_of_the_training_images_and_the_order_is_undisturbed():
    batches, untouched = (Batches(tiny().train, 10, train=True, seed=3) for _ in range(2))
    model = nn.Sequential(nn.BatchNorm2d(1))
    model[0].running_mean.fill_(50.0)
    calibrate(model, batches)
    images = tiny().train.images  # five batches of ten: each image once
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))
    assert model[0].running_var.item() == pytest.approx(images.var().item(), rel=0.05)
    assert model[0].momentum == 0.1
    for (one, _), (other, _) in zip(batches, untouched, strict=True):
        assert torch.equal(one, other)


def test_the_average_is_what_is_tested_and_saved(tiny_recipe, tmp_path):
    recipe = dataclasses.replace(tiny_recipe, ema=0.5, epochs=1)
    run = Run.open(tmp_path / "run", recipe)
    outcome = train(run)
    plain = Run.open(tmp_path / "plain", dataclasses.replace(recipe, ema=0.0))
    train(plain)
    trained = run.state["trained"]
    last, best = load_checkpoint(tmp_path / "run/last.pt"), load_checkpoint(tmp_path / "run")
    for name, p in last.named_parameters():
        assert torch.equal(p, best.state_dict()[name])
        assert torch.equal(trained[name], plain.state["model"][name])  # training itself is as it was
        assert not torch.equal(p, trained[name])
    scores = evaluate(last, Batches(tiny().test, 30))
    assert outcome.accuracy == scores.accuracy
