"""Test lowering: programs compute what their networks do, and what has no integer form is named."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.nn import AdderConv1d, AdderConv2d, BinaryConv2d
from torchadder.quant import quantize
from torchadder.quant.steps import AveragePool, Layer, Logits, MaxPool
from torchadder.quant.values import QuantizedValue, requantization


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(model, images):
    """Give ``model`` statistics of the images, and a random scale and shift for every channel, as training does."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(images)
    return model.eval()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize("recenter", [False, True])
def test_one_adder_layer_is_lossless(recenter):
    """Images are integers 0..255; filters too, or beyond that range where they are clamped without loss."""
    layer = AdderConv2d(3, 5, 4, bias=True, recenter=recenter)
    weight = torch.randint(0, 256, layer.weight.shape, generator=seeded()).float()
    weight[:, 1] -= 300.25  # below every image
    weight[:, 2] += 300.125
    layer.weight.data, layer.bias.data = weight, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.5])
    images = torch.randint(0, 256, (8, 3, 4, 4), generator=seeded(1)).float()
    images[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    program = quantize(nn.Sequential(layer, nn.Flatten()), [images])
    with torch.no_grad():
        torch.testing.assert_close(program(images), layer(images).flatten(1), rtol=1e-6, atol=0)


def test_padding_of_an_adder_layer_is_zero():
    layer = nn.Sequential(AdderConv2d(1, 2, 3, padding=1), nn.Flatten())
    layer[0].weight.data = torch.randint(-100, 156, (2, 1, 3, 3), generator=seeded()).float()
    images = torch.randint(-100, 156, (6, 1, 1, 1), generator=seeded(1)).float()
    images[:2] = torch.tensor([-100.0, 155.0]).view(2, 1, 1, 1)
    program = quantize(layer, [images])
    assert program.zero_point.item() == 100
    with torch.no_grad():
        torch.testing.assert_close(program(images), layer(images), rtol=1e-6, atol=0)


def test_an_ordinary_first_layer_has_a_scale_for_each_channel():
    """The quantized values of images normalised by channel are the pixels that they were."""
    pixels = torch.randint(0, 256, (4, 3, 5, 5), generator=seeded())
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    images = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    program = quantize(nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten()), [images])
    assert torch.equal(program.quantize(images), pixels.byte())
    torch.testing.assert_close(program.zero_point, 255 * mean)


@pytest.mark.parametrize(
    ("name", "op", "least"),
    [
        ("lenet5bn", "adder", 0.999),
        ("lenet5bn", "conv", 0.99),
        ("resnet20", "adder", 0.99),
        ("resnet20", "conv", 0.95),
    ],
)
def test_logits_are_close_to_those_of_the_network(name, op, least):
    """Untrained networks are more sensitive to rounding than trained ones; binary ones too much for this test."""
    torch.manual_seed(0)
    model = create_model(name, op)
    images = torch.randn(24, model.config["in_chans"], 32, 32, generator=seeded())
    trained(model, images)
    before = copy.deepcopy(model.state_dict())
    program = quantize(model, images.split(10))
    with torch.no_grad():
        assert correlation(program(images), model(images)) > least
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "op"),
    [*(("vgg_small", op) for op in ("adder", "conv", "binary")), ("resnet18", "binary"), ("resnet50", "adder")],
)
def test_every_network_has_a_program(name, op):
    images = torch.randn(2, 3, 32, 32, generator=seeded())
    model = trained(create_model(name, op), images)
    program = quantize(model, [images], method="max")
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    assert sum(isinstance(step, Layer) for step in program.steps) == layers
    assert isinstance(program.steps[-1].epilogue, Logits)


