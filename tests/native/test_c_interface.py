"""Test the C interface as a C program uses it: plain arrays and a shape, without torch.

Arrays are unaligned and have guards of NaN around them: a number read from outside shows in the result, one written
there in the guard.
"""

import ctypes
import functools
import itertools
import threading

import numpy as np
import pytest

from torchadder import kernels

GUARD = 67  # floats on either side, an odd number, so that arrays are not aligned to a vector


class Guarded:
    """Hold a float32 array with NaN before and after it."""

    def __init__(self, values):
        values = np.asarray(values, dtype=np.float32)
        self.memory = np.full(values.size + 2 * GUARD, np.nan, dtype=np.float32)
        self.array = self.memory[GUARD : GUARD + values.size].reshape(values.shape)
        self.array[...] = values

    @property
    def address(self):
        return self.array.ctypes.data

    def intact(self):
        return np.isnan(self.memory[:GUARD]).all() and np.isnan(self.memory[-GUARD:]).all()


def make_shape(
    images,
    c_in,
    size,
    c_out,
    kernel,
    stride=(1, 1, 1),
    padding=(0, 0, 0),
    dilation=(1, 1, 1),
    groups=1,
    last=0,
    first=0,
):
    """Return a shape; an axis that is missing on the left has size 1.

    Args:
        last: the weight is channels last.
        first: the images are channels first.
    """
    size, kernel, stride, dilation = ((1,) * (3 - len(axes)) + axes for axes in (size, kernel, stride, dilation))
    padding = (0,) * (3 - len(padding)) + padding
    output = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return kernels.Convolution(
        images, c_in, c_out, groups, size, output, kernel, stride, padding, dilation, last, first
    )


