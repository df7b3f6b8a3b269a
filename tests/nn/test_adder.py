"""Test that adder layers are nn.Conv1d, 2d, 3d and nn.Linear to everything around them, with adder operators inside."""

import copy
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchadder.functional import GradientRule, adder_conv2d, adder_linear
from torchadder.nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear

CONVS = {  # arguments of nn.Conv2d
    "plain": {"args": (4, 6, 3)},
    "positional": {"args": (4, 6, (3, 2), 2, (1, 0), 1, 2, False)},
    "no bias": {"args": (4, 6, 3), "bias": False},
    "rectangular": {"args": (4, 6, (1, 5)), "stride": (2, 1), "padding": (0, 2)},
    "dilation": {"args": (4, 6, 3), "dilation": (2, 1), "padding": 2},
    "depthwise": {"args": (4, 4, 3), "padding": 1, "groups": 4},
    "same": {"args": (4, 6, 3), "padding": "same", "dilation": (1, 2)},
    "same, even kernel": {"args": (4, 6, (2, 4)), "padding": "same"},
    "valid": {"args": (4, 6, 3), "padding": "valid"},
    "reflect": {"args": (4, 6, 3), "padding": (2, 1), "padding_mode": "reflect"},
    "replicate, stride 2": {"args": (4, 6, 3), "padding": (2, 3), "stride": 2, "padding_mode": "replicate"},
    "circular": {"args": (4, 6, 3), "padding": (1, 2), "padding_mode": "circular"},
    "circular, same": {"args": (4, 6, (2, 3)), "padding": "same", "padding_mode": "circular"},
}
SIZE = (3, 4, 8, 9)
convs = pytest.mark.parametrize("options", CONVS.values(), ids=CONVS.keys())


def pair(layer, options, **options_of_ours):
    """Return the layer and its counterpart in torch.nn with the same numbers, multiples of 1/4."""
    options = dict(options)
    counterpart_type = nn.Conv2d if layer is AdderConv2d else nn.Linear
    args = options.pop("args")
    ours, counterpart = layer(*args, **options, **options_of_ours), counterpart_type(*args, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_((parameter * 4).round() / 4)
    counterpart.load_state_dict(ours.state_dict())
    return ours, counterpart


def image():
    return (torch.randn(SIZE, generator=torch.Generator().manual_seed(0)) * 4).round() / 4


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's convolution says that it makes a copy
@convs
def test_shapes_and_state_are_those_of_conv2d(options):
    ours, counterpart = pair(AdderConv2d, options)
    assert isinstance(ours, nn.Conv2d)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in counterpart.state_dict().items()
    }
    for name in ("stride", "padding", "dilation", "groups", "padding_mode", "in_channels", "out_channels"):
        assert getattr(ours, name) == getattr(counterpart, name)
    x = image()
    assert ours(x).shape == counterpart(x).shape
    assert ours(x[0]).shape == counterpart(x[0]).shape


def padded(layer, x):
    """Return the input padded by torch itself."""
    if isinstance(layer.padding, str):
        total = [
            d * (k - 1) * (layer.padding == "same") for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        sides = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    else:
        (vertical, horizontal) = layer.padding
        sides = (horizontal, horizontal, vertical, vertical)
    return F.pad(x, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def distance(layer, x):
    """Compute bias - sum |patch - filter| by unfolding, differentiable: the sign rules are its true derivative."""
    patches = F.unfold(padded(layer, x), layer.kernel_size, layer.dilation, 0, layer.stride)
    by_group = patches.unflatten(1, (layer.groups, 1, -1))
    filters = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))[..., None]
    y = -(by_group - filters).abs().sum(3).flatten(1, 2)
    height = (padded(layer, x).shape[2] - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1) // layer.stride[0] + 1
    y = y.unflatten(2, (height, -1))
    return y if layer.bias is None else y + layer.bias[:, None, None]


@pytest.mark.parametrize("recenter", [False, True])
@convs
def test_conv_equals_its_formula_and_its_gradients(options, recenter):
    ours, _ = pair(AdderConv2d, options, grad=GradientRule("sign", "sign"), recenter=recenter)
    x, counterpart = image().requires_grad_(), copy.deepcopy(ours).double()
    wide = x.detach().double().requires_grad_()
    y, expected = ours(x), distance(counterpart, wide)
    constant = counterpart.weight.abs().sum((1, 2, 3))[:, None, None] * recenter
    assert torch.equal(y.double(), expected + constant)
    grad = (torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) * 2).round()
    y.backward(grad)
    expected.backward(grad.double())
    assert torch.equal(x.grad.double(), wide.grad)
    for parameter, wanted in zip(ours.parameters(), counterpart.parameters(), strict=True):
        assert torch.equal(parameter.grad.double(), wanted.grad)