def test_signs_of_a_binary_layer_are_exact():
    """Its input has many numbers close to 0, whose sign rounding could change."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), BinaryConv2d(4, 3, 8), nn.Flatten()).eval()
    model[0].weight.data, model[0].bias.data = torch.full((4, 1, 1, 1), 1.0), torch.tensor([-0.3, -0.2, 0.01, 1.0])
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=seeded()).float() / 255
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(quantize(model, [images])(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, np.int64(8)])
def test_no_quantized_value_exceeds_qmax(bits):
    torch.manual_seed(0)
    model = create_model("lenet5bn")
    images = torch.randn(8, 1, 32, 32, generator=seeded())
    program = quantize(trained(model, images), [images], bits=bits, method="percentile")
    values = [program.quantize(images)]
    for step in program.steps:
        if isinstance(step, Layer):
            assert int(step.weight.max()) < 2**bits
        values.append(step(*(values[i] for i in step.sources)))
    assert max(int(value.max()) for value in values[:-1]) == 2**bits - 1


ACTIVATIONS = [  # module, the kinds of steps between two layers
    *((clamp, "") for clamp in (nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-2, 0.5), nn.Hardtanh(-3, -0.5))),
    *((nn.Sequential(nn.MaxPool2d(2), clamp), "MaxPool") for clamp in (nn.ReLU6(), nn.Hardtanh())),
    (nn.Sequential(nn.ReLU(), nn.ReLU6()), "AveragePool"),
    *((function, "Table") for function in (nn.Hardtanh(0.25, 1), nn.Hardswish(), nn.SiLU(), nn.Hardsigmoid())),
    *((function, "Table") for function in (nn.PReLU(4, 0.3), nn.LeakyReLU(0.2), nn.GELU(), nn.Tanh(), nn.Softplus())),
]


@pytest.mark.parametrize(("activation", "steps"), ACTIVATIONS, ids=[str(module) for module, _ in ACTIVATIONS])
def test_activations(activation, steps):
    """Numbers far beyond the calibration images are clamped as in the network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), activation, nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data *= 2
    images = torch.randn(64, 3, 2, 2, generator=seeded()).clamp(-3, 3)
    program = quantize(model.eval(), images, method="max")
    found = [type(step).__name__ for step in program.steps]
    assert found[: 2 + bool(steps)] == ["Layer", *[steps] * bool(steps), "Layer"]
    with torch.no_grad():
        error = (program(images) - model(images)).abs().max()
        assert error < 0.02 * model(images).abs().max()


PADDED = [  # modules, the kinds of steps before the last layer
    ([nn.Conv2d(3, 4, 2, padding="same")], ""),
    ([nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3)], ""),
    ([nn.ZeroPad2d((1, 0, 2, 3)), nn.Conv2d(3, 4, 3, padding=1)], ""),
    ([nn.ZeroPad2d(3), nn.Conv2d(3, 4, 1)], ""),
    ([nn.ZeroPad2d(1), nn.ZeroPad2d((0, 1)), nn.Conv2d(3, 3, 3, groups=3)], ""),
    ([nn.ZeroPad2d((1, 0)), nn.ReLU(), nn.Conv2d(3, 4, 3)], "Layer AveragePool"),
    ([nn.ZeroPad2d(1), nn.MaxPool2d(2)], "Layer MaxPool"),
    ([nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, groups=3)], ""),
    ([nn.BatchNorm2d(3), nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)], "AveragePool"),
]


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")  # torch warns of a copy
@pytest.mark.parametrize(("modules", "steps"), PADDED, ids=[str(modules) for modules, _ in PADDED])
def test_padding_dilation_and_groups(modules, steps):
    images = torch.randn(32, 3, 7, 6, generator=seeded()) * 0.3 - 0.5  # a zero of the padding is far from their mean
    model = nn.Sequential(*modules, nn.Flatten(), nn.LazyLinear(3))
    torch.manual_seed(0)
    model(images)
    trained(model, images)
    program = quantize(model, images, method="max")
    layers = sum(isinstance(module, nn.Conv2d) for module in modules)
    assert [type(step).__name__ for step in program.steps] == [*steps.split(), *["Layer"] * layers, "Layer"]
    with torch.no_grad():
        assert correlation(program(images), model(images)) > 0.999


class Branches(nn.Module):
    """Give two values of one shape, both after a ReLU, to a function."""

    def __init__(self, function, layers=True):
        super().__init__()
        self.function = function
        self.one, self.two = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()) for _ in range(2))

    def forward(self, x):
        return self.function(self.one(x), self.two(x))


