"""Test operation counts against counts by hand, torch's own counter and the paper's; tests/models has the networks."""

import json
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchadder.convert import convert
from torchadder.counts import summary
from torchadder.errors import UserError
from torchadder.functional import GradientRule
from torchadder.models import create_model, list_models
from torchadder.models.registry import OPS
from torchadder.nn import Adder, AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear


class Halves(nn.Conv2d):
    """Run the convolution of the superclass twice."""

    def forward(self, x):
        return super().forward(x[..., ::2]) + super().forward(x[..., 1::2])


LAYERS = [  # layer, input size, #Mul, #Add, #XNOR
    (nn.Conv2d(3, 5, 3), (3, 7, 9), 5 * 7 * 5 * 27, 5 * 7 * 5 * 27, 0),
    (nn.Conv2d(4, 6, (1, 3), stride=2, padding=1, groups=2), (4, 7, 9), 5 * 5 * 6 * 6, 5 * 5 * 6 * 6, 0),
    (nn.Conv1d(3, 5, 3), (3, 9), 7 * 5 * 9, 7 * 5 * 9, 0),
    (nn.Conv3d(2, 3, (1, 2, 3)), (2, 3, 4, 5), 27 * 3 * 12, 27 * 3 * 12, 0),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 3, 5), 15 * 4 * 3 * 9, 15 * 4 * 3 * 9, 0),
    (nn.Linear(11, 13), (7, 11), 7 * 11 * 13, 7 * 11 * 13, 0),
    (Halves(3, 5, 3), (3, 7, 8), 2 * 5 * 2 * 5 * 27, 2 * 5 * 2 * 5 * 27, 0),
    (AdderConv2d(3, 5, 3), (3, 7, 9), 0, 2 * 5 * 7 * 5 * 27, 0),
    (AdderConv2d(4, 6, (1, 3), stride=2, padding=1, groups=2), (4, 7, 9), 0, 2 * 5 * 5 * 6 * 6, 0),
    (AdderConv2d(6, 6, 3, groups=6, recenter=True), (6, 3, 3), 0, 2 * 6 * 9, 0),
    (AdderConv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 7, 9), 0, 2 * 7 * 9 * 5 * 27, 0),
    (AdderConv1d(4, 6, 3, groups=2, dilation=2), (4, 9), 0, 2 * 5 * 6 * 6, 0),
    (AdderConv3d(2, 3, (1, 2, 3)), (2, 3, 4, 5), 0, 2 * 27 * 3 * 12, 0),
    (AdderLinear(11, 13), (11,), 0, 2 * 11 * 13, 0),
    (BinaryConv2d(4, 6, 3, groups=2, bias=True), (4, 7, 9), 0, 5 * 7 * 6 * 18, 5 * 7 * 6 * 18),
    (BinaryLinear(11, 13), (7, 11), 0, 7 * 11 * 13, 7 * 11 * 13),
]

REFUSED = [  # input size -> the words that the message must contain
    ((), "input_size"),
    (32, "input_size=32 is no shape"),
    (torch.zeros(1, 3, 32, 32), "input_size=Tensor is no shape"),
    ((1, 0, 32), "(1, 0, 32)"),
    ((1, 32.0, 32), "(1, 32.0, 32)"),
    ((3, 32, 32), "does not run on an input of 3x32x32"),
    ((1, 28, 28), "does not run on an input of 1x28x28"),
]


def on_meta(name, op):
    """Build a model without memory: a count needs shapes only, and ImageNet's networks are slow."""
    with torch.device("meta"):
        return create_model(name, op=op)


def flops_of(function, *inputs):
    with FlopCounterMode(display=False) as flops:
        function(*inputs)
    return flops.get_total_flops()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", list_models())
def test_networks_agree_with_torch(name, op):
    model = on_meta(name, op)
    counts = summary(model)
    flops = flops_of(model.eval(), torch.zeros(1, *model.input_size, device="meta"))
    assert counts.mul + counts.add + counts.xnor == flops
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    assert not counts.unknown


