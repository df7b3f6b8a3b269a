"""Test adder_conv1d, 2d, 3d and adder_linear: outputs and every gradient rule against the formulas, and wrong calls."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.ops.test_conv import on_grid

from torchadder.bruteforce import Case, brute_force
from torchadder.functional import GradientRule, adder_conv1d, adder_conv2d, adder_conv3d, adder_linear
from torchadder.nn import AdderConv2d, AdderLinear, BinaryLinear
from torchadder.ops.adder import INPUT_RULES, WEIGHT_RULES

RULES = [GradientRule(*names) for names in itertools.product(WEIGHT_RULES, INPUT_RULES)]
TERM = {  # rule -> the factor of dY in each term of the gradient
    "full": lambda difference: difference,
    "hardtanh": lambda difference: difference.clamp(-1, 1),
    "sign": torch.sign,
}


def formula(x, weight, grad, stride=(), padding=(), dilation=(), groups=1, rule=RULES[0]):
    """Compute Y, dX and dW by their definitions, in float64, with every |X - W| in memory."""
    dims = x.dim() - 2
    stride, padding, dilation = stride or (1,) * dims, padding or (0,) * dims, dilation or (1,) * dims
    x, weight, grad = x.double().requires_grad_(), weight.double(), grad.double()
    patches = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    for axis, (k, s, d) in enumerate(zip(weight.shape[2:], stride, dilation, strict=True)):
        patches = patches.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]  # in the end (N, C, *size, *kernel)
    by_group = patches.unflatten(1, (groups, 1, -1))  # (N, G, 1, C / G, *size, *kernel)
    places, taps, none = tuple(range(4, 4 + dims)), tuple(range(4 + dims, 4 + 2 * dims)), (None,) * dims
    filters = weight.unflatten(0, (1, groups, -1))[(slice(None),) * 4 + none]  # (1, G, O / G, C / G, 1.., *kernel)
    dy = grad.unflatten(1, (groups, -1))[(slice(None),) * 3 + (None, ..., *none)]  # (N, G, O / G, 1, *size, 1..)
    y = -(by_group - filters).abs().sum((3, *taps)).flatten(1, 2)
    of_patches = (TERM[rule.input](filters - by_group) * dy).sum(2).flatten(1, 2)
    (dx,) = torch.autograd.grad(patches, x, of_patches)
    of_filters = (TERM[rule.weight](by_group - filters) * dy).sum((0, *places)).flatten(0, 1)
    return y.detach(), dx, of_filters.detach()


CONV = {1: adder_conv1d, 2: adder_conv2d, 3: adder_conv3d}


def conv_of(case):
    return CONV[len(case.size)]


CASES = {
    "3x3": Case(3, 5, 7, size=(9, 8), kernel=(3, 3), padding=(1, 1)),
    "strides 2 and 3": Case(2, 4, 6, size=(11, 10), kernel=(3, 5), stride=(2, 3), padding=(1, 2)),
    "dilation with gaps": Case(2, 3, 5, size=(9, 8), kernel=(2, 2), dilation=(4, 3)),
    "2 groups": Case(2, 6, 10, size=(7, 7), kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=2),
    "depthwise": Case(2, 7, 7, size=(7, 8), kernel=(3, 3), padding=(1, 1), groups=7),
    "depthwise, 2 filters a channel": Case(2, 3, 6, size=(7, 8), kernel=(3, 3), padding=(4, 4), groups=3),
    "1x1": Case(5, 11, 13, size=(3, 2), kernel=(1, 1)),
    "1x1 output": Case(3, 5, 4, size=(4, 5), kernel=(4, 5)),
    "1-d": Case(3, 4, 6, size=(17,), kernel=(5,), stride=(2,), padding=(3,), dilation=(2,), groups=2),
    "1-d, 1x1": Case(3, 4, 6, size=(7,), kernel=(1,)),
    "3-d": Case(2, 3, 5, size=(4, 5, 3), kernel=(3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 2, 1)),
    "3-d, depthwise": Case(1, 5, 5, size=(3, 4, 5), kernel=(2, 3, 2), padding=(1, 1, 1), groups=5),
}
table = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@table
def test_formula_is_the_derivative_and_agrees_with_brute_force(case):
    """Test the reference of these tests: two other programs, and autograd for the rule that is the true derivative."""
    x, weight, grad = case.tensors()
    y, dx, dw = formula(x, weight, grad, *case.geometry, rule=GradientRule("sign", "sign"))
    truth = brute_force(case, x, weight, grad)
    pairs = [(y, truth.output), (dx, truth.grad_input_sign), (dw, truth.grad_weight_sign)]
    pairs.append((formula(x, weight, grad, *case.geometry)[1], truth.grad_input))
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = -sum_of_distances(case, x, weight)
    pairs += zip((dx, dw), torch.autograd.grad(y, (x, weight), grad.double()), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def sum_of_distances(case, x, weight):
    """Compute sum |x - w|, one number at a time in the order of the formula (eq. 2)."""
    padded = F.pad(x, [p for p in reversed(case.padding) for _ in range(2)])
    depth, per_group = case.c_in // case.groups, case.c_out // case.groups
    filters = []
    for o in range(case.c_out):
        total = 0
        for c, *tap in itertools.product(range(depth), *map(range, case.kernel)):
            pixels = padded[:, o // per_group * depth + c]
            for axis, (a, n, s, d) in enumerate(
                zip(tap, case.output_size, case.stride, case.dilation, strict=True), start=1
            ):
                pixels = pixels.index_select(axis, torch.tensor([i * s + a * d for i in range(n)]))
            total = total + (pixels - weight[(o, c, *tap)]).abs()
        filters.append(total)
    return torch.stack(filters, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES, ids="-".join)
@table
def test_gradient_rule(case, rule, dtype):
    x, weight, grad = on_grid(case)
    y, dx, dw = formula(x, weight, grad, *case.geometry, rule=rule)
    inputs = [t.to(dtype).requires_grad_() for t in (x, weight, torch.arange(case.c_out) / 4.0)]
    bias = inputs[2].detach().double().view(-1, *[1] * len(case.size))
    constant = weight.double().abs().flatten(1).sum(1).view_as(bias)
    for recenter in (False, True):
        found = conv_of(case)(*inputs, *case.geometry, grad=rule, recenter=recenter)
        assert torch.equal(found.double(), y + bias + constant * recenter)
        gradients = torch.autograd.grad(found, inputs, grad.to(dtype))
        for gradient, expected in zip(
            gradients, (dx, dw, grad.double().transpose(0, 1).flatten(1).sum(1)), strict=True
        ):
            assert gradient.dtype == dtype
            assert torch.equal(gradient.double(), expected)


@pytest.mark.parametrize("rule", RULES, ids="-".join)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (3, 2, 7), (2, 1, 3, 7)])
def test_linear(shape, rule):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, grad = (
        torch.randint(-8, 9, size, generator=generator) / 4 for size in (shape, (5, 7), (5,), (*shape[:-1], 5))
    )
    pixels, filters, dy = x.reshape(-1, 7, 1, 1), weight[:, :, None, None], grad.reshape(-1, 5, 1, 1)
    y, dx, dw = formula(pixels, filters, dy, rule=rule)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    for recenter in (False, True):
        found = adder_linear(*inputs, grad=rule, recenter=recenter)
        constant = bias.double() + weight.double().abs().sum(1) * recenter
        assert torch.equal(found.double(), y.reshape(*shape[:-1], 5) + constant)
        gradients = torch.autograd.grad(found, inputs, grad)
        expected = dx.reshape(shape), dw.reshape(5, 7), dy.double().sum((0, 2, 3))
        for gradient, number in zip(gradients, expected, strict=True):
            assert torch.equal(gradient.double(), number)


@pytest.mark.parametrize("shape", [(0, 7), (2, 0, 7)])
def test_linear_on_a_batch_of_0(shape):
    x, weight = torch.empty(shape, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    y = adder_linear(x, weight)
    assert y.shape == (*shape[:-1], 5)
    y.sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros(5, 7))


LINEAR_VIEWS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every second column": lambda t: torch.stack([t, t + 9], -1).flatten(1)[:, ::2],
    "every second row": lambda t: torch.stack([t, t + 9], 1).flatten(0, 1)[::2],
    "not at the start of its memory": lambda t: torch.cat([torch.zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("view", LINEAR_VIEWS.values(), ids=LINEAR_VIEWS.keys())
def test_linear_on_views(view):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-8, 9, size, generator=generator) / 4 for size in ((3, 17), (9, 17)))
    expected = -(x[:, None] - weight).abs().sum(-1)
    assert torch.equal(adder_linear(view(x), weight), expected)
    assert torch.equal(adder_linear(x, view(weight)), expected)
    y = adder_linear(view(x).requires_grad_(), view(weight).requires_grad_(), grad=GradientRule("sign", "sign"))
    y.sum().backward()  # its gradient is an expanded number


def test_linear_equals_1x1_convolution_bit_for_bit():
    x, weight, _ = Case(5, 113, 67, size=(1, 1), kernel=(1, 1)).tensors()
    assert torch.equal(adder_linear(x.flatten(1), weight.flatten(1)), adder_conv2d(x, weight).flatten(1))


@table
def test_unbatched_input_is_a_batch_of_1(case):
    x, weight, grad = on_grid(case)
    one = x[0].clone().requires_grad_()
    y = conv_of(case)(one, weight, None, *case.geometry)
    expected, dx, _ = formula(x[:1], weight, grad[:1], *case.geometry)
    assert torch.equal(y.double(), expected[0])
    y.backward(grad[0])
    assert torch.equal(one.grad.double(), dx[0])


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's convolution says that it makes a copy
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 2), (4, 3), (5, 2)])
def test_padding_by_name(kernel, dilation):
    """Test that "same" keeps the size, with the odd zero right and below as in torch, and that "valid" pads nothing."""
    x, weight, grad = on_grid(Case(2, 3, 4, size=(12, 11), kernel=kernel, dilation=dilation))
    assert torch.equal(
        adder_conv2d(x, weight, padding="valid", dilation=dilation), adder_conv2d(x, weight, dilation=dilation)
    )
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    grad = torch.cat([grad, grad, grad], 2).repeat(1, 1, 1, 9)[:, :, :12, :11]
    expected, dx, dw = formula(F.pad(x, sides), weight, grad, dilation=dilation)
    x.requires_grad_(), weight.requires_grad_()
    y = adder_conv2d(x, weight, padding="same", dilation=dilation)
    assert y.shape == F.conv2d(x, weight, padding="same", dilation=dilation).shape == (2, 4, 12, 11)
    assert torch.equal(y.double(), expected)
    y.backward(grad)
    assert torch.equal(x.grad.double(), dx[:, :, sides[2] : sides[2] + 12, sides[0] : sides[0] + 11])
    assert torch.equal(weight.grad.double(), dw)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_only_the_gradients_that_are_needed_are_computed(wanted):
    tensors = [torch.ones(s).requires_grad_(w) for s, w in zip(((1, 2, 3, 3), (4, 2, 3, 3), (4,)), wanted, strict=True)]
    y = adder_conv2d(*tensors)
    assert y.requires_grad == any(wanted)
    if any(wanted):
        y.sum().backward()
    assert [t.grad is not None for t in tensors] == list(wanted)


FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("rule", RULES, ids="-".join)
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@table
def test_only_input_and_weight_are_kept(case, memory_format, rule):
    tensors = case.tensors()
    if len(case.size) == 2:
        tensors = (t.contiguous(memory_format=memory_format) for t in tensors)
    x, weight, _ = tensors
    assert kept(conv_of(case), x, weight, torch.ones(case.c_out), *case.geometry, grad=rule) == memory(x, weight)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 2, 7)])
def test_only_input_and_weight_of_a_linear_layer_are_kept(shape):
    x, weight = torch.ones(shape), torch.ones(4, 7)
    assert kept(adder_linear, x, weight, torch.ones(4)) == memory(x, weight)


def memory(*tensors):
    return sorted(t.untyped_storage().data_ptr() for t in tensors)


def kept(function, *arguments, **options):
    """Return the storages that autograd saves for the backward pass."""
    saved = []
    for argument in arguments[:3]:
        argument.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function(*arguments, **options)
    return memory(*saved)


def test_changing_a_kept_tensor_is_noticed():
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2, requires_grad=True)
    y = adder_conv2d(x, weight)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Outputs in 16 bits: recentred ones are small enough.
NARROW = [torch.bfloat16, torch.float16]


def narrow_case():
    x, weight, grad = on_grid(CASES["3x3"])
    weight = weight * 4  # raw outputs beyond what 8 bits of mantissa hold, recentred ones not
    bias = torch.arange(7) / 4.0
    return x, weight, bias, grad


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "16-bit tensors"])
def test_recentred_outputs_in_16_bits_are_float32_s_rounded_once(dtype, autocast):
    *tensors, grad = narrow_case()
    wide = [t.clone().requires_grad_() for t in tensors]
    expected = adder_conv2d(*wide, padding=1, recenter=True)
    expected.backward(grad)
    ours = [t.clone().to(torch.float32 if autocast else dtype).requires_grad_() for t in tensors]
    with torch.autocast("cpu", dtype, enabled=autocast):
        y = adder_conv2d(*ours, padding=1, recenter=True)
    assert y.dtype == dtype
    assert torch.equal(y, expected.to(dtype))
    y.backward(grad.to(dtype))
    for one, other in zip(ours, wide, strict=True):
        assert one.grad.dtype == one.dtype
        assert torch.equal(one.grad, other.grad.to(one.dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_recentred_linear_in_16_bits(dtype):
    x, weight = (torch.randint(-8, 9, size).to(dtype) / 4 for size in ((3, 17), (9, 17)))
    y = adder_linear(x, weight, recenter=True)
    assert y.dtype == dtype
    assert torch.equal(y, adder_linear(x.float(), weight.float(), recenter=True).to(dtype))


def conv(x=(1, 4, 5, 5), weight=(6, 4, 3, 3), bias=None, **options):
    def make(what):
        return torch.zeros(what) if isinstance(what, tuple) else what

    return adder_conv2d(make(x), make(weight), make(bias), **options)


def linear(x=(2, 7), weight=(5, 7), bias=None, **options):
    return adder_linear(torch.zeros(x), torch.zeros(weight), bias, **options)


def nested(*shapes):
    return torch.nested.nested_tensor([torch.zeros(shape) for shape in shapes], layout=torch.jagged)


HALF, BRAIN, LONG, DOUBLE = torch.float16, torch.bfloat16, torch.int64, torch.float64
X, W = (1, 4, 5, 5), (6, 4, 3, 3)
REFUSED = [  # call, exception, words that the message must contain
    (lambda: AdderConv2d(4, 6, 3)(np.zeros((1, 4, 5, 5))), TypeError, ["input is of type ndarray: expected a tensor"]),
    (lambda: AdderLinear(3, 4)([[1.0, 2, 3]]), TypeError, ["input is of type list: expected a tensor"]),
    (lambda: BinaryLinear(3, 4)(None), TypeError, ["input is of type NoneType: expected a tensor"]),
    (lambda: AdderConv2d(4, 6, 3)(torch.zeros(X).to_sparse()), TypeError, ["torch.sparse_coo: expected a dense"]),
    (lambda: AdderLinear(3, 4)(nested((2, 3), (1, 3))), TypeError, ["input is nested: expected a dense tensor"]),
    (lambda: conv(x=(1, 3, 5, 5)), ValueError, ["input has 3 channels", "expects 4"]),
    (lambda: conv(x=(3, 5, 5)), ValueError, ["input has 3 channels", "expects 4"]),
    (lambda: conv(groups=2), ValueError, ["input has 4 channels", "groups=2", "expects 8"]),
    (lambda: conv(groups=4), ValueError, ["groups=4", "6 filters"]),
    (lambda: conv(groups=0), ValueError, ["groups=0"]),
    (lambda: conv(groups=-2), ValueError, ["groups=-2"]),
    (lambda: conv(x=(4, 5)), ValueError, ["input", "(4, 5)", "(N, C_in, H, W)"]),
    (lambda: conv(x=(1, 1, 4, 5, 5)), ValueError, ["input", "(1, 1, 4, 5, 5)"]),
    (lambda: conv(weight=(6, 4, 3)), ValueError, ["weight", "(6, 4, 3)", "kh, kw"]),
    (lambda: conv(weight=(6, 4)), ValueError, ["weight", "(6, 4)"]),
    (lambda: conv(weight=(6, 4, 3), padding="same"), ValueError, ["weight", "(6, 4, 3)"]),
    (lambda: conv(x=(4, 5), padding="same"), ValueError, ["input", "(4, 5)"]),
    (lambda: conv(weight=(0, 4, 3, 3)), ValueError, ["weight", "(0, 4, 3, 3)", "at least 1"]),
    (lambda: conv(weight=(6, 4, 0, 3)), ValueError, ["weight", "(6, 4, 0, 3)", "at least 1"]),
    (lambda: conv(x=(1, 0, 5, 5), weight=(6, 0, 3, 3)), ValueError, ["weight", "(6, 0, 3, 3)", "at least 1"]),
    (lambda: conv(weight=(6, 4, 6, 3)), ValueError, ["kernel (6, 3)", "larger than", "(5, 5)"]),
    (lambda: conv(dilation=3), ValueError, ["kernel (3, 3)", "dilation=(3, 3)", "larger than"]),
    (lambda: conv(x=(1, 4, 0, 5)), ValueError, ["larger than", "(0, 5)"]),
    (lambda: conv(x=(1, 4, 1, 5), stride=2), ValueError, ["larger than", "(1, 5)"]),
    (lambda: conv(torch.zeros(X, dtype=BRAIN), torch.zeros(W, dtype=HALF), recenter=True), TypeError, ["bfloat16"]),
    (lambda: conv(stride=0), ValueError, ["stride=(0, 0)", "at least 1"]),
    (lambda: conv(stride=(1, -1)), ValueError, ["stride=(1, -1)"]),
    (lambda: conv(stride=(1, 1, 1)), ValueError, ["(1, 1, 1)", "one or 2"]),
    (lambda: conv(stride=1.5), TypeError, []),
    (lambda: conv(stride=(1.5, 1)), TypeError, []),
    (lambda: conv(padding=-1), ValueError, ["padding=(-1, -1)", "at least 0"]),
    (lambda: conv(padding=(0, -2)), ValueError, ["padding=(0, -2)"]),
    (lambda: conv(padding="SAME"), ValueError, ["padding='SAME'", "'same'", "'valid'"]),
    (lambda: conv(padding="same", stride=2), ValueError, ["padding='same'", "stride=(2, 2)"]),
    (lambda: conv(dilation=0), ValueError, ["dilation=(0, 0)", "at least 1"]),
    (lambda: conv(x=torch.zeros(X, dtype=DOUBLE)), TypeError, ["float64", "float32", "cast"]),
    (lambda: conv(x=torch.zeros(X, dtype=LONG)), TypeError, ["int64", "cast"]),
    *(
        (lambda d=d: conv(torch.zeros(X, dtype=d), torch.zeros(W, dtype=d)), TypeError, [str(d), "float32", "recenter"])
        for d in (HALF, BRAIN)
    ),
    *(
        (lambda d=d: conv(torch.zeros(X, dtype=d), torch.zeros(W, dtype=d)), TypeError, [str(d), "float32", "cast"])
        for d in (LONG, torch.uint8, torch.bool, torch.complex64)
    ),
    (lambda: conv(x=torch.zeros(X, device="meta")), ValueError, ["input is on meta", "weight on cpu"]),
    (lambda: conv(weight=torch.zeros(W, device="meta")), ValueError, ["input is on cpu", "weight on meta"]),
    (lambda: conv(bias=(5,)), ValueError, ["bias", "(5,)", "(6,)"]),
    (lambda: conv(bias=(6, 1)), ValueError, ["bias", "(6, 1)", "(6,)"]),
    (lambda: conv(bias=torch.zeros(6, dtype=DOUBLE)), TypeError, ["bias", "float64", "float32"]),
    (lambda: conv(bias=torch.zeros(6, device="meta")), ValueError, ["bias", "meta", "cpu"]),
    (lambda: conv(grad=GradientRule(weight="hardtanh")), ValueError, ["weight", "'hardtanh'", "full, sign"]),
    (lambda: conv(grad=GradientRule(input="relu")), ValueError, ["input", "'relu'", "hardtanh, sign, full"]),
    (lambda: conv(grad="sign"), TypeError, ["grad=", "'sign'", "expected a GradientRule"]),
    (lambda: AdderConv2d(3, 4, 3, grad="sign"), TypeError, ["grad=", "'sign'", "expected a GradientRule"]),
    (lambda: adder_conv1d(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)), ValueError, ["(1, 2, 3, 4)", "(N, C_in, L)"]),
    (lambda: adder_conv1d(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), stride=(1, 1)), ValueError, ["(1, 1)"]),
    (lambda: adder_conv1d(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)), ValueError, ["kernel (4,)", "larger"]),
    (lambda: adder_conv3d(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 3, 3)), ValueError, ["channels"]),
    (lambda: adder_conv3d(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, 3, 3)), ValueError, ["(N, C_in, D, H, W)"]),
    (lambda: linear(x=(2, 6)), ValueError, ["input", "(2, 6)", "(..., 7)"]),
    (lambda: linear(x=()), ValueError, ["input", "()", "(..., 7)"]),
    (lambda: linear(weight=(7,)), ValueError, ["weight", "(7,)", "(C_out, K)"]),
    (lambda: linear(weight=(5, 7, 1)), ValueError, ["weight", "(5, 7, 1)"]),
    (lambda: linear(x=(2, 0), weight=(5, 0)), ValueError, ["weight", "(5, 0)", "at least 1"]),
    (lambda: linear(bias=torch.zeros(4)), ValueError, ["bias", "(4,)", "(5,)"]),
    (lambda: linear(grad=GradientRule(input="")), ValueError, ["input", "''"]),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refused(call, error, words):
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert type(raised.value) is error
    assert "\n" not in message
    for word in words:
        assert word in message