LAYERS = {  # layer and an input for it
    "conv": (lambda **o: AdderConv2d(4, 6, 3, padding=1, **o), image()),
    "conv, reflected": (lambda **o: AdderConv2d(4, 6, 3, padding=1, padding_mode="reflect", **o), image()),
    "depthwise": (lambda **o: AdderConv2d(4, 4, 3, stride=2, groups=4, bias=False, **o), image()),
    "conv1d": (lambda **o: AdderConv1d(4, 6, 3, padding="same", **o), image()[:, :, 0]),
    "conv1d, circular": (lambda **o: AdderConv1d(4, 6, 3, padding=2, padding_mode="circular", **o), image()[0, :, 0]),
    "conv3d": (lambda **o: AdderConv3d(4, 2, (2, 3, 1), stride=2, **o), image()[:, :, None].repeat(1, 1, 3, 1, 1)),
    "numpy's integers": (
        lambda **o: AdderConv2d(*np.int64([4, 6, 3, 1, 1, 1, 2]), padding_mode="reflect", **o),
        image(),
    ),
    "linear": (lambda **o: AdderLinear(9, 5, **o), image()),
    "linear without bias": (lambda **o: AdderLinear(9, 5, bias=False, **o), image()[0, 0]),
}
layers = pytest.mark.parametrize(("make", "x"), LAYERS.values(), ids=LAYERS.keys())
RULE = GradientRule("sign", "full")


@layers
def test_options_reach_the_operator(make, x):
    plain, changed = make(), make(grad=RULE, recenter=True)
    changed.load_state_dict(plain.state_dict())
    weight = plain.weight.detach().abs()
    constant = weight.flatten(1).sum(1).view(-1, *[1] * (weight.dim() - 2))
    torch.testing.assert_close(changed(x), plain(x) + constant)
    gradients = []
    for layer in (plain, changed):
        layer(wanted := x.clone().requires_grad_()).square().sum().backward()
        gradients.append((wanted.grad, layer.weight.grad))
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    assert not torch.allclose(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("shape", [(9,), (5, 9), (2, 3, 9), (0, 9)])
def test_linear_equals_its_formula(shape):
    ours, counterpart = pair(AdderLinear, {"args": (9, 5)})
    x = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)) / 4
    assert isinstance(ours, nn.Linear)
    assert ours(x).shape == counterpart(x).shape
    expected = ours.bias - (x[..., None, :] - ours.weight).abs().sum(-1)
    assert torch.equal(ours(x), expected)
    assert torch.equal(ours(x), adder_linear(x, ours.weight, ours.bias))


def test_weights_start_as_standard_normal_numbers_whatever_the_fan_in():
    torch.manual_seed(0)
    for layer in (AdderConv2d(64, 64, 5), AdderConv2d(1, 4096, 5), AdderLinear(2048, 50)):
        count = layer.weight.numel()  # 100,000 numbers: 5 standard errors of mean and deviation
        assert abs(layer.weight.mean().item()) < 5 / count**0.5
        assert abs(layer.weight.std().item() - 1) < 5 / (2 * count) ** 0.5
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (AdderConv1d(2, 3, 3), "AdderConv1d(2, 3, kernel_size=(3,), stride=(1,))"),
        (AdderConv2d(2, 3, 3), "AdderConv2d(2, 3, kernel_size=(3, 3), stride=(1, 1))"),
        (AdderLinear(2, 3, recenter=True), "AdderLinear(in_features=2, out_features=3, bias=True, recenter=True)"),
        (
            AdderLinear(2, 3, bias=False, grad=GradientRule(weight="sign")),
            "AdderLinear(in_features=2, out_features=3, bias=False, grad=GradientRule(weight='sign'))",
        ),
    ],
)
def test_printed_form(layer, text):
    assert repr(layer) == text


def test_ordinary_layers_are_not_marked():
    assert not hasattr(nn.Conv2d(1, 1, 1).weight, "adder")


def test_autocast_leaves_other_dtypes_alone():
    """Test that autocast widens 16 bits to 32, and that all else is as without it."""
    layer = AdderConv2d(4, 6, 3).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(image().double()).dtype == torch.float64
        for dtype in (torch.int64, torch.bool, torch.complex64):
            with pytest.raises(TypeError, match="float"):
                adder_conv2d(image().to(dtype), torch.zeros(6, 4, 3, 3).to(dtype))


REFUSED = [  # call, exception, words of the message; tests/test_functional.py has every check of an input
    (lambda: AdderConv2d(4, 6, 3, groups=3), ValueError, "groups"),
    (lambda: AdderConv2d(4, 6, 3, groups=0), ValueError, "groups"),
    (lambda: AdderConv2d(4, 6, 3, padding="full"), ValueError, "padding"),
    (lambda: AdderConv2d(4, 6, 3, padding="same", stride=2), ValueError, "padding='same'"),
    (lambda: AdderConv2d(4, 6, 3, padding_mode="mirror"), ValueError, "padding_mode"),
    (lambda: AdderConv2d(4, 6), TypeError, "kernel_size"),
    (lambda: AdderConv2d(4, 6, 3, 1, 0, 1, 1, True, "zeros", None, None, RULE), TypeError, "argument"),
    (lambda: AdderConv2d(4, 6, 3, grad=GradientRule(weight="hardtanh")), ValueError, "'hardtanh'"),
    (lambda: AdderLinear(4, 6, grad=GradientRule(input="clip")), ValueError, "'clip'"),
    (lambda: AdderConv2d(3, 6, 3)(image()), ValueError, "4 channels"),
    (lambda: AdderLinear(8, 5)(image()), ValueError, "input has shape"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refused(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("layer", "counterpart"),
    [(AdderConv1d, nn.Conv1d), (AdderConv2d, nn.Conv2d), (AdderConv3d, nn.Conv3d), (AdderLinear, nn.Linear)],
)
def test_signature_is_that_of_the_counterpart_and_two_keywords(layer, counterpart):
    parameters = inspect.signature(layer).parameters
    assert list(parameters) == [*inspect.signature(counterpart).parameters, "grad", "recenter"]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("grad", "recenter"))