@pytest.mark.parametrize(("layer", "size", "mul", "add", "xnor"), LAYERS)
def test_layers_by_hand(layer, size, mul, add, xnor):
    counts = summary(layer, size)
    assert (counts.mul, counts.add, counts.xnor) == (mul, add, xnor)
    assert counts.rows[0].name == "(model)"
    y = layer(torch.zeros(1, *size))
    assert counts.rows[0].output == tuple(y.shape[1:])
    assert counts.activations == y.numel() * (1 + isinstance(layer, Halves))
    assert counts.mul + counts.add + counts.xnor == flops_of(layer, torch.zeros(1, *size))


def attention(batch, queries, keys, width):
    """Count the products of a multi-head attention: projections of query, keys, values and output; scores; sums."""
    return batch * (2 * (queries + keys) * width * width + 2 * queries * keys * width)


@pytest.mark.parametrize("training", [True, False])
def test_attention_counts_as_its_matrix_products(training):
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).train(training)
    counts = summary(model, (5, 8))
    assert counts.mul == counts.add == attention(1, 5, 5, 8) + 2 * 5 * 8 * 16
    assert not counts.unknown
    assert counts.activations == 5 * (3 * 8 + 8 + 16 + 8) + 5 * 5 * 2 + 5 * 8
    assert counts.mul + counts.add == flops_of(model.train(), torch.zeros(1, 5, 8))  # in training: unfused
    assert torch.backends.mha.get_fastpath_enabled()


def test_inputs_of_any_kind():
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    source, target = torch.zeros(1, 3, 8), torch.zeros(1, 4, 8)
    counts = summary(model, input_data=(source, target))
    feed_forward = (3 + 4) * 2 * 8 * 16
    assert counts.mul == attention(1, 3, 3, 8) + attention(1, 4, 4, 8) + attention(1, 4, 3, 8) + feed_forward
    assert not counts.unknown
    assert counts.title == "Transformer"
    assert counts.to_dict()["input_size"] is None
    assert summary(model, input_data={"src": source, "tgt": target}).rows == counts.rows


def test_token_ids():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    counts = summary(model, input_data=torch.zeros(1, 7, dtype=torch.long))
    assert (counts.mul, counts.parameters, counts.unknown) == (7 * 4 * 3, 10 * 4 + 4 * 3 + 3, [])
    with pytest.raises(UserError, match=r"does not run on an input of 7: .* or give input_data"):
        summary(model, (7,))
    with pytest.raises(UserError, match="does not run on input_data: "):
        summary(model, input_data=torch.zeros(1, 7))
    with pytest.raises(UserError, match="exclude each other"):
        summary(model, (7,), input_data=torch.zeros(1, 7))


@pytest.mark.parametrize("size", [None, (1, 28, 28)])
def test_the_model_is_left_as_it_was(size):
    model = create_model("lenet5bn").train()
    model.get_submodule("bn3").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    with suppress(UserError):  # It does not run on 28 x 28.
        summary(model, size)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


class OfficialAdder(nn.Module):
    """Compute an adder layer in plain torch, whose operators have no rule."""

    def __init__(self):
        super().__init__()
        self.adder = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return -(x[:, None] - self.adder).abs().sum(-1)


class Distance(nn.Module):
    """Compute without parameters."""

    def forward(self, x):
        return torch.cdist(x, x)


