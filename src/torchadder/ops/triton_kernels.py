"""Compute the operators of an adder convolution on a GPU, in Triton: direct, tiled, for any strides, without im2col.

Images have three spatial axes here (D, H, W); missing ones have size 1. A program computes a tile of pixels by columns
(channels). It adds up tap by tap and term by term, always in the same order: no result depends on the tile.

Instructions for each element (a multiprocessor issues 128 a clock; float32, Hopper; loads not counted):

    forward       |x - w|, added up         FADD, FADD with |.| on an operand                          2
    grad_input    HardTanh(w - x) dY        FFMA.SAT, FFMA: HardTanh(z) = 2 sat(z / 2 + 1 / 2) - 1      2

sat clamps to [0, 1] and turns NaN into 0: the end of the kernel restores the NaN of inputs and weights.

Two patterns give a fast loop. First, UNROLL terms are loaded as one block, which is copied to shared memory while the
block before it is computed, and then split into its vectors: one wait serves all. Second, a tile is initialised by a
load, even where the mask is all false: a load gives each thread a few pixels by a few columns. A tile that is made
from constants gives each thread pixels alone, and every weight would be read from shared memory for a single sum.

Where groups are narrow (NARROW), the columns of a tile span many groups, and every element loads its own input.

The library functions of Triton that are written in Triton (cdiv, zeros, sum) are not called: the interpreter runs them
only where TRITON_INTERPRET was set before Triton was first imported.
"""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803 (a kernel's constants are arguments in capitals)

import triton
import triton.language as tl


@triton.jit
def _halves(block, LENGTH: tl.constexpr, COUNT: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(block, (LENGTH, 2, COUNT // 2)), (0, 2, 1)))


@triton.jit
def _four(block, LENGTH: tl.constexpr):
    first, second = _halves(block, LENGTH, 4)
    a, b = tl.split(first)
    c, d = tl.split(second)
    return a, b, c, d


@triton.jit
def _vectors(block, LENGTH: tl.constexpr, COUNT: tl.constexpr):
    """Split a (LENGTH, COUNT) block into COUNT vectors (LENGTH,); COUNT is 1, 2, 4 or 8."""
    if COUNT == 8:
        first, second = _halves(block, LENGTH, 8)
        a, b, c, d = _four(first, LENGTH)
        e, f, g, h = _four(second, LENGTH)
        return a, b, c, d, e, f, g, h
    elif COUNT == 4:
        return _four(block, LENGTH)
    elif COUNT == 2:
        return tl.split(block)
    else:
        return (tl.reshape(block, (LENGTH,)),)


@triton.jit
def _range(first, COUNT: tl.constexpr, WIDE: tl.constexpr):
    """Return COUNT numbers from `first` on, of 64 bits where offsets need them."""
    index = first + tl.arange(0, COUNT)
    if WIDE:
        index = index.to(tl.int64)
    return index


@triton.jit
def _blocks(count, size):
    return (count + size - 1) // size


@triton.jit
def _tile(groups, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Return first row, columns within their group, and group of this program's tile; adjacent programs share rows."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    blocks = _blocks(columns, COLUMNS)
    first = program // blocks // groups * ROWS
    return first, program % blocks * COLUMNS + tl.arange(0, COLUMNS), program // blocks % groups


@triton.jit
def _axes(index, depth, height, width):
    """Return (n, d, h, w) of pixels by their index."""
    w = index % width
    h = index // width % height
    d = index // (width * height) % depth
    n = index // (width * height * depth)
    return n, d, h, w


@triton.jit
def _loaded(row, mask, PIXELS: tl.constexpr):
    """Load a tile that has `row` for each pixel, 0 where the mask is not set."""
    return tl.load(row[None, :] + tl.full((PIXELS, 1), 0, tl.int32), mask=mask, other=0.0)


@triton.jit
def forward(
    x, weight, bias, y,
    biased, images, groups, columns, share, channels,
    depth, height, width, out_depth, out_height, out_width,
    x_n, x_c, x_d, x_h, x_w,
    w_o, w_c, w_d, w_h, w_w,
    y_n, y_c, y_d, y_h, y_w,
    STRIDE_D: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_D: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_D: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    NARROW: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Compute Y[o] = bias[o] - sum over c, a, b of |X[c, i*s + a, j*s + b] - W[o, c, a, b]|.

    Columns are filters: those of a group, or all in a narrow tile, where `share` filters have the same input channels.
    The first `biased` filters have a bias (all or none).
    """
    first, o, group = _tile(groups, columns, PIXELS, COLUMNS, WIDE)
    n, d, h, w = _axes(first + tl.arange(0, PIXELS), out_depth, out_height, out_width)
    exists, wanted = n < images, o < columns
    both = exists[:, None] & wanted[None, :]
    o += group * columns
    image = x + n * x_n + group * channels * x_c
    own = o // share * channels
    total = _loaded(bias + o, both & (o < biased)[None, :], PIXELS).to(tl.float32)
    for tap in range(KERNEL_D * KERNEL_H * KERNEL_W):
        k = tap // (KERNEL_H * KERNEL_W)
        i = tap // KERNEL_W % KERNEL_H
        j = tap % KERNEL_W
        at_d = d * STRIDE_D - PADDING_D + k * DILATION_D
        at_h = h * STRIDE_H - PADDING_H + i * DILATION_H
        at_w = w * STRIDE_W - PADDING_W + j * DILATION_W
        inside = exists & (at_d >= 0) & (at_d < depth) & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
        row = image + at_d * x_d + at_h * x_h + at_w * x_w
        column = weight + o * w_o + k * w_d + i * w_h + j * w_w
        if NARROW:
            for c in range(channels):
                at = row[:, None] + ((own + c) * x_c)[None, :]
                value = tl.load(at, mask=inside[:, None] & wanted[None, :], other=0.0).to(tl.float32)
                coefficient = tl.load(column + c * w_c, mask=wanted, other=0.0)
                total -= tl.abs(value - coefficient[None, :])
        else:
            for start in tl.range(0, channels, UNROLL, num_stages=2):
                c = _range(start, UNROLL, WIDE)
                known = (c < channels)[None, :]
                values = tl.load(row[:, None] + (c * x_c)[None, :], mask=inside[:, None] & known, other=0.0)
                coefficients = tl.load(column[:, None] + (c * w_c)[None, :], mask=wanted[:, None] & known, other=0.0)
                values = _vectors(values, PIXELS, UNROLL)
                coefficients = _vectors(coefficients, COLUMNS, UNROLL)
                for step in tl.static_range(UNROLL):
                    total -= tl.abs(values[step].to(tl.float32)[:, None] - coefficients[step][None, :])
    to = y + n * y_n + d * y_d + h * y_h + w * y_w
    tl.store(to[:, None] + (o * y_c)[None, :], total, mask=both)


@triton.jit
def _gradient(g, half, coefficient, SIGN: tl.constexpr):
    """Return sign(W - X) dY, or sat((W - X) / 2 + 1 / 2) dY; half is X, or 1 / 2 - X / 2."""
    if SIGN:
        above = coefficient - half
        return ((above > 0).to(tl.float32) - (above < 0).to(tl.float32)) * g
    else:
        return tl.minimum(tl.maximum(half + 0.5 * coefficient, 0.0), 1.0) * g


@triton.jit
def grad_input(
    grad, x, weight, dx,
    pixels, images, groups, columns, share, filters,
    depth, height, width, out_depth, out_height, out_width,
    g_n, g_c, g_d, g_h, g_w,
    x_n, x_c, x_d, x_h, x_w,
    w_o, w_c, w_d, w_h, w_w,
    dx_n, dx_c, dx_d, dx_h, dx_w,
    STRIDE_D: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_D: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_D: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    SIGN: tl.constexpr, NARROW: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Compute dX[c] = sum over o, a, b of HardTanh(W[o, c, a, b] - X[c]) dY[o], or sign(...) dY[o].

    Columns are input channels: those of a group, or all in a narrow tile, where `share` channels have the same filters.

    With a stride the pixels fall into classes by their position within the stride: all pixels of a class are under the
    same taps. A tile holds pixels of one class, so that no tap is computed for pixels that it does not reach. The
    largest class has `pixels` pixels.
    """
    first, c, group = _tile(groups, columns, PIXELS, COLUMNS, WIDE)
    planes, rows, points = _blocks(depth, STRIDE_D), _blocks(height, STRIDE_H), _blocks(width, STRIDE_W)
    class_pixels = _blocks(pixels, PIXELS) * PIXELS
    kind = first // class_pixels
    kind_d = kind // (STRIDE_H * STRIDE_W)
    kind_h = kind // STRIDE_W % STRIDE_H
    kind_w = kind % STRIDE_W
    n, d, h, w = _axes(first % class_pixels + tl.arange(0, PIXELS), planes, rows, points)
    d, h, w = d * STRIDE_D + kind_d, h * STRIDE_H + kind_h, w * STRIDE_W + kind_w
    exists, wanted = (n < images) & (d < depth) & (h < height) & (w < width), c < columns
    both = exists[:, None] & wanted[None, :]
    image = x + n * x_n + d * x_d + h * x_h + w * x_w
    value = tl.load(image[:, None] + ((group * columns + c) * x_c)[None, :], mask=both, other=0.0).to(tl.float32)
    half = value if SIGN else 0.5 - 0.5 * value
    # All false. It is made from vectors, because the interpreter accepts no other masks.
    nothing = c < tl.full((COLUMNS,), -images, tl.int32)
    total = _loaded(weight + c, both & nothing[None, :], PIXELS)
    grad_sum = tl.full((PIXELS, COLUMNS if NARROW else 1), 0.0, tl.float32)  # sum of dY
    nan_mask = tl.full((COLUMNS,), 0.0, tl.float32)  # NaN where a weight is
    own = (group * columns + c) // share * filters  # first filter of each column
    for tap in range(KERNEL_D * KERNEL_H * KERNEL_W):
        k = tap // (KERNEL_H * KERNEL_W)
        i = tap // KERNEL_W % KERNEL_H
        j = tap % KERNEL_W
        from_d = kind_d + PADDING_D - k * DILATION_D  # output position of the class under this tap, times stride
        from_h = kind_h + PADDING_H - i * DILATION_H
        from_w = kind_w + PADDING_W - j * DILATION_W
        if (from_d % STRIDE_D == 0) & (from_h % STRIDE_H == 0) & (from_w % STRIDE_W == 0):
            out_d = (d + PADDING_D - k * DILATION_D) // STRIDE_D
            out_h = (h + PADDING_H - i * DILATION_H) // STRIDE_H
            out_w = (w + PADDING_W - j * DILATION_W) // STRIDE_W
            inside = exists & (d + PADDING_D >= k * DILATION_D) & (out_d < out_depth)
            inside &= (h + PADDING_H >= i * DILATION_H) & (out_h < out_height)
            inside &= (w + PADDING_W >= j * DILATION_W) & (out_w < out_width)
            row = grad + n * g_n + out_d * g_d + out_h * g_h + out_w * g_w
            column = weight + own * w_o + c % share * w_c + k * w_d + i * w_h + j * w_w
            if NARROW:
                for o in range(filters):
                    at = row[:, None] + ((own + o) * g_c)[None, :]
                    g = tl.load(at, mask=inside[:, None] & wanted[None, :], other=0.0).to(tl.float32)
                    coefficient = tl.load(column + o * w_o, mask=wanted, other=0.0)
                    total += _gradient(g, half, coefficient[None, :], SIGN)
                    grad_sum += g
                    nan_mask = tl.where(coefficient == coefficient, nan_mask, coefficient)
            else:
                for start in tl.range(0, filters, UNROLL, num_stages=2):
                    o = _range(start, UNROLL, WIDE)
                    known = (o < filters)[None, :]
                    at = row[:, None] + ((group * filters + o) * g_c)[None, :]
                    gradients = tl.load(at, mask=inside[:, None] & known, other=0.0)
                    at = column[:, None] + (o * w_o)[None, :]
                    coefficients = tl.load(at, mask=wanted[:, None] & known, other=0.0)
                    gradients = _vectors(gradients, PIXELS, UNROLL)
                    coefficients = _vectors(coefficients, COLUMNS, UNROLL)
                    for step in tl.static_range(UNROLL):
                        g, coefficient = gradients[step].to(tl.float32)[:, None], coefficients[step]
                        total += _gradient(g, half, coefficient[None, :], SIGN)
                        grad_sum += g
                        nan_mask = tl.where(coefficient == coefficient, nan_mask, coefficient)
    if not SIGN:
        total = 2 * total - grad_sum
    total += nan_mask[None, :]
    total = tl.where(value == value, total, value)
    to = dx + n * dx_n + d * dx_d + h * dx_h + w * dx_w
    tl.store(to[:, None] + ((group * columns + c) * dx_c)[None, :], total, mask=both)


@triton.jit
def _signed(difference, g):
    """Return sign(difference) g, and NaN where the difference is NaN."""
    sign = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
    return tl.where(difference == difference, sign * g, difference)


@triton.jit
def grad_weight_sign(
    grad, x, weight, dw,
    chunk, images, groups, filters, share, channels,
    depth, height, width, out_depth, out_height, out_width,
    g_n, g_c, g_d, g_h, g_w,
    x_n, x_c, x_d, x_h, x_w,
    w_o, w_c, w_d, w_h, w_w,
    dw_part, dw_o, dw_c, dw_d, dw_h, dw_w,
    STRIDE_D: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_D: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_D: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    NARROW: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Compute dW[part, o, c, a, b] = sum over `chunk` pixels of sign(X - W[o, c, a, b]) dY[o], one tap a program.

    A tile is filters by input channels of a group, and the sums run pixel by pixel. The columns of a narrow tile are
    pairs of a filter and one of its channels (`share` filters have the same channels); it computes UNROLL pixels at a
    time, each into its own part.
    """
    tap, part = tl.program_id(1), tl.program_id(2)
    if WIDE:
        part = part.to(tl.int64)
    k = tap // (KERNEL_H * KERNEL_W)
    i = tap // KERNEL_W % KERNEL_H
    j = tap % KERNEL_W
    tap_of_weight, tap_of_dw = k * w_d + i * w_h + j * w_w, k * dw_d + i * dw_h + j * dw_w
    if NARROW:
        pair = _range(tl.program_id(0) * COLUMNS, COLUMNS, WIDE)
        o, c = pair // channels, pair % channels
        wanted = o < filters
        channel = o // share * channels + c
        coefficient = tl.load(weight + tap_of_weight + o * w_o + c * w_c, mask=wanted, other=0.0)[None, :]
        total = tl.full((UNROLL, COLUMNS), 0.0, tl.float32)
    else:
        first, c, group = _tile(groups, channels, ROWS, COLUMNS, WIDE)
        o = first + tl.arange(0, ROWS)
        wanted, known = o < filters, c < channels
        o += group * filters
        channel = group * channels + c
        offsets, both = (o * w_o)[:, None] + (c * w_c)[None, :], wanted[:, None] & known[None, :]
        coefficient = tl.load(weight + tap_of_weight + offsets, mask=both, other=0.0)
        total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for start in tl.range(part * chunk, (part + 1) * chunk, UNROLL, num_stages=2):
        n, d, h, w = _axes(_range(start, UNROLL, WIDE), out_depth, out_height, out_width)
        at_d = d * STRIDE_D - PADDING_D + k * DILATION_D
        at_h = h * STRIDE_H - PADDING_H + i * DILATION_H
        at_w = w * STRIDE_W - PADDING_W + j * DILATION_W
        exists = n < images
        inside = exists & (at_d >= 0) & (at_d < depth) & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
        of_x = x + n * x_n + at_d * x_d + at_h * x_h + at_w * x_w
        of_grad = grad + n * g_n + d * g_d + h * g_h + w * g_w
        if NARROW:
            value = tl.load(of_x[:, None] + (channel * x_c)[None, :], mask=inside[:, None] & wanted[None, :], other=0.0)
            g = tl.load(of_grad[:, None] + (o * g_c)[None, :], mask=exists[:, None] & wanted[None, :], other=0.0)
            total += _signed(value.to(tl.float32) - coefficient, g.to(tl.float32))
        else:
            values = tl.load(of_x[None, :] + (channel * x_c)[:, None], mask=inside[None, :] & known[:, None], other=0.0)
            gradients = tl.load(
                of_grad[None, :] + (o * g_c)[:, None], mask=exists[None, :] & wanted[:, None], other=0.0
            )
            values = _vectors(values, COLUMNS, UNROLL)
            gradients = _vectors(gradients, ROWS, UNROLL)
            for step in tl.static_range(UNROLL):
                difference = values[step].to(tl.float32)[None, :] - coefficient
                total += _signed(difference, gradients[step].to(tl.float32)[:, None])
    if NARROW:
        parts = (part * UNROLL + tl.arange(0, UNROLL)) * dw_part
        to = dw + tap_of_dw + parts[:, None] + (o * dw_o + c * dw_c)[None, :]
        tl.store(to, total, mask=wanted[None, :])
    else:
        to = dw + tap_of_dw + part * dw_part + (o * dw_o)[:, None] + (c * dw_c)[None, :]
        tl.store(to, total, mask=both)
