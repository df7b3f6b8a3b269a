"""Test that a network is captured by what it computes: subclasses, hooks, wrappers, in-place code, spellings."""

import logging
import threading
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from tests.quant.test_lowering import correlation, trained
from torch import nn
from torch.nn.utils import parametrizations, prune

from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.nn import AdderConv2d
from torchadder.quant import obstacles, quantize
from torchadder.quant.steps import AveragePool, MaxPool


def images(size=8, channels=2):
    return torch.randn(16, channels, size, size, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Run an adder layer, the spelling under test, and a classifier with 12 inputs by default."""

    def __init__(self, between, numbers=12):
        super().__init__()
        self.layer, self.norm = AdderConv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu, self.between, self.last = nn.ReLU(), between, nn.Linear(numbers, 4)
        self.pool = nn.MaxPool2d(4)

    def forward(self, x):
        return self.last(self.between(self, self.norm(self.layer(x))))


MEAN = AveragePool, (8, 8), (1, 1)
SPELLINGS = [  # spelling, its outputs, the expected pooling step
    (lambda n, x: F.max_pool2d(n.relu(x), 4).flatten(1), 12, (MaxPool, 4, 4)),
    (lambda n, x: F.relu(F.max_pool2d(x, 4)).view(x.size(0), -1), 12, (MaxPool, 4, 4)),
    (lambda n, x: n.relu(n.pool(x)).view(-1, 12), 12, (MaxPool, 4, 4)),
    (lambda n, x: torch.flatten(F.max_pool2d(F.relu(x), kernel_size=3, stride=3), start_dim=1), 12, (MaxPool, 3, 3)),
    (lambda n, x: F.max_pool2d(F.relu(x), (5, 5), stride=(4, 4), padding=2).flatten(1), 12, (MaxPool, 5, 4)),
    (lambda n, x: F.max_pool2d(x.relu(), 3, 3, return_indices=True)[0].flatten(1), 12, (MaxPool, 3, 3)),
    (lambda n, x: F.adaptive_max_pool2d(x, 2).relu().flatten(1), 12, (MaxPool, 4, 4)),
    (lambda n, x: F.avg_pool2d(F.relu(x), (3, 2), (5, 6)).flatten(1), 12, (AveragePool, (3, 2), (5, 6))),
    (lambda n, x: F.adaptive_avg_pool2d(F.relu(x), (1, None)).flatten(1), 24, (AveragePool, (8, 1), (8, 1))),
    (lambda n, x: F.relu(x).mean((2, 3)), 3, MEAN),
    (lambda n, x: F.dropout(F.relu(x).mean([-1, -2], keepdim=True), 0.5, n.training).squeeze(), 3, MEAN),
]


@pytest.mark.parametrize(("between", "numbers", "expected"), SPELLINGS)
def test_a_spelling_becomes_a_step(between, numbers, expected):
    model = trained(Net(between, numbers), images())
    program = quantize(model, images(), method="max")
    step = program.steps[1]
    assert (type(step), step.kernel, step.stride) == expected
    with torch.no_grad():
        assert correlation(program(images()), model(images())) > 0.999


class Plain(nn.Module):
    """Be the network that all of SAME are: two convolutions with a shortcut, a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.pool, self.last = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(4, 3)
        with torch.no_grad():
            self.one.weight[0] = 0
            self(images())
        self.eval()

    def forward(self, x, flag=False):
        x = self.relu(self.norm(self.one(x)))
        x = self.relu(self.two(x) + x)
        return self.last(F.avg_pool2d(self.pool(x), 4).flatten(1))


class InPlace(Plain):
    def forward(self, x):
        x = F.relu_(self.norm(self.one(x)))
        y = self.two(x)
        z = y
        y += x
        return self.last(F.avg_pool2d(self.pool(z.relu_()), 4).flatten(1))


class Computed(Plain):
    def forward(self, x):
        x = self.relu(self.norm(self.one(x)))
        x = F.max_pool2d(self.relu(x + self.two(x).contiguous()), 2, ceil_mode=True)
        x = F.dropout2d(F.adaptive_avg_pool2d(F.avg_pool2d(x, x.size()[3]), 1), 0.2, self.training)
        return self.last(F.dropout(x.view(-1, 4), training=self.training))


class Doubled(nn.Conv2d):
    def forward(self, x):
        weight = self.weight * 2
        return F.conv2d(x, weight / weight.new_tensor(2), self.bias, self.stride, self.padding)


def subclass(net):
    net.two.__class__ = Doubled
    return net


def hooked(net):
    net.last.register_forward_hook(lambda module, inputs, output: 2 * output)
    net.last.weight.data /= 2
    net.last.bias.data /= 2
    return net


def padded(net):
    """Move the padding out of the layers, that of the second one in one direction only."""
    for layer, amounts, layer.padding in ((net.one, (1, 1, 1, 1), (0, 0)), (net.two, (0, 0, 1, 1), (0, 1))):
        layer.register_forward_pre_hook(lambda layer, inputs, amounts=amounts: (F.pad(inputs[0], amounts),))
    return net


def pruned(net):
    prune.custom_from_mask(net.one, "weight", (net.one.weight != 0).float())
    return net


def remembered(net):
    """Keep values that have a gradient in a dict and a list, and return the network after one use."""
    net.features, net.losses = {}, []
    net.one.register_forward_hook(lambda module, inputs, output: net.features.update(a=output, b=[output]))
    net.losses.append(net(images()).sum())
    return net


SAME = {
    "subclass": subclass,
    "forward hook": hooked,
    "in place": lambda net: InPlace(),
    "computed windows, dropout, view": lambda net: Computed(),
    "padded before the layers": padded,
    "DataParallel of a compiled one": lambda net: nn.DataParallel(torch.compile(net)),
    "compiled in place": lambda net: net.compile() or net,
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "pruned": pruned,
    "values kept by hooks": remembered,
    "dictionary": lambda net: Output(net),
    "exported": lambda net: torch.export.export(net, (images(),), strict=False),
}


class Output(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values, labels=None):
        return {"features": None, "logits": self.network(pixel_values)}


@pytest.fixture(scope="module")
def plain():
    return quantize(Plain(), images()).to_bytes()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch.compile calls it
@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_the_same_function_has_the_same_program(change, plain):
    assert quantize(change(Plain()), images()).to_bytes() == plain


class Wrong(nn.Module):
    """Hold operators without integer form in several places."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.ConvTranspose2d(2, 4, 3), nn.MaxPool2d(3, dilation=2)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)) for _ in range(3)])
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = F.dropout(self.blocks(self.two(self.one(x).cumsum(1))), 0.5)
        return self.last(x.mean(1).flatten(1))


OBSTACLES = [
    "one, ConvTranspose2d: it has no integer form, replace it",
    "Wrong, cumsum: it has no integer form, replace it",
    "two, MaxPool2d with dilation=(2, 2): take dilation=1",
    "blocks.0.0, GroupNorm: it has no integer form, replace it (2 more: blocks.1.0, blocks.2.0)",
    "Wrong, native_dropout that may be random: pass training=self.training to dropout, or replace it",
    "Wrong, mean over axes [1]: only a mean over height and width has an integer form",
]


def test_all_obstacles_are_named_at_once_before_calibration():
    model = Wrong().train()
    found = obstacles(model, torch.zeros(1, 2, 8, 8))
    assert found == OBSTACLES
    with pytest.raises(UserError) as error:
        quantize(model, torch.full((4, 2, 8, 8), float("nan")))
    first, *lines = str(error.value).splitlines()
    assert (first, lines) == ("cannot quantize Wrong, look at 6 parts:", [f"  {line}" for line in found])
    assert model.training
    assert obstacles(Plain(), images()) == []


def with_variance(number):
    (norm := nn.BatchNorm2d(4)).running_var.fill_(number)
    return norm


CALLS = count(1)


class Branching(nn.Module):
    """Depend on something that is not in the graph."""

    def __init__(self, multiple):
        super().__init__()
        self.layer, self.multiple = nn.Conv2d(2, 3, 8), multiple

    def forward(self, x):
        return (self.layer(x) * self.multiple(x)).flatten(1)


def locked(net):
    net.lock = threading.Lock()
    return net


class Two(nn.Module):
    def forward(self, x, other):
        return x + other


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (lambda: print, TypeError, "model is a builtin_function_or_method: expected an nn.Module"),
        (lambda: ends(Function(lambda x, s: x * float("nan"))), UserError, "NaN or infinite parameters"),
        (lambda: Function(lambda x, s: None), UserError, "its output is no tensor: expected the logits"),
        (lambda: Function(lambda x, s: {"out": x, "features": x}), UserError, "one output, the logits"),
        (lambda: ends(Function(lambda x, s: torch.stack([x, x]).sum(0))), UserError, "stack: it has no integer form"),
        (lambda: ends(Function(lambda x, s: x[:, :, 1:])), UserError, "slice of axis 2 from 1 to the end: take whole"),
        (lambda: ends(with_variance(-1.0)), UserError, "1, BatchNorm2d with negative variances: train it anew"),
        (lambda: locked(Plain()), UserError, r"Plain: it holds something that cannot be copied \(.*lock.*"),
        (lambda: Branching(lambda x: 2 if len(x) > 2 else 1), UserError, "it computes something else than traced"),
        (lambda: Branching(lambda x: 2 if x.max() > 1 else 1), UserError, "or a hook, takes a number from the values"),
        (lambda: Branching(lambda x: next(CALLS)), UserError, "must not depend on their number, on randomness or on"),
        (lambda: Two(), UserError, r"Two: it does not run on images torch.float32 \(N, 2, 8, 8\) alone \(.*'other'"),
        (lambda: nn.Conv2d(3, 3, 8), UserError, r"Conv2d: it does not run on images .* \(.* 3 channels, but got 2"),
        (
            lambda: torch.export.export(nn.ReLU(), (images(),), dynamic_shapes=({2: torch.export.Dim.AUTO},)),
            UserError,
            r"expected images \(N, C, H, W\), of which only N is dynamic",
        ),
        (
            lambda: torch.export.export(Plain(), (images(9),), strict=False),
            UserError,
            r"expected images \(N, 2, 9, 9\), got torch.float32 \(N, 2, 8, 8\)",
        ),
    ],
)
def test_a_model_that_cannot_be_quantized_is_refused(model, error, words):
    with pytest.raises(error, match=words):
        quantize(model(), images())


def test_a_model_that_does_not_run_is_refused_before_torch_logs_its_traceback(caplog):
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(UserError, match=r"does not run on images .* \(.*2x128 and 100x10"):
            quantize(nn.Sequential(nn.Flatten(), nn.Linear(100, 10)), images())
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []


def test_autocast_is_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match=r"autocast is on, .*: quantize outside"):
        quantize(Plain(), images())


def test_a_softmax_at_the_end_is_left_out(plain):
    with pytest.warns(UserWarning, match="the final log_softmax is left out: the program returns logits"):
        program = quantize(nn.Sequential(Plain(), nn.LogSoftmax(1)), images())
    assert program.to_bytes() == plain


class Function(nn.Module):
    """Apply a function of the values and of a constant for each of four channels."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.tensor([2.0, -0.5, 1.0, 0.25]).view(4, 1, 1))

    def forward(self, x):
        return self.function(x, self.scale)


class Negative(nn.BatchNorm2d):
    def forward(self, x):
        return -1 * super().forward(x)


def ends(*modules, before=(), **options):
    """Return a network: modules, a convolution, modules, ReLU, mean, classifier."""
    return nn.Sequential(*before, nn.Conv2d(2, 4, 3, **options), *modules, nn.ReLU(), Function(mean), nn.Linear(4, 3))


def mean(x, scale):
    return x.mean((2, 3))


class Less(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) - x


HEAD = nn.ReLU(), Function(mean), nn.Linear(4, 3)


COMPUTED = {
    "normalised images": ends(before=[Function(lambda x, s: (x - 0.5) / 0.25)]),
    "normalised images, padded": ends(before=[Function(lambda x, s: (x - 0.1) / 0.25)], padding=1),
    "normalisation before a layer": ends(before=[nn.BatchNorm2d(2)]),
    "normalisation before one that pads": ends(before=[nn.Conv2d(2, 2, 1), nn.ReLU(), Negative(2)], padding=1),
    "normalisation after max pooling": ends(nn.MaxPool2d(2), nn.BatchNorm2d(4)),
    "negative normalisation after max pooling": ends(nn.MaxPool2d(2), Negative(4)),
    "normalisation after ReLU": ends(nn.ReLU(), Negative(4)),
    "normalisation after a sum": ends(Function(lambda x, s: x + x.relu()), Negative(4)),
    "normalisation of flattened values": nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 3)
    ),
    "scales": ends(Function(lambda x, s: 1 - s * x / 2 + s)),
    "a sum of two ReLU": ends(Function(lambda x, s: (x * s).relu() + x.relu())),
    "a difference": ends(Function(lambda x, s: x.relu() - x), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    "a difference of images, and a multiple": nn.Sequential(
        Function(lambda x, s: torch.sub(x.relu(), x, alpha=3)), nn.Conv2d(2, 3, 8), nn.Flatten()
    ),
    "a weighted sum with a layer": ends(Function(lambda x, s: torch.add(x.relu(), -x, alpha=0.5))),
    "a layer less a shortcut": nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), Less(4, 4, 3, padding=1), *HEAD),
    "multiples of constants": ends(Function(lambda x, s: torch.rsub(torch.add(x, s, alpha=2), 1, alpha=3))),
    "shortcut of option A": nn.Sequential(
        nn.Conv2d(2, 4, 3),
        Function(lambda x, s: F.pad(x.relu()[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)).flatten(1)),
        nn.Linear(7 * 9, 3),
    ),
    "ending of a SqueezeNet": nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "one pixel, repeated": nn.Sequential(
        nn.Conv2d(2, 4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(4 * 49, 3)
    ),
    "every second pixel of the images": nn.Sequential(
        Function(lambda x, s: x[:, :, ::2, ::2]), nn.Flatten(), nn.Linear(32, 3)
    ),
    "a sum of images": nn.Sequential(Function(lambda x, s: x + x.relu()), nn.Conv2d(2, 3, 8), nn.Flatten()),
    "normalised, then flattened and normalised": nn.Sequential(
        nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(128), nn.Linear(128, 3)
    ),
    "mean over width, then height": nn.Sequential(nn.Conv2d(2, 3, 3), Function(lambda x, s: x.mean(3).mean(2))),
    "mean over pixels": nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), Function(lambda x, s: x.flatten(2).mean(-1))),
    "one pixel, selected": nn.Sequential(nn.Conv2d(2, 3, 8), Function(lambda x, s: x[:, :, 0, 0]), nn.Linear(3, 3)),
    "standardised weight": nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 4, 8)), nn.Flatten()),
}


