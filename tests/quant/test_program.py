"""Test the integer program: accumulators, requantization and logits against brute-force references."""

import copy
import itertools

import numpy as np
import pytest
import torch

from torchadder.errors import UserError
from torchadder.quant.program import Program
from torchadder.quant.steps import (
    AveragePool,
    Concat,
    Layer,
    Logits,
    MaxPool,
    Requantization,
)

CASES = [  # n, c_in, c_out, size, kernel, stride, padding, dilation and groups
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    (2, 3, 5, (9, 8), (3, 3), (1, 1), (1, 1)),
    (1, 7, 11, (13, 6), (1, 5), (2, 3), (0, 2)),
    (3, 16, 17, (5, 7), (3, 3), (2, 2), (1, 1)),
    (2, 19, 3, (5, 5), (5, 5), (1, 1), (0, 0)),
    (2, 6, 4, (8, 6), (3, 2), (2, 1), (3, 0, 1, 2), (2, 3), 2),
    (1, 5, 5, (6, 6), (3, 3), (1, 2), (0, 4, 1, 1), (1, 1), 5),
    (1, 130, 2, (4, 4), (3, 3), (1, 1), (2, 2)),  # a conv's accumulators exceed what float32 holds exactly
]


def numbers(low, high, *shape, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def reference(kind, x, weight, zero_point, stride, padding, dilation=(1, 1), groups=1):
    """Return the accumulators by the formulas at the head of program.py, in Python's integers."""
    n, _, height, width = x.shape
    c_out, c_in, kh, kw = weight.shape
    top, left, bottom, right = padding if len(padding) == 4 else (*padding, *padding)
    x, weight, zero_point = (t.numpy().astype(object) for t in (x, weight, zero_point))
    padded = (height + top + bottom, width + left + right)
    out = [(size - d * (k - 1) - 1) // s + 1 for size, d, k, s in zip(padded, dilation, (kh, kw), stride, strict=True)]
    found = np.zeros((n, c_out, *out), object)
    for i, o, row, column in np.ndindex(*found.shape):
        for c, a, b in itertools.product(range(c_in), range(kh), range(kw)):
            y, z = row * stride[0] + a * dilation[0] - top, column * stride[1] + b * dilation[1] - left
            inside, source = 0 <= y < height and 0 <= z < width, o // (c_out // groups) * c_in + c
            q, w = (x[i, source, y, z] if inside else zero_point[source]), weight[o, c, a, b]
            if kind == "adder":
                found[i, o, row, column] += abs(q - w)
            elif kind == "conv":
                found[i, o, row, column] += q * w
            elif inside:
                found[i, o, row, column] += w if q >= zero_point[source] else -w
    return torch.from_numpy(found.astype(np.int64))


def layer(kind, weight, zero_point, stride, padding, *axes):
    return Layer(kind, [0], weight, zero_point, stride, padding, Logits(torch.ones(1), torch.zeros(1)), *axes)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["adder", "conv", "binary"])
def test_accumulators_equal_the_reference(kind, case):
    n, c_in, c_out, size, kernel, *axes = case
    filters = c_out, c_in // (axes[3] if len(axes) > 3 else 1), *kernel
    x, zero_point = numbers(0, 255, n, c_in, *size).byte(), numbers(0, 255, c_in, seed=1).byte()
    weight = {
        "adder": numbers(0, 255, *filters, seed=2).byte(),
        "conv": numbers(-127, 127, *filters, seed=2).char(),
        "binary": numbers(0, 1, *filters, seed=2).mul(2).sub(1).char(),
    }[kind]
    found = layer(kind, weight, zero_point, *axes).accumulate(x)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), reference(kind, x, weight, zero_point, *axes))


@pytest.mark.parametrize("kind", ["adder", "conv"])
def test_the_largest_accumulators_are_exact(kind):
    """Extremes of 512 channels and 3x3: 1.2 million for an adder layer, 149 million for an ordinary one."""
    x = torch.full((1, 512, 3, 3), 255, dtype=torch.uint8)
    weight = torch.zeros(1, 512, 3, 3, dtype=torch.uint8) if kind == "adder" else torch.full((1, 512, 3, 3), 127).char()
    found = layer(kind, weight, torch.zeros(512, dtype=torch.uint8), (1, 1), (0, 0)).accumulate(x)
    assert found.item() == 512 * 9 * 255 * (1 if kind == "adder" else 127)


@pytest.mark.parametrize("qmax", [255, 15])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("pre_shift", [0, 5])
def test_requantization_follows_the_formula(qmax, shortcut, pre_shift):
    channels = 6
    accumulators = numbers(-(2**20), 2**20, 3, channels, 4, 5).int()
    other = numbers(0, 255, 3, channels, 4, 5, seed=1).byte()
    multiplier, offset = numbers(-500, 500, channels, seed=2).int(), numbers(-(2**29), 2**29, channels, seed=3).int()
    shift, factor = numbers(0, 24, channels, seed=4).int(), numbers(0, 2**20, channels, seed=5).int()
    step = Requantization(multiplier, offset, shift, factor if shortcut else None, qmax, pre_shift)
    found = step(accumulators, other) if shortcut else step(accumulators)
    assert found.dtype == torch.uint8
    for i, c, row, column in np.ndindex(*accumulators.shape):
        total = (int(accumulators[i, c, row, column]) >> pre_shift) * int(multiplier[c]) + int(offset[c])
        total += int(other[i, c, row, column]) * int(factor[c]) if shortcut else 0
        assert found[i, c, row, column] == min(max(total >> int(shift[c]), 0), qmax)


