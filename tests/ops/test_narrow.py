"""Test 16-bit images with float32 weights: results are those of float32, rounded once; saved images have 16 bits."""

import pytest
import torch

from torchadder import ops
from torchadder.bruteforce import Case
from torchadder.functional import adder_conv2d
from torchadder.ops.geometry import NARROW

CASE = Case(2, 5, 7, size=(6, 5), kernel=(3, 3), stride=(2, 1), padding=(1, 1))

narrow = pytest.mark.parametrize("dtype", NARROW, ids=str)


def tensors(dtype):
    x, weight, grad = CASE.tensors()
    return x.to(dtype), weight, grad.to(dtype)


@narrow
def test_forward(dtype):
    x, weight, _ = tensors(dtype)
    y = ops.adder_conv(x, weight, None, CASE.geometry, True)
    assert torch.equal(y, ops.adder_conv(x.float(), weight, None, CASE.geometry, True).to(dtype))
    assert y.dtype == dtype


@narrow
@pytest.mark.parametrize("rule", ["hardtanh", "sign", "full"])
def test_grad_input(dtype, rule):
    x, weight, grad = tensors(dtype)
    dx = ops.adder_conv_grad_input(grad, x, weight, CASE.geometry, rule)
    assert torch.equal(dx, ops.adder_conv_grad_input(grad.float(), x.float(), weight, CASE.geometry, rule).to(dtype))
    assert dx.dtype == dtype


@narrow
@pytest.mark.parametrize("rule", ["full", "sign"])
def test_grad_weight_is_not_rounded(dtype, rule):
    x, weight, grad = tensors(dtype)
    dw = ops.adder_conv_grad_weight(grad, x, weight, CASE.geometry, rule)
    assert torch.equal(dw, ops.adder_conv_grad_weight(grad.float(), x.float(), weight, CASE.geometry, rule))
    assert dw.dtype == torch.float32


@narrow
def test_opcheck(dtype):
    x, weight, grad = tensors(dtype)
    options = *CASE.geometry, True
    torch.library.opcheck(torch.ops.torchadder.adder_conv, (x, weight, None, *options))
    for backward, rule in (("adder_conv_grad_input", "hardtanh"), ("adder_conv_grad_weight", "full")):
        torch.library.opcheck(getattr(torch.ops.torchadder, backward), (grad, x, weight, *CASE.geometry, rule))


@narrow
def test_images_are_saved_in_16_bits_for_the_backward_pass(dtype):
    x, weight, grad = tensors(dtype)
    bias = torch.ones(7, requires_grad=True)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        y = adder_conv2d(x.requires_grad_(), weight.requires_grad_(), bias, *CASE.geometry, recenter=True)
    y.backward(grad.bfloat16())
    assert {t.dtype for t in kept if t.shape == x.shape} == {dtype}
    assert (x.grad.dtype, weight.grad.dtype, bias.grad.dtype) == (dtype, torch.float32, torch.float32)


@narrow
def test_bias_gradient_is_summed_in_float32(dtype):
    x, weight, bias = torch.ones(1, 1, 64, 64, dtype=dtype), torch.ones(1, 1, 1, 1), torch.zeros(1, requires_grad=True)
    adder_conv2d(x, weight, bias, recenter=True).sum().backward()
    assert bias.grad.item() == 64 * 64


REFUSED = {
    "raw outputs": (lambda x, w: ops.adder_conv(x, w, None, CASE.geometry, False), "bfloat16 input.*recenter=True"),
    "weight": (lambda x, w: ops.adder_conv(x, w.bfloat16(), None, CASE.geometry, True), "weight is.*expected.*float32"),
    "bias": (
        lambda x, w: ops.adder_conv(x, w, torch.zeros(7).double(), CASE.geometry, True),
        "bias is torch.float64.*expected torch.float32",
    ),
    "grad": (
        lambda x, w: ops.adder_conv_grad_input(torch.zeros(2, 7, 3, 5), x, w, CASE.geometry, "hardtanh"),
        "input is torch.bfloat16 and grad is torch.float32",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(call, message):
    x, weight, _ = tensors(torch.bfloat16)
    with pytest.raises(TypeError, match=message):
        call(x, weight)
