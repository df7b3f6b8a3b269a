"""Numbers that are not finite: noticed in loss and gradients, and the place where they began, in words."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from torchadder.errors import UserError
from torchadder.train import Run, train
from torchadder.train.divergence import first_not_finite, is_finite


class Root(nn.Module):
    """0 for every input; its gradient is the difference of two infinities."""

    def forward(self, x):
        return (x - x).sqrt()


class Log(nn.Module):
    def forward(self, x):
        return (x - x).log()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2)
    )


def with_infinite_weight(net):
    net[3][0].weight.data[1, 2] = torch.inf


def with_log(net):
    net[2] = Log()


def with_root(net):
    net[2] = Root()


def with_broken_gradient(net):
    net[3][0].weight.register_hook(lambda gradient: gradient * torch.nan)


PLACES = [
    (lambda net: None, None),
    (with_infinite_weight, "the output of 3.0 (Linear)"),
    (with_log, "the output of 2 (Log)"),
    (with_root, "the gradient at the output of 1 (BatchNorm1d)"),
    (with_broken_gradient, "the gradient of 3.0.weight"),
]


@pytest.mark.parametrize(("breaks", "place"), PLACES)
def test_the_first_place(breaks, place):
    net = network()
    breaks(net)
    x = torch.randn(5, 3)
    net(x).square().mean().backward()
    assert is_finite(torch.zeros(()), net) == (place is None)
    assert first_not_finite(net, lambda: net(x).square().mean().backward()) == place
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert not any(hooks)


def test_images():
    net, x = network(), torch.randn(5, 3)
    x[1, 1] = torch.nan
    assert first_not_finite(net, lambda: net(x).sum().backward()) == "the images"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_with_gradients_that_are(loss):
    net = network()
    net(torch.randn(5, 3)).square().mean().backward()
    assert is_finite(torch.tensor(1e38), net)
    assert not is_finite(torch.tensor(loss), net)


def test_large_gradients_are_finite():
    net = network()
    for p in net.parameters():
        p.grad = torch.full_like(p, 1e18)
    assert is_finite(torch.zeros(()), net)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_stops_before_the_weights_are_lost(tiny_recipe, tmp_path, accumulate):
    recipe = dataclasses.replace(tiny_recipe, op="conv", lr=1e30, accumulate=accumulate)
    with pytest.raises(UserError) as caught:
        train(Run.open(tmp_path / "run", recipe))
    message = str(caught.value)
    assert message.startswith("NaN or infinite numbers in epoch 1, first in the output of ")
    assert message.endswith("). Start a new run with a smaller --lr")
    assert "\n" not in message


def test_the_last_checkpoint_is_named_and_kept(tiny_recipe, tmp_path, monkeypatch):
    import torchadder.train.loop as loop

    run = Run.open(tmp_path / "run", tiny_recipe)
    finite = loop.is_finite
    monkeypatch.setattr(loop, "is_finite", lambda loss, model: run.epoch == 0 and finite(loss, model))
    with pytest.raises(UserError, match=r"in epoch 2; the checkpoint of epoch 1 is kept\. .*smaller --eta or --lr"):
        train(run)
    assert Run.open(tmp_path / "run", tiny_recipe, resume=True).epoch == 1