class Functional(nn.Module):
    """Use the weight of a child without calling the child; another child does not run."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(4, 3)
        self.idle = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.linear(x, self.child.weight) @ torch.ones(3, 2)


UNCOUNTED = [  # module, input size, the name it must be called by, the reason
    (nn.Sequential(OfficialAdder()), (4,), "0 (OfficialAdder)", "ran no operator with a rule"),
    (nn.Sequential(nn.ReLU(), Distance()), (3, 4), "1 (Distance)", "cdist"),
    (nn.Sequential(nn.LSTM(4, 2)), (4,), "0 (LSTM)", "no rule"),
    (Functional(), (4,), "not counted: idle (Linear): holds parameters and did not run", "did not run"),
]


@pytest.mark.parametrize(("model", "size", "name", "reason"), UNCOUNTED)
def test_what_has_no_rule_is_named(model, size, name, reason):
    counts = summary(model, size)
    notes = [note for note in counts.notes() if name in note]
    assert notes
    assert reason in " ".join(notes)
    assert ">= " in str(counts)
    assert counts.to_dict()["exact"] is False
    assert "child (Linear)" not in str(counts)  # It holds the weight of a functional call.
    assert counts.mul == (4 * 3 + 3 * 2 if isinstance(model, Functional) else 0)


def test_shared_tied_and_parametrized_weights_count_once():
    layer = nn.Linear(6, 6, bias=False)
    tied = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    tied[1].weight = tied[0].weight
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4, bias=False))
    for model, mul, activations, parameters in (
        (nn.Sequential(layer, nn.ReLU(), layer), 72, 12, 36),
        (tied, 72, 12, 36),
        (normed, 24, 4, 6 * 4 + 4),
    ):
        counts = summary(model, (6,))
        assert (counts.mul, counts.activations, counts.parameters) == (mul, activations, parameters)
        assert counts.unknown == []


def test_lazy_layers_are_counted_as_what_they_become():
    counts = summary(nn.Sequential(nn.LazyConv2d(3, 3), nn.Flatten(), nn.LazyLinear(2)), (1, 5, 5))
    assert (counts.mul, counts.parameters) == (9 * 3 * 9 + 27 * 2, 3 * 9 + 3 + 27 * 2 + 2)


def test_inference_mode_changes_nothing():
    model = create_model("lenet5bn", op="conv")
    with torch.inference_mode():
        counts = summary(model)
    assert counts == summary(model)


def test_double_precision_models_run_in_their_own_dtype():
    assert summary(nn.Linear(3, 4).double(), (3,)).mul == 12


@pytest.mark.parametrize(("size", "words"), REFUSED)
def test_refused(size, words):
    with pytest.raises(UserError) as refusal:
        summary(create_model("lenet5bn"), size)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_model_without_a_size_asks_for_one():
    for layer in (nn.Linear(3, 4), nn.LSTM(3, 4)):  # an LSTM has an input_size of its own
        with pytest.raises(UserError, match="input_size"):
            summary(layer)


def test_a_converted_network_is_no_longer_the_paper_s():
    model = convert(create_model("resnet20", op="conv"))
    counts = summary(model)
    assert (counts.model, counts.op, counts.paper) == ("ResNet", None, None)
    assert counts.add == summary(create_model("resnet20")).add


# the table and plain values

LENET = """\
lenet5bn · adder · input 1x32x32

layer          type         activations  parameters  #Mul     #Add  #XNOR
conv1          AdderConv2d  6x28x28             150     0  235,200      0
conv2          AdderConv2d  16x10x10          2,400     0  480,000      0
conv3          AdderConv2d  120x1x1          48,000     0   96,000      0
fc1            AdderLinear  84               10,080     0   20,160      0
fc2            AdderLinear  10                  840     0    1,680      0
3 not counted  BatchNorm2d                      284
2 not counted  BatchNorm1d                      188
total                       6,518            61,942     0  833,040      0
paper                                                   0     870K      0
paper: as published; it rounds, partly includes other layers, and takes first and last layer like the rest"""

FOREIGN = """\
Sequential · input 4x10

