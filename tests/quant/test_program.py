"""The integer program: sums against brute force, requantisation in whole numbers of any size, logits in float32."""

import itertools

import numpy as np
import pytest
import torch

from torchadder.quant.program import (
    AveragePool,
    Layer,
    Logits,
    MaxPool,
    Program,
    Requantisation,
    layer_sums,
)

CASES = [  # n, c_in, c_out, size, kernel, stride, padding
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    (2, 3, 5, (9, 8), (3, 3), (1, 1), (1, 1)),
    (1, 7, 11, (13, 6), (1, 5), (2, 3), (0, 2)),
    (3, 16, 17, (5, 7), (3, 3), (2, 2), (1, 1)),
    (2, 19, 3, (5, 5), (5, 5), (1, 1), (0, 0)),
    (1, 130, 2, (4, 4), (3, 3), (1, 1), (2, 2)),  # a conv's sums go beyond what float32 holds exactly
]


def numbers(low, high, *shape, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def brute_force(kind, x, weight, zero, stride, padding):
    """The head of program.py written out, in Python's whole numbers."""
    n, _, height, width = x.shape
    c_out, c_in, kh, kw = weight.shape
    x, weight, zero = (t.numpy().astype(object) for t in (x, weight, zero))
    out = [
        (size + 2 * p - k) // s + 1 for size, p, k, s in zip((height, width), padding, (kh, kw), stride, strict=True)
    ]
    sums = np.zeros((n, c_out, *out), object)
    for i, o, row, column in np.ndindex(*sums.shape):
        for c, a, b in itertools.product(range(c_in), range(kh), range(kw)):
            y, z = row * stride[0] + a - padding[0], column * stride[1] + b - padding[1]
            inside = 0 <= y < height and 0 <= z < width
            code, w = (x[i, c, y, z] if inside else zero[c]), weight[o, c, a, b]
            if kind == "adder":
                sums[i, o, row, column] += abs(code - w)
            elif kind == "conv":
                sums[i, o, row, column] += code * w
            elif inside:
                sums[i, o, row, column] += w if code >= zero[c] else -w
    return torch.from_numpy(sums.astype(np.int64))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["adder", "conv", "binary"])
def test_sums_equal_brute_force(kind, case):
    n, c_in, c_out, size, kernel, stride, padding = case
    x, zero = numbers(0, 255, n, c_in, *size).byte(), numbers(0, 255, c_in, seed=1).byte()
    weight = {
        "adder": numbers(0, 255, c_out, c_in, *kernel, seed=2).byte(),
        "conv": numbers(-127, 127, c_out, c_in, *kernel, seed=2).char(),
        "binary": numbers(0, 1, c_out, c_in, *kernel, seed=2).mul(2).sub(1).char(),
    }[kind]
    sums = layer_sums(kind, x, weight, zero, stride, padding)
    assert sums.dtype == torch.int32
    assert torch.equal(sums.long(), brute_force(kind, x, weight, zero, stride, padding))


@pytest.mark.parametrize("kind", ["adder", "conv"])
def test_the_largest_sums_are_exact(kind):
    """Extremes of 512 channels and 3x3: 1.2 million for an adder layer, 149 million for an ordinary one."""
    x = torch.full((1, 512, 3, 3), 255, dtype=torch.uint8)
    weight = torch.zeros(1, 512, 3, 3, dtype=torch.uint8) if kind == "adder" else torch.full((1, 512, 3, 3), 127).char()
    found = layer_sums(kind, x, weight, torch.zeros(512, dtype=torch.uint8), (1, 1), (0, 0))
    assert found.item() == 512 * 9 * 255 * (1 if kind == "adder" else 127)


