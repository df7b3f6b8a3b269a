"""Test torchadder::binary_conv against explicit loops in float64, in one, two and three dimensions, and as a registered
operator: checks, memory formats, fake tensors."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from torchadder import ops


class Case(NamedTuple):
    """Describe one convolution: input (n, c_in, *size), weight (c_out, c_in / groups, *kernel)."""

    n: int
    c_in: int
    c_out: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    def tensors(self, dtype=torch.float64):
        """Return input and weight, multiples of 1/2: many are 0, some are -0, 1 and -1."""
        generator = torch.Generator().manual_seed(0)
        shapes = (self.n, self.c_in, *self.size), (self.c_out, self.c_in // self.groups, *self.kernel)
        return [((torch.randn(s, generator=generator) * 2).round() / 2).to(dtype) for s in shapes]


CASES = {
    "1 of everything": Case(1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    "primes": Case(3, 5, 7, (11, 13), (3, 5), (1, 1), (1, 2), (1, 1)),
    "1x1 kernel": Case(3, 7, 13, (5, 11), (1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1 image": Case(5, 67, 11, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    "stride 2": Case(3, 5, 6, (8, 9), (3, 3), (2, 2), (1, 1), (1, 1)),
    "strides 3 and 2": Case(2, 4, 5, (13, 8), (5, 3), (3, 2), (2, 1), (1, 1)),
    "dilation": Case(2, 3, 4, (11, 12), (3, 3), (1, 1), (1, 2), (2, 3)),
    "padding above the kernel": Case(2, 3, 4, (5, 4), (2, 3), (1, 1), (4, 5), (1, 1)),
    "3 groups, stride 2": Case(2, 9, 6, (9, 8), (3, 3), (2, 2), (1, 1), (1, 1), groups=3),
    "depthwise": Case(2, 13, 13, (7, 8), (3, 3), (1, 1), (1, 1), (1, 1), groups=13),
    "depthwise, 2 filters a channel": Case(3, 5, 10, (7, 6), (3, 2), (2, 1), (1, 0), (1, 1), groups=5),
    "a line": Case(3, 5, 7, (17,), (3,), (2,), (1,), (2,)),
    "a line, depthwise": Case(2, 6, 6, (11,), (4,), (1,), (2,), (1,), groups=6),
    "a volume": Case(2, 3, 5, (5, 4, 7), (3, 2, 3), (1, 2, 1), (1, 0, 2), (1, 1, 2)),
}
table = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def brute_force(case, x, weight):
    """Compute the output position by position; a position outside the image is 0, which is no sign."""
    signs = F.pad(torch.where(x < 0, -1.0, 1.0).double(), [p for p in reversed(case.padding) for _ in range(2)])
    filters = torch.where(weight < 0, -1.0, 1.0).double()
    axes = list(zip(signs.shape[2:], case.kernel, case.stride, case.dilation, strict=True))
    size = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes]
    depth, filters_per_group = weight.shape[1], case.c_out // case.groups
    y = torch.empty(case.n, case.c_out, *size, dtype=torch.float64)
    for o, *position in itertools.product(range(case.c_out), *map(range, size)):
        first = o // filters_per_group * depth
        taps = [slice(p * s, p * s + d * (k - 1) + 1, d) for p, (_, k, s, d) in zip(position, axes, strict=True)]
        window = signs[(slice(None), slice(first, first + depth), *taps)]
        y[(slice(None), o, *position)] = (window * filters[o]).flatten(1).sum(1) * weight[o].double().abs().mean()
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@table
def test_equals_brute_force(case, dtype):
    x, weight = case.tensors(dtype)
    y = ops.binary_conv(x, weight, None, *case.geometry)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), brute_force(case, x, weight), rtol=2 * torch.finfo(dtype).eps, atol=0)


@table
def test_bias_is_added_by_filter(case):
    x, weight = case.tensors()
    bias = torch.arange(case.c_out) / 4.0 - 1
    y = ops.binary_conv(x, weight, bias.double(), *case.geometry)
    assert torch.equal(y, ops.binary_conv(x, weight, None, *case.geometry) + bias.view(-1, *[1] * len(case.size)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_rounded_once(dtype):
    """Test sums of 4,099 signs: odd numbers from 2,049 on, which 16 bits do not hold."""
    sums = torch.arange(2049.0, 2089.0, 2)
    x = torch.where(torch.arange(4099) < (4099 + sums[:, None]) / 2, 1.0, -1.0)[..., None, None]
    weight, bias = torch.full((1, 4099, 1, 1), 0.75), torch.tensor([1 / 3], dtype=dtype)
    weight[0, 0] = 8  # alpha = 0.75177
    y = ops.binary_conv(x.to(dtype), weight.to(dtype), bias, (1, 1), (0, 0), (1, 1), 1)
    assert torch.equal(y.flatten(), (sums * weight.mean() + bias.float()).to(dtype))


TINY = 2.0**-149  # the smallest number above 0
SIGNS = [(0.0, 1), (-0.0, 1), (TINY, 1), (-TINY, -1), (1.0, 1), (-1.0, -1), (math.inf, 1), (-math.inf, -1)]
signs = pytest.mark.parametrize(("value", "expected"), [*SIGNS, (math.nan, math.nan)])


@signs
def test_sign(value, expected):
    one, x = torch.ones(1, 1, 1), torch.full((1, 1, 1), value)
    y = ops.binary_conv(x, one, None, (1,), (0,), (1,), 1)
    torch.testing.assert_close(y, torch.full((1, 1, 1), float(expected)), rtol=0, atol=0, equal_nan=True)


@signs
def test_sign_of_a_weight(value, expected):
    """Test the sign together with the scale: a second weight, 8, makes alpha 4 for finite values near 0."""
    weight = torch.tensor([[[value], [8.0]]])
    x = torch.tensor([[[1.0], [0.0]]])
    y = ops.binary_conv(x, weight, None, (1,), (0,), (1,), 1)
    alpha = (abs(value) + 8) / 2
    torch.testing.assert_close(y, torch.full((1, 1, 1), (expected + 1) * alpha), equal_nan=True)


NAN = {  # where -> which outputs of a 3x3 convolution with padding 1, (N, C_out, H, W) = (2, 3, 4, 5)
    "x": ((1, 0, 3, 0), (slice(1, 2), slice(None), slice(2, None), slice(0, 2))),
    "weight": ((2, 1, 0, 0), (slice(None), slice(2, 3))),
    "bias": ((1,), (slice(None), slice(1, 2))),
}


@pytest.mark.parametrize("where", NAN)
def test_nan_reaches_the_outputs_that_depend_on_it(where):
    """Test that NaN in a weight reaches every output of its filter, because alpha depends on it."""
    tensors = {"x": torch.randn(2, 2, 4, 5), "weight": torch.randn(3, 2, 3, 3), "bias": torch.randn(3)}
    place, outputs = NAN[where]
    tensors[where][place] = math.nan
    y = ops.binary_conv(*tensors.values(), (1, 1), (1, 1), (1, 1), 1)
    expected = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    expected[outputs] = True
    assert torch.equal(y.isnan(), expected)


def test_batch_of_0():
    y = ops.binary_conv(torch.zeros(0, 4, 5, 5), torch.ones(6, 4, 3, 3), None, (1, 1), (2, 2), (1, 1), 1)
    assert y.shape == (0, 6, 7, 7)


FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
SHAPES = {
    "3x3": ((3, 6, 7, 9), (10, 6, 3, 3)),
    "1 image": ((1, 6, 5, 4), (4, 6, 2, 2)),
    "1 channel": ((2, 1, 5, 4), (4, 1, 3, 3)),
    "1 filter": ((2, 6, 5, 4), (1, 6, 3, 3)),
    "1x1": ((2, 6, 5, 4), (5, 6, 1, 1)),
    "1x1 output": ((2, 6, 5, 4), (5, 6, 5, 4)),
}


@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, repeat=2)), ids="-".join)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_memory_format_is_that_of_torch(shapes, formats):
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randint(-4, 5, shape, generator=generator).float() for shape in shapes]
    x, weight = (t.contiguous(memory_format=FORMATS[name]) for t, name in zip(plain, formats, strict=True))
    y = ops.binary_conv(x, weight, None, (1, 1), (0, 0), (1, 1), 1)
    assert y.stride() == F.conv2d(x, weight).stride()
    assert torch.equal(y, ops.binary_conv(*plain, None, (1, 1), (0, 0), (1, 1), 1))


VIEWS = {
    "every second column": lambda t: torch.stack([t, -t], -1).flatten(3)[..., ::2],
    "every second channel": lambda t: torch.stack([t, -t], 2).flatten(1, 2)[:, ::2],
    "inside a larger image": lambda t: F.pad(t, (1, 2, 3, 1), value=-1.0)[:, :, 3:-1, 1:-2],
    "rows and columns exchanged": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "images and channels exchanged": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_give_the_same_numbers(view):
    x, weight = (view(t) for t in CASES["primes"].tensors(torch.float32))
    geometry = CASES["primes"].geometry
    expected = ops.binary_conv(x.contiguous(), weight.contiguous(), None, *geometry)
    assert torch.equal(ops.binary_conv(x, weight, None, *geometry), expected)


def test_float32_inside_an_autocast_region():
    x, weight = torch.ones(1, 1409, 1, 1), torch.ones(1, 1409, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.binary_conv(x, weight, None, (1, 1), (0, 0), (1, 1), 1)
    assert torch.equal(y, torch.full((1, 1, 1, 1), 1409.0))


BATCHED = {"images": (0, None, None), "filters": (None, 1, 0), "both": (2, 0, 1)}


@pytest.mark.parametrize("dims", BATCHED.values(), ids=BATCHED.keys())
def test_vmap_is_one_call_a_member(dims):
    case = CASES["3 groups, stride 2"]
    x, weight = case.tensors()
    bias = torch.arange(case.c_out) / 4.0
    members = [[t.roll(i, 0) for t in (x, weight, bias.double())] for i in range(5)]
    batched = [
        torch.stack(ts, d) if d is not None else ts[0] for d, ts in zip(dims, zip(*members, strict=True), strict=True)
    ]
    found = torch.vmap(lambda *ts: ops.binary_conv(*ts, *case.geometry), dims)(*batched)
    for i, y in enumerate(found):
        tensors = [members[0 if dim is None else i][j] for j, dim in enumerate(dims)]
        assert torch.equal(y, ops.binary_conv(*tensors, *case.geometry))


REGISTERED = [  # case, dtype, memory format of the input
    ("3 groups, stride 2", torch.float32, torch.channels_last),
    ("dilation", torch.bfloat16, torch.contiguous_format),
    ("a line", torch.float64, torch.contiguous_format),
    ("a volume", torch.float32, torch.channels_last_3d),
]


@pytest.mark.parametrize(("name", "dtype", "layout"), REGISTERED)
def test_registration(name, dtype, layout):
    """Schema, fake tensors, tracing: torch's own checks of a registered operator."""
    case = CASES[name]
    x, weight = case.tensors(dtype)
    bias = torch.zeros(case.c_out, dtype=dtype)
    torch.library.opcheck(
        torch.ops.torchadder.binary_conv, (x.contiguous(memory_format=layout), weight, bias, *case.geometry)
    )


