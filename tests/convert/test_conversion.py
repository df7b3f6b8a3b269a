"""Test convert: the layers that it replaces and leaves, that nothing else changes, and its report."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from torch import nn

import torchadder
from torchadder import AdaptiveLR, convert
from torchadder.functional import GradientRule
from torchadder.nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = {  # torch's layer, its adder and binary counterparts, arguments, shape of an input
    "conv1d": (nn.Conv1d, AdderConv1d, None, (4, 6, 3), (2, 4, 7)),
    "conv2d": (nn.Conv2d, AdderConv2d, BinaryConv2d, (4, 6, (3, 2), 2, 1, 1, 2, False, "reflect"), (2, 4, 7, 5)),
    "conv2d, same": (nn.Conv2d, AdderConv2d, BinaryConv2d, (4, 6, 3, 1, "same", 2), (2, 4, 7, 5)),
    "conv3d": (nn.Conv3d, AdderConv3d, None, (2, 3, 3), (2, 2, 5, 4, 3)),
    "linear": (nn.Linear, AdderLinear, BinaryLinear, (5, 7), (3, 5)),
}
OPS = ("conv", "adder", "binary")
PAIRS = [
    pytest.param(start, end, *case, id=f"{name}, {start} to {end}")
    for name, case in LAYERS.items()
    for start in OPS
    for end in OPS
    if case[OPS.index(start)] and case[OPS.index(end)]
]


@pytest.mark.parametrize(("start", "end", "conv", "adder", "binary", "args", "shape"), PAIRS)
def test_a_layer_becomes_its_counterpart_and_nothing_else_of_it_changes(start, end, conv, adder, binary, args, shape):
    classes = dict(zip(OPS, (conv, adder, binary), strict=True))
    layer, expected = classes[start](*args), classes[end](*args)
    expected.load_state_dict(layer.state_dict())
    parameters = dict(layer.named_parameters())
    assert convert(layer, end, recenter=False) is layer
    assert type(layer) is classes[end]
    assert vars(layer).keys() - {"conversion"} == vars(expected).keys()
    assert repr(layer) == repr(expected)
    assert all(layer.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert [vars(p) for p in layer.parameters()] == [vars(p) for p in expected.parameters()]
    x = torch.randn(shape)
    assert torch.equal(layer(x), expected(x))


def network():
    """Build a network with layers of every kind, nested, one of them shared, and a normalisation after each."""
    shared = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU())
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        shared,
        nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Tanh()),
        shared,
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 8),
        nn.BatchNorm1d(8),
        nn.LeakyReLU(),
        nn.Linear(8, 4),
    )


IMAGE = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
MIDDLE = ["2.0", "3.0", "6"]  # all but the first and the last layer


def outcomes(module):
    """Return the names of the layers by outcome."""
    found = {}
    for row in module.conversion.rows:
        found.setdefault(row.outcome, []).append(row.name)
    return found


def notes(module):
    return {row.name: row.note for row in module.conversion.rows if row.note}


def test_all_but_the_first_and_last_layer_become_adder_layers_by_default():
    model = convert(network())
    assert outcomes(model) == {"kept": ["0", "9"], "converted": MIDDLE}
    assert notes(model) == {"0": "runs first", "9": "runs last"}
    assert [name for name, m in model.named_modules() if isinstance(m, torchadder.nn.Adder)] == MIDDLE
    assert model[2] is model[4]


@pytest.mark.parametrize("path", [["adder"], ["binary"], ["binary", "adder"], ["adder", "binary", "adder"]])
def test_there_and_back_is_the_same_network_bit_for_bit(path):
    model = network().eval()
    before, expected, state = copy.deepcopy(model), model(IMAGE), copy.deepcopy(model.state_dict())
    for to in path:
        convert(model, to)
        assert not torch.equal(model(IMAGE), expected)
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(now, state[name]) for name, now in model.state_dict().items())
    convert(model, "conv")
    assert torch.equal(model(IMAGE), expected)
    assert repr(model) == repr(before)
    for now, then in zip(model.modules(), before.modules(), strict=True):
        assert type(now) is type(then)
        assert vars(now).keys() - {"conversion"} == vars(then).keys()
    assert not any(hasattr(p, "adder") for p in model.parameters())


def test_an_optimizer_made_before_trains_the_converted_network():
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with pytest.raises(ValueError, match="no adder weight"):
        AdaptiveLR(optimizer)
    convert(model, rescale=True)
    AdaptiveLR(optimizer, eta=0.1)
    weights = [p for p in model.parameters() if p.dim() > 1]
    before = [p.detach().clone() for p in weights]
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(IMAGE), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any(torch.equal(now, then) for now, then in zip(weights, before, strict=True))


def test_flags_and_hooks_of_the_layers_stay():
    model, seen = network(), []
    model[3].eval().requires_grad_(False)
    handle = model[3][0].register_forward_hook(lambda layer, args, out: seen.append(type(layer)))
    convert(model)
    assert seen == []
    assert (model.training, model[3].training, model[3][0].training) == (True, False, False)
    assert [p.requires_grad for p in model[3].parameters()] == [False] * 3
    model(IMAGE)
    assert seen == [AdderConv2d]
    handle.remove()
    model(IMAGE)
    assert len(seen) == 1


def test_tied_weights_stay_tied_and_marked_while_an_adder_layer_has_them():
    model = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    convert(model, filter_fn=lambda name, layer: name in ("0", "2"))
    assert model[0].weight is model[2].weight
    assert model[0].weight.adder
    with pytest.raises(ValueError, match=r"is not converted: 0 .AdderLinear.: shares its weight with 2, which is not"):
        convert(model, "conv", filter_fn=lambda name, layer: name == "0")
    assert model[2].weight.adder
    convert(model, "conv")
    assert not hasattr(model[2].weight, "adder")


class Tied(nn.Module):
    """Share the weight of a middle layer with `other`."""

    def __init__(self, other, by_data):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3))
        self.more, self.norm, self.other = nn.Linear(5, 5), nn.LayerNorm(5), other
        weight = self.layers[2].weight
        self.other.weight = nn.Parameter(weight.data) if by_data else weight

    def forward(self, x):
        return self.layers(self.norm(self.more(self.other(x))))


@pytest.mark.parametrize("by_data", [False, True])
@pytest.mark.parametrize("other", [nn.Linear(5, 5), nn.Embedding(5, 5)], ids=["first", "embedding"])
def test_a_layer_that_shares_its_weight_with_a_kept_one_is_left_with_it(other, by_data):
    model = Tied(other, by_data)
    weight = other.weight.detach().clone()
    convert(model, filter_fn=lambda name, layer: name in ("layers.2", "more"), rescale=True)
    assert torch.equal(other.weight, weight)
    assert not hasattr(other.weight, "adder")
    assert notes(model)["layers.2"] == "shares its weight with other, which is not converted"
    assert outcomes(model)["converted"] == ["more"]


def test_filter_fn_alone_decides_over_first_and_last_too():
    model, asked = network(), {}
    chosen = {"0", "6"}
    convert(model, filter_fn=lambda name, layer: asked.update({name: layer}) or name in chosen)
    assert asked == {name: model.get_submodule(name) for name in ("0", "2.0", "3.0", "6", "9")}
    assert outcomes(model) == {"converted": ["0", "6"], "kept": ["2.0", "3.0", "9"]}
    assert notes(model) == dict.fromkeys(("2.0", "3.0", "9"), "not chosen")


@pytest.mark.parametrize("chosen", [None, lambda name, layer: name in MIDDLE])
def test_converting_twice_changes_nothing(chosen):
    model = convert(network(), filter_fn=chosen)
    before = copy.deepcopy(model)
    convert(model, filter_fn=chosen)
    assert repr(model) == repr(before)
    assert outcomes(model) == {"kept": ["0", "9"], "already": MIDDLE}
    assert outcomes(convert(network(), "conv")) == {"already": ["0", *MIDDLE, "9"]}


def test_grad_and_recenter_reach_the_adder_layers_and_leave_with_them():
    rule = GradientRule("sign", "full")
    model = convert(network(), grad=rule, recenter=True)
    layers = [model.get_submodule(name) for name in MIDDLE]
    assert all(layer.grad == rule and layer.recenter for layer in layers)
    convert(model, "binary")
    assert not any(hasattr(layer, "recenter") or hasattr(layer, "grad") for layer in layers)


@pytest.mark.parametrize(("arguments", "recentred"), [({}, True), ({"recenter": False}, False)])
def test_recentring_is_the_default_of_convert(arguments, recentred):
    model = convert(network(), **arguments)
    assert [model.get_submodule(name).recenter for name in MIDDLE] == [recentred] * 3


def test_rescale_brings_each_converted_weight_to_a_root_mean_square_of_one():
    model = network()
    with torch.no_grad():
        model[6].weight.zero_()
    before = copy.deepcopy(model.state_dict())
    convert(model, rescale=True)
    for name, now in model.state_dict().items():
        then = before[name]
        if name in ("2.0.weight", "4.0.weight", "3.0.weight"):
            then = then / then.square().mean().sqrt()
        torch.testing.assert_close(now, then)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_the_report_and_can_be_converted_back(copied):
    model = network().eval()
    expected = model(IMAGE)
    other = copied(convert(model))
    assert torch.equal(other(IMAGE), model(IMAGE))
    assert other.conversion == model.conversion
    assert other.get_submodule("6").weight.adder
    assert torch.equal(convert(other, "conv")(IMAGE), expected)


# Dynamo warns of itself while it traces an autograd.Function
quiet_dynamo = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@quiet_dynamo
def test_a_converted_network_compiles_exports_and_traces():
    model = convert(network()).eval()
    expected = model(IMAGE)
    assert torch.equal(torch.fx.symbolic_trace(model)(IMAGE), expected)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(IMAGE), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own, of other modules
        assert torch.equal(torch.export.export(model, (IMAGE,)).module()(IMAGE), expected)


@quiet_dynamo
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="aot_eager")], ids=["DataParallel", "compile"]
)
def test_a_wrapped_network_is_converted_inside_its_wrapper(wrap):
    model = network().eval()
    wrapped = wrap(model)
    before = wrapped(IMAGE)
    assert convert(wrapped) is wrapped
    assert outcomes(wrapped) == {"kept": ["0", "9"], "converted": MIDDLE}
    assert not torch.equal(wrapped(IMAGE), before)
    assert torch.equal(wrapped(IMAGE), model(IMAGE))
    assert torch.equal(convert(wrapped, "conv")(IMAGE), before)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")  # torch's own, from its fused inference
def test_fused_inference_of_torch_does_not_multiply_past_adder_layers():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(block, 2).eval().requires_grad_(False)
    before = copy.deepcopy(model)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = model(x, src_key_padding_mask=mask)
    with pytest.warns(UserWarning, match="no normalisation"):
        convert(model, filter_fn=lambda name, layer: True)
    for mask_of_keys in (mask, None):
        y = x
        for layer in model.layers:
            y = layer.norm1(y + layer.self_attn(y, y, y, key_padding_mask=mask_of_keys, need_weights=False)[0])
            y = layer.norm2(y + layer.linear2(nn.functional.gelu(layer.linear1(y))))
        torch.testing.assert_close(model(x, src_key_padding_mask=mask_of_keys), y)
    convert(model, "conv")
    assert torch.equal(model(x, src_key_padding_mask=mask), expected)
    for now, then in zip(model.modules(), before.modules(), strict=True):
        assert vars(now).keys() - {"conversion"} == vars(then).keys()


class Foreign(nn.Module):
    """A network as others write them: containers, functions between modules, attention, heads that share a block."""

    def __init__(self):
        super().__init__()
        self.head = nn.ModuleDict({"mean": nn.Linear(8, 4), "max": nn.Linear(8, 4)})
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.mixer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=g, bias=False) for g in (1, 8))
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8), nn.BatchNorm2d(8)])
        self.shared = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        x = nn.functional.relu(self.stem(x))
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + nn.functional.relu(norm(block(x)))
        tokens = self.attention(self.shared(x.flatten(2).transpose(1, 2)))
        tokens = tokens + self.shared(self.mixer(tokens, tokens, tokens)[0])
        return self.head["mean"](tokens.mean(1)) + self.head["max"](tokens.amax(1))


def test_a_network_in_foreign_style_is_converted_and_comes_back():
    torch.manual_seed(0)
    model = Foreign().eval()
    expected = model(IMAGE)
    with pytest.warns(UserWarning, match=r"3 of the adder layers: head.mean, attention.linear1, attention.linear2;"):
        convert(model, example_input=IMAGE)
    assert outcomes(model) == {
        "converted": ["head.mean", "attention.linear1", "attention.linear2", "blocks.0", "blocks.1", "shared.0"],
        "left": ["attention.self_attn", "attention.self_attn.out_proj", "mixer", "mixer.out_proj"],
        "kept": ["head.max", "stem"],
    }
    restored = convert(copy.deepcopy(model), "conv")
    assert torch.equal(restored(IMAGE), expected)


# the report


class ScaledConv2d(nn.Conv2d):
    def forward(self, x):
        return 0.5 * super().forward(x)


def reported():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ScaledConv2d(4, 4, 1), nn.BatchNorm2d(4))
    return model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)])


def test_the_report_as_it_is_printed():
    model = reported()
    assert (
        str(convert(model).conversion)
        == """\
Sequential to adder: 1 converted, 2 kept, 1 left

layer  was           is
0      Conv2d        kept: runs first
2      ScaledConv2d  left: a subclass of Conv2d; only torch's own layer is converted
6      Linear        AdderLinear
8      Linear        kept: runs last

order of execution, traced by torch.fx"""
    )
    assert str(convert(nn.Linear(2, 2)).conversion).splitlines()[-1] == "(model)  Linear  AdderLinear"


def test_the_report_as_plain_values():
    report = convert(reported()).conversion.to_dict()
    assert json.loads(json.dumps(report)) == report
    assert (report["model"], report["to"], report["flow"]) == ("Sequential", "adder", "traced")
    assert report["layers"][2] == {
        "name": "6",
        "before": "Linear",
        "after": "AdderLinear",
        "outcome": "converted",
        "note": "",
    }
