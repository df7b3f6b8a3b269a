"""Test that BinaryConv2d and BinaryLinear are nn.Conv2d and nn.Linear to everything around them, with signs inside."""

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from tests.nn.test_adder import padded
from torch import nn

from torchadder import BinaryConv2d, BinaryLinear
from torchadder.functional import binary_conv2d, binary_linear
from torchadder.nn import Binary

CONVS = {  # arguments of nn.Conv2d
    "plain": {"args": (6, 7, 3)},
    "positional": {"args": (6, 10, (3, 2), 2, (1, 0), 1, 2, False)},
    "no bias": {"args": (6, 5, 3), "bias": False},
    "1x1": {"args": (6, 13, 1)},
    "1x1, stride 2": {"args": (6, 13, 1), "stride": 2},
    "rectangular": {"args": (6, 5, (1, 5)), "stride": (2, 1), "padding": (0, 2)},
    "stride 2": {"args": (6, 7, 3), "stride": 2, "padding": 1},
    "stride above the kernel": {"args": (6, 5, (1, 2)), "stride": (3, 4)},
    "dilation": {"args": (6, 5, 3), "dilation": (2, 1), "padding": 2},
    "2 groups": {"args": (6, 10, 3), "padding": 1, "groups": 2},
    "depthwise": {"args": (6, 6, 3), "padding": 1, "groups": 6},
    "depthwise, stride 2": {"args": (6, 12, 3), "stride": 2, "padding": 1, "groups": 6, "bias": False},
    "padding above the kernel": {"args": (6, 5, 2), "padding": (3, 4)},
    "same": {"args": (6, 5, 3), "padding": "same", "dilation": (1, 2)},
    "same, even kernel": {"args": (6, 5, (2, 4)), "padding": "same"},
    "same, even height": {"args": (6, 5, (4, 3)), "padding": "same", "bias": False},
    "same, even width, dilation": {"args": (6, 5, (1, 2)), "padding": "same", "dilation": (2, 3)},
    "valid": {"args": (6, 5, 3), "padding": "valid"},
    "reflect": {"args": (6, 5, 3), "padding": (2, 1), "padding_mode": "reflect"},
    "replicate, stride 2": {"args": (6, 5, 3), "padding": (2, 3), "stride": 2, "padding_mode": "replicate"},
    "circular": {"args": (6, 5, 3), "padding": (1, 2), "padding_mode": "circular"},
    "circular, same": {"args": (6, 5, (2, 3)), "padding": "same", "padding_mode": "circular"},
}
convs = pytest.mark.parametrize("options", CONVS.values(), ids=CONVS.keys())


def conv_of(layer, options):
    options = dict(options)
    return layer(*options.pop("args"), **options)


