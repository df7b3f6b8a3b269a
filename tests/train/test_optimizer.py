"""Test the recipe's optimiser, the gradients that clipping changes, and numbers that are not finite."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.train import Run, loop, train
from torchadder.train.optimizer import (
    attach_adder_lr,
    build_optimizer,
    clip_gradients,
    first_not_finite,
    is_finite,
)


def network(recipe):
    """The recipe's model with a gradient of ones everywhere."""
    model = create_model(recipe.model, op=recipe.op)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


@pytest.mark.parametrize(
    ("change", "spared"),  # spared: whether the adder weights keep their gradients
    [
        ({"lr_scheme": "alr"}, True),
        ({"lr_scheme": "ilr"}, True),
        ({"lr_scheme": "plain"}, False),
        ({"op": "conv"}, False),
        ({"op": "binary"}, False),
    ],
)
def test_clipping_leaves_the_gradients_that_are_rescaled_alone(tiny_recipe, change, spared):
    recipe = dataclasses.replace(tiny_recipe, clip_grad=0.5, **change)
    model = network(recipe)
    clip_gradients(model, recipe)
    layers = [p for name, p in model.named_parameters() if name.startswith(("conv", "fc"))]
    clipped = [p for p in model.parameters() if not spared or not any(p is layer for layer in layers)]
    assert all(torch.equal(p.grad, torch.ones_like(p)) == spared for p in layers)
    assert torch.cat([p.grad.flatten() for p in clipped]).norm().item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("clip_grad", [0.0, 1e6])
def test_no_clipping(tiny_recipe, clip_grad):
    recipe = dataclasses.replace(tiny_recipe, clip_grad=clip_grad, lr_scheme="plain")
    model = network(recipe)
    clip_gradients(model, recipe)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_adam_is_torchs(tiny_recipe):
    recipe = dataclasses.replace(tiny_recipe, optimizer="adam", op="conv", lr=0.01, weight_decay=0.1)
    model, other = network(recipe), network(recipe)
    other.load_state_dict(model.state_dict())
    optimizer = build_optimizer(model, recipe)
    assert attach_adder_lr(optimizer, recipe) is None
    optimizer.step()
    torch.optim.Adam(other.parameters(), lr=0.01, weight_decay=0.1).step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_every_parameter_is_trained(tiny_recipe):
    for optimizer in ("sgd", "adam"):
        recipe = dataclasses.replace(tiny_recipe, optimizer=optimizer)
        model = network(recipe)
        (group,) = build_optimizer(model, recipe).param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
        assert (group["lr"], group["weight_decay"]) == (recipe.lr, recipe.weight_decay)


# numbers that are not finite


class Root(nn.Module):
    """0 for every input; its gradient is the difference of two infinities."""

    def forward(self, x):
        return (x - x).sqrt()


class Log(nn.Module):
    def forward(self, x):
        return (x - x).log()


def classifier():
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
    net = classifier()
    breaks(net)
    x = torch.randn(5, 3)
    net(x).square().mean().backward()
    assert is_finite(torch.zeros(()), net) == (place is None)
    assert first_not_finite(net, lambda: net(x).square().mean().backward()) == place
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert not any(hooks)


def test_images():
    net, x = classifier(), torch.randn(5, 3)
    x[1, 1] = torch.nan
    assert first_not_finite(net, lambda: net(x).sum().backward()) == "the images"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_with_gradients_that_are(loss):
    net = classifier()
    net(torch.randn(5, 3)).square().mean().backward()
    assert is_finite(torch.tensor(1e38), net)
    assert not is_finite(torch.tensor(loss), net)


def test_large_gradients_are_finite():
    net = classifier()
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
    assert message.endswith("): start a new run with a smaller lr")
    assert "\n" not in message


def test_the_last_checkpoint_is_named_and_kept(tiny_recipe, tmp_path, monkeypatch):
    run = Run.open(tmp_path / "run", tiny_recipe)
    finite = loop.is_finite
    monkeypatch.setattr(loop, "is_finite", lambda loss, model: run.epoch == 0 and finite(loss, model))
    with pytest.raises(UserError, match=r"in epoch 2; the checkpoint of epoch 1 is kept: .*smaller eta or lr"):
        train(run)
    assert Run.open(tmp_path / "run", tiny_recipe, resume=True).epoch == 1
