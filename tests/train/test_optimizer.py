"""The recipe's optimiser, and which gradients clipping touches."""

import dataclasses

import pytest
import torch

from torchadder.models import create_model
from torchadder.train.optimizer import attach_adder_lr, build_optimizer, clip_gradients


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
