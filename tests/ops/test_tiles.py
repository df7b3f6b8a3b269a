"""Test every kernel of the list at the edges of its tile: tile - 1, tile, tile + 1 in pixels and in lanes."""

import itertools
import re

import pytest
import torch
from tests.ops.conftest import EXTENDED, runs_here
from tests.ops.test_conv import exact
from tests.ops.test_rounding import assert_close

from torchadder import kernels, ops
from torchadder.bruteforce import Case, brute_force_rounded
from torchadder.ops.geometry import Geometry

NAME = re.compile(r"(?P<op>\w+_(?:f32|u8|i16))_(?P<isa>[a-z0-9]+)_(?P<pixels>\d+)x(?P<lanes>\d+)_(?P<sum>any|fma|add)")
DEPTH = 5


def kernel_param(name):
    op, isa, pixels, lanes, sum_ = NAME.fullmatch(name).groups()
    marks = () if runs_here(isa) else pytest.mark.skip(reason=f"this CPU cannot run {isa}")
    return pytest.param(op, isa, int(pixels), int(lanes), sum_, id=name, marks=marks)


def beside(size):
    return [n for n in (size - 1, size, size + 1) if n > 0]


def forward_case(pixels, lanes):
    """Make a row of `pixels` outputs, all of one class: no padding."""
    return Case(1, DEPTH, lanes, size=(2, pixels + 2), kernel=(2, 3))


def gradient_case(pixels, lanes):
    """Make 6 classes of `pixels` inputs, one tap each: the stride is the kernel."""
    return Case(1, lanes, DEPTH, size=(2, 3 * pixels), kernel=(2, 3), stride=(2, 3))


def few_gradient_case(pixels, lanes):
    """Make one class of `pixels` inputs, whose run is longer than a vector."""
    return Case(1, lanes, 19, size=(2, pixels), kernel=(2, 1))


def depthwise_case(pixels, lanes):
    return Case(1, lanes, lanes, size=(2, pixels + 2), kernel=(2, 3), groups=lanes)


def depthwise_gradient_case(pixels, lanes):
    return Case(1, lanes, lanes, size=(2, 3 * pixels), kernel=(2, 3), stride=(2, 3), groups=lanes)


def grouped_case(pixels, lanes):
    """Make groups of two channels and one filter, which use half of a vector's lanes."""
    return Case(1, 2 * lanes, lanes, size=(2, pixels + 2), kernel=(2, 3), groups=lanes)


def grouped_gradient_case(pixels, lanes):
    return Case(1, lanes, 2 * lanes, size=(2, 3 * pixels), kernel=(2, 3), stride=(2, 3), groups=lanes)


OPERATORS = {  # of kernels.inc -> case, and result of the brute-force reference
    "forward_f32": (forward_case, "output"),
    "grad_input_f32": (gradient_case, "grad_input"),
    "few_grad_f32": (few_gradient_case, "grad_input"),
    "grad_input_sign_f32": (gradient_case, "grad_input_sign"),
    "grouped_f32": (grouped_case, "output"),
    "grouped_grad_f32": (grouped_gradient_case, "grad_input"),
    "grouped_sign_f32": (grouped_gradient_case, "grad_input_sign"),
    "depthwise_f32": (depthwise_case, "output"),
    "depthwise_grad_f32": (depthwise_gradient_case, "grad_input"),
    "depthwise_sign_f32": (depthwise_gradient_case, "grad_input_sign"),
    "forward_u8": (forward_case, "output"),
    "grad_input_i16": (gradient_case, "grad_input"),
}


def run(result, case, x, weight, grad):
    if result == "output":
        return ops.adder_conv(x, weight, None, case.geometry, False)
    rule = "sign" if result == "grad_input_sign" else "hardtanh"
    return ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule)


def check_rounded(case, result):
    x, weight, grad = case.tensors()
    truth = getattr(brute_force_rounded(case, x, weight, grad), result)
    if result == "output":
        found = ops.adder_conv(x, weight, None, case.geometry, False, numbers="int8")
    else:
        found = ops.adder_conv_grad_input(grad, x, weight, case.geometry, "hardtanh", "int8")
    assert_close(found, truth, DEPTH)


@pytest.mark.parametrize(("op", "isa", "pixels", "lanes", "sum_"), [kernel_param(name) for name in kernels.names()])
def test_tile_and_its_edges(op, isa, pixels, lanes, sum_):
    make_case, result = OPERATORS[op]
    selected = EXTENDED.get(isa, isa)
    with kernels.using(selected if sum_ == "any" else f"{selected}:{sum_}"):
        assert f"{op}_{isa}_{pixels}x{lanes}_{sum_}" in kernels.names(in_use=True)
        for case in itertools.starmap(make_case, itertools.product(beside(pixels), beside(lanes))):
            if not op.endswith("_f32"):
                check_rounded(case, result)
                continue
            *tensors, truth = exact(case)
            assert torch.equal(run(result, case, *tensors).double(), getattr(truth, result)), case


# The sign gradient of the weight has tiles of rows of the filter (K) by lanes, and sums 16 images at once.
@pytest.mark.parametrize("images", [1, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("filters", [1, 7, 8, 9, 15, 16, 17])
def test_tiles_of_the_sign_gradient_of_the_weight(images, filters, variant):
    for depth in (1, 3, 4, 5, 11, 12, 13, 25):
        case = Case(images, depth, filters, size=(2, 1), kernel=(1, 1))
        x, weight, grad, truth = exact(case)
        found = ops.adder_conv_grad_weight(grad, x, weight, Geometry((1, 1), (0, 0), (1, 1), 1), "sign")
        assert torch.equal(found.double(), truth.grad_weight_sign), case
