"""One image through a network that somebody has: both runtimes, and the reason where the engine has none."""

import pytest
import torch
from torch import nn

from torchadder.lab.bench import one_image
from torchadder.models import create_model


class WithoutIntegers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x).sigmoid().mean((2, 3))


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_both_runtimes(one_thread, op):
    torch.set_num_threads(2)
    model = create_model("lenet5bn", op=op)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = one_image.measure(model, (1, 32, 32), repetitions=1)
    assert [row["runtime"] for row in rows] == [one_image.FLOAT, one_image.ENGINE]
    assert all(row["milliseconds"] > 0 and row["n"] == 1 and row["reason"] is None for row in rows)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.get_num_threads() == 2


def test_a_network_that_the_engine_does_not_run(one_thread):
    first, second = one_image.measure(WithoutIntegers(), (1, 5, 5), repetitions=1)
    assert first["milliseconds"] > 0
    assert second["milliseconds"] is None
    assert second["reason"].startswith("cannot quantise")
