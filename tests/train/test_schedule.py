"""The rate of every step, against torch's own schedulers, and the warm-up before it."""

import dataclasses
import math

import pytest
import torch
from torch.optim import lr_scheduler

from torchadder.train.schedule import rate_at

EPOCHS, STEPS = 7, 5


def rates(recipe, change):
    recipe = dataclasses.replace(recipe, **{"epochs": EPOCHS, "lr": 0.3, **change})
    return [rate_at(recipe, step, STEPS) for step in range(EPOCHS * STEPS)]


def torch_rates(schedule, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler, found = schedule(optimizer), []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ({"schedule": "cosine"}, lambda left: lambda o: lr_scheduler.CosineAnnealingLR(o, left)),
        ({"schedule": "polynomial"}, lambda left: lambda o: lr_scheduler.PolynomialLR(o, left)),
        ({"schedule": "polynomial", "power": 0.9}, lambda left: lambda o: lr_scheduler.PolynomialLR(o, left, 0.9)),
        (
            {"schedule": "step", "milestones": "4,6"},
            lambda left: lambda o: lr_scheduler.MultiStepLR(o, [left - 3 * STEPS, left - STEPS]),
        ),
    ],
    ids=["cosine", "linear", "polynomial", "step"],
)
def test_torchs_schedule_after_the_warmup(tiny_recipe, change, reference, warmup):
    left = (EPOCHS - warmup) * STEPS
    found = rates(tiny_recipe, {"warmup_epochs": warmup, **change})
    rise = [0.3 * (step + 1) / (warmup * STEPS) for step in range(warmup * STEPS)]
    assert found == pytest.approx(rise + torch_rates(reference(left), left), rel=1e-9)


def test_the_default_is_the_papers_cosine_to_the_last_bit(tiny_recipe):
    total = EPOCHS * STEPS
    expected = [0.3 * 0.5 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert rates(tiny_recipe, {}) == expected


def test_milestones_beyond_the_end_and_out_of_order_do_no_harm(tiny_recipe):
    one = rates(tiny_recipe, {"schedule": "step", "milestones": "6,2,900"})
    assert one == rates(tiny_recipe, {"schedule": "step", "milestones": "2,6"})
