"""The operators of an adder convolution on a GPU, in Triton: implicit, tiled, any strides of memory, nothing unfolded.

Images have three axes here (D, H, W); those that a convolution lacks have size 1. A program computes a tile of pixels
by columns (channels) and adds up tap by tap and term by term, always in the same order: no result depends on the tile.

Instructions an element, of the 128 that a multiprocessor issues a clock (float32, Hopper), loads not counted:

    forward       |x - w|, added up         FADD, FADD with |.| on an operand                           2
    grad_input    HardTanh(w - x) dY        FFMA.SAT, FFMA: HardTanh(z) = 2 sat(z / 2 + 1 / 2) - 1      2

sat clamps to [0, 1] and turns NaN into 0: those of inputs and weights are put back at the end.

Two habits make the compiler's loop a good one. UNROLL terms are loaded as one block, brought into shared memory while
the block before is at work, and split into its vectors: one wait for all. And a tile begins as a load, even where none
of it is read: a load lays it out as a few pixels by a few columns a thread; laid out by pixels alone, every weight
would be read from shared memory for a single sum.

Where groups are narrow, a tile's columns are those of many groups ("narrow"): every element loads an input of its own.

Triton's own functions in Triton (cdiv, zeros, sum) are not called: its interpreter runs them only where the variable
that turns it on was set before Triton was first imported.
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
    """The vectors of a (LENGTH, COUNT) block, each (LENGTH,); COUNT is 1, 2, 4 or 8."""
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
    """COUNT numbers from `first` on, of 64 bits where offsets need them."""
    index = first + tl.arange(0, COUNT)
    if WIDE:
        index = index.to(tl.int64)
    return index


@triton.jit
def _blocks(count, size):
    return (count + size - 1) // size


@triton.jit
def _tile(groups, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """First row, columns within their group, and group of this program's tile: neighbours share the rows."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    blocks = _blocks(columns, COLUMNS)
    first = program // blocks // groups * ROWS
    return first, program % blocks * COLUMNS + tl.arange(0, COLUMNS), program // blocks % groups


@triton.jit
def _axes(index, depth, height, width):
    """(n, d, h, w) of pixels by their number."""
    w = index % width
    h = index // width % height
    d = index // (width * height) % depth
    n = index // (width * height * depth)
    return n, d, h, w