SHAPES = {
    "plain": make_shape(2, 3, (5, 4), 5, (3, 2)),
    "padded, stride 2": make_shape(2, 5, (6, 5), 9, (3, 3), stride=(2, 2), padding=(1, 1)),
    "channels last weight": make_shape(1, 7, (5, 5), 17, (3, 3), padding=(1, 1), last=1),
    "dilation": make_shape(2, 2, (7, 8), 33, (2, 3), dilation=(3, 2), padding=(1, 0)),
    "2 groups": make_shape(2, 6, (5, 4), 4, (2, 2), stride=(1, 2), groups=2),
    "depthwise": make_shape(2, 17, (5, 4), 17, (3, 3), padding=(2, 2), groups=17),
    "depthwise, channels last weight": make_shape(1, 3, (5, 4), 3, (2, 2), groups=3, last=1),
    "1x1": make_shape(3, 9, (2, 3), 11, (1, 1)),
    "linear": make_shape(2, 35, (1, 1), 31, (1, 1)),
    "padding above the kernel": make_shape(1, 2, (2, 3), 3, (2, 2), padding=(5, 4)),
    "a row": make_shape(2, 5, (19,), 7, (3,), stride=(2,), padding=(2,), dilation=(2,)),
    "a volume": make_shape(2, 3, (4, 5, 3), 9, (2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(2, 1, 1)),
    "a volume, depthwise": make_shape(1, 5, (3, 4, 5), 5, (3, 2, 2), padding=(1, 1, 0), groups=5, last=1),
    "channels first": make_shape(2, 5, (3, 4), 9, (2, 3), padding=(1, 1), first=1),
    "channels first, groups of 3": make_shape(2, 12, (4, 3), 8, (3, 2), groups=4, first=1),
    "channels first, a volume": make_shape(1, 3, (2, 3, 4), 17, (2, 2, 2), stride=(1, 2, 1), last=1, first=1),
    "batch of 0": make_shape(0, 3, (5, 5), 4, (3, 3)),
}


def call(name, shape, *arguments):
    """Return the status of a call, 0 or -1, and the last error line."""
    library = kernels.library()
    code = getattr(library, f"torchadder_{name}")(ctypes.byref(shape), *arguments)
    return code, library.torchadder_last_error().decode()


def weight_size(s):
    depth = s.c_in // s.groups
    return (s.c_out, *s.kernel, depth) if s.weight_channels_last else (s.c_out, depth, *s.kernel)


def products(s):
    """Yield each output element with each input element and filter element that it depends on."""
    depth = s.c_in // s.groups
    for *position, o in itertools.product(*map(range, s.size_out), range(s.c_out)):
        for c, *tap in itertools.product(range(depth), *map(range, s.kernel)):
            axes = zip(position, tap, s.stride, s.dilation, s.padding, strict=True)
            source = [i * step + a * d - p for i, a, step, d, p in axes]
            inside = all(0 <= at < size for at, size in zip(source, s.size_in, strict=True))
            channel = o // (s.c_out // s.groups) * depth + c
            element = (o, *tap, c) if s.weight_channels_last else (o, c, *tap)
            yield (..., *position, o), (..., *source, channel), element, inside


def loops(s, x, weight, dy):
    """Return y, dx (hardtanh, sign) and dw (sign) by brute force."""
    y = np.zeros(dy.shape)
    dx, dx_sign, dw_sign = np.zeros(x.shape), np.zeros(x.shape), np.zeros(weight.shape)
    for out, source, w, inside in products(s):
        difference = (x[source] if inside else np.zeros(s.images)) - weight[w]
        y[out] -= np.abs(difference)
        dw_sign[w] += (np.sign(difference) * dy[out]).sum()
        if inside:
            dx[source] += np.clip(-difference, -1, 1) * dy[out]
            dx_sign[source] += np.sign(-difference) * dy[out]
    return y, dx, dx_sign, dw_sign


@functools.cache
def case(name):
    """Return random x, weight, bias and dy for a shape, channels last, and the results of `loops` on them."""
    s, random = SHAPES[name], np.random.default_rng(0)
    x = random.integers(-8, 9, (s.images, *s.size_in, s.c_in)) / 4
    weight, bias = random.integers(-8, 9, weight_size(s)) / 4, random.integers(-8, 9, s.c_out)
    dy = random.integers(-4, 5, (s.images, *s.size_out, s.c_out))
    return x, weight, bias, dy, loops(s, x, weight, dy)


@pytest.fixture(params=kernels.variants())
def variant(request):
    with kernels.using(request.param):
        yield


def images(s, channels_last):
    """Return a channels-last array in the order of the shape."""
    return np.moveaxis(channels_last, -1, 1) if s.images_channels_first else channels_last


def as_channels_last(s, array):
    return np.moveaxis(array, 1, -1) if s.images_channels_first else array


@pytest.mark.parametrize(
    ("name", "threads"),
    [*itertools.product(SHAPES, [1, 2]), *(("padded, stride 2", threads) for threads in (0, -1, 1000))],
)
def test_arrays_between_guards(name, threads, variant):
    s, (x, weight, bias, dy, expected) = SHAPES[name], case(name)
    x, weight, bias, dy = Guarded(images(s, x)), Guarded(weight), Guarded(bias), Guarded(images(s, dy))
    y, dx, dx_sign = Guarded(dy.array * np.nan), Guarded(x.array * np.nan), Guarded(x.array * np.nan)
    dw = Guarded(weight.array * np.nan)
    tensors = dy.address, x.address, weight.address

    assert call("forward_f32", s, x.address, weight.address, bias.address, y.address, 0, threads)[0] == 0
    assert call("grad_input_f32", s, *tensors, dx.address, 0, threads)[0] == 0
    assert call("grad_input_f32", s, *tensors, dx_sign.address, 1, threads)[0] == 0
    assert call("grad_weight_sign_f32", s, *tensors, dw.address, threads)[0] == 0

    np.testing.assert_array_equal(as_channels_last(s, y.array), expected[0] + bias.array)
    np.testing.assert_array_equal(as_channels_last(s, dx.array), expected[1])
    np.testing.assert_array_equal(as_channels_last(s, dx_sign.array), expected[2])
    np.testing.assert_array_equal(dw.array, expected[3])
    assert all(guarded.intact() for guarded in (x, weight, bias, dy, y, dx, dx_sign, dw))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "size",
    [(1, 1, 1), (2, 7, 9), (3, 8, 8), (1, 15, 17), (2, 16, 16), (1, 33, 130), (40, 31, 65), (0, 3, 4), (2, 0, 3)],
)
def test_transpose(size, threads, variant):
    images, rows, columns = size
    matrices = Guarded(np.random.default_rng(0).standard_normal(size))
    result = Guarded(np.full((images, columns, rows), np.nan))
    library = kernels.library()
    assert library.torchadder_transpose_f32(matrices.address, result.address, *size, threads) == 0
    np.testing.assert_array_equal(result.array, matrices.array.transpose(0, 2, 1))
    assert matrices.intact()
    assert result.intact()


