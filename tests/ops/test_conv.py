"""Test the three operators against the brute-force reference in float64: equal where float32 is exact, else in a bound.

On multiples of 1/4 (input, weight, |.| <= 2) and whole numbers (output gradient) every sum, in every order, is exact
in float32: there the kernels must equal the reference bit for bit. Thousands of the differences are -1, 0 and 1, where
HardTanh and sign change.
"""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadder import kernels, ops
from torchadder.bruteforce import Case, brute_force
from torchadder.ops.geometry import Geometry

UNIT = torch.finfo(torch.float32).eps / 2  # largest relative error of one rounding

CASES = {
    "1 of everything": Case(1, 1, 1, size=(1, 1), kernel=(1, 1)),
    "primes": Case(3, 5, 7, size=(11, 13), kernel=(3, 5), padding=(1, 2)),
    "1x1 kernel": Case(3, 7, 13, size=(5, 11), kernel=(1, 1)),
    "1x1 kernel, padded": Case(2, 5, 3, size=(4, 3), kernel=(1, 1), padding=(1, 2)),
    "1x1 kernel, stride 2": Case(3, 7, 9, size=(7, 5), kernel=(1, 1), stride=(2, 2)),
    "1x1 output": Case(5, 11, 17, size=(5, 3), kernel=(5, 3)),
    "1x1 image, 3x3 kernel": Case(5, 3, 19, size=(1, 1), kernel=(3, 3), padding=(1, 1)),
    "1 channel": Case(3, 1, 6, size=(9, 8), kernel=(5, 5), padding=(2, 2)),
    "7 channels, 37 filters": Case(3, 7, 37, size=(6, 11), kernel=(3, 3), padding=(1, 1)),
    "5 channels, 17 filters, stride 2": Case(2, 5, 17, size=(9, 8), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "2 groups of 3 to 16": Case(2, 6, 32, size=(5, 7), kernel=(2, 3), dilation=(1, 2), groups=2),
    "1 filter": Case(2, 9, 1, size=(6, 7), kernel=(3, 3)),
    "1 channel, 1 filter": Case(2, 1, 1, size=(6, 35), kernel=(3, 3), padding=(1, 1)),
    "a row": Case(1, 2, 3, size=(1, 37), kernel=(1, 3)),
    "a column": Case(1, 2, 3, size=(37, 1), kernel=(3, 1)),
    "stride 2": Case(3, 5, 6, size=(8, 9), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "stride 3": Case(2, 3, 4, size=(10, 11), kernel=(3, 3), stride=(3, 3)),
    "stride 3, last pixels unused": Case(2, 3, 4, size=(11, 9), kernel=(2, 2), stride=(3, 3)),
    "strides 1 and 2": Case(2, 4, 5, size=(7, 12), kernel=(3, 3), stride=(1, 2), padding=(0, 1)),
    "strides 3 and 2": Case(2, 4, 5, size=(13, 8), kernel=(5, 3), stride=(3, 2), padding=(2, 1)),
    "stride above the kernel": Case(2, 3, 5, size=(13, 17), kernel=(1, 2), stride=(4, 5)),
    "stride above the image": Case(2, 3, 5, size=(4, 3), kernel=(2, 2), stride=(7, 9)),
    "dilation": Case(2, 3, 4, size=(11, 12), kernel=(3, 3), dilation=(2, 3), padding=(1, 2)),
    "dilation with gaps": Case(1, 2, 3, size=(9, 11), kernel=(2, 2), dilation=(5, 7)),
    "dilation and stride": Case(2, 5, 3, size=(13, 14), kernel=(3, 2), stride=(2, 3), dilation=(3, 2), padding=(2, 1)),
    "padding above the kernel": Case(2, 3, 4, size=(5, 4), kernel=(2, 3), padding=(4, 5)),
    "padding above the kernel, stride 3": Case(1, 3, 4, size=(3, 2), kernel=(2, 2), stride=(3, 3), padding=(5, 4)),
    "padding above the image": Case(1, 2, 2, size=(1, 2), kernel=(3, 3), padding=(4, 4), dilation=(2, 2)),
    "kernel above the image": Case(2, 2, 3, size=(3, 2), kernel=(7, 5), padding=(3, 2)),
    "wide kernel": Case(1, 3, 4, size=(5, 19), kernel=(1, 11), padding=(0, 5)),
    "tall kernel": Case(1, 3, 4, size=(19, 5), kernel=(11, 1), padding=(5, 0)),
    "2 groups": Case(3, 6, 10, size=(7, 6), kernel=(3, 3), padding=(1, 1), groups=2),
    "3 groups, stride 2": Case(2, 9, 6, size=(9, 8), kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=3),
    "2 groups of 17 to 33": Case(1, 34, 66, size=(3, 4), kernel=(3, 3), padding=(1, 1), groups=2),
    "groups, 1x1 kernel": Case(2, 10, 15, size=(3, 5), kernel=(1, 1), groups=5),
    "groups of 3 channels, 1 filter": Case(2, 33, 11, size=(6, 5), kernel=(3, 3), padding=(1, 1), groups=11),
    "groups of 1 channel, 3 filters": Case(2, 11, 33, size=(6, 5), kernel=(3, 3), padding=(3, 3), groups=11),
    "groups of 4, stride 2": Case(3, 44, 44, size=(9, 7), kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=11),
    "groups of 7 and 8": Case(1, 35, 40, size=(5, 7), kernel=(2, 3), dilation=(2, 1), groups=5),
    "depthwise": Case(2, 12, 12, size=(7, 8), kernel=(3, 3), padding=(1, 1), groups=12),
    "depthwise, stride 2": Case(3, 13, 13, size=(9, 10), kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=13),
    "depthwise, dilation": Case(1, 35, 35, size=(9, 7), kernel=(3, 2), dilation=(2, 3), groups=35),
    "depthwise, 1x1 kernel": Case(2, 9, 9, size=(3, 5), kernel=(1, 1), groups=9),
    "depthwise, 2 filters a channel": Case(2, 5, 10, size=(7, 6), kernel=(3, 3), padding=(1, 1), groups=5),
    "depthwise, 2 channels a filter": Case(2, 10, 5, size=(7, 6), kernel=(3, 3), padding=(1, 1), groups=5),
    "K = 1,331": Case(1, 11, 2, size=(12, 13), kernel=(11, 11)),
    "K = 1,409": Case(61, 1409, 5, size=(1, 1), kernel=(1, 1)),
    "67 filters of 65 channels": Case(2, 65, 67, size=(4, 3), kernel=(3, 3), padding=(1, 1)),
    "more pixels than one chunk": Case(2, 3, 5, size=(31, 29), kernel=(3, 3), padding=(1, 1)),
    "15 images": Case(15, 2, 9, size=(3, 4), kernel=(2, 2)),
    "16 images": Case(16, 2, 8, size=(3, 4), kernel=(2, 2)),
    "17 images": Case(17, 3, 7, size=(3, 4), kernel=(2, 2), padding=(1, 1)),
    "33 images": Case(33, 3, 17, size=(2, 3), kernel=(2, 1), groups=1),
    "1-d": Case(3, 5, 7, size=(23,), kernel=(5,), padding=(2,)),
    "1-d, stride 3, dilation 2": Case(2, 3, 17, size=(31,), kernel=(4,), stride=(3,), padding=(5,), dilation=(2,)),
    "1-d, 2 groups": Case(2, 6, 10, size=(13,), kernel=(3,), groups=2),
    "1-d, depthwise": Case(2, 19, 19, size=(17,), kernel=(7,), padding=(3,), groups=19),
    "1-d, 1 channel": Case(2, 1, 3, size=(37,), kernel=(11,)),
    "3-d": Case(2, 5, 7, size=(3, 5, 4), kernel=(3, 3, 3), padding=(1, 1, 1)),
    "3-d, stride 2": Case(2, 3, 17, size=(5, 7, 6), kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)),
    "3-d, all different": Case(
        1, 4, 6, size=(7, 9, 8), kernel=(2, 3, 4), stride=(1, 2, 3), padding=(2, 0, 1), dilation=(3, 2, 1), groups=2
    ),
    "3-d, depthwise": Case(2, 13, 13, size=(4, 3, 5), kernel=(3, 2, 3), padding=(1, 1, 1), groups=13),
    "3-d, 1x1x1 kernel": Case(2, 7, 9, size=(2, 3, 4), kernel=(1, 1, 1), stride=(1, 2, 1)),
    "3-d, 1x1x1 output": Case(3, 7, 9, size=(2, 3, 2), kernel=(2, 3, 2)),
}


def on_grid(case):
    """Return tensors on a grid on which float32 sums are exact, and on which many differences are -1, 0 and 1."""
    x, weight, grad = case.tensors()
    return (x * 4).round().clamp(-8, 8) / 4, (weight * 4).round().clamp(-8, 8) / 4, (grad * 2).round()


@functools.cache
def exact(case):
    """Return tensors on the grid, and the results of the reference for them."""
    x, weight, grad = on_grid(case)
    return x, weight, grad, brute_force(case, x, weight, grad)


def by_filter(case, values):
    """Reshape (C_out,) so that it adds to an output."""
    return values.view(-1, *[1] * len(case.size))


def assert_equal(found, truth):
    """Compare numbers, and check that the truth is representable: nothing is rounded."""
    assert torch.equal(truth.float().double(), truth)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=0)