@triton.jit
def _loaded(row, mask, PIXELS: tl.constexpr):
    """A tile with `row` for each pixel, 0 where the mask is not set."""
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
    """Y[o] = bias[o] - sum over c, a, b of |X[c, i*s + a, j*s + b] - W[o, c, a, b]|; `biased` filters have a bias.

    Columns are filters: those of a group, or in a narrow tile all, of which `share` have the same input channels.
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
    place = y + n * y_n + d * y_d + h * y_h + w * y_w
    tl.store(place[:, None] + (o * y_c)[None, :], total, mask=both)


@triton.jit
def _gradient(g, half, coefficient, SIGN: tl.constexpr):
    """sign(W - X) dY, or sat((W - X) / 2 + 1 / 2) dY; half is X, or 1 / 2 - X / 2."""
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
    """dX[c] = sum over o, a, b of HardTanh(W[o, c, a, b] - X[c]) dY[o], or sign(...) dY[o].

    Columns are input channels: those of a group, or in a narrow tile all, of which `share` have the same filters.

    With a stride the pixels fall into classes, by their place within it: those of one class meet the same taps. The
    pixels of a tile are of one class, so that no tap is computed for a pixel that it does not reach. The largest class
    has `pixels`.
    """
    first, c, group = _tile(groups, columns, PIXELS, COLUMNS, WIDE)
    planes, rows, points = _blocks(depth, STRIDE_D), _blocks(height, STRIDE_H), _blocks(width, STRIDE_W)
    of_class = _blocks(pixels, PIXELS) * PIXELS
    kind = first // of_class
    kind_d = kind // (STRIDE_H * STRIDE_W)
    kind_h = kind // STRIDE_W % STRIDE_H
    kind_w = kind % STRIDE_W
    n, d, h, w = _axes(first % of_class + tl.arange(0, PIXELS), planes, rows, points)
    d, h, w = d * STRIDE_D + kind_d, h * STRIDE_H + kind_h, w * STRIDE_W + kind_w
    exists, wanted = (n < images) & (d < depth) & (h < height) & (w < width), c < columns
    both = exists[:, None] & wanted[None, :]
    image = x + n * x_n + d * x_d + h * x_h + w * x_w
    value = tl.load(image[:, None] + ((group * columns + c) * x_c)[None, :], mask=both, other=0.0).to(tl.float32)
    half = value if SIGN else 0.5 - 0.5 * value
    nothing = c < tl.full((COLUMNS,), -images, tl.int32)  # by vectors: the interpreter wants no other masks
    total = _loaded(weight + c, both & nothing[None, :], PIXELS)
    met = tl.full((PIXELS, COLUMNS if NARROW else 1), 0.0, tl.float32)  # sum of dY
    spoilt = tl.full((COLUMNS,), 0.0, tl.float32)  # NaN where a weight is
    own = (group * columns + c) // share * filters  # first filter of each column
    for tap in range(KERNEL_D * KERNEL_H * KERNEL_W):
        k = tap // (KERNEL_H * KERNEL_W)
        i = tap // KERNEL_W % KERNEL_H
        j = tap % KERNEL_W
        from_d = kind_d + PADDING_D - k * DILATION_D  # where the class meets this tap, in output pixels times stride
        from_h = kind_h + PADDING_H - i * DILATION_H
        from_w = kind_w + PADDING_W - j * DILATION_W
        if (from_d % STRIDE_D == 0) & (from_h % STRIDE_H == 0) & (from_w % STRIDE_W == 0):
            out_d = (d + PADDING_D - k * DILATION_D) // STRIDE_D
            out_h = (h + PADDING_H - i * DILATION_H) // STRIDE_H
            out_w = (w + PADDING_W - j * DILATION_W) // STRIDE_W
            meets = exists & (d + PADDING_D >= k * DILATION_D) & (out_d < out_depth)
            meets &= (h + PADDING_H >= i * DILATION_H) & (out_h < out_height)
            meets &= (w + PADDING_W >= j * DILATION_W) & (out_w < out_width)
            row = grad + n * g_n + out_d * g_d + out_h * g_h + out_w * g_w
            column = weight + own * w_o + c % share * w_c + k * w_d + i * w_h + j * w_w
            if NARROW:
                for o in range(filters):
                    at = row[:, None] + ((own + o) * g_c)[None, :]
                    g = tl.load(at, mask=meets[:, None] & wanted[None, :], other=0.0).to(tl.float32)
                    coefficient = tl.load(column + o * w_o, mask=wanted, other=0.0)
                    total += _gradient(g, half, coefficient[None, :], SIGN)
                    met += g
                    spoilt = tl.where(coefficient == coefficient, spoilt, coefficient)
            else:
                for start in tl.range(0, filters, UNROLL, num_stages=2):
                    o = _range(start, UNROLL, WIDE)
                    known = (o < filters)[None, :]
                    at = row[:, None] + ((group * filters + o) * g_c)[None, :]
                    gradients = tl.load(at, mask=meets[:, None] & known, other=0.0)
                    at = column[:, None] + (o * w_o)[None, :]
                    coefficients = tl.load(at, mask=wanted[:, None] & known, other=0.0)
                    gradients = _vectors(gradients, PIXELS, UNROLL)
                    coefficients = _vectors(coefficients, COLUMNS, UNROLL)
                    for step in tl.static_range(UNROLL):
                        g, coefficient = gradients[step].to(tl.float32)[:, None], coefficients[step]
                        total += _gradient(g, half, coefficient[None, :], SIGN)
                        met += g
                        spoilt = tl.where(coefficient == coefficient, spoilt, coefficient)
    if not SIGN:
        total = 2 * total - met
    total += spoilt[None, :]
    total = tl.where(value == value, total, value)
    to = dx + n * dx_n + d * dx_d + h * dx_h + w * dx_w
    tl.store(to[:, None] + ((group * columns + c) * dx_c)[None, :], total, mask=both)


@triton.jit
def _signed(difference, g):
    """sign(difference) g, and NaN where the difference is."""
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
    """dW[part, o, c, a, b] = sum over `chunk` pixels of sign(X - W[o, c, a, b]) dY[o]: a program for each tap.

    A tile is filters by input channels of a group, and the sums run pixel by pixel. The columns of a narrow tile are
    pairs of a filter and one of its channels, those of every `share` filters the same; it computes UNROLL pixels side
    by side, a part each.
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
        met = o // share * channels + c
        coefficient = tl.load(weight + tap_of_weight + o * w_o + c * w_c, mask=wanted, other=0.0)[None, :]
        total = tl.full((UNROLL, COLUMNS), 0.0, tl.float32)
    else:
        first, c, group = _tile(groups, channels, ROWS, COLUMNS, WIDE)
        o = first + tl.arange(0, ROWS)
        wanted, known = o < filters, c < channels
        o += group * filters
        met = group * channels + c
        places, both = (o * w_o)[:, None] + (c * w_c)[None, :], wanted[:, None] & known[None, :]
        coefficient = tl.load(weight + tap_of_weight + places, mask=both, other=0.0)
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
            value = tl.load(of_x[:, None] + (met * x_c)[None, :], mask=inside[:, None] & wanted[None, :], other=0.0)
            g = tl.load(of_grad[:, None] + (o * g_c)[None, :], mask=exists[:, None] & wanted[None, :], other=0.0)
            total += _signed(value.to(tl.float32) - coefficient, g.to(tl.float32))
        else:
            values = tl.load(of_x[None, :] + (met * x_c)[:, None], mask=inside[None, :] & known[:, None], other=0.0)
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
