"""Make random networks of all parts that quantize lowers: layers, normalisations, poolings, shortcuts, constants."""

import random

import torch
import torch.nn.functional as F
from torch import nn

from torchadder.nn import AdderConv2d, AdderLinear, BinaryConv2d, BinaryLinear

LAYERS = (AdderConv2d, nn.Conv2d, BinaryConv2d)


class RandomNetwork(nn.Module):
    """Run random parts, each on a value that was computed before, and a classifier.

    ``plan`` holds a function of a value, or of two, and the numbers of the values that it takes; value 0 is the images.
    """

    def __init__(self, seed, parts=(2, 9)):
        super().__init__()
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.shapes = [(self.random.randint(1, 4), self.random.randint(1, 12), self.random.randint(1, 12))]
        self.modules_of_plan, self.plan = nn.ModuleList(), []
        for _ in range(self.random.randint(*parts)):
            others = [self.unary, self.unary, self.pool, self.sum, self.concatenation]
            self.random.choice([self.layer, self.layer, self.layer, *others])()
        self.end()

    def images(self, count=24):
        return torch.randn(count, *self.shapes[0])

    def forward(self, x):
        values = [x]
        for part, sources in self.plan:
            values.append(part(*(values[i] for i in sources)))
        return values[-1]

    def add(self, part, shape, *sources):
        if isinstance(part, nn.Module):
            self.modules_of_plan.append(part)
        self.plan.append((part, sources or (len(self.plan),)))
        self.shapes.append(shape)

    def parameter(self, *shape):
        """Return the name of a new parameter of numbers away from 0."""
        numbers = (0.3 + torch.rand(shape)) * torch.where(torch.rand(shape) < 0.3, -1, 1)
        self.register_parameter(name := f"constant{len(self.plan)}", nn.Parameter(numbers))
        return name

    def layer(self):
        """Add a layer, mostly to the newest value, with the normalisation that keeps its outputs in range."""
        source = len(self.plan) if self.random.random() < 0.8 else self.random.randrange(len(self.shapes))
        channels, *sides = self.shapes[source]
        kernel = [self.random.randint(1, min(3, side + 1)) for side in sides]
        dilation = [self.random.choice([1, 1, 1, 2]) for _ in sides]
        windows = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding = [self.random.randint(max(0, (w - n + 1) // 2), w - 1) for w, n in zip(windows, sides, strict=True)]
        stride = [self.random.choice([1, 1, 2]) for _ in sides]
        groups = self.random.choice([1, 1, 1, channels])
        c_out = self.random.choice([channels, groups * self.random.randint(1, 8)])
        kind, bias = self.random.choice(LAYERS), self.random.random() < 0.5
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
        part = kind(channels, c_out, kernel, **options)
        if kind is AdderConv2d:
            part.recenter = self.random.random() < 0.5
        if kind is nn.Conv2d and self.random.random() < 0.2:
            part = nn.utils.parametrizations.weight_norm(part)
        out = [(side + 2 * p - w) // s + 1 for side, p, w, s in zip(sides, padding, windows, stride, strict=True)]
        if kind is not nn.Conv2d or self.random.random() < 0.5:
            part = nn.Sequential(part, nn.BatchNorm2d(c_out))
        if self.random.random() < 0.6:
            part = nn.Sequential(part, self.activation(c_out))
        self.add(part, (c_out, *out), source)

    def activation(self, channels):
        clamps = [nn.ReLU6(), nn.Hardtanh(-0.5, 2), nn.Hardtanh(-1, -0.25), nn.Hardtanh(0.5, 2)]
        functions = [nn.Hardswish(), nn.SiLU(), nn.LeakyReLU(0.1), nn.PReLU(channels), nn.Hardsigmoid()]
        return self.random.choice([nn.ReLU(inplace=self.random.random() < 0.5), *clamps[:2], *clamps, *functions])

    def unary(self):
        """Add what keeps the shape, or takes every second pixel, or adds channels of zeros."""
        channels, height, width = shape = self.shapes[-1]
        name = self.parameter(*self.random.choice([(1,), (channels, 1, 1), (1, channels, 1, 1)]))
        choices = [
            (nn.ReLU(), shape),
            (F.relu, shape),
            (nn.BatchNorm2d(channels), shape),
            (nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()), shape),
            (nn.Dropout2d(0.3), shape),
            (self.activation(channels), shape),
            (self.activation(channels), shape),
            (lambda x: x * self.get_parameter(name) + 0.5, shape),
            (lambda x: 1 - x / self.get_parameter(name), shape),
            (lambda x: (x - self.get_parameter(name)) / 2, shape),
            (lambda x: x[:, :, ::2, ::2], (channels, -(-height // 2), -(-width // 2))),
            (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), (channels + 3, height, width)),
            (nn.ZeroPad2d((0, 1, 2, 0)), (channels, height + 2, width + 1)),
        ]
        self.add(*self.random.choice(choices))

    def pool(self):
        channels, height, width = self.shapes[-1]
        side = self.random.randint(1, min(3, height, width))
        stride, padding = self.random.randint(1, 2), self.random.randint(0, side // 2)
        kernel = self.random.randint(1, height), self.random.randint(1, width)
        rows, columns = (self.random.choice([n for n in range(1, s + 1) if s % n == 0]) for s in (height, width))
        sizes = [(s + 2 * padding - side) // stride + 1 for s in (height, width)]
        counts, ceil = self.random.random() < 0.5, [-(-height // kernel[0]), -(-width // kernel[1])]
        choices = [
            (nn.AvgPool2d(side, stride, padding, count_include_pad=counts), (channels, *sizes)),
            (nn.MaxPool2d(kernel, ceil_mode=True), (channels, *ceil)),
            (nn.AvgPool2d(kernel, ceil_mode=True), (channels, *ceil)),
            (nn.MaxPool2d(side, stride, padding), (channels, *sizes)),
            (lambda x: F.avg_pool2d(x, kernel), (channels, height // kernel[0], width // kernel[1])),
            (nn.AdaptiveAvgPool2d((rows, columns)), (channels, rows, columns)),
            (lambda x: x.mean((2, 3), keepdim=True), (channels, 1, 1)),
        ]
        self.add(*self.random.choice(choices[: self.random.choice([6, 6, 7])]))

    def sum(self):
        """Add the sum of two values of one shape, at times times a number or followed by ReLU."""
        one = self.random.randrange(len(self.shapes))
        two = self.random.choice([i for i, shape in enumerate(self.shapes) if shape == self.shapes[one]])
        functions = [lambda x, y: x + y, lambda x, y: F.relu(x + y), lambda x, y: x + 0.1 * y, lambda x, y: x - 2 * y]
        self.add(self.random.choice(functions), self.shapes[one], one, two)

    def concatenation(self):
        one = self.random.randrange(len(self.shapes))
        size = self.shapes[one][1:]
        two = self.random.choice([i for i, shape in enumerate(self.shapes) if shape[1:] == size])
        channels = self.shapes[one][0] + self.shapes[two][0]
        self.add(lambda x, y: torch.cat([x, y], 1), (channels, *size), one, two)

    def end(self):
        """Add one of the endings: a fully connected layer of any kind, with or without normalisation, or a pooling."""
        channels, height, width = self.shapes[-1]
        classes, inputs = self.random.randint(2, 12), channels * height * width
        kind = self.random.choice([nn.Linear, nn.Linear, AdderLinear, BinaryLinear])
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        endings = [
            nn.Sequential(nn.Flatten(), kind(inputs, classes)),
            nn.Sequential(pooled, kind(channels, classes)),
            nn.Sequential(pooled, kind(channels, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, classes)),
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(inputs), nn.Linear(inputs, classes)),
            nn.Sequential(nn.Conv2d(channels, classes, 1), nn.ReLU(), pooled),
            nn.Sequential(nn.Flatten(), kind(channels, classes), nn.BatchNorm1d(classes)),
        ]
        is_one_pixel = height * width == 1
        self.add(self.random.choice(endings if is_one_pixel else endings[:5]), (classes,))
