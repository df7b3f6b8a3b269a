"""Test selections of channels: slices, splits, shuffles; alone, and in a network like ShuffleNet v2."""

import pytest
import torch
from tests.quant.test_lowering import correlation, seeded, trained
from tests.test_engine import ISAS
from torch import nn

from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.nn import AdderConv2d, BinaryConv2d
from torchadder.quant import finetune, quantize
from torchadder.quant.program import Program


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def shuffled(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


SELECTIONS = [  # a function of four channels, the channels that it gives
    (lambda x: x[:, :3], [0, 1, 2]),
    (lambda x: x[:, -1:, ::2, ::2], [3]),
    (lambda x: x[:, 1::2], [1, 3]),
    (lambda x: x[:, [2, 1, 0]], [2, 1, 0]),
    (lambda x: x[:, [0, 0, 3]], [0, 0, 3]),
    (lambda x: x.index_select(1, torch.tensor([3, 1])), [3, 1]),
    (lambda x: x.narrow(1, 1, 2), [1, 2]),
    (lambda x: x.flip(1), [3, 2, 1, 0]),
    (lambda x: x.roll(1, 1), [3, 0, 1, 2]),
    (lambda x: x[:, :1].repeat(1, 3, 1, 1), [0, 0, 0]),
    (lambda x: x[:, 2:3].expand(-1, 3, -1, -1), [2, 2, 2]),
    (lambda x: x.chunk(2, dim=1)[1], [2, 3]),
    (lambda x: torch.split(x, [1, 3], -3)[1], [1, 2, 3]),
    (lambda x: torch.tensor_split(x, 3, 1)[0][:, 1:], [1]),
    (lambda x: torch.channel_shuffle(x, 2), [0, 2, 1, 3]),
    (nn.ChannelShuffle(2), [0, 2, 1, 3]),
    (lambda x: shuffled(x, 2), [0, 2, 1, 3]),
    (lambda x: shuffled(x, 2).split(2, 1)[0], [0, 2]),
    (lambda x: x.unflatten(1, (2, 2)).permute(0, 2, 1, 3, 4).flatten(1, 2), [0, 2, 1, 3]),
]
READERS = [  # a layer that reads two of four channels of a value, the kinds of steps from the value to the logits
    (nn.Conv2d(2, 3, 1), "Layer Layer"),  # its weights select
    (nn.Conv2d(2, 3, 3), "Layer Layer Layer"),
    (AdderConv2d(2, 3, 1, padding=1), "Layer Layer Layer"),
    (BinaryConv2d(2, 3, 1), "Layer Layer Layer"),
    (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 3, 2)), "Layer Layer Layer"),
    (nn.MaxPool2d(2), "Layer MaxPool Layer"),
    (nn.BatchNorm2d(2).eval(), "Layer Layer"),
    (Apply(lambda x: x + x.flip(1)), "Layer Layer Layer Layer"),
]


def quantized(images, *modules):
    """Return a network that ends in a linear layer, and its program."""
    torch.manual_seed(0)
    model = nn.Sequential(*modules, nn.Flatten(), nn.LazyLinear(3)).eval()
    with torch.no_grad():
        model(images)
    return model, quantize(model, images, method="max")


@pytest.fixture
def images():
    return torch.randn(16, 4, 8, 8, generator=seeded()) + torch.arange(4).view(4, 1, 1)


@pytest.mark.parametrize(("function", "channels"), SELECTIONS)
def test_a_selection_is_exact(function, channels, images):
    count = len(channels)
    model, program = quantized(images, Apply(function), nn.Conv2d(count, count, 3, groups=count))
    values = Engine(program, threads=1, keep_values=True).values(images[:1])
    assert torch.equal(values[1], values[0][channels])
    with torch.no_grad():
        assert correlation(program(images), model(images)) > 0.999


@pytest.mark.parametrize(("reader", "steps"), READERS, ids=[str(reader) for reader, _ in READERS])
def test_what_reads_a_selection(reader, steps, images):
    model, program = quantized(images, nn.Conv2d(4, 4, 1), Apply(lambda x: x.split(2, 1)[1]), reader)
    assert [type(step).__name__ for step in program.steps] == ["Layer", *steps.split()]
    with torch.no_grad():
        assert correlation(program(images), model(images)) > 0.99


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.flip(2), "1, flip: it has no integer form, replace it"),
        (lambda x: x.flip(0), "1, flip: it has no integer form, replace it"),
        (lambda x: x.roll(1), "1, roll: it has no integer form, replace it"),
        (lambda x: x.flatten(1)[:, :8], "1, slice of flattened values: select channels before flattening"),
        (lambda x: x[:, :, 1:7], "1, slice of axis 2 from 1 to 7: take whole axes, or every second pixel"),
        (lambda x: x.split(4, 3)[1], "1, slice of axis 3 from 4 to 8: take whole axes, or every second pixel"),
    ],
)
def test_what_selects_other_than_channels_is_refused(function, words, images):
    with pytest.raises(UserError, match=f"cannot quantize {words}"):
        quantized(images, nn.Conv2d(4, 4, 1), Apply(function))


class Unit(nn.Module):
    """Compute one unit of ShuffleNet v2 (Ma et al., ECCV 2018): half of the channels, or all of them with a stride."""

    def __init__(self, c_in, c_out, stride, conv=nn.Conv2d):
        super().__init__()
        self.stride, half = stride, c_out // 2
        first = c_in if stride > 1 else half
        self.branch = nn.Sequential(
            *(conv(first, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
            *(nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False), nn.BatchNorm2d(half)),
            *(conv(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
        )
        self.short = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(
                *(nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in)),
                *(conv(c_in, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
            )

    def forward(self, x):
        one, two = (x, x) if self.stride > 1 else x.chunk(2, dim=1)
        return shuffled(torch.cat([self.short(one), self.branch(two)], 1), 2)


def shufflenet(conv):
    """Return a network of one stage of three units."""
    first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stage = Unit(8, 16, 2, conv), Unit(16, 16, 1, conv), Unit(16, 16, 1, conv)
    last = nn.Sequential(nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    return nn.Sequential(first, *stage, last, Apply(lambda x: x.mean([2, 3])), nn.Linear(24, 5))


@pytest.mark.parametrize(("conv", "least"), [(nn.Conv2d, 0.99), (AdderConv2d, 0.97)])
def test_a_network_like_shufflenet_v2(conv, least, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=seeded())
    model = trained(shufflenet(conv), images)
    program = quantize(model, images)
    with torch.no_grad():
        assert correlation(program(images), model(images)) > least
    program.save(path := tmp_path / "net.tadder")
    assert torch.equal(Program.load(path)(images), program(images))
    for isa in ISAS:
        assert torch.equal(Engine(path, isa=isa, threads=1)(images), program(images)), isa
    tuned = finetune(model, [(images, torch.randint(5, (32,), generator=seeded()))], images, bits=6, lr=1e-4)
    assert correlation(tuned(images), program(images)) > 0.8
