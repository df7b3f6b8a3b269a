"""Test the order of layers and what follows each, recorded, traced and defined, on networks as others write them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchadder import convert
from torchadder.convert.flow import find_flow

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs=3, outputs=3):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Net(nn.Module):
    """Hold modules by name and the function that runs them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


class Norm(nn.Module):
    """A normalisation of another library, without children, recognised by its name."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        y = x.permute(0, 2, 3, 1)
        return (self.scale * (y - y.mean(-1, keepdim=True)) / y.std(-1, keepdim=True)).permute(0, 3, 1, 2)


class ConvNormAct(nn.Sequential):
    """A block with a layer, which is no normalisation whatever its name."""

    def __init__(self):
        super().__init__(conv(), nn.BatchNorm2d(3), nn.ReLU())


class DropPath(nn.Module):
    def forward(self, x):
        return x if not self.training else x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5))


def batch_norm(x):
    return F.batch_norm(x, torch.zeros(x.size(1)), torch.ones(x.size(1)))


def reshaped(net, x):
    y = net.conv(x)
    n, c, h, w = y.shape
    return net.norm(y.reshape(n, c, h * w).transpose(1, 2)).mean(dim=1)


def residual(net, x):
    return net.norm(net.conv(x) + x)


def pre_activation(net, x):
    return x + net.conv(F.relu(net.norm(x)))


def two_uses(net, x):
    y = net.conv(x)
    return net.norm(y) + y


def concatenated(net, x):
    return net.norm(torch.cat([net.conv(x), x], 1)[:, :3])


def split(net, x):
    first, second = net.conv(x).chunk(2, dim=0)
    return net.norm(first) + net.norm(second)


def scaled(net, x):
    return net.norm(net.conv(x) * 0.5)


BLOCKS = {  # how a layer named `conv` runs beside a `norm`, and whether a normalisation follows it
    "sequential": (lambda net, x: F.relu(net.norm(net.conv(x))), nn.BatchNorm2d(3), True),
    "group norm": (lambda net, x: net.norm(net.conv(x)), nn.GroupNorm(1, 3), True),
    "instance norm": (lambda net, x: net.norm(net.conv(x)), nn.InstanceNorm2d(3), True),
    "rms norm": (lambda net, x: net.norm(net.conv(x)), nn.RMSNorm([8, 8]), True),
    "sync batch norm": (lambda net, x: net.norm(net.conv(x)), nn.SyncBatchNorm(3), True),
    "own norm": (lambda net, x: net.norm(net.conv(x)), Norm(), True),
    "norm in a block": (lambda net, x: net.norm(net.conv(x)), nn.Sequential(nn.Identity(), nn.BatchNorm2d(3)), True),
    "functional": (lambda net, x: batch_norm(net.conv(x)), nn.Identity(), True),
    "layer_norm": (lambda net, x: F.layer_norm(net.conv(x), (8, 8)), nn.Identity(), True),
    "pooled": (lambda net, x: net.norm(F.dropout(F.max_pool2d(net.conv(x), 2))), nn.BatchNorm2d(3), True),
    "module pooled": (lambda net, x: net.norm(net.conv(x)), nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(3)), True),
    "drop path": (lambda net, x: net.norm(net.conv(x)), nn.Sequential(DropPath(), nn.BatchNorm2d(3)), True),
    "upsampled": (lambda net, x: net.norm(F.interpolate(net.conv(x), scale_factor=2)), nn.BatchNorm2d(3), True),
    "reshaped": (reshaped, nn.LayerNorm(3), True),
    "concatenated": (concatenated, nn.BatchNorm2d(3), True),
    "split": (split, nn.BatchNorm2d(3), True),
    "nothing": (lambda net, x: net.conv(x), nn.Identity(), False),
    "flattened": (lambda net, x: torch.flatten(net.conv(x), 1), nn.Identity(), False),
    "relu between": (lambda net, x: net.norm(F.relu(net.conv(x))), nn.BatchNorm2d(3), False),
    "in place": (lambda net, x: net.norm(net.conv(x).relu_()), nn.BatchNorm2d(3), False),
    "norm before": (lambda net, x: net.conv(net.norm(x)), nn.BatchNorm2d(3), False),
    "residual": (residual, nn.BatchNorm2d(3), False),
    "pre-activation": (pre_activation, nn.BatchNorm2d(3), False),
    "two uses": (two_uses, nn.BatchNorm2d(3), False),
    "scaled": (scaled, nn.BatchNorm2d(3), False),
    "another layer": (lambda net, x: net.norm(net.conv(x)), nn.Sequential(conv(), nn.BatchNorm2d(3)), False),
    "a block that is none": (lambda net, x: net.norm(net.conv(x)), ConvNormAct(), False),
}
EXAMPLE = {"traced": None, "recorded": IMAGE}


@pytest.mark.parametrize("found", EXAMPLE)
@pytest.mark.parametrize(("run", "norm", "normalised"), BLOCKS.values(), ids=BLOCKS.keys())
def test_whether_a_normalisation_follows(run, norm, normalised, found):
    net = Net(run, conv=conv(), norm=norm)
    flow = find_flow(net, EXAMPLE[found])
    assert flow.found == found
    assert flow.lacks_normalisation(net.conv) is not normalised


BEFORE = {  # what a layer's input comes from, and whether that is never negative
    "relu": (lambda net, x: net.conv(F.relu(x)), True),
    "in place": (lambda net, x: net.conv(net.norm(x).relu_()), True),
    "relu6, pooled": (lambda net, x: net.conv(F.max_pool2d(F.relu6(x), 2)), True),
    "module": (lambda net, x: net.conv(net.act(net.norm(x))), True),
    "sigmoid and relu": (lambda net, x: net.conv(torch.cat([x.sigmoid(), F.relu(x)], 2)), True),
    "input": (lambda net, x: net.conv(x), False),
    "norm": (lambda net, x: net.conv(net.norm(x)), False),
    "norm after": (lambda net, x: net.conv(net.norm(F.relu(x))), False),
    "one side only": (lambda net, x: net.conv(torch.cat([net.norm(x), F.relu(x)], 2)), False),
    "gelu": (lambda net, x: net.conv(F.gelu(x)), False),
}


@pytest.mark.parametrize("found", EXAMPLE)
@pytest.mark.parametrize(("run", "never"), BEFORE.values(), ids=BEFORE.keys())
def test_whether_a_layer_ever_sees_negatives(run, never, found):
    net = Net(run, conv=conv(), norm=nn.BatchNorm2d(3), act=nn.ReLU6(inplace=True))
    assert find_flow(net, EXAMPLE[found]).never_sees_negatives(net.conv) is never


def backwards(net, x):
    return net.a(net.b(net.c(x)))


def looped(net, x):
    for layer in (net.a, net.b, net.c, net.a):
        x = layer(x)
    return x


def by_values(net, x):
    return net.c(net.b(x)) if x.sum() > 0 else net.b(net.c(x))


ORDERS = {  # how three layers run, an example input: how that is found, which ones are first and last
    "backwards": (backwards, None, "traced", "c", "a"),
    "backwards, recorded": (backwards, IMAGE, "recorded", "c", "a"),
    "shared": (looped, None, "traced", "a", "a"),
    "one branch": (by_values, None, "defined", "a", "c"),
    "the branch that ran": (by_values, IMAGE.abs(), "recorded", "b", "c"),
    "the other branch": (by_values, -IMAGE.abs(), "recorded", "c", "b"),
}


@pytest.mark.parametrize(("run", "example", "found", "first", "last"), ORDERS.values(), ids=ORDERS.keys())
def test_first_and_last_are_those_that_run_first_and_last(run, example, found, first, last):
    net = Net(run, a=conv(), b=conv(), c=conv())
    flow = find_flow(net, example)
    assert (flow.found, flow.first, flow.last) == (found, getattr(net, first), getattr(net, last))


def test_a_first_layer_without_counterpart_is_the_first_all_the_same():
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3), conv(), nn.BatchNorm2d(3), conv())
    convert(model)
    assert [row.outcome for row in model.conversion.rows] == ["left", "converted", "kept"]


def test_order_of_definition_sees_each_module_feed_the_next():
    blocks = nn.ModuleList([nn.ModuleDict({"conv": conv(), "pool": nn.MaxPool2d(2), "norm": nn.BatchNorm2d(3)})])
    net = Net(by_values, a=conv(), act=nn.ReLU(), blocks=blocks, block=ConvNormAct(), last=conv())
    flow = find_flow(net)
    layers = [net.a, net.blocks[0]["conv"], net.block[0], net.last]
    assert flow.found == "defined"
    assert [flow.lacks_normalisation(layer) for layer in layers] == [True, False, False, True]
    assert [flow.never_sees_negatives(layer) for layer in layers] == [False, True, False, True]
    with pytest.warns(UserWarning, match="1 of the adder layers: a .judged by the order of definition; pass"):
        convert(net, filter_fn=lambda name, layer: name == "a")
    assert "order of definition" in str(net.conversion)


def past_the_layer(net, x):
    return net.b(F.conv2d(net.a(x), net.b.weight))


def question_about_the_weight(net, x):
    return net.b(net.a(x.to(net.b.weight.dtype)))


@pytest.mark.parametrize("found", EXAMPLE)
@pytest.mark.parametrize(("run", "left"), [(past_the_layer, True), (question_about_the_weight, False)])
def test_a_layer_whose_weight_is_used_past_it_is_left_alone(run, left, found):
    net = Net(run, a=nn.Sequential(conv(), nn.BatchNorm2d(3)), b=conv(), norm=nn.BatchNorm2d(3))
    net.run = lambda net, x: net.norm(run(net, x))
    convert(net, filter_fn=lambda name, layer: True, example_input=EXAMPLE[found])
    row = net.conversion.rows[1]
    assert (row.outcome, row.note) == (("left", "its weight is used without calling it") if left else ("converted", ""))


class Restless(nn.Module):
    """Change with every run all that a module can hold."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(conv(), nn.BatchNorm2d(3), conv(), nn.BatchNorm2d(3), conv())
        self.register_buffer("runs", torch.zeros(()))
        self.seen, self.last, self.modes = [], None, {}

    def train(self, mode=True):
        self.modes[mode] = self.modes.get(mode, 0) + 1
        return super().train(mode)

    def forward(self, x):
        self.runs += 1
        self.last = self.layers(x + torch.rand(1))
        self.seen.append(self.last)
        self.modes["runs"] = True
        self.extra = nn.Identity()
        return self.last


