"""Operation counts against the published ones, torch's own counter and counts done by hand."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchadder.analysis import summary
from torchadder.errors import UserError
from torchadder.models import create_model, list_models
from torchadder.nn import AdderConv2d, AdderLinear

NETWORKS = [  # name, op, #Mul, #Add
    ("lenet5bn", "conv", 416_520, 416_520),
    ("lenet5bn", "adder", 0, 833_040),
    ("resnet20", "conv", 40_813_184, 40_813_184),
    ("resnet20", "adder", 443_008, 81_183_360),  # stem and classifier stay products
    ("resnet32", "conv", 69_124_736, 69_124_736),
    ("resnet32", "adder", 443_008, 137_806_464),
]

LAYERS = [  # layer, input size, #Mul, #Add
    (nn.Conv2d(3, 5, 3), (3, 7, 9), 5 * 7 * 5 * 27, 5 * 7 * 5 * 27),
    (nn.Conv2d(4, 6, (1, 3), stride=2, padding=1, groups=2), (4, 7, 9), 5 * 5 * 6 * 6, 5 * 5 * 6 * 6),
    (nn.Conv1d(3, 5, 3), (3, 9), 7 * 5 * 9, 7 * 5 * 9),
    (nn.Linear(11, 13), (7, 11), 7 * 11 * 13, 7 * 11 * 13),
    (AdderConv2d(3, 5, 3), (3, 7, 9), 0, 2 * 5 * 7 * 5 * 27),
    (AdderConv2d(4, 6, (1, 3), stride=2, padding=1, groups=2), (4, 7, 9), 0, 2 * 5 * 5 * 6 * 6),
    (AdderConv2d(6, 6, 3, groups=6, recenter=True), (6, 3, 3), 0, 2 * 6 * 9),
    (AdderLinear(11, 13), (11,), 0, 2 * 11 * 13),
]

REFUSED = [  # input size -> the words that the message must contain
    ((), "input_size"),
    ((1, 0, 32), "(1, 0, 32)"),
    ((1, 32.0, 32), "(1, 32.0, 32)"),
    ((3, 32, 32), "does not run on an input of 3x32x32"),
    ((1, 28, 28), "does not run on an input of 1x28x28"),
]

LENET = """\
lenet5bn · adder · input 1x32x32

layer          type         output    parameters  #Mul     #Add  #XNOR
conv1          AdderConv2d  6x28x28          150     0  235,200      0
conv2          AdderConv2d  16x10x10       2,400     0  480,000      0
conv3          AdderConv2d  120x1x1       48,000     0   96,000      0
fc1            AdderLinear  84            10,080     0   20,160      0
fc2            AdderLinear  10               840     0    1,680      0
3 not counted  BatchNorm2d                   284
2 not counted  BatchNorm1d                   188
total                                     61,942     0  833,040      0
paper                                                0     870K      0
paper: as published; its counts round and partly include other layers"""


@pytest.mark.parametrize(("name", "op", "mul", "add"), NETWORKS)
def test_exact_counts(name, op, mul, add):
    counts = summary(create_model(name, op=op))
    assert (counts.mul, counts.add, counts.xnor) == (mul, add, 0)
    assert counts.parameters == sum(p.numel() for p in create_model(name).parameters())
    assert not counts.unknown


@pytest.mark.parametrize(("layer", "size", "mul", "add"), LAYERS)
def test_layers_by_hand(layer, size, mul, add):
    counts = summary(layer, size)
    assert (counts.mul, counts.add) == (mul, add)
    assert counts.rows[0].name == "(model)"
    assert counts.rows[0].output == tuple(layer(torch.zeros(1, *size)).shape[1:])


@pytest.mark.parametrize("name", list_models())
def test_cnn_twin_agrees_with_torch(name):
    model = create_model(name, op="conv").eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, *model.input_size))
    assert summary(model).mul * 2 == flops.get_total_flops()


def test_table_text():
    assert str(summary(create_model("lenet5bn"))) == LENET


def test_dictionary_is_json_and_says_the_same():
    counts = summary(create_model("resnet20", op="conv"))
    data = json.loads(json.dumps(counts.to_dict()))
    assert data["total"] == {"mul": 40_813_184, "add": 40_813_184, "xnor": 0, "parameters": 272_484}
    assert data["paper"] == {"mul": 41_170_000, "add": 41_170_000, "xnor": 0}
    assert data["exact"] is True
    assert sum(layer["mul"] for layer in data["layers"]) == 40_813_184
    stem = next(layer for layer in data["layers"] if layer["name"] == "conv1")
    assert (stem["kind"], stem["output"], stem["parameters"]) == ("Conv2d", [16, 32, 32], 432)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [({"num_classes": 100}, None), ({"in_chans": 1}, None), ({}, (3, 64, 64))],
)
def test_the_paper_s_count_stands_only_beside_the_paper_s_task(arguments, size):
    assert summary(create_model("resnet20", **arguments), size).paper is None


def test_the_model_is_left_as_it_was():
    model = create_model("lenet5bn").train()
    model.get_submodule("bn3").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    summary(model)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_the_model_is_left_as_it_was_after_a_failure():
    model = create_model("lenet5bn").train()
    with pytest.raises(UserError):
        summary(model, (1, 28, 28))
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class OfficialAdder(nn.Module):
    """An adder layer in plain torch, which has no operator with a rule."""

    def __init__(self):
        super().__init__()
        self.adder = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return -(x[:, None] - self.adder).abs().sum(-1)


class Distance(nn.Module):
    """Computes without a parameter of its own."""

    def forward(self, x):
        return torch.cdist(x, x)


class Functional(nn.Module):
    """Calls the product of a child without calling the child."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.linear(x, self.child.weight) @ torch.ones(3, 2)


UNCOUNTED = [  # module, input size, the name it must be called by, the reason
    (nn.Sequential(OfficialAdder()), (4,), "0 (OfficialAdder)", "ran no operator with a rule"),
    (nn.Sequential(nn.ReLU(), Distance()), (3, 4), "1 (Distance)", "cdist"),
    (nn.Sequential(nn.LSTM(4, 2)), (4,), "0 (LSTM)", "no rule"),
    (nn.TransformerEncoderLayer(8, 2, batch_first=True), (3, 8), "self_attn (MultiheadAttention)", "no rule"),
]


@pytest.mark.parametrize(("model", "size", "name", "reason"), UNCOUNTED)
def test_what_has_no_rule_is_named(model, size, name, reason):
    counts = summary(model, size)
    notes = [note for note in counts.notes() if name in note]
    assert notes
    assert reason in " ".join(notes)
    assert ">= " in str(counts)
    assert counts.to_dict()["exact"] is False


def test_functional_calls_count_and_an_idle_child_is_named():
    counts = summary(Functional(), (4,))
    assert counts.mul == 4 * 3 + 3 * 2
    assert counts.notes() == ["not counted: child (Linear): holds parameters and did not run"]


def test_a_shared_layer_counts_each_run_and_its_parameters_once():
    layer = nn.Linear(6, 6, bias=False)
    counts = summary(nn.Sequential(layer, nn.ReLU(), layer), (6,))
    assert (counts.mul, counts.parameters) == (72, 36)


def test_double_precision_models_run_in_their_own_dtype():
    assert summary(nn.Linear(3, 4).double(), (3,)).mul == 12


@pytest.mark.parametrize(("size", "words"), REFUSED)
def test_refused(size, words):
    with pytest.raises(UserError) as refusal:
        summary(create_model("lenet5bn"), size)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_model_without_a_size_asks_for_one():
    with pytest.raises(UserError, match="input_size"):
        summary(nn.Linear(3, 4))