def test_logits_are_rounded_after_each_operation():
    accumulators = torch.tensor([[16777216, 3]], dtype=torch.int32).view(1, 2, 1, 1)
    scale, bias = torch.tensor([0.1, 1 / 3]), torch.tensor([1.0, 1e-9])
    expected = (np.array([16777216, 3], np.float32) * scale.numpy()).astype(np.float32) + bias.numpy()
    assert np.array_equal(Logits(scale, bias)(accumulators).flatten().numpy(), expected)


def test_max_pool_keeps_values_and_pads_with_the_smallest():
    x = numbers(0, 255, 2, 3, 7, 7).byte()
    found = MaxPool([0], (3, 3), (2, 2), (1, 1, 1, 1))(x)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for i, c, row, column in np.ndindex(*found.shape):
        window = padded[i, c, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        assert found[i, c, row, column] == window.max()


def test_average_pool_requantizes_the_sum():
    x = numbers(0, 255, 2, 2, 3, 5).byte()
    one = torch.ones(2, dtype=torch.int32)
    epilogue = Requantization(3 * one, 8 * one, 4 * one)
    found = AveragePool([0], (3, 5), (1, 1), epilogue)(x)
    expected = ((x.long().sum((2, 3)) * 3 + 8) >> 4).clamp(0, 255)
    assert torch.equal(found.flatten(1).long(), expected)
    found = AveragePool([0], (2, 1), (1, 3), epilogue)(x)
    expected = (((x[:, :, :2, ::3].long() + x[:, :, 1:, ::3]) * 3 + 8) >> 4).clamp(0, 255)
    assert torch.equal(found.long(), expected)


def test_average_pool_divides_by_the_pixels_inside():
    """The windows have 1 and 3 columns, 2 and 3 rows, so that the accumulators are 18 times the mean."""
    x = numbers(0, 255, 1, 1, 4, 3).byte()
    one = torch.ones(1, dtype=torch.int32)
    pool = AveragePool([0], (3, 3), (1, 2), Requantization(one, 0 * one, 0 * one, pre_shift=0, qmax=255), (1, 2, 1, 1))
    pool.epilogue = torch.nn.Identity()
    found = pool(x)
    padded = torch.full((6, 6), torch.nan)
    padded[1:5, 2:5] = x[0, 0]
    for row, column in np.ndindex(4, 2):
        window = padded[row : row + 3, 2 * column : 2 * column + 3]
        assert found[0, 0, row, column] == round(18 * window.nanmean().item())


def test_concat_requantizes_by_channel():
    x, y = numbers(0, 255, 2, 2, 3, 2).byte(), numbers(0, 255, 2, 1, 3, 2, seed=1).byte()
    numbers_of = ([1, 2, 3], [0, 5, 7], [0, 1, 2])
    epilogue = Requantization(*(torch.tensor(values, dtype=torch.int32) for values in numbers_of))
    expected = torch.cat([x[:, :1], (x[:, 1:].int() * 2 + 5) >> 1, (y.int() * 3 + 7) >> 2], 1).clamp(0, 255)
    assert torch.equal(Concat([0, 1], epilogue)(x, y).int(), expected)


@pytest.fixture
def program():
    one = torch.ones(2, dtype=torch.int32)
    first = Layer(
        "adder",
        [0],
        numbers(0, 255, 2, 2, 3, 3).byte(),
        torch.zeros(2, dtype=torch.uint8),
        (1, 1),
        (1, 1),
        Requantization(-one, 4000 * one, 4 * one),
    )
    second = Layer(
        "conv",
        [1, 0],
        numbers(-127, 127, 2, 2, 1, 1).char(),
        torch.zeros(2, dtype=torch.uint8),
        (1, 1),
        (0, 0),
        Requantization(one, 0 * one, 7 * one, 64 * one),
    )
    last = Layer(
        "binary",
        [2],
        torch.ones(3, 2, 4, 4, dtype=torch.int8),
        torch.full((2,), 9, dtype=torch.uint8),
        (1, 1),
        (0, 0),
        Logits(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)),
    )
    return Program((2, 4, 4), torch.tensor([0.5, 0.25]), torch.tensor([10.0, 20.5]), [first, second, last])


def test_a_program_passes_values_by_number(program):
    images = numbers(0, 255, 3, 2, 4, 4).byte()
    first, second, last = program.steps
    one = first(images)
    expected = last(second(one, images)).flatten(1)
    assert torch.equal(program(images, quantized=True), expected)
    assert expected.shape == (3, 3)


def test_images_are_quantized(program):
    images = torch.tensor([[0.0, 1.0, -100.0, 100.0], [0.0, -0.0625, -100.0, 100.0]]).view(1, 2, 2, 2)
    assert program.quantize(images).flatten().tolist() == [
        10,
        12,
        0,
        210,
        20,
        20,
        0,
        255,
    ]  # 20.5 and 20.25 to even, down
    images = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(program(images), program(program.quantize(images), quantized=True))


def test_autocast_changes_nothing(program):
    images = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = program(images)
    assert torch.equal(found, program(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_program_that_was_cast_is_refused(program, dtype):
    cast = copy.deepcopy(program).to(dtype)
    for use in (lambda: cast(torch.zeros(1, *cast.shape)), cast.to_bytes):
        with pytest.raises(UserError, match=f"the program was cast to {dtype}, which rounds its numbers"):
            use()


def test_a_program_is_its_state_dict(program):
    images = numbers(0, 255, 1, 2, 4, 4).byte()
    expected = program(images, quantized=True)
    state = {name: value.clone() for name, value in program.state_dict().items()}
    assert all(value.dtype in (torch.uint8, torch.int8, torch.int32, torch.float32) for value in state.values())
    for value in program.buffers():
        value.zero_()
    program.load_state_dict(state)
    assert torch.equal(program(images, quantized=True), expected)