@pytest.mark.parametrize("example", [None, IMAGE], ids=["traced", "recorded"])
def test_finding_the_flow_changes_nothing(example):
    net = Restless()
    net.layers[1].eval()
    net.train()
    net.layers[3].eval()
    hooked = []
    handles = [
        net.layers.register_forward_pre_hook(lambda module, args: hooked.append(args)),
        net.layers.register_forward_hook(lambda module, args, out: hooked.append(out)),
    ]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags, modes, random = [m.training for m in net.modules()], dict(net.modes), torch.get_rng_state()
    attributes = [vars(m).keys() for m in net.modules()]
    flow = find_flow(net, example)
    assert flow.found == ("traced" if example is None else "recorded")
    assert (net.seen, net.last, net.modes) == ([], None, modes)
    assert [m.training for m in net.modules()] == flags
    assert [vars(m).keys() for m in net.modules()] == attributes
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(hooked) == (0 if example is None else 2)
    hooked.clear()
    net(IMAGE)
    for handle in handles:
        handle.remove()
    net(IMAGE)
    assert len(hooked) == 2


def test_a_run_that_fails_leaves_everything_as_it_was_too():
    net = Restless()
    with pytest.raises(ValueError, match="Restless does not run on example_input"):
        find_flow(net, torch.zeros(1, 7, 8, 8))
    assert (net.runs.item(), net.training, net.layers[0]._forward_hooks) == (0, True, {})


