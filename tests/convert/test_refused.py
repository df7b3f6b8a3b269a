"""Test the layers that convert leaves as they are, its warnings, and its errors, after which nothing is changed."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from torchadder import convert
from torchadder.functional import GradientRule
from torchadder.nn import AdderConv1d, AdderLinear

pytestmark = pytest.mark.usefixtures("one_thread")


class StandardisedConv2d(nn.Conv2d):
    """A subclass with its own forward, as in several model libraries."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def with_weight(layer, change):
    layer.weight = nn.Parameter(change(layer.weight.detach()), requires_grad=False)
    return layer


class Halves(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrised():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Halves())
    return layer


def with_forward_of_its_own():
    layer = nn.Linear(4, 4)
    layer.forward = layer.forward
    return layer


LEFT = {  # a layer that stays what it is: why
    "subclass": (lambda: StandardisedConv2d(4, 4, 1), "adder", "a subclass of Conv2d; only torch's own"),
    "subclass of an adder layer": (lambda: type("Mine", (AdderLinear,), {})(4, 4), "conv", "a subclass of AdderLinear"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 1), "adder", "no adder counterpart"),
    "recurrent": (lambda: nn.LSTM(4, 4), "adder", "no adder counterpart"),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), "adder", "no adder counterpart"),
    "binary in 1-d": (lambda: nn.Conv1d(4, 4, 1), "binary", "no binary counterpart"),
    "lazy": (lambda: nn.LazyConv2d(4, 1), "adder", "no weight yet; run the model"),
    "parametrised": (parametrised, "adder", "parametrised; remove"),
    "weight_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "adder", "computed; remove weight_norm"),
    "pruned": (
        lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
        "adder",
        "computed; remove weight_norm",
    ),
    "hooked by another library": (with_forward_of_its_own, "adder", "its forward is replaced"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), "adder", "torch.complex64"),
    "integers": (lambda: with_weight(nn.Linear(4, 4), lambda w: w.to(torch.int8)), "adder", "torch.int8"),
    "sparse": (lambda: with_weight(nn.Linear(4, 4), lambda w: w.to_sparse()), "adder", "torch.sparse_coo"),
}


@pytest.mark.parametrize(("make", "to", "why"), LEFT.values(), ids=LEFT.keys())
def test_what_has_no_counterpart_is_left_and_named(make, to, why):
    odd = make()
    kind, attributes = type(odd), list(vars(odd))
    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "odd": odd})
    convert(model, to, lambda name, layer: True)
    assert type(odd) is kind
    assert list(vars(odd)) == attributes
    row = model.conversion.rows[1]
    assert (row.name, row.before, row.after, row.outcome) == ("odd", kind.__name__, kind.__name__, "left")
    assert why in row.note


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
    )


class Voice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conversion = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.Conv1d(2, 2, 1))


class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyConv2d(3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))