@pytest.mark.parametrize("highest", [255, 15])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("pre", [0, 5])
def test_requantisation_is_what_the_formula_says(highest, shortcut, pre):
    channels = 6
    sums = numbers(-(2**20), 2**20, 3, channels, 4, 5).int()
    codes = numbers(0, 255, 3, channels, 4, 5, seed=1).byte()
    multiplier, offset = numbers(-500, 500, channels, seed=2).int(), numbers(-(2**29), 2**29, channels, seed=3).int()
    shift, factor = numbers(0, 24, channels, seed=4).int(), numbers(0, 2**20, channels, seed=5).int()
    step = Requantisation(multiplier, offset, shift, factor if shortcut else None, highest, pre)
    found = step(sums, codes) if shortcut else step(sums)
    assert found.dtype == torch.uint8
    for i, c, row, column in np.ndindex(*sums.shape):
        total = (int(sums[i, c, row, column]) >> pre) * int(multiplier[c]) + int(offset[c])
        total += int(codes[i, c, row, column]) * int(factor[c]) if shortcut else 0
        assert found[i, c, row, column] == min(max(total >> int(shift[c]), 0), highest)


def test_logits_are_rounded_after_each_operation():
    sums = torch.tensor([[16777216, 3]], dtype=torch.int32).view(1, 2, 1, 1)
    gain, bias = torch.tensor([0.1, 1 / 3]), torch.tensor([1.0, 1e-9])
    expected = (np.array([16777216, 3], np.float32) * gain.numpy()).astype(np.float32) + bias.numpy()
    assert np.array_equal(Logits(gain, bias)(sums).flatten().numpy(), expected)


def test_max_pool_keeps_codes_and_pads_with_the_lowest():
    x = numbers(0, 255, 2, 3, 7, 7).byte()
    found = MaxPool([0], 3, 2, 1)(x)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for i, c, row, column in np.ndindex(*found.shape):
        window = padded[i, c, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        assert found[i, c, row, column] == window.max()


def test_average_pool_requantises_the_sum():
    x = numbers(0, 255, 2, 2, 3, 5).byte()
    one = torch.ones(2, dtype=torch.int32)
    epilogue = Requantisation(3 * one, 8 * one, 4 * one)
    found = AveragePool([0], (3, 5), (1, 1), epilogue)(x)
    expected = ((x.long().sum((2, 3)) * 3 + 8) >> 4).clamp(0, 255)
    assert torch.equal(found.flatten(1).long(), expected)
    found = AveragePool([0], (2, 1), (1, 3), epilogue)(x)
    expected = (((x[:, :, :2, ::3].long() + x[:, :, 1:, ::3]) * 3 + 8) >> 4).clamp(0, 255)
    assert torch.equal(found.long(), expected)


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
        Requantisation(-one, 4000 * one, 4 * one),
    )
    second = Layer(
        "conv",
        [1, 0],
        numbers(-127, 127, 2, 2, 1, 1).char(),
        torch.zeros(2, dtype=torch.uint8),
        (1, 1),
        (0, 0),
        Requantisation(one, 0 * one, 7 * one, 64 * one),
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
    codes = numbers(0, 255, 3, 2, 4, 4).byte()
    first, second, last = program.steps
    one = first(codes)
    expected = last(second(one, codes)).flatten(1)
    assert torch.equal(program(codes), expected)
    assert expected.shape == (3, 3)


def test_images_become_codes(program):
    images = torch.tensor([[0.0, 1.0, -100.0, 100.0], [0.0, -0.0625, -100.0, 100.0]]).view(1, 2, 2, 2)
    assert program.codes(images).flatten().tolist() == [10, 12, 0, 210, 20, 20, 0, 255]  # 20.5 and 20.25 to even, down
    images = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(program(images), program(program.codes(images)))


def test_a_program_is_its_state_dict(program):
    codes = numbers(0, 255, 1, 2, 4, 4).byte()
    expected = program(codes)
    state = {name: value.clone() for name, value in program.state_dict().items()}
    assert all(value.dtype in (torch.uint8, torch.int8, torch.int32, torch.float32) for value in state.values())
    for value in program.buffers():
        value.zero_()
    program.load_state_dict(state)
    assert torch.equal(program(codes), expected)