def assert_all_equal(case, x, weight, grad, truth):
    assert_equal(ops.adder_conv(x, weight, None, case.geometry, False), truth.output)
    for rule, dx in (("hardtanh", truth.grad_input), ("sign", truth.grad_input_sign)):
        assert_equal(ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule), dx)
    dw = ops.adder_conv_grad_weight(grad, x, weight, case.geometry, "sign")
    assert_equal(dw, truth.grad_weight_sign)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_brute_force_where_float32_is_exact(case, variant):
    assert_all_equal(case, *exact(case))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float64_equals_brute_force(case):
    x, weight, grad, truth = exact(case)
    assert_all_equal(case, x.double(), weight.double(), grad.double(), truth)


@st.composite
def geometries(draw):
    dims = draw(st.integers(1, 3))

    def axes(least, most):
        return draw(st.tuples(*[st.integers(least, most)] * dims))

    kernel, dilation, padding = axes(1, 5 if dims < 3 else 3), axes(1, 3), axes(0, 6 if dims < 3 else 2)
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(max(1, r) + draw(st.integers(0, 9 if dims < 3 else 3)) for r in reach)
    groups, small = draw(st.sampled_from([1, 1, 2, 3, 5])), st.sampled_from([1, 2, 3, 5, 7, 11])
    channels = (groups * draw(small), groups * draw(small))
    return Case(draw(st.integers(1, 4)), *channels, size, kernel, axes(1, 4), padding, dilation, groups)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(case=geometries(), name=st.sampled_from(kernels.variants()))
