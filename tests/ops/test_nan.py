"""Test that every number that depends on a NaN is NaN, and that infinity never becomes a wrong finite number."""

import functools
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from torchadder import ops
from torchadder.bruteforce import Case, brute_force
from torchadder.ops.geometry import Geometry

CASES = {  # in each, some output depends on every input pixel
    "3x3": Case(2, 5, 11, size=(6, 5), kernel=(3, 3), padding=(1, 1)),
    "stride 2": Case(2, 9, 3, size=(7, 7), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "padding above the kernel": Case(1, 3, 9, size=(4, 5), kernel=(2, 2), padding=(3, 2)),
    "2 groups": Case(2, 4, 6, size=(5, 5), kernel=(3, 3), padding=(1, 1), groups=2),
    "groups of 2 and 3": Case(2, 14, 21, size=(5, 5), kernel=(3, 3), padding=(1, 1), groups=7),
    "depthwise": Case(2, 9, 9, size=(5, 6), kernel=(3, 3), padding=(1, 1), groups=9),
    "1x1": Case(3, 17, 33, size=(2, 3), kernel=(1, 1)),
    "few channels": Case(2, 5, 19, size=(6, 5), kernel=(3, 3), padding=(1, 1)),
    "1 channel": Case(2, 1, 3, size=(5, 5), kernel=(3, 3)),
}
WHERE = {"x": 0, "weight": 1, "grad": 2}

table = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
places = pytest.mark.parametrize("where", WHERE)


class Dependence(NamedTuple):
    """Hold masks of the numbers that depend on a number that is not finite."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor


@functools.cache
def poisoned(case, where, value):
    """Return tensors with `value` at two places of one of them, and what depends on it."""
    tensors = case.tensors()
    flat = tensors[WHERE[where]].view(-1)
    flat[[flat.numel() // 7, flat.numel() // 2]] = value
    return *tensors, dependence(case, *tensors)


def dependence(case, x, weight, grad):
    bad_x, bad_weight, bad_grad = ((~t.isfinite()).double() for t in (x, weight, grad))
    all_weight, all_grad = (torch.ones_like(t, dtype=torch.float64) for t in (weight, grad))
    output = F.conv2d(bad_x, all_weight, None, *case.geometry) + bad_weight.sum((1, 2, 3))[:, None, None]
    of_grad = conv2d_input(x.shape, all_weight, bad_grad, *case.geometry)
    of_weight = conv2d_input(x.shape, bad_weight, all_grad, *case.geometry)
    of_x = conv2d_weight(bad_x, weight.shape, all_grad, *case.geometry)
    of_filter = bad_grad.sum((0, 2, 3))[:, None, None, None]
    return Dependence(output > 0, bad_x + of_grad + of_weight > 0, bad_weight + of_x + of_filter > 0)


@places
@table
def test_nan_reaches_what_depends_on_it(case, where, variant):
    x, weight, grad, depends = poisoned(case, where, math.nan)
    y = ops.adder_conv(x, weight, None, case.geometry, False)
    assert torch.equal(y.isnan(), depends.output)
    may_spread = depends.grad_input
    if where == "weight":  # over the input channel, to border pixels too
        may_spread = may_spread.any(-1).any(-1).any(0)[:, None, None].expand_as(x)
    for rule in ("hardtanh", "sign", "full"):
        dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule).isnan()
        assert dx[depends.grad_input].all(), rule
        assert not dx[~may_spread].any(), rule
    for rule in ("sign", "full"):
        dw = ops.adder_conv_grad_weight(grad, x, weight, case.geometry, rule)
        assert torch.equal(dw.isnan(), depends.grad_weight), rule


@places
@table
def test_nan_in_float64(case, where):
    *tensors, depends = poisoned(case, where, math.nan)
    x, weight, grad = (t.double() for t in tensors)
    assert torch.equal(ops.adder_conv(x, weight, None, case.geometry, False).isnan(), depends.output)
    for rule in ("hardtanh", "sign"):
        dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule)
        assert torch.equal(dx.isnan(), depends.grad_input), rule
    dw = ops.adder_conv_grad_weight(grad, x, weight, case.geometry, "sign")
    assert torch.equal(dw.isnan(), depends.grad_weight)


@pytest.mark.parametrize("groups", [1, 9])
def test_nan_gradient_where_input_equals_weight(groups, variant):
    """Test sign 0 times NaN, which is NaN."""
    x, weight = torch.ones(1, 9, 1, 2), torch.ones(9, 9 // groups, 1, 1)
    grad = torch.full((1, 9, 1, 2), math.nan)
    for rule in ("hardtanh", "sign"):
        assert ops.adder_conv_grad_input(grad, x, weight, Geometry((1, 1), (0, 0), (1, 1), groups), rule).isnan().all()
    assert ops.adder_conv_grad_weight(grad, x, weight, Geometry((1, 1), (0, 0), (1, 1), groups), "sign").isnan().all()


@pytest.mark.parametrize("recenter", [False, True])
def test_nan_in_a_weight_beside_padding_only(recenter, variant):
    x, weight = torch.zeros(1, 1, 1, 1), torch.zeros(2, 1, 3, 3)
    weight[1, 0, 0, 0] = math.nan
    y = ops.adder_conv(x, weight, None, Geometry((1, 1), (1, 1), (1, 1), 1), recenter)
    assert torch.equal(y.isnan(), torch.tensor([False, True])[:, None, None].expand(1, 2, 1, 1))


def test_nan_in_bias(variant):
    bias = torch.tensor([0.0, math.nan])
    x, weight = torch.ones(1, 1, 2, 2), torch.ones(2, 1, 1, 1)
    y = ops.adder_conv(x, weight, bias, Geometry((1, 1), (0, 0), (1, 1), 1), False)
    assert torch.equal(y.isnan(), bias.isnan()[:, None, None].expand(1, 2, 2, 2))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@places
@table
def test_infinity_gives_what_the_formula_gives_or_nan(case, where, value, variant):
    """Allow NaN, which |x - w| = 2 max(x, w) - x - w makes of infinity, but no other finite number."""
    x, weight, grad, depends = poisoned(case, where, value)
    truth = brute_force(case, x, weight, grad)

    def check(found, expected, may_be_nan):
        stated = ~(found.isnan() & may_be_nan)
        torch.testing.assert_close(found.double()[stated], expected[stated], rtol=1e-5, atol=1e-4)

    check(ops.adder_conv(x, weight, None, case.geometry, False), truth.output, depends.output)
    for rule, expected in (("hardtanh", truth.grad_input), ("sign", truth.grad_input_sign)):
        dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule)
        check(dx, expected, depends.grad_input)
    dw = ops.adder_conv_grad_weight(grad, x, weight, case.geometry, "sign")
    check(dw, truth.grad_weight_sign, depends.grad_weight)


@pytest.mark.parametrize("of_weight", [math.inf, -math.inf])
@pytest.mark.parametrize("of_input", [math.inf, -math.inf])
@table
def test_infinite_input_and_weight(case, of_input, of_weight, variant):
    """Test equal infinities, whose difference is NaN, and opposite ones."""
    x, weight, grad = case.tensors()
    for tensor, value in ((x, of_input), (weight, of_weight)):
        tensor.view(-1)[:: max(tensor.numel() // 7, 1)] = value
    truth = brute_force(case, x, weight, grad)
    for rule, expected in (("hardtanh", truth.grad_input), ("sign", truth.grad_input_sign)):
        dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule).double()
        assert dx[expected.isnan()].isnan().all(), rule
        stated = ~dx.isnan()
        torch.testing.assert_close(dx[stated], expected[stated], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_gradient_of_a_pixel_that_no_output_reads_is_0(value, groups, variant):
    case = Case(2, 4, 4, size=(5, 6), kernel=(1, 1), stride=(2, 2), groups=groups)
    x, weight, grad = case.tensors()
    unread = torch.ones(5, 6, dtype=torch.bool)
    unread[::2, ::2] = False
    x[..., unread] = value
    for rule in ("hardtanh", "sign"):
        dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule)
        assert not dx[..., unread].any()
        assert bool(dx[..., ~unread].isfinite().all())
