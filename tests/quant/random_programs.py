"""Make random programs: all kinds of steps, odd sizes, strides, rectangular kernels, shortcuts, within 32 bits."""

import random

import torch

from torchadder.quant.program import Program
from torchadder.quant.steps import (
    AveragePool,
    Concat,
    Layer,
    Logits,
    MaxPool,
    Requantization,
    Table,
    fewest,
    largest_accumulator,
    mean_unit,
    pixels_of_windows,
)

KINDS = ("adder", "conv", "binary")


class Maker:
    """Make one program from a seed; a ``plain`` one has the steps and geometries of version 1 of the file."""

    def __init__(self, seed, kinds=KINDS, sizes=(1, 13), channels=(1, 40), steps=(1, 5), plain=False):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.kinds, self.plain = kinds, plain
        height, width = self.random.randint(*sizes), self.random.randint(*sizes)
        self.channels = channels
        self.shapes = [(self.random.randint(1, 9), height, width)]
        self.zero_points = {}
        self.count = self.random.randint(*steps)

    def numbers(self, low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def program(self):
        steps = [self.step() for _ in range(self.count)]
        steps.append(self.layer(self.random.choice(self.kinds), last=True))
        channels = self.shapes[0][0]
        scale = torch.rand(channels, generator=self.generator) + 0.01
        zero_point = 10 * torch.rand(channels, generator=self.generator)
        return Program(self.shapes[0], scale, zero_point, steps, self.random.choice([255, 255, 63]))

    def step(self):
        pick = self.random.random()
        if pick < 0.15:
            return self.max_pool()
        if pick < 0.25:
            return self.average_pool()
        if pick < 0.3 and not self.plain:
            return self.table()
        if pick < 0.38 and not self.plain:
            return self.concat()
        return self.layer(self.random.choice(self.kinds))

    def table(self):
        source = self.source()
        self.shapes.append(self.shapes[source])
        return Table([source], self.numbers(0, 255, self.random.choice([1, self.shapes[source][0]]), 256).byte())

    def source(self):
        """Choose a value, mostly the newest."""
        return len(self.shapes) - 1 if self.random.random() < 0.8 else self.random.randrange(len(self.shapes))

    def window(self, size):
        """Choose kernel, stride, padding and result of a pooling whose windows all have a pixel of the image."""
        kernel = [self.random.randint(1, min(3, side)) for side in size]
        stride = [self.random.randint(1, 3) for _ in size]
        padding = [self.random.choice([0, 0, self.random.randint(0, k - 1)]) for k in (*kernel, *kernel)]
        if self.plain:
            kernel, stride = [min(kernel)] * 2, stride[:1] * 2
            padding = [self.random.randint(0, kernel[0] // 2)] * 4
        axes = zip(size, kernel, stride, padding[:2], padding[2:], strict=True)
        return kernel, stride, tuple(padding), [(n + before + after - k) // s + 1 for n, k, s, before, after in axes]

    def max_pool(self):
        source = self.source()
        channels, *size = self.shapes[source]
        kernel, stride, padding, sizes = self.window(size)
        self.shapes.append((channels, *sizes))
        return MaxPool([source], *map(fewest, (tuple(kernel), tuple(stride), padding)))

    def pooled_layer(self, kind):
        """Return a layer and the max pooling of 2 x 2 that alone reads it."""
        layer = self.layer(kind)
        channels, height, width = self.shapes[-1]
        self.shapes.append((channels, height // 2, width // 2))
        return [layer, MaxPool([len(self.shapes) - 2], 2, 2, 0)]

    def average_pool(self):
        source = self.source()
        channels, *size = self.shapes[source]
        kernel, stride, padding, sizes = self.window(size)
        if self.plain or self.random.random() < 0.5:
            kernel, stride, padding, sizes = size, [1, 1], (0, 0, 0, 0), [1, 1]
        self.shapes.append((channels, *sizes))
        unit = mean_unit(pixels_of_windows(size, kernel, stride, padding))
        epilogue = self.requantization(channels, 255 * unit, None)
        return AveragePool([source], tuple(kernel), tuple(stride), epilogue, fewest(padding))

    def concat(self):
        source = self.source()
        fitting = [i for i, shape in enumerate(self.shapes) if shape[1:] == self.shapes[source][1:]]
        sources = [source, *self.random.choices(fitting, k=self.random.randint(0, 2))]
        channels = sum(self.shapes[i][0] for i in sources)
        self.shapes.append((channels, *self.shapes[source][1:]))
        return Concat(sources, self.requantization(channels, 255, None))

    def layer(self, kind, last=False):
        source = self.source()
        channels, *size = self.shapes[source]
        c_out, groups = self.filters(channels)
        kernel, stride, dilation, before, after = zip(*(self.axis(side, last) for side in size), strict=True)
        padding = before if before == after else (*before, *after)
        padded = [side + a + b for side, a, b in zip(size, before, after, strict=True)]
        windows = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        sizes = [(side - w) // step + 1 for side, w, step in zip(padded, windows, stride, strict=True)]
        filters = c_out, channels // groups, *kernel
        fits_half_a_byte = channels % 3 == 0 and not self.plain  # draws nothing: a seed keeps its program's shapes
        if kind == "adder":
            weight = self.numbers(0, 255, *filters).byte()
            weight = weight & 15 if fits_half_a_byte else weight
        elif kind == "conv":
            weight = self.numbers(-127, 127, *filters).to(torch.int8)
            weight = weight.clamp(-8, 7) if fits_half_a_byte else weight
        else:
            weight = (2 * self.numbers(0, 1, *filters) - 1).to(torch.int8)
        zero_point = self.numbers(0, 255, channels).byte()
        if kind != "binary":
            zero_point = self.zero_points.setdefault(source, zero_point)  # layers that pad one value agree on it
        shape = (c_out, *sizes)
        others = [value for value, other in enumerate(self.shapes) if other == shape and not last]
        shortcut = self.random.choice(others) if others else None
        if last:
            epilogue = Logits(*(torch.randn(c_out, generator=self.generator) for _ in range(2)))
        else:
            epilogue = self.requantization(c_out, largest_accumulator(kind, weight), shortcut)
            self.shapes.append(shape)
        sources = [source, *([] if shortcut is None else [shortcut])]
        return Layer(kind, sources, weight, zero_point, stride, padding, epilogue, dilation, groups)

    def filters(self, channels):
        """Choose the number of filters, and of groups: one, some, or as many as channels."""
        groups = 1
        if not self.plain and self.random.random() < 0.4:
            groups = self.random.choice([n for n in range(1, channels + 1) if channels % n == 0])
        low, high = self.channels
        if groups == channels and self.random.random() < 0.7:
            return channels, groups
        return groups * self.random.randint(-(-low // groups), max(-(-low // groups), high // groups)), groups

    def axis(self, side, last):
        """Choose kernel, stride, dilation and padding on both sides of an axis; the last kernel covers it."""
        if last:
            return side, 1, 1, 0, 0
        kernel, dilation = self.random.randint(1, min(5, side + 2)), self.random.choice([1, 1, 1, 2, 3])
        if self.plain:
            padding = self.random.randint(max(0, (kernel - side + 1) // 2), kernel - 1)
            return kernel, self.random.randint(1, 3), 1, padding, padding
        needed = dilation * (kernel - 1) + 1 - side
        before = self.random.randint(0, kernel)
        after = max(0, needed - before, self.random.choice([before, self.random.randint(0, kernel)]))
        return kernel, self.random.randint(1, 3), dilation, before, after

    def requantization(self, channels, largest, shortcut):
        """Choose constants that spread the values over the whole range, some clamped."""
        pre_shift = self.random.choice([0, 0, 3, 9])
        largest = (largest >> pre_shift) + 1
        shift = self.numbers(0, 12, channels)
        room = min(2**29 // largest, 2**16)
        multiplier = self.numbers(-room, room, channels)
        shift = shift + (multiplier.abs() * largest / 512).clamp(min=1).log2().int()
        shift = shift.clamp(0, 31)
        factor = None if shortcut is None else self.numbers(-(2**20), 2**20, channels).int()
        offset = self.numbers(-(2**28), 2**28, channels) >> self.numbers(0, 24, channels)
        qmax = self.random.choice([255, 255, 15])
        return Requantization(multiplier.int(), offset.int(), shift.int(), factor, qmax, pre_shift)
