"""Test training in integers: the operators with numbers="int8" equal those of floats on the rounded tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.test_conv import CASES, UNIT, by_filter
from torch.library import opcheck

from torchadder import kernels, ops
from torchadder.bruteforce import Case, brute_force, brute_force_rounded
from torchadder.functional import GradientRule, adder_conv2d, adder_linear
from torchadder.nn import AdderConv2d, AdderLinear
from torchadder.ops import rounding
from torchadder.ops.geometry import Geometry

SQUARE = Geometry((1, 1), (1, 1), (1, 1), 1)
MANY = 17  # input channels, more than a vector holds


def assert_close(found, truth, terms):
    """Compare with exact sums of `terms` numbers. A sum of integers is exact, and becomes a float in a few roundings.

    The rounded tensors carry an error of their own: a multiple of 1 / levels is no float32.
    """
    assert found.shape == truth.shape
    largest = truth.abs().max().item() if truth.numel() else 0.0
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=4 * UNIT * terms * largest)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_brute_force_on_rounded_tensors(case, variant):
    x, weight, grad = case.tensors()
    weight = weight * 3  # many lie beyond the range of the input
    truth = brute_force_rounded(case, x, weight, grad)
    terms = weight[0].numel() ** 0.5
    bias = torch.linspace(-1, 1, case.c_out)
    y = ops.adder_conv(x, weight, bias, case.geometry, False, numbers="int8")
    assert_close(y, truth.output + by_filter(case, bias.double()), terms)
    recentred = rounding.to_grid(weight, rounding.levels_of(x)).double().abs().flatten(1).sum(1)
    y = ops.adder_conv(x, weight, None, case.geometry, True, numbers="int8")
    assert_close(y, truth.output + by_filter(case, recentred), weight[0].numel())
    assert y.shape == truth.output.shape
    for rule, dx in (("hardtanh", truth.grad_input), ("sign", truth.grad_input_sign)):
        assert_close(ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule, "int8"), dx, terms)


@given(low=st.floats(-500, 0), width=st.floats(0, 1000), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_an_input_becomes_a_byte_and_one_lies_on_the_grid(low, width, seed):
    x = torch.rand(50, generator=torch.Generator().manual_seed(seed)) * width + low
    levels = rounding.levels_of(x)
    steps = (torch.cat([x, x.new_zeros(1)]) * levels).round()
    assert 0 <= steps.max() - steps.min() <= 255
    assert levels < 1 or levels == levels.round()
    assert levels <= 16384
    levels = rounding.levels_of(x, gradient=True)
    steps = (torch.cat([x, x.new_zeros(1)]) * levels).round()
    assert 0 <= steps.max() - steps.min() + 2 * max(levels.floor(), 1) <= 255  # also of x - 1 and x + 1
    assert levels < 1 or levels == levels.round()


def test_ranges_near_0_and_ranges_that_have_steps_above_one(variant):
    case = Case(2, 9, 6, size=(5, 4), kernel=(3, 3), padding=(1, 1))
    for scale in (1e-30, 1e-3, 0.02, 3.0, 100.0, 1e4):
        x, weight, grad = case.tensors()
        x, weight = x * scale, weight * scale
        truth = brute_force_rounded(case, x, weight, grad)
        y = ops.adder_conv(x, weight, None, SQUARE, False, numbers="int8")
        assert_close(y, truth.output, 81)
        assert_close(ops.adder_conv_grad_input(grad, x, weight, SQUARE, "hardtanh", "int8"), truth.grad_input, 9)


@pytest.mark.parametrize(("largest", "weights"), [(2.0, 50.0), (2.0, -50.0), (200.0, 1e4), (0.01, 3.0)])
def test_sums_of_the_largest_products_do_not_overflow(largest, weights, variant):
    case = Case(1, MANY, 512, size=(9, 9), kernel=(3, 3), padding=(1, 1))
    x = torch.zeros(1, MANY, 9, 9)
    x[0, 1:9, ::2] = largest  # the ends of the range
    weight = torch.full((512, MANY, 3, 3), weights)
    for signs in (torch.ones(512), torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)):
        grad = signs.view(1, -1, 1, 1).expand(1, 512, 9, 9).contiguous()
        truth = brute_force_rounded(case, x, weight, grad)
        assert_close(ops.adder_conv(x, weight, None, SQUARE, False, numbers="int8"), truth.output, 9 * MANY)
        dx = ops.adder_conv_grad_input(grad, x, weight, SQUARE, "hardtanh", "int8")
        torch.testing.assert_close(dx.double(), truth.grad_input, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", [125.0000076, 61.5000038, 252.0000153, 300.0, 127.0000076, 0.12867275])
def test_ranges_at_which_levels_jump(width, variant):
    """Python and the kernels must round 254 / range alike: a level more or less is an error of a percent."""
    x = torch.linspace(0, 1, 2 * MANY * 20).reshape(2, MANY, 4, 5) * width
    case = Case(2, MANY, 6, size=(4, 5), kernel=(3, 3), padding=(1, 1))
    _, weight, grad = case.tensors()
    weight = weight * width
    truth = brute_force_rounded(case, x, weight, grad)
    assert_close(ops.adder_conv(x, weight, None, SQUARE, False, numbers="int8"), truth.output, 9 * MANY)
    assert_close(ops.adder_conv_grad_input(grad, x, weight, SQUARE, "hardtanh", "int8"), truth.grad_input, 9)


@pytest.mark.parametrize("c_out", [*range(1, 10), 12, 16, 20, 33])
@pytest.mark.parametrize("c_in", [9, 33])
def test_the_input_gradient_has_the_same_bits_in_every_instruction_set(c_in, c_out):
    case = Case(2, c_in, c_out, size=(7, 5), kernel=(3, 3), padding=(1, 1))
    x, weight, grad = case.tensors()
    found = []
    for name in kernels.available():
        with kernels.using(name):
            found.append(ops.adder_conv_grad_input(grad, x, weight * 2, SQUARE, "hardtanh", "int8"))
    for dx in found[1:]:
        assert torch.equal(dx, found[0])


@pytest.mark.parametrize("groups", [1, 6])
def test_the_error_of_rounding_is_a_few_percent_of_the_signal(groups, variant):
    """Compare with tensors that are not rounded.

    A difference x - w has an error of sqrt(2 / 12) steps, 0.012 for 35 steps a unit, and |x - w| varies by 0.85.
    """
    case = Case(4, 12, 12, size=(7, 8), kernel=(3, 3), padding=(1, 1), groups=groups)
    x, weight, grad = case.tensors()
    truth = brute_force(case, x, weight, grad)
    y = ops.adder_conv(x, weight, None, case.geometry, False, numbers="int8").double()
    assert (y - truth.output).std() < 0.03 * truth.output.std()
    dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, "hardtanh", "int8").double()
    assert (dx - truth.grad_input).std() < 0.03 * truth.grad_input.std()


@pytest.mark.parametrize("kind", ["groups", "float64", "sign"])
def test_a_gradient_that_is_nan_stays_nan_without_integer_kernels(kind):
    groups = 2 if kind == "groups" else 1
    dtype = torch.float64 if kind == "float64" else torch.float32
    x, weight = torch.randn(1, 4, 5, 5, dtype=dtype), torch.randn(4, 4 // groups, 3, 3, dtype=dtype)
    grad = torch.randn(1, 4, 5, 5, dtype=dtype)
    grad[0, 1, 2, 2] = float("nan")
    geometry = Geometry((1, 1), (1, 1), (1, 1), groups)
    rule = "sign" if kind == "sign" else "hardtanh"
    assert ops.adder_conv_grad_input(grad, x, weight, geometry, rule, "int8").isnan().any()


def test_a_sum_of_more_terms_than_leave_the_gradient_its_bits_is_computed_in_floats():
    x, weight = torch.zeros(1, 1, 1, 1), torch.ones(131_072, 1, 1, 1)
    assert not rounding.has_integers(weight, 1)
    grad = torch.ones(1, 131_072, 1, 1)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    dx = ops.adder_conv_grad_input(grad, x, weight, geometry, "hardtanh", "int8")
    assert dx.item() == pytest.approx(131_072, rel=1e-4)


def test_images_without_pixels_and_batches_without_images():
    weight = torch.rand(3, 4, 3, 3)
    y = ops.adder_conv(
        torch.empty(2, 4, 0, 3), weight, None, Geometry((1, 1), (2, 2), (1, 1), 1), False, numbers="int8"
    )
    expected = ops.adder_conv(torch.empty(2, 4, 0, 3), weight, None, Geometry((1, 1), (2, 2), (1, 1), 1), False)
    torch.testing.assert_close(y, expected, rtol=0, atol=36 / 16384)
    empty = torch.empty(0, 4, 5, 5)
    assert ops.adder_conv(empty, weight, None, SQUARE, False, numbers="int8").shape == (0, 3, 5, 5)
    assert (
        ops.adder_conv_grad_input(torch.empty(0, 3, 5, 5), empty, weight, SQUARE, "hardtanh", "int8").shape
        == empty.shape
    )


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-34, 1e30])
def test_gradients_of_any_size(size, variant):
    case = Case(2, MANY, 3, size=(4, 4), kernel=(3, 3), padding=(1, 1))
    x, weight, grad = case.tensors()
    grad = grad * size
    truth = brute_force_rounded(case, x, weight, grad).grad_input
    dx = ops.adder_conv_grad_input(grad, x, weight, SQUARE, "hardtanh", "int8")
    torch.testing.assert_close(dx.double(), truth, rtol=1e-5, atol=1e-36 + 1e-6 * size)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_input_or_gradient_that_is_not_finite_makes_every_result_nan(bad, variant):
    x, weight, grad = torch.randn(2, MANY, 4, 4), torch.randn(3, MANY, 3, 3), torch.randn(2, 3, 4, 4)
    worse, worse_grad = x.clone(), grad.clone()
    worse[1, 2, 3, 0] = worse_grad[0, 1, 2, 3] = bad
    assert ops.adder_conv(worse, weight, None, SQUARE, False, numbers="int8").isnan().all()
    assert ops.adder_conv_grad_input(grad, worse, weight, SQUARE, "hardtanh", "int8").isnan().all()
    assert ops.adder_conv_grad_input(worse_grad, x, weight, SQUARE, "hardtanh", "int8").isnan().all()


def test_a_weight_that_is_nan_reaches_the_results_that_read_it(variant):
    x, weight, grad = torch.randn(2, MANY, 4, 4), torch.randn(3, MANY, 3, 3), torch.randn(2, 3, 4, 4)
    weight[1, 2, 1, 1] = float("nan")
    y = ops.adder_conv(x, weight, None, SQUARE, False, numbers="int8").isnan()
    assert y[:, 1].all()
    assert not y[:, [0, 2]].any()
    dx = ops.adder_conv_grad_input(grad, x, weight, SQUARE, "hardtanh", "int8").isnan()
    assert dx[:, 2].all()
    assert not dx[:, [0, 1, *range(3, MANY)]].any()


def test_threads_and_layouts_give_the_same_bits(threads, variant):
    torch.manual_seed(0)
    x, weight, grad = torch.randn(7, 19, 23, 17), torch.randn(33, 19, 3, 3), torch.randn(7, 33, 23, 17)
    results = []
    for count in (1, 2, 3):
        threads(count)
        for layout in (torch.contiguous_format, torch.channels_last):
            a, b, c = (t.contiguous(memory_format=layout) for t in (x, weight, grad))
            y = ops.adder_conv(a, b, None, SQUARE, False, numbers="int8")
            dx = ops.adder_conv_grad_input(c, a, b, SQUARE, "hardtanh", "int8")
            assert y.is_contiguous(memory_format=layout)
            results.append((y, dx))
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


def test_one_channel_keeps_the_layout_of_its_network():
    """Test a one-channel input, which is both contiguous and channels last: the output follows the weight."""
    layer = AdderConv2d(1, 6, 5, grad=GradientRule(numbers="int8")).to(memory_format=torch.channels_last)
    x = torch.randn(2, 1, 9, 9)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert layer.eval()(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_part_of_an_image_has_the_layout_that_the_compiler_expects(channels, dtype):
    weight = torch.randn(5, channels, 3, 3, dtype=dtype)
    x = torch.randn(2, channels, 9, 14, dtype=dtype).to(memory_format=torch.channels_last)[..., ::2]
    grad = torch.randn(2, 5, 9, 7, dtype=dtype).to(memory_format=torch.channels_last)
    rules = (*SQUARE, False, "full", "hardtanh", "int8")
    opcheck(torch.ops.torchadder.adder_conv.default, (x, weight, None, *rules), test_utils="test_faketensor")
    of_input = torch.ops.torchadder.adder_conv_grad_input.default
    opcheck(of_input, (grad, x, weight, *SQUARE, "hardtanh", "int8"), test_utils="test_faketensor")


def test_gradients_of_a_call():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 6, 9, 7, requires_grad=True), torch.randn(8, 6, 3, 3, requires_grad=True)
    grad = torch.randn(3, 8, 9, 7)
    dx, dw = torch.autograd.grad(
        adder_conv2d(x, weight, padding=1, grad=GradientRule(numbers="int8")), (x, weight), grad
    )
    assert torch.equal(dx, ops.adder_conv_grad_input(grad, x, weight, SQUARE, "hardtanh", "int8"))
    assert torch.equal(dw, ops.adder_conv_grad_weight(grad, x, weight, SQUARE, "full"))  # of unrounded tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_compute_with_the_same_rounding(dtype):
    x, weight = torch.randn(2, 6, 5, 5), torch.randn(4, 6, 3, 3)
    x = x.to(dtype)
    wide = weight if dtype is torch.bfloat16 else weight.to(dtype)
    y = ops.adder_conv(x, wide, None, SQUARE, True, numbers="int8")
    assert y.dtype is dtype
    expected = ops.adder_conv(x.float(), weight, None, SQUARE, True, numbers="int8")
    torch.testing.assert_close(y, expected.to(dtype), rtol=2e-2, atol=1e-4)
    dx = ops.adder_conv_grad_input(y, x, wide, SQUARE, "hardtanh", "int8")
    assert dx.dtype is dtype


def test_layers_round_while_they_train():
    torch.manual_seed(0)
    for layer, x in (
        (AdderConv2d(6, 5, 3, grad=GradientRule(numbers="int8")), torch.randn(2, 6, 8, 8)),
        (AdderLinear(20, 7, grad=GradientRule(numbers="int8")), torch.randn(3, 20)),
    ):
        plain = type(layer).forward(layer.eval(), x)
        trained = layer.train()(x)
        assert not torch.equal(plain, trained)
        torch.testing.assert_close(plain, trained, rtol=0.05, atol=0.5)
        assert "grad=GradientRule(numbers='int8')" in repr(layer)
    exact = adder_linear(x, layer.weight, layer.bias)
    assert torch.equal(plain, exact)


def test_an_unknown_kind_of_numbers_is_refused():
    x, weight = torch.randn(1, 4, 3, 3), torch.randn(2, 4, 3, 3)
    with pytest.raises(ValueError, match="grad numbers is 'int4': choose one of float32, int8"):
        adder_conv2d(x, weight, grad=GradientRule(numbers="int4"))
    with pytest.raises(ValueError, match="numbers='int4': expected one of float32, int8"):
        ops.adder_conv(x, weight, None, SQUARE, False, numbers="int4")


def test_the_c_interface_refuses_groups():
    library = kernels.library()
    plan = ops.plan.plan_call(Geometry((1, 1), (0, 0), (1, 1), 2), torch.randn(1, 4, 3, 3), torch.randn(2, 2, 3, 3))
    assert library.torchadder_forward_u8(plan.shape, None, None, None, None, 0, 1) == -1
    assert library.torchadder_last_error() == b"forward_u8 needs groups=1"
    assert library.torchadder_grad_input_i16(plan.shape, None, None, None, None, 1) == -1
    assert library.torchadder_last_error() == b"grad_input_i16 needs groups=1"