def numbers(*shape, seed=0):
    """Return multiples of 1/4 between -2 and 2, among them 0, -0, 1 and -1, where sign and clipping change."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.randint(-8, 9, shape, generator=generator) / 4
    return torch.where(quarters == 0, torch.copysign(quarters, torch.randn(shape, generator=generator)), quarters)


def numbered(layer):
    """Give the weight and bias of a layer such numbers."""
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters(), 1):
            parameter.copy_(numbers(*parameter.shape, seed=seed))
    return layer


def image():
    return numbers(3, 6, 7, 11)


# The reference: signs as plain arithmetic whose derivative torch finds, on patches that unfold cuts.


def signs(x):
    """Return sign(X), with the derivative 1{|X| <= 1}."""
    return x.clamp(-1, 1) + (torch.where(x < 0, -1.0, 1.0) - x.clamp(-1, 1)).detach()


def estimate(weight):
    """Return W~ = alpha sign(W), with the derivative 1."""
    alpha = weight.detach().abs().flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))
    return weight + (alpha * torch.where(weight < 0, -1.0, 1.0) - weight).detach()


def reference(layer, x):
    """Compute Y[o] = sum of sign(X) W~[o] + bias[o], differentiable."""
    if isinstance(layer, nn.Linear):
        return (signs(x)[..., None, :] * estimate(layer.weight)).sum(-1) + (0 if layer.bias is None else layer.bias)
    x = padded(layer, signs(x))
    patches = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride).unflatten(1, (layer.groups, 1, -1))
    filters = estimate(layer.weight).flatten(1).unflatten(0, (layer.groups, -1))[..., None]
    height = (x.shape[2] - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1) // layer.stride[0] + 1
    y = (patches * filters).sum(3).flatten(1, 2).unflatten(2, (height, -1))
    return y if layer.bias is None else y + layer.bias[:, None, None]


def gradients(forward, layer, x, dtype):
    """Return the output and the gradients of input and parameters, for an output gradient of integers."""
    layer, x = copy.deepcopy(layer).to(dtype), x.detach().to(dtype).requires_grad_()
    y = forward(layer, x)
    y.backward((numbers(*y.shape, seed=9) * 4).to(y))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def call(layer, x):
    return layer(x)


def assert_near(found, expected, tolerance):
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance * truth.abs().max().item())


# 16-bit inputs are rounded already; everything is computed in float32 and rounded once.
PRECISION = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
dtypes = pytest.mark.parametrize("dtype", PRECISION, ids=str)


@dtypes
@convs
def test_conv_and_its_gradients_equal_the_reference(options, dtype):
    layer = numbered(conv_of(BinaryConv2d, options))
    found = gradients(call, layer, image(), dtype)
    assert all(t.dtype == dtype for t in found)
    assert_near(found, gradients(reference, layer, image(), torch.float64), PRECISION[dtype])


@dtypes
@pytest.mark.parametrize("shape", [(13,), (5, 13), (2, 3, 13)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_equal_the_reference(shape, bias, dtype):
    layer = numbered(BinaryLinear(13, 5, bias=bias))
    found = gradients(call, layer, numbers(*shape), dtype)
    assert_near(found, gradients(reference, layer, numbers(*shape), torch.float64), PRECISION[dtype])


def test_linear_has_the_strides_of_its_counterpart_and_takes_an_empty_batch():
    ours, counterpart = BinaryLinear(13, 5), nn.Linear(13, 5)
    for x in (numbers(3, 7, 13), numbers(3, 13, 7).transpose(1, 2), numbers(1, 13), numbers(0, 13)):
        assert ours(x).shape == counterpart(x).shape
        assert ours(x).stride() == counterpart(x).stride()
    ours(numbers(0, 13)).sum().backward()
    assert not ours.weight.grad.any()


def test_empty_batch_has_a_gradient_of_0():
    layer, x = BinaryConv2d(6, 7, 3), image()[:0].requires_grad_()
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert not any(p.grad.any() for p in layer.parameters())


def test_gradients_by_hand():
    """Test one filter of four weights on one image: alpha = 1, W~ = (1, 1, -1, -1), dY = 2."""
    x = torch.tensor([1.0, -1.25, 0.0, 0.5]).view(1, 4, 1, 1).requires_grad_()
    weight = torch.tensor([0.0, 1.0, -1.0, -2.0]).view(1, 4, 1, 1).requires_grad_()
    bias = torch.zeros(1, requires_grad=True)
    y = binary_conv2d(x, weight, bias)
    y.backward(torch.full_like(y, 2.0))
    assert y.item() == 1 - 1 - 1 - 1
    assert x.grad.flatten().tolist() == [2, 0, -2, -2]
    assert weight.grad.flatten().tolist() == [2, -2, 2, 2]
    assert bias.item() == 0
    assert bias.grad.item() == 2


def test_nan_gradient_is_not_clipped_away():
    x, weight = torch.full((1, 1, 1, 2), 3.0, requires_grad=True), torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    binary_conv2d(x, weight).backward(torch.tensor([[[[1.0, math.nan]]]]))
    assert x.grad.isnan().flatten().tolist() == [False, True]
    assert weight.grad.isnan().all()


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's convolution says that it makes a copy
@convs
def test_shapes_and_state_are_those_of_conv2d(options):
    ours, counterpart = conv_of(BinaryConv2d, options), conv_of(nn.Conv2d, options)
    ours.load_state_dict(counterpart.state_dict())
    for name in ("stride", "padding", "dilation", "groups", "padding_mode", "in_channels", "out_channels"):
        assert getattr(ours, name) == getattr(counterpart, name)
    assert repr(ours) == repr(counterpart).replace("Conv2d", "BinaryConv2d")
    x = image()
    assert ours(x).shape == counterpart(x).shape
    assert torch.equal(ours(x[1]), ours(x)[1])  # without a batch
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory_format)
        assert ours(x).stride() == counterpart(x).stride()


@pytest.mark.parametrize(
    ("ours", "counterpart"), [(BinaryConv2d(4, 6, 3), nn.Conv2d(4, 6, 3)), (BinaryLinear(4, 6), nn.Linear(4, 6))]
)
def test_signature_and_printed_form_are_those_of_the_counterpart(ours, counterpart):
    assert inspect.signature(type(ours)) == inspect.signature(type(counterpart))
    assert repr(ours) == "Binary" + repr(counterpart)
    assert isinstance(ours, Binary)
    assert isinstance(ours, type(counterpart))
    ours.load_state_dict(counterpart.state_dict())


def test_initial_weights_are_those_of_the_counterpart():
    layers = []
    for one in (BinaryConv2d, nn.Conv2d):
        torch.manual_seed(0)
        layers.append(one(4, 6, 3, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in layers), strict=True))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (BinaryConv2d(6, 7, 3, padding=1), image()),
        (BinaryConv2d(6, 7, 2, padding="same"), image()),
        (BinaryLinear(11, 5), image()),
    ],
)
def test_memory_of_the_forward_pass_is_input_and_weight(layer, x):
    x = x.clone().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), layer.weight.data_ptr()}


REFUSED = [  # call of a layer pair, exception, words of the message; tests/ops/test_binary.py has every check
    (lambda conv, linear: conv(6, 7, 3, groups=4), ValueError, ["groups"]),
    (lambda conv, linear: conv(6, 7, 3, groups=0), ValueError, ["groups"]),
    (lambda conv, linear: conv(6, 7, 3, padding="full"), ValueError, ["padding", "'full'"]),
    (lambda conv, linear: conv(6, 7, 3, padding="same", stride=2), ValueError, ["padding='same'"]),
    (lambda conv, linear: conv(6, 7, 3, padding_mode="mirror"), ValueError, ["padding_mode"]),
    (lambda conv, linear: conv(6, 7), TypeError, ["kernel_size"]),
    (lambda conv, linear: conv(6, 7, 3, grad=None), TypeError, ["grad"]),
    (lambda conv, linear: conv(6, 7, 3, stride=0)(image()), ValueError, ["stride=(0, 0)"]),
    (lambda conv, linear: conv(4, 7, 3)(image()), ValueError, ["input has 6 channels", "expects 4"]),
    (lambda conv, linear: conv(6, 7, 9)(image()), ValueError, ["kernel (9, 9)", "larger than", "(7, 11)"]),
    (lambda conv, linear: conv(6, 7, 3)(image()[0, 0]), ValueError, ["input", "(7, 11)"]),
    (lambda conv, linear: conv(6, 7, 2, padding="same")(image()[0, 0]), ValueError, ["input", "(7, 11)"]),
    (lambda conv, linear: conv(6, 7, 3)(image()[None]), ValueError, ["input", "(1, 3, 6, 7, 11)"]),
    (lambda conv, linear: conv(6, 7, 3)(image().long()), TypeError, ["int64", ".float()"]),
    (lambda conv, linear: linear(8, 5)(image()), ValueError, ["input", "(3, 6, 7, 11)", "(..., 8)"]),
    (lambda conv, linear: linear(8, 5)(torch.zeros(())), ValueError, ["input", "()"]),
    (lambda conv, linear: linear(11, 5, dtype=torch.float64)(image()), TypeError, ["float32", "float64", "cast"]),
    (lambda conv, linear: linear(11, 5)(image().bool()), TypeError, ["bool", ".float()"]),
]


@pytest.mark.parametrize(("attempt", "error", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_the_counterpart_refuses_is_refused(attempt, error, words):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        attempt(nn.Conv2d, nn.Linear)
    with pytest.raises(error) as raised:
        attempt(BinaryConv2d, BinaryLinear)
    assert type(raised.value) is error
    for word in words:
        assert word in str(raised.value)


REFUSED_FUNCTIONS = [  # what no layer passes on, or torch's layer takes
    (lambda: BinaryConv2d(6, 7, 3)(image().to("meta")), ["input is on meta", "weight on cpu"]),
    (lambda: binary_conv2d(image(), torch.zeros(7, 6, 3)), ["weight", "(7, 6, 3)"]),
    (lambda: binary_conv2d(image(), torch.zeros(7, 6, 2, 2), padding="SAME"), ["padding='SAME'"]),
    (lambda: binary_conv2d(image(), torch.zeros(7, 6, 2, 2), padding="same", stride=2), ["padding='same'"]),
    (lambda: binary_conv2d(image(), torch.zeros(7, 6, 2, 2), torch.zeros(6)), ["bias", "(6,)", "(7,)"]),
    (lambda: binary_linear(image(), torch.zeros(11)), ["weight", "(11,)", "(C_out, K)"]),
    (lambda: binary_linear(image()[..., :0], torch.zeros(5, 0)), ["weight", "(5, 0)", "at least 1"]),
    (lambda: binary_linear(image(), torch.zeros(5, 11), torch.zeros(4)), ["bias", "(4,)", "(5,)"]),
]


@pytest.mark.parametrize(("attempt", "words"), REFUSED_FUNCTIONS, ids=range(len(REFUSED_FUNCTIONS)))
def test_functions_refuse(attempt, words):
    with pytest.raises(ValueError, match=r".") as raised:
        attempt()
    for word in words:
        assert word in str(raised.value)