def test_any_geometry_equals_brute_force(case, name):
    with kernels.using(name):
        assert_all_equal(case, *exact(case))


# Rounding. A sum of n terms, in any order, is wrong by at most n UNIT sum |term| (first order). The kernels sum
# max(x, w), x and w (or |x - w|) over K elements and finish with a few operations; clamp(w) lies within |x| + 1,
# and x sum dY, which is taken off at the end, is rounded likewise.

ROUNDED = {
    "3x3": Case(2, 17, 19, size=(9, 8), kernel=(3, 3), padding=(1, 1)),
    "stride 2": Case(3, 13, 33, size=(9, 9), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "3 groups, dilation": Case(2, 15, 12, size=(9, 11), kernel=(3, 2), dilation=(2, 2), padding=(3, 3), groups=3),
    "depthwise": Case(2, 21, 21, size=(9, 10), kernel=(3, 3), padding=(1, 1), groups=21),
    "groups of 3": Case(2, 21, 21, size=(9, 10), kernel=(3, 3), padding=(1, 1), groups=7),
    "K = 1,409": Case(7, 1409, 11, size=(1, 1), kernel=(1, 1)),
    "1-d": Case(2, 17, 19, size=(33,), kernel=(5,), padding=(2,)),
    "3-d": Case(2, 7, 19, size=(5, 4, 6), kernel=(3, 3, 3), padding=(1, 1, 1)),
}


@functools.cache
def rounded(case, scale):
    """Return tensors, the results of the reference, and the sums of the absolute terms of output and gradient."""
    x, weight, grad = case.tensors()
    x, weight = x * scale, weight * scale
    size = -brute_force(case, x.abs(), -weight.abs(), grad).output  # of |x| + |w|
    above = torch.full_like(weight, 1e9)  # sign(above - x) = 1: the reference sums |dY| itself
    total = brute_force(case, x, above, grad.abs()).grad_input_sign
    return x, weight, grad, brute_force(case, x, weight, grad), size, total


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("case", ROUNDED.values(), ids=ROUNDED.keys())
def test_rounding_stays_within_the_derived_bound(case, scale, variant):
    x, weight, grad, truth, size, total = rounded(case, scale)
    bias = torch.linspace(-1, 1, case.c_out)
    size = size + by_filter(case, bias.abs()).double()

    terms = weight[0].numel()  # K
    found = ops.adder_conv(x, weight, bias, case.geometry, False).double()
    assert ((found - truth.output - by_filter(case, bias)).abs() <= (3 * terms + 8) * UNIT * size).all()

    constant = by_filter(case, weight.double().abs().flatten(1).sum(1))
    found = ops.adder_conv(x, weight, bias, case.geometry, True).double()
    error = (found - truth.output - constant - by_filter(case, bias)).abs()
    assert (error <= (4 * terms + 8) * UNIT * size).all()

    terms = terms * case.c_out // case.c_in  # most outputs that depend on one input element
    found = ops.adder_conv_grad_input(grad, x, weight, case.geometry, "hardtanh").double()
    assert ((found - truth.grad_input).abs() <= (2 * terms + 8) * UNIT * (1 + x.double().abs()) * total).all()
    found = ops.adder_conv_grad_input(grad, x, weight, case.geometry, "sign").double()
    assert ((found - truth.grad_input_sign).abs() <= terms * UNIT * total).all()

    terms = grad[:, 0].numel()
    total = grad.double().abs().transpose(0, 1).flatten(1).sum(1).view(-1, *[1] * (weight.dim() - 1))
    found = ops.adder_conv_grad_weight(grad, x, weight, case.geometry, "sign").double()
    assert ((found - truth.grad_weight_sign).abs() <= terms * UNIT * total).all()


UNUSED = {  # case -> rows and columns of input pixels that no output depends on
    "dilation with gaps": (Case(2, 3, 9, size=(9, 11), kernel=(2, 2), dilation=(5, 7)), (slice(4, 5), slice(4, 7))),
    "stride above the kernel": (Case(2, 3, 9, size=(9, 9), kernel=(2, 2), stride=(4, 4)), (slice(2, 4), slice(2, 4))),
    "rest of the stride": (Case(1, 9, 2, size=(11, 8), kernel=(2, 2), stride=(3, 3)), (slice(8, 9), slice(8, 9))),
    "depthwise": (Case(1, 9, 9, size=(9, 9), kernel=(1, 2), stride=(3, 4), groups=9), (slice(1, 3), slice(2, 4))),
}


@pytest.mark.parametrize("rule", ["hardtanh", "sign", "full"])
@pytest.mark.parametrize(("case", "unused"), UNUSED.values(), ids=UNUSED.keys())
def test_gradient_of_unused_pixels_is_zero(case, unused, rule, variant):
    x, weight, grad = case.tensors()
    dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule)
    rows, columns = unused
    assert (dx[:, :, rows] == 0).all()
    assert (dx[:, :, :, columns] == 0).all()
    assert (dx == 0).any()
    assert (dx != 0).any()