def test_one_example_is_enough_as_the_run_is_in_evaluation_mode():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    assert find_flow(net, torch.zeros(1, 4)).found == "recorded"
    assert all(m.training for m in net.modules())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_part_keeps_its_mode():
    net = nn.Sequential(conv(), torch.jit.script(nn.Dropout()), nn.BatchNorm2d(3), conv())
    flow = find_flow(net, IMAGE)
    assert (flow.first, flow.last) == (net[0], net[3])
    assert net[1].training


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, y, *, swap=False):
        return {"out": [self.b(x), self.a(y)] if swap else [self.a(x), self.b(y)]}


X = torch.zeros(2, 4)
INPUTS = {
    "tuple": ((X, X), "a"),
    "list": ([X, X], "a"),
    "dict": ({"x": X, "y": X, "swap": True}, "b"),
}


@pytest.mark.parametrize(("example", "first"), INPUTS.values(), ids=INPUTS.keys())
def test_example_inputs_are_passed_as_arguments(example, first):
    net = TwoInputs()
    flow = find_flow(net, example)
    assert flow.first is getattr(net, first)
    assert flow.lacks_normalisation(net.a)
    assert flow.lacks_normalisation(net.b)


def test_defaults_of_the_forward_arguments_are_traced():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask, self.first, self.last = conv(), conv(), conv()

        def forward(self, x, mask=None, scale=1.0, **more):
            if mask is not None:
                x = x * self.mask(mask)
            return self.last(self.first(x) * scale)

    net = Optional()
    flow = find_flow(net)
    assert (flow.found, flow.first, flow.last) == ("traced", net.first, net.last)
