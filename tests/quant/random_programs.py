"""Make random programs: all kinds of steps, odd sizes, strides, rectangular kernels, shortcuts, within 32 bits."""

import random

import torch

from torchadder.quant.program import AveragePool, Layer, Logits, MaxPool, Program, Requantization, largest_accumulator

KINDS = ("adder", "conv", "binary")


class Maker:
    """Make one program from a seed."""

    def __init__(self, seed, kinds=KINDS, sizes=(1, 13), channels=(1, 40), steps=(1, 5)):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.kinds = kinds
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
        return self.layer(self.random.choice(self.kinds))

    def source(self):
        """Choose a value, mostly the newest."""
        return len(self.shapes) - 1 if self.random.random() < 0.8 else self.random.randrange(len(self.shapes))

    def max_pool(self):
        source = self.source()
        channels, height, width = self.shapes[source]
        kernel = self.random.randint(1, min(3, height, width))
        stride, padding = self.random.randint(1, 3), self.random.randint(0, kernel // 2)
        sizes = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        self.shapes.append((channels, *sizes))
        return MaxPool([source], kernel, stride, padding)

    def average_pool(self):
        source = self.source()
        channels, height, width = self.shapes[source]
        kernel = [self.random.randint(1, side) for side in (height, width)]
        stride = [self.random.randint(1, 3) for _ in range(2)]
        sizes = ((side - k) // step + 1 for side, k, step in zip((height, width), kernel, stride, strict=True))
        self.shapes.append((channels, *sizes))
        epilogue = self.requantization(channels, 255 * kernel[0] * kernel[1], None)
        return AveragePool([source], tuple(kernel), tuple(stride), epilogue)

    def layer(self, kind, last=False):
        source = self.source()
        channels, *size = self.shapes[source]
        c_out = self.random.randint(*self.channels)
        geometry = [self.axis(side, last) for side in size]
        kernel, stride, padding = zip(*geometry, strict=True)
        sizes = [
            (side + 2 * pad - k) // step + 1 for side, k, step, pad in zip(size, kernel, stride, padding, strict=True)
        ]
        if kind == "adder":
            weight = self.numbers(0, 255, c_out, channels, *kernel).byte()
        elif kind == "conv":
            weight = self.numbers(-127, 127, c_out, channels, *kernel).to(torch.int8)
        else:
            weight = (2 * self.numbers(0, 1, c_out, channels, *kernel) - 1).to(torch.int8)
        zero_point = self.numbers(0, 255, channels).byte()
        if kind == "adder":
            zero_point = self.zero_points.setdefault(source, zero_point)  # layers that pad one value agree on it
        shape = (c_out, *sizes)
        if last:
            scale, bias = (torch.randn(c_out, generator=self.generator) for _ in range(2))
            return Layer(kind, [source], weight, zero_point, stride, padding, Logits(scale, bias))
        others = [value for value, other in enumerate(self.shapes) if other == shape]
        shortcut = self.random.choice(others) if others else None
        requantize = self.requantization(c_out, largest_accumulator(kind, weight), shortcut)
        self.shapes.append(shape)
        return Layer(
            kind, [source, *([] if shortcut is None else [shortcut])], weight, zero_point, stride, padding, requantize
        )

    def axis(self, side, last):
        """Choose kernel, stride and padding of an axis; the kernel of the last layer covers it."""
        if last:
            return side, 1, 0
        kernel = self.random.randint(1, min(5, side + 2))
        padding = self.random.randint(max(0, (kernel - side + 1) // 2), kernel - 1)
        return kernel, self.random.randint(1, 3), padding

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
