"""Test that pooling and flattening are recognised in every spelling that users' networks have."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchadder.errors import UserError
from torchadder.nn import AdderConv2d
from torchadder.quant import quantize
from torchadder.quant.program import AveragePool, MaxPool


class Net(nn.Module):
    """Run an adder layer, the spelling under test, and a classifier with 12 inputs by default."""

    def __init__(self, between, numbers=12):
        super().__init__()
        self.layer, self.norm = AdderConv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu, self.between, self.last = nn.ReLU(), between, nn.Linear(numbers, 4)
        self.pool = nn.MaxPool2d(4)

    def forward(self, x):
        return self.last(self.between(self, self.norm(self.layer(x))))


MEAN = AveragePool, (8, 8), (1, 1)
SPELLINGS = [  # spelling, its outputs, the expected pooling step
    (lambda n, x: F.max_pool2d(n.relu(x), 4).flatten(1), 12, (MaxPool, 4, 4)),
    (lambda n, x: F.relu(F.max_pool2d(x, 4)).view(x.size(0), -1), 12, (MaxPool, 4, 4)),
    (lambda n, x: n.relu(n.pool(x)).reshape(x.shape[0], -1), 12, (MaxPool, 4, 4)),
    (lambda n, x: torch.flatten(F.max_pool2d(F.relu(x), kernel_size=3, stride=3), start_dim=1), 12, (MaxPool, 3, 3)),
    (lambda n, x: F.max_pool2d(F.relu(x), (5, 5), stride=(4, 4), padding=2).flatten(1), 12, (MaxPool, 5, 4)),
    (lambda n, x: F.avg_pool2d(F.relu(x), 4).flatten(1), 12, (AveragePool, (4, 4), (4, 4))),
    (lambda n, x: F.avg_pool2d(F.relu(x), (3, 2), (5, 6)).flatten(1), 12, (AveragePool, (3, 2), (5, 6))),
    (lambda n, x: F.adaptive_avg_pool2d(F.relu(x), 2).flatten(1), 12, (AveragePool, (4, 4), (4, 4))),
    (lambda n, x: F.adaptive_avg_pool2d(F.relu(x), (1, None)).flatten(1), 24, (AveragePool, (8, 1), (8, 1))),
    (lambda n, x: F.relu(x).mean((2, 3)), 3, MEAN),
    (lambda n, x: F.relu(x).mean([-1, -2], keepdim=True).flatten(1), 3, MEAN),
    (lambda n, x: torch.mean(F.relu(x), dim=(2, 3)), 3, MEAN),
    (lambda n, x: F.dropout(F.relu(x).mean((2, 3)), 0.5, n.training), 3, MEAN),
]


def images():
    return torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("between", "numbers", "expected"), SPELLINGS)
def test_a_spelling_becomes_a_step(between, numbers, expected):
    torch.manual_seed(0)
    model = Net(between, numbers)
    model(images())
    model.eval()
    program = quantize(model, [images()], method="max")
    step = program.steps[1]
    assert (type(step), step.kernel, step.stride) == expected
    with torch.no_grad():
        found, want = program(images()).flatten(), model(images()).flatten()
    assert torch.corrcoef(torch.stack([found, want]))[0, 1] > 0.999


@pytest.mark.parametrize(
    ("between", "numbers", "words"),
    [
        (
            lambda n, x: F.max_pool2d(n.relu(x), 3, ceil_mode=True).flatten(1),
            27,
            "max_pool2d with dilation or ceil_mode",
        ),
        (
            lambda n, x: F.max_pool2d(n.relu(x), (1, 2)).flatten(1),
            96,
            "with a kernel, stride or padding that is not square",
        ),
        (
            lambda n, x: F.avg_pool2d(n.relu(x), 3, padding=1).flatten(1),
            27,
            "avg_pool2d with padding or another divisor",
        ),
        (lambda n, x: F.avg_pool2d(n.relu(x), x.size(3)).flatten(1), 3, "avg_pool2d with sizes that are computed"),
        (lambda n, x: F.adaptive_avg_pool2d(n.relu(x), 3).flatten(1), 27, "from 8 x 8 to 3 x 3"),
        (lambda n, x: n.relu(x).mean(1).flatten(1), 64, "cannot quantize mean, mean"),
        (lambda n, x: n.relu(x).view(-1, 192), 192, "cannot quantize view, view"),
        (lambda n, x: n.relu(x).view(x.size(1), -1), 1024, "cannot quantize view, view"),
        (lambda n, x: (n.relu(x) + x.size(0)).flatten(1), 192, "without a layer on one side"),
    ],
)
def test_a_spelling_without_integer_form_is_named(between, numbers, words):
    model = Net(between, numbers)
    with pytest.raises(UserError, match=words):
        quantize(model.eval(), [images()])