def test_transpose_rejects_negative_sizes():
    assert kernels.library().torchadder_transpose_f32(None, None, 1, -1, 1, 1) == -1
    assert "size" in kernels.library().torchadder_last_error().decode()


def test_bias_may_be_null_and_recenter_adds_the_sum_of_the_filter():
    s = SHAPES["padded, stride 2"]
    x = np.zeros((s.images, *s.size_in, s.c_in), dtype=np.float32)
    weight = np.arange(np.prod(weight_size(s)), dtype=np.float32).reshape(weight_size(s))
    y = np.full((s.images, *s.size_out, s.c_out), np.nan, dtype=np.float32)
    assert call("forward_f32", s, x.ctypes.data, weight.ctypes.data, None, y.ctypes.data, 1, 1)[0] == 0
    np.testing.assert_array_equal(y, np.zeros_like(y))


REJECTED = [  # changes to a valid shape, words of the error
    ({"images": -1}, "size"),
    ({"c_in": 0}, "size"),
    ({"c_out": 0}, "size"),
    ({"c_out": -4}, "size"),
    ({("size_in", 1): -1}, "size"),
    ({("size_out", 1): 4}, "size_out"),
    ({("size_out", 2): 2}, "size_out"),
    ({("size_out", 1): 0}, "size"),
    ({("kernel", 1): 0}, "kernel"),
    ({("kernel", 2): -1}, "kernel"),
    ({("kernel", 0): 0}, "kernel"),
    ({("stride", 0): 0}, "stride"),
    ({("stride", 1): 0}, "stride"),
    ({("stride", 2): -2}, "stride"),
    ({("dilation", 1): 0}, "dilation"),
    ({("padding", 0): -1}, "padding"),
    ({("padding", 1): -1}, "padding"),
    ({("padding", 2): -1, ("size_out", 2): 1}, "padding"),
    ({"groups": 0}, "groups"),
    ({"groups": -1}, "groups"),
    ({"groups": 3}, "groups"),
    ({("kernel", 1): 6, ("size_out", 1): 1, ("stride", 1): 2}, "size"),  # -1 / 2 is 0 in C: one empty row
    ({("dilation", 1): 4, ("size_out", 1): 1, ("stride", 1): 5}, "size"),
]


@pytest.mark.parametrize(("changes", "words"), REJECTED, ids=[str(changes) for changes, _ in REJECTED])
def test_rejected(changes, words):
    s = make_shape(1, 4, (5, 5), 4, (3, 3))
    for name, value in changes.items():
        if isinstance(name, tuple):
            getattr(s, name[0])[name[1]] = value
        else:
            setattr(s, name, value)
    memory = [np.zeros(1000, dtype=np.float32) for _ in range(4)]
    a, b, c, d = (m.ctypes.data for m in memory)
    for result in (
        call("forward_f32", s, a, b, None, d, 0, 1),
        call("grad_input_f32", s, a, b, c, d, 0, 1),
        call("grad_weight_sign_f32", s, a, b, c, d, 1),
    ):
        code, message = result
        assert code == -1
        assert words in message
        assert "\n" not in message
    assert not memory[3].any()


def test_too_much_memory_is_an_error():
    s = make_shape(1, 2**40, (1, 1), 2**20, (1, 1))
    code, message = call("forward_f32", s, None, None, None, None, 0, 1)
    assert code == -1
    assert message


def test_errors_belong_to_the_thread_that_made_them():
    assert kernels.library().torchadder_select_isa(b"mine") == -1
    other = threading.Thread(target=lambda: kernels.library().torchadder_select_isa(b"yours"))
    other.start()
    other.join()
    assert "'mine'" in kernels.library().torchadder_last_error().decode()


def test_indices_out_of_range_return_null():
    library = kernels.library()
    for index in (-1, library.torchadder_kernel_count()):
        assert library.torchadder_kernel_name(index) is None
        assert not library.torchadder_kernel_in_use(index)
    for index in (-1, library.torchadder_isa_count()):
        assert library.torchadder_isa_name(index) is None
        assert not library.torchadder_isa_runs_here(index)


def test_no_name_selects_the_best():
    assert kernels.library().torchadder_select_isa(None) == 0
    assert kernels.isa() == kernels.available()[-1]