COMBINED = [  # modules, the kinds of steps before the last layer
    ([nn.MaxPool2d((1, 2), ceil_mode=True)], "MaxPool"),
    ([nn.MaxPool2d((3, 2), (2, 1), (1, 0))], "MaxPool"),
    ([nn.AvgPool2d((3, 2), 2, (1, 0))], "Layer"),
    ([nn.AvgPool2d(3, 2, 1, count_include_pad=False)], "AveragePool"),
    ([nn.AvgPool2d(2, ceil_mode=True)], "AveragePool"),
    ([Branches(lambda a, b: a + b)], "Layer Layer Layer"),
    ([Branches(lambda a, b: a - b)], "Layer Layer Layer"),
    (
        [Branches(lambda a, b: nn.functional.max_pool2d(a, 2) - nn.functional.avg_pool2d(b, 2))],
        "Layer Layer MaxPool AveragePool Layer",
    ),
    ([Branches(lambda a, b: torch.cat([a, b, a], 1))], "Layer Layer Concat"),
    ([Branches(lambda a, b: torch.cat([a, b], 1)), nn.BatchNorm2d(8), nn.ReLU()], "Layer Layer Concat"),
    ([Branches(lambda a, b: torch.cat([a.flatten(1), b.flatten(1)], 1))], "Layer Layer Concat"),
    ([nn.Sequential(nn.Conv2d(3, 3, 1)), Branches(lambda a, b: a.amax((2, 3)))], "Layer Layer MaxPool"),
    ([Branches(lambda a, b: a.flatten(2).max(-1)[0])], "Layer MaxPool"),
    ([Branches(lambda a, b: a.amax(-1).amax(2))], "Layer MaxPool"),
]


@pytest.mark.parametrize(("modules", "steps"), COMBINED)
def test_poolings_sums_and_concatenations(modules, steps):
    images = torch.randn(32, 3, 7, 5, generator=seeded()) * 0.5 - 0.3
    torch.manual_seed(0)
    model = nn.Sequential(*modules, nn.Flatten(), nn.LazyLinear(3))
    model(images)
    trained(model, images)
    program = quantize(model, images, method="max")
    assert [type(step).__name__ for step in program.steps] == [*steps.split(), "Layer"]
    with torch.no_grad():
        assert correlation(program(images), model(images)) > 0.999


class Rows(nn.Module):
    """Classify rows (N, 3, 20), as of sound, with every kind of step that has one dimension."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 5, padding="same", bias=False), nn.BatchNorm1d(8), nn.ReLU()),
            nn.MaxPool1d(3, 2, 1),
            *(AdderConv1d(8, 8, 3, padding=2, dilation=2), nn.BatchNorm1d(8), nn.ReLU6(), nn.AvgPool1d(2)),
            *(AdderConv1d(8, 8, 2, groups=8), nn.BatchNorm1d(8), nn.ReLU()),
        )
        self.pools = nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        x = self.layers(x)
        pooled = torch.cat([pool(x) for pool in self.pools], 1).squeeze(2)
        return self.last(torch.cat([pooled, x.amax(-1), x.mean(2)], 1))


class Autoencoder(nn.Sequential):
    """Rebuild vectors (N, 640): the fully connected network of MLPerf Tiny."""

    def __init__(self):
        widths = [640, *[128] * 4, 8, *[128] * 4]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        super().__init__(*hidden, nn.Linear(128, 640))


@pytest.mark.parametrize(("network", "shape"), [(Rows, (3, 20)), (Autoencoder, (640,))])
def test_rows_and_vectors(network, shape):
    torch.manual_seed(0)
    model, x = network(), torch.randn(40, *shape, generator=seeded())
    trained(model, x)
    program = quantize(model, x)
    with torch.no_grad():
        assert correlation(program(x), model(x)) > 0.98
    with Engine(program, threads=1) as engine:
        assert torch.equal(engine(x), program(x))
        assert torch.equal(engine(x.view(40, *program.shape)), program(x))
        assert torch.equal(engine(program.quantize(x), quantized=True), program(x))
        with pytest.raises(UserError, match="expected images"):
            engine(x[:, :1])


def test_steps_of_a_block_with_a_shortcut():
    """Twelve modules become six steps: two layers, the projection that adds, two poolings, the classifier."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.bn1 = AdderConv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3)
            self.two, self.bn2 = AdderConv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.short, self.bn3 = AdderConv2d(2, 3, 1, stride=2), nn.BatchNorm2d(3)
            self.relu = nn.ReLU()
            self.pool, self.mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
            self.flatten, self.fc = nn.Flatten(), nn.Linear(3, 4)

        def forward(self, x):
            y = self.bn2(self.two(self.relu(self.bn1(self.one(x)))))
            y = self.relu(self.bn3(self.short(x)) + y)
            return self.fc(self.flatten(self.mean(self.pool(y))))

    torch.manual_seed(0)
    images = torch.randn(16, 2, 8, 8, generator=seeded())
    model = trained(Block(), images)
    program = quantize(model, [images])
    steps = [(type(step).__name__, step.sources) for step in program.steps]
    assert steps == [
        ("Layer", (0,)),
        ("Layer", (1,)),
        ("Layer", (0, 2)),
        ("MaxPool", (3,)),
        ("AveragePool", (4,)),
        ("Layer", (5,)),
    ]
    assert [type(step) for step in program.steps[3:5]] == [MaxPool, AveragePool]
    with torch.no_grad():
        assert correlation(program(images), model(images)) > 0.99