@pytest.mark.parametrize("model", COMPUTED.values(), ids=COMPUTED.keys())
def test_what_follows_no_layer_is_computed(model):
    x = images()
    trained(model, x)
    program = quantize(model, x, method="max")
    with torch.no_grad():
        assert correlation(program(x), model(x)) > 0.998


def test_a_dead_channel_does_not_widen_the_scale():
    def logits(weight, bias):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        trained(model, images())
        with torch.no_grad():
            model[1].running_var[1], model[1].weight[1], model[1].bias[1] = 0, weight, bias
        return quantize(model, images())(images())

    assert torch.equal(logits(1000, -1e6), logits(0, -1))


def test_other_threads_run_models_while_one_is_captured():
    """Torch patches nn.Module while it exports."""
    done, failed = threading.Event(), []
    other = nn.Sequential(AdderConv2d(2, 2, 3, padding=1), Plain())
    expected = other(images()).detach()

    def run():
        try:
            while not done.is_set():
                torch.testing.assert_close(other(images()).detach(), expected)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert obstacles(Plain(), images()) == []
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []


@pytest.mark.parametrize(
    ("architecture", "config", "least"),
    [
        ("ResNet", dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3), 0.98),
        ("MobileNetV2", dict(depth_multiplier=0.25, num_labels=3), None),  # untrained, it amplifies rounding
    ],
)
def test_networks_of_transformers(architecture, config, least):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**config)
    model = getattr(transformers, f"{architecture}ForImageClassification")(config)
    x = images(32, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
        program = quantize(model, x)
        assert torch.equal(Engine(program, threads=1)(x), program(x))
        assert least is None or correlation(program(x), model.eval()(x).logits) > least
