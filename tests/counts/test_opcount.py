"""Operation counts against the published ones, torch's own counter and counts done by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchadder.convert import convert
from torchadder.counts import summary
from torchadder.errors import UserError
from torchadder.models import create_model, list_models
from torchadder.models.registry import OPS
from torchadder.nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear

NETWORKS = [  # name, op, #Mul, #Add, #XNOR
    ("lenet5bn", "conv", 416_520, 416_520, 0),
    ("lenet5bn", "adder", 0, 833_040, 0),
    ("lenet5bn", "binary", 118_440, 416_520, 298_080),  # outermost layers stay products
    ("vgg_small", "conv", 607_600_640, 607_600_640, 0),
    ("vgg_small", "adder", 3_620_864, 1_211_580_416, 0),  # stem and classifier stay products
    ("vgg_small", "binary", 3_620_864, 607_600_640, 603_979_776),
    ("resnet20", "conv", 40_813_184, 40_813_184, 0),
    ("resnet20", "adder", 443_008, 81_183_360, 0),
    ("resnet20", "binary", 443_008, 40_813_184, 40_370_176),
    ("resnet32", "conv", 69_124_736, 69_124_736, 0),
    ("resnet32", "adder", 443_008, 137_806_464, 0),
    ("resnet32", "binary", 443_008, 69_124_736, 68_681_728),
    ("resnet18", "conv", 1_814_073_344, 1_814_073_344, 0),
    ("resnet18", "adder", 118_525_952, 3_509_620_736, 0),
    ("resnet18", "binary", 118_525_952, 1_814_073_344, 1_695_547_392),
    ("resnet50", "conv", 4_089_184_256, 4_089_184_256, 0),
    ("resnet50", "adder", 120_061_952, 8_058_306_560, 0),
    ("resnet50", "binary", 120_061_952, 4_089_184_256, 3_969_122_304),
]


class Halves(nn.Conv2d):
    """A subclass that runs its convolution twice."""

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
    (32, "got 32"),
    ((1, 0, 32), "(1, 0, 32)"),
    ((1, 32.0, 32), "(1, 32.0, 32)"),
    ((3, 32, 32), "does not run on an input of 3x32x32"),
    ((1, 28, 28), "does not run on an input of 1x28x28"),
]


def flops_of(model, *inputs):
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(*inputs)
    return flops.get_total_flops()


@pytest.mark.parametrize(("name", "op", "mul", "add", "xnor"), NETWORKS)
def test_exact_counts(name, op, mul, add, xnor, on_meta):
    counts = summary(on_meta(name, op))
    assert (counts.mul, counts.add, counts.xnor) == (mul, add, xnor)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", list_models())
def test_networks_agree_with_torch(name, op, on_meta):
    model = on_meta(name, op)
    counts = summary(model)
    assert counts.mul + counts.add + counts.xnor == flops_of(
        model.eval(), torch.zeros(1, *model.input_size, device="meta")
    )
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
    """Products of a multi-head attention: projections of query, keys, values and output; scores; weighted sums."""
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


def test_size_and_data_exclude_each_other():
    with pytest.raises(UserError, match="exclude each other"):
        summary(nn.Linear(3, 4), (3,), input_data=torch.zeros(1, 3))


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
    """Calls the product of a child without calling the child; another child is idle."""

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
    (Functional(), (4,), "idle (Linear)", "did not run"),
]


@pytest.mark.parametrize(("model", "size", "name", "reason"), UNCOUNTED)
def test_what_has_no_rule_is_named(model, size, name, reason):
    counts = summary(model, size)
    notes = [note for note in counts.notes() if name in note]
    assert notes
    assert reason in " ".join(notes)
    assert ">= " in str(counts)
    assert counts.to_dict()["exact"] is False


def test_functional_calls_count_and_only_an_idle_child_is_named():
    counts = summary(Functional(), (4,))
    assert counts.mul == 4 * 3 + 3 * 2
    assert counts.notes() == ["not counted: idle (Linear): holds parameters and did not run"]


def test_a_shared_layer_counts_each_run_and_its_parameters_once():
    layer = nn.Linear(6, 6, bias=False)
    counts = summary(nn.Sequential(layer, nn.ReLU(), layer), (6,))
    assert (counts.mul, counts.activations, counts.parameters) == (72, 12, 36)


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    counts = summary(model, (6,))
    assert (counts.mul, counts.parameters, counts.unknown) == (72, 36, [])


def test_a_parametrized_weight_is_counted_as_the_layer_that_uses_it():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4, bias=False))
    counts = summary(layer, (6,))
    assert (counts.mul, counts.parameters, counts.unknown) == (24, 6 * 4 + 4, [])


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