X, W = (1, 4, 5, 5), (6, 4, 3, 3)


def conv(x=X, weight=W, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    x, weight, bias = (torch.zeros(t) if isinstance(t, tuple) else t for t in (x, weight, bias))
    return ops.binary_conv(x, weight, bias, stride, padding, dilation, groups)


DOUBLE = torch.float64
REFUSED = [  # call, exception, words of the message; tests/test_functional.py has every check of the geometry
    (lambda: conv(x=(1, 3, 5, 5)), ValueError, ["input has 3 channels", "expects 4"]),
    (lambda: conv(weight=(6, 4, 3)), ValueError, ["weight", "(6, 4, 3)"]),
    (lambda: conv(padding=(0, 0, 0)), ValueError, ["padding=(0, 0, 0)", "2 values"]),
    (lambda: conv(bias=(5,)), ValueError, ["bias", "(5,)", "(6,)"]),
    (lambda: conv(weight=torch.zeros(W, device="meta")), ValueError, ["weight on meta"]),
    (lambda: conv(bias=torch.zeros(6, device="meta")), ValueError, ["bias on meta"]),
    (lambda: conv(weight=torch.zeros(W, dtype=DOUBLE)), TypeError, ["float32", "weight", "float64", "cast"]),
    (lambda: conv(weight=torch.zeros(W).bfloat16()), TypeError, ["float32", "weight", "bfloat16", "cast"]),
    (lambda: conv(x=torch.zeros(X).bfloat16()), TypeError, ["bfloat16", "weight", "float32", "cast"]),
    (lambda: conv(bias=torch.zeros(6, dtype=DOUBLE)), TypeError, ["float32", "bias", "float64", "cast"]),
    *(
        (lambda d=d: conv(torch.zeros(X).to(d), torch.zeros(W).to(d)), TypeError, [str(d), ".float()"])
        for d in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    ),
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