class Alone(nn.Module):
    """Use the weight of a layer without calling the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.last(nn.functional.conv2d(self.first(x), self.middle.weight))


REFUSED = {  # module, further arguments: error and what its message must contain
    "no module": (lambda: "resnet18", {}, TypeError, "nn.Module that is not scripted, got str"),
    "a class": (lambda: nn.Conv2d, {}, TypeError, "got type"),
    "operator": (network, {"to": "adders"}, ValueError, "to=adders is unknown: expected one of conv, adder, binary"),
    "rule": (network, {"grad": GradientRule("half")}, ValueError, "'half'"),
    "option of conv": (network, {"to": "conv", "normalize": True}, ValueError, "to=conv"),
    "norm of one layer": (lambda: nn.Linear(2, 2), {"normalize": True}, ValueError, "a network, got a single Linear"),
    "option of binary": (network, {"to": "binary", "rescale": True}, ValueError, "to=binary"),
    "rule of binary": (network, {"to": "binary", "grad": GradientRule("sign")}, ValueError, "to=binary"),
    "no layer": (lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), {}, ValueError, "no convolution and no linear"),
    "two layers": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)),
        {},
        ValueError,
        "first and last are kept.*filter_fn=lambda",
    ),
    "a layer whose weight is used alone": (
        Alone,
        {},
        ValueError,
        r"first and last are kept, middle \(Conv2d\) is left: its weight is used without calling it; filter_fn",
    ),
    "only others": (lambda: nn.Sequential(nn.LSTM(4, 4)), {}, ValueError, r"0 \(LSTM\): no adder counterpart"),
    "one that is left": (lambda: nn.Conv1d(1, 1, 1), {"to": "binary"}, ValueError, "no binary counterpart"),
    "nothing chosen": (
        network,
        {"filter_fn": lambda name, layer: False},
        ValueError,
        r"none of its 3 layers \(0, 2, 4\)",
    ),
    "filter_fn raises": (network, {"filter_fn": lambda name, layer: name[9]}, IndexError, "index"),
    "example": (network, {"example_input": torch.zeros(1, 4, 5, 5)}, ValueError, "does not run on example_input: .*4"),
    "example for lazy layers": (
        Lazy,
        {"example_input": torch.zeros(1, 3, 5, 5)},
        ValueError,
        "lazy layers: run it once",
    ),
    "name taken": (Voice, {}, ValueError, "attribute `conversion` of its own"),
}


@pytest.mark.parametrize(("make", "arguments", "error", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_and_nothing_changed(make, arguments, error, text):
    module = make()
    before = repr(module)
    with pytest.raises(error, match=text):
        convert(module, **arguments)
    assert repr(module) == before
    assert not isinstance(module, nn.Module) or not any(hasattr(p, "adder") for p in module.parameters())


def test_a_scripted_module_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(TypeError, match="not scripted"):
        convert(scripted)


def test_a_network_with_a_conversion_of_its_own_is_converted_inside_another():
    inner = Voice()
    assert convert(nn.Sequential(inner), filter_fn=lambda name, layer: name == "0.conversion.0")[0] is inner
    assert isinstance(inner.conversion[0], AdderConv1d)


BARE = "no normalisation follows 2 of the adder layers: 0, 4"
WARNED = {  # arguments: the words of the warning
    "adder": ({"filter_fn": lambda name, layer: name != "2"}, BARE),
    "adder, raw": ({"filter_fn": lambda name, layer: name != "2", "recenter": False}, BARE),
    "binary": ({"to": "binary"}, r"1 of the binary layers see no negative input: 2; every sign is then \+1"),
}


@pytest.mark.parametrize(("arguments", "text"), WARNED.values(), ids=WARNED.keys())
def test_one_warning_names_all_layers_at_the_line_that_called(arguments, text):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=text) as caught:
        convert(model, **arguments)
    assert [warning.filename for warning in caught] == [__file__]
    assert "\n" not in str(caught[0].message)


class Auxiliary(nn.Module):
    """Use a head in training only."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.auxiliary, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.norm(self.stem(x))
        return (self.head(self.block(y)), self.auxiliary(y)) if self.training else self.head(self.block(y))


@pytest.mark.parametrize("example", [None, torch.zeros(2, 3, 4, 4)], ids=["traced", "recorded"])
def test_a_layer_that_runs_in_training_only_is_named(example):
    model = Auxiliary()
    with pytest.warns(UserWarning, match=r"1 of the adder layers did not run while .*: auxiliary; whether a norm"):
        convert(model, example_input=example)
    assert {row.name: row.note for row in model.conversion.rows if row.outcome == "converted"} == {
        "block.0": "",
        "auxiliary": "did not run",
    }


def test_a_warning_that_is_made_an_error_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(UserWarning, match="no normalisation"):  # as all warnings are here
        convert(model)
    assert type(model[2]) is nn.Linear


def test_a_long_warning_is_shortened():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    with pytest.warns(UserWarning, match=r"10 of the adder layers: 1, 2, 3, 4, 5, 6, 7, 8 and 2 more;"):
        convert(model)