@pytest.mark.parametrize("case", [CASES["primes"], CASES["depthwise"], CASES["2 groups"], CASES["1x1 kernel"]])
def test_zero_gradient_gives_zero(case, variant):
    x, weight, grad = case.tensors()
    zero = torch.zeros_like(grad)
    for rule in ("hardtanh", "sign", "full"):
        assert (ops.adder_conv_grad_input(zero, x, weight, case.geometry, rule) == 0).all()
    for rule in ("sign", "full"):
        assert (ops.adder_conv_grad_weight(zero, x, weight, case.geometry, rule) == 0).all()


@pytest.mark.parametrize("case", [CASES["primes"], CASES["depthwise"], CASES["2 groups"], CASES["1x1 kernel"]])
def test_batch_of_0(case, variant):
    x, weight, grad = (t[:0] if i != 1 else t for i, t in enumerate(case.tensors()))
    assert ops.adder_conv(x, weight, None, case.geometry, False).shape == grad.shape
    for rule in ("hardtanh", "sign", "full"):
        assert ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule).shape == x.shape
    for rule in ("sign", "full"):
        dw = ops.adder_conv_grad_weight(grad, x, weight, case.geometry, rule)
        assert torch.equal(dw, torch.zeros_like(weight))


def test_image_of_height_0_is_all_padding(variant):
    weight = torch.randint(-4, 5, (3, 2, 2, 2)).float()
    y = ops.adder_conv(torch.empty(2, 2, 0, 3), weight, None, Geometry((1, 1), (2, 2), (1, 1), 1), False)
    assert torch.equal(y, -weight.abs().sum((1, 2, 3))[:, None, None].expand(2, 3, 3, 6))
    dx = ops.adder_conv_grad_input(y, torch.empty(2, 2, 0, 3), weight, Geometry((1, 1), (2, 2), (1, 1), 1), "hardtanh")
    assert dx.shape == (2, 2, 0, 3)


@pytest.mark.parametrize("case", [CASES[n] for n in ("primes", "padding above the kernel", "depthwise", "1-d", "3-d")])
def test_bias_and_recentring_add_a_constant_per_filter(case, variant):
    x, weight, _, truth = exact(case)
    bias = torch.arange(case.c_out) / 4.0
    constant = weight.abs().flatten(1).sum(1)
    y = ops.adder_conv(x, weight, bias, case.geometry, True)
    assert_equal(y, truth.output + by_filter(case, bias + constant).double())


@pytest.mark.skipif("avx512" not in kernels.available(), reason="this CPU cannot run avx512")
@pytest.mark.parametrize("case", [CASES["primes"], CASES["67 filters of 65 channels"], CASES["3-d"]], ids=str)
def test_every_way_of_avx512_to_compute_a_forward_pass_gives_the_same_bits(case):
    x, weight, _ = case.tensors()
    found = []
    for way in ("fma", "add", "half"):
        with kernels.using(f"avx512:{way}"):
            assert kernels.variant() == f"avx512:{way}"
            found.append(ops.adder_conv(x, weight, None, case.geometry, False))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
