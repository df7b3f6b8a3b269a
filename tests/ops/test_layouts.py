"""Test that memory formats change no result, and that outputs have the format of nn.Conv2d, on device "meta" too."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tests.ops.test_conv import on_grid

from torchadder import ops
from torchadder.bruteforce import Case, brute_force

CASES = {
    "3x3": Case(3, 6, 10, size=(7, 9), kernel=(3, 3), padding=(1, 1)),
    "2 groups, stride 2": Case(2, 6, 10, size=(7, 9), kernel=(2, 3), stride=(2, 1), groups=2),
    "depthwise": Case(2, 6, 6, size=(7, 9), kernel=(3, 3), padding=(1, 1), groups=6),
    "1x1": Case(2, 6, 4, size=(5, 4), kernel=(1, 1)),
    "1 image": Case(1, 6, 4, size=(5, 4), kernel=(2, 2)),
    "1 channel": Case(2, 1, 4, size=(5, 4), kernel=(3, 3)),
    "1 filter": Case(2, 6, 1, size=(5, 4), kernel=(3, 3)),
    "1x1 output": Case(2, 6, 5, size=(5, 4), kernel=(5, 4)),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

table = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def results(case, x, weight, grad):
    return (
        ops.adder_conv(x, weight, None, case.geometry, False),
        ops.adder_conv_grad_input(grad, x, weight, case.geometry, "hardtanh"),
        ops.adder_conv_grad_input(grad, x, weight, case.geometry, "sign"),
        ops.adder_conv_grad_weight(grad, x, weight, case.geometry, "sign"),
    )


def assert_truth(case, x, weight, grad):
    found = results(case, x, weight, grad)
    truth = brute_force(case, *(t.contiguous() for t in (x, weight, grad)))
    expected = (truth.output, truth.grad_input, truth.grad_input_sign, truth.grad_weight_sign)
    for result, number in zip(found, expected, strict=True):
        assert torch.equal(result.double(), number)


@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, repeat=3)), ids="-".join)
@table
def test_any_memory_format(case, formats, variant):
    tensors = zip(on_grid(case), formats, strict=True)
    assert_truth(case, *(t.contiguous(memory_format=FORMATS[name]) for t, name in tensors))


VIEWS = {  # of a tensor with four axes -> the same numbers, laid out differently
    "every second column": lambda t: torch.stack([t, t + 9], -1).flatten(3)[..., ::2],
    "every second channel": lambda t: torch.stack([t, t + 9], 2).flatten(1, 2)[:, ::2],
    "every second image": lambda t: torch.stack([t, t + 9], 1).flatten(0, 1)[::2],
    "inside a larger image": lambda t: F.pad(t, (1, 2, 3, 1), value=9.0)[:, :, 3:-1, 1:-2],
    "inside a larger image, channels last": lambda t: F.pad(t, (1, 2, 3, 1), value=9.0).contiguous(
        memory_format=torch.channels_last
    )[:, :, 3:-1, 1:-2],
    "channels of a larger image, channels last": lambda t: torch.cat([t, t], 1).contiguous(
        memory_format=torch.channels_last
    )[:, : t.shape[1]],
    "rows and columns exchanged": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "images and channels exchanged": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "not at the start of its memory": lambda t: torch.cat([torch.zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("which", [0, 1, 2], ids=["x", "weight", "grad"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@table
def test_views(case, view, which):
    tensors = list(on_grid(case))
    viewed = view(tensors[which])
    assert torch.equal(viewed, tensors[which])
    tensors[which] = viewed
    assert_truth(case, *tensors)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["x", "weight", "grad"])
@table
def test_expanded(case, which, axis):
    tensors = list(on_grid(case))
    tensors[which] = tensors[which].narrow(axis, 0, 1).expand_as(tensors[which])
    assert_truth(case, *tensors)


def significant_strides(tensor):
    """Return the strides without those of axes of size 1, which mean nothing."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, repeat=2)), ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@table
def test_outputs_have_the_memory_format_of_conv2d_and_of_meta_tensors(case, formats, dtype):
    x, weight, grad = (t.to(dtype) for t in case.tensors())
    x = x.contiguous(memory_format=FORMATS[formats[0]])
    weight = weight.contiguous(memory_format=FORMATS[formats[1]])
    conv = F.conv2d(x, weight, None, *case.geometry)
    expected = (conv, x, x, weight)
    reals = results(case, x, weight, grad)
    fakes = results(case, *(t.to("meta") for t in (x, weight, grad)))
    for real, fake, like in zip(reals, fakes, expected, strict=True):
        assert (fake.shape, fake.dtype, fake.device.type) == (real.shape, real.dtype, "meta")
        assert (like.shape, like.dtype) == (real.shape, real.dtype)
        assert significant_strides(fake) == significant_strides(real)
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
    y = reals[0]
    assert y.is_contiguous(memory_format=FORMATS["channels last" if last else "contiguous"])
    assert y.is_contiguous() == conv.is_contiguous()