@pytest.mark.parametrize("seed", range(20))
def test_requantization_against_float64(seed):
    """The accumulators have means up to 100,000 quantized values away from 0; nothing needs more than 32 bits."""
    generator = seeded(seed)
    channels, largest = 64, [400, 36_720, 1_175_040, 47_000_000][seed % 4]
    exponent = 6 * torch.rand(channels, generator=generator, dtype=torch.double)
    sign = torch.randint(0, 2, (channels,), generator=generator) * 2 - 1
    scale = sign * (10.0**-exponent).clamp(max=1e5 / largest)  # quantized values per accumulator
    centre = torch.randint(0, largest + 1, (channels,), generator=generator)
    bias = 100 * torch.rand(channels, generator=generator).double() - scale * centre
    to_scale, to_zero_point = torch.tensor([0.01]).double(), torch.tensor([12.0]).double()
    shortcut_scale, shortcut_zero_point = torch.tensor([0.013]).double(), torch.tensor([128.0]).double()
    shortcut = QuantizedValue(0, (channels, 1, 1), shortcut_scale, shortcut_zero_point) if seed % 2 else None
    epilogue = requantization(scale * to_scale, bias * to_scale, largest, to_scale, to_zero_point, 255, shortcut)

    accumulators = (centre + torch.randint(-300, 301, (200, channels), generator=generator)).clamp(0, largest)
    accumulators[0], accumulators[1] = 0, largest
    other = torch.randint(0, 256, accumulators.shape, generator=generator)
    unit = 2**epilogue.pre_shift  # the multiplier is applied to accumulators in this unit
    assert (unit > 1) == (largest > 2**21)
    real = scale * accumulators + bias + to_zero_point
    total = (accumulators // unit) * epilogue.multiplier + epilogue.offset
    at_zero = bias + to_zero_point - (1.3 * 128 if seed % 2 else 0)
    middle = ((127.5 - at_zero) / scale).clamp(-largest, largest)  # here the offset corrects the multiplier's rounding
    rounding = 0.5 * ((accumulators - middle).abs() / unit + 1) + 1.5
    if seed % 2:
        real, total = real + 1.3 * (other - 128), total + other * epilogue.factor
        rounding += 0.5 * other
    assert (total.abs() < 2**31).all()
    inputs = (accumulators.int(), other.byte())[: 1 + seed % 2]
    found = epilogue(*(t.view(200, channels, 1, 1) for t in inputs)).flatten(1)
    assert ((found - real.clamp(0, 255)).abs() <= 0.5 + 0.5 * unit * scale.abs() + rounding / 2.0**epilogue.shift).all()


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class Broadcast(nn.Conv2d):
    def forward(self, x):
        return x + super().forward(nn.functional.adaptive_avg_pool2d(x, 1))


HEAD = [nn.Flatten(), nn.Linear(2 * 6 * 6, 3)]
NO_FORM = "it has no integer form, replace it"
REFUSED = [  # network, the message after "cannot quantize "
    ([nn.Conv2d(2, 2, 3), nn.GroupNorm(1, 2), *HEAD], f"1, GroupNorm: {NO_FORM}"),
    ([nn.Conv2d(2, 2, 3), nn.Sequential(nn.Sequential(nn.Softmin(1))), *HEAD], f"1.0.0, Softmin: {NO_FORM}"),
    (
        [nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(128, 3)],
        "0, Conv2d of circular (1, 1, 1, 1): pad zeros",
    ),
    (
        [nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), *HEAD],
        "1, BatchNorm2d without running statistics: set track_running_stats=True and train it",
    ),
    (
        [nn.MaxPool2d(2, dilation=2), nn.Flatten(), nn.Linear(18, 3)],
        "0, MaxPool2d with dilation=(2, 2): take dilation=1",
    ),
    (
        [nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), nn.Flatten(), nn.Linear(50, 3)],
        "0, AvgPool2d with ceil_mode and zeros that count: take count_include_pad=False",
    ),
    (
        [nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(32, 3)],
        "0, AvgPool2d with divisor_override=3: leave it out",
    ),
    (
        [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18, 3)],
        "0, AdaptiveAvgPool2d from 8 x 8 to 3 x 3: take windows of one size",
    ),
    (
        [nn.Linear(8, 3), nn.Flatten(), nn.Linear(48, 3)],
        "0, Linear of inputs ('N', 2, 8, 8): flatten all axes but the first",
    ),
    (
        [Broadcast(2, 2, 1), nn.Flatten(), nn.Linear(128, 3)],
        "0, add of shapes (2, 8, 8) and (2, 1, 1): give both one shape",
    ),
    (
        [nn.Flatten(), nn.Linear(128, 8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 3, 2)],
        "2, Unflatten from ('N', 8) to ('N', 2, 2, 2): flatten all axes but the first",
    ),
    (
        [nn.Conv2d(2, 2, 3)],
        "Sequential, output of shape ('N', 2, 6, 6): end in a layer of logits (N, classes), or in a global pooling",
    ),
    ([Untraceable()], "Sequential: torch.export does not trace it ("),
]