layer          type         activations  parameters    #Mul    #Add  #XNOR
0              Conv1d       6x8                  42     288     288      0
2              LSTM         6x2                  96       ?       ?      ?
1 not counted  BatchNorm1d                       12
total                       >= 48               150  >= 288  >= 288   >= 0
not counted: 2 (LSTM): no rule for aten.mkldnn_rnn_layer"""

PAPER = {  # network -> products of the CNN, additions of the adder network; XNORs of the binary one
    "lenet5bn": ("435K", "870K", None),
    "vgg_small": ("0.65G", "1.30G", "0.65G"),
    "resnet20": ("41.17M", "82.34M", "41.17M"),
    "resnet32": ("69.12M", "138.24M", "69.12M"),
    "resnet18": ("1.8G", "3.6G", "1.8G"),
    "resnet50": ("3.9G", "7.7G", "3.9G"),
}

UNPUBLISHED = [  # arguments, size
    (dict(name="resnet20", in_chans=1), None),
    (dict(name="resnet20", num_classes=11), None),
    (dict(name="resnet20"), (3, 64, 64)),
    (dict(name="resnet18", num_classes=10), None),
    (dict(name="lenetpp"), None),
]


def recurrent():
    return nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), nn.LSTM(8, 2))


@pytest.mark.parametrize(
    ("model", "size", "text"),
    [
        (lambda: create_model("lenet5bn"), None, LENET),
        (recurrent, (4, 10), FOREIGN),
    ],
)
def test_table_text(model, size, text):
    assert str(summary(model(), size)) == text


def test_dictionary_says_the_same_as_the_totals():
    counts = summary(create_model("resnet20", op="binary"))
    data = json.loads(json.dumps(counts.to_dict()))
    assert [*data] == ["model", "op", "input_size", "exact", "total", "paper", "layers"]
    assert data["total"] == {
        "mul": 443_008,
        "add": 40_813_184,
        "xnor": 40_370_176,
        "parameters": 272_484,
        "activations": 200_714,
    }
    for name, total in data["total"].items():
        assert sum(layer[name] for layer in data["layers"]) == getattr(counts, name) == total
    assert data["paper"] == {"mul": 0, "add": 41_170_000, "xnor": 41_170_000}
    assert data["exact"] is True
    stem = data["layers"][0]
    assert (stem["name"], stem["kind"], stem["output"]) == ("conv1", "Conv2d", [16, 32, 32])
    assert (stem["activations"], stem["parameters"]) == (16 * 32 * 32, 432)


@pytest.mark.parametrize(("name", "products", "additions", "xnor"), [(name, *row) for name, row in PAPER.items()])
def test_the_paper_s_counts(name, products, additions, xnor):
    assert summary(on_meta(name, "conv")).paper == (products, products, "0")
    assert summary(on_meta(name, "adder")).paper == ("0", additions, "0")
    assert summary(on_meta(name, "binary")).paper == (xnor and ("0", xnor, xnor))


@pytest.mark.parametrize(("arguments", "size"), UNPUBLISHED)
def test_the_paper_s_counts_stand_only_beside_the_paper_s_task(arguments, size):
    assert summary(create_model(**arguments), size).paper is None
    assert summary(create_model("resnet20", num_classes=100)).paper == ("0", "82.34M", "0")  # CIFAR-100 is the paper's


# torch's FlopCounterMode

RULES = [GradientRule(), GradientRule("sign", "sign"), GradientRule("full", "full")]
ADDERS = [row[:2] for row in LAYERS if isinstance(row[0], Adder)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("layer", "size"), ADDERS)
def test_each_gradient_has_the_flops_of_the_forward_pass(monkeypatch, layer, size, rule):
    monkeypatch.setattr(layer, "grad", rule)
    x = torch.randn(2, *size)
    forward = flops_of(layer, x)
    for gradients in (1, 2):  # that of the weight; that of the input as well
        y = layer(x.requires_grad_(gradients == 2))
        assert flops_of(lambda: y.sum().backward()) == gradients * forward  # noqa: B023


@pytest.mark.parametrize("name", ["lenet5bn", "resnet20"])
def test_a_training_step_has_the_flops_of_the_cnn(name):
    def step(op):
        model = create_model(name, op=op)
        return flops_of(lambda: model(torch.randn(2, *model.input_size)).sum().backward())

    assert step("adder") == step("binary") == step("conv")


def test_named_arguments():
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(4, 2, 3, 3)
    geometry = dict(stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=1)
    call = torch.ops.torchadder.adder_conv
    assert flops_of(lambda: call(input=x, weight=weight, bias=None, recenter=False, **geometry)) == 2 * 4 * 18


def test_flops_belong_to_the_layer():
    model = nn.Sequential(AdderConv2d(3, 5, 3), nn.Flatten(), AdderLinear(20, 2))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 4, 4))
    counts = counter.get_flop_counts()
    assert counts["Sequential.0"] == {torch.ops.torchadder.adder_conv: 2 * 20 * 27}
    assert counts["Sequential.2"] == {torch.ops.torchadder.adder_conv: 2 * 2 * 20}


def test_importing_the_package_registers_the_operators_and_a_reload_does_no_harm():
    code = (
        "import importlib, torch, torchadder.flops as flops; from torch.utils.flop_counter import flop_registry; "
        "names = 'adder_conv', 'adder_conv_grad_input', 'adder_conv_grad_weight', 'binary_conv'; "
        "before = [flop_registry[getattr(torch.ops.torchadder, name)] for name in names]; importlib.reload(flops); "
        "assert before == [flop_registry[getattr(torch.ops.torchadder, name)] for name in names]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