@pytest.mark.parametrize(("modules", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_part_without_integer_form_is_named(modules, words):
    with pytest.raises(UserError) as error:
        quantize(nn.Sequential(*modules), [torch.randn(2, 2, 8, 8)])
    assert str(error.value).startswith(f"cannot quantize {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "modules", "words"),
    [
        ((3, 224, 224), [nn.Flatten(), nn.Linear(3 * 224 * 224, 1)], r"1, Linear: an accumulator .* more than 32 bits"),
        ((1, 3000, 3000), [nn.AdaptiveAvgPool2d(1), nn.Flatten()], r"0, AdaptiveAvgPool2d: an accumulator .* 32 bits"),
        ((1, 1, 1), [nn.Flatten(), nn.Linear(1, 70_000)], "1, Linear: weight has 70000 filters, expected 1 to 65536"),
        ((1, 1, 20_000), [nn.AdaptiveAvgPool2d(1), nn.Flatten()], "Sequential: input size 20000 is out of range"),
    ],
)
def test_what_the_engine_refuses_is_named(shape, modules, words):
    with pytest.raises(UserError, match=f"cannot quantize {words}"):
        quantize(nn.Sequential(*modules), torch.ones(1, *shape))


ARGUMENTS = [  # arguments, words of the message
    ({"bits": 1}, "bits=1 is out of range: expected 2 to 8"),
    ({"bits": 9}, "bits=9 is out of range"),
    ({"bits": 8.0}, "bits=8.0 is no integer: expected 2 to 8"),
    ({"bits": "4"}, "bits='4' is no integer: expected 2 to 8"),
    ({"method": "entropy"}, "method=entropy is unknown: expected mse, max, percentile"),
]


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        quantize(nn.Conv2d(2, 2, 8), **{"calibration": [torch.zeros(2, 2, 8, 8)], **arguments})
