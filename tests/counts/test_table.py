"""What a summary prints and what it gives as JSON, to the letter; the paper's counts beside it."""

import json

import pytest
from torch import nn

from torchadder.counts import summary
from torchadder.models import create_model
from torchadder.models.registry import OPS

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

VGG = """\
vgg_small · binary · input 3x32x32

layer          type          activations  parameters       #Mul         #Add        #XNOR
conv1          Conv2d        128x32x32         3,456  3,538,944    3,538,944            0
conv2          BinaryConv2d  128x32x32       147,456          0  150,994,944  150,994,944
conv3          BinaryConv2d  256x16x16       294,912          0   75,497,472   75,497,472
conv4          BinaryConv2d  256x16x16       589,824          0  150,994,944  150,994,944
conv5          BinaryConv2d  512x8x8       1,179,648          0   75,497,472   75,497,472
conv6          BinaryConv2d  512x8x8       2,359,296          0  150,994,944  150,994,944
fc             Linear        10               81,920     81,920       81,920            0
6 not counted  BatchNorm2d                     3,584
1 not counted  BatchNorm1d                        20
total                        458,762       4,660,116  3,620,864  607,600,640  603,979,776
paper                                                         0        0.65G        0.65G
paper: as published; it rounds, partly includes other layers, and takes first and last layer like the rest"""

FOREIGN = """\
Sequential · input 4x10

layer          type         activations  parameters    #Mul    #Add  #XNOR
0              Conv1d       6x8                  42     288     288      0
2              LSTM         6x2                  96       ?       ?      ?
1 not counted  BatchNorm1d                       12
total                       >= 48               150  >= 288  >= 288   >= 0
not counted: 2 (LSTM): no rule for aten.mkldnn_rnn_layer"""

SCHEMA = {
    "model": str,
    "op": str | None,
    "input_size": list | None,
    "exact": bool,
    "total": {"mul": int, "add": int, "xnor": int, "parameters": int, "activations": int},
    "paper": {"mul": int, "add": int, "xnor": int},
    "layers": list,
}

LAYER = {
    "name": str,
    "kind": str,
    "output": list | None,
    "activations": int,
    "parameters": int,
    "mul": int,
    "add": int,
    "xnor": int,
    "free": bool,
    "unknown": list,
}

PAPER = [  # name, op, #Mul, #Add, #XNOR
    ("lenet5bn", "conv", "435K", "435K", "0"),
    ("lenet5bn", "adder", "0", "870K", "0"),
    ("vgg_small", "conv", "0.65G", "0.65G", "0"),
    ("vgg_small", "adder", "0", "1.30G", "0"),
    ("vgg_small", "binary", "0", "0.65G", "0.65G"),
    ("resnet20", "conv", "41.17M", "41.17M", "0"),
    ("resnet20", "adder", "0", "82.34M", "0"),
    ("resnet20", "binary", "0", "41.17M", "41.17M"),
    ("resnet32", "conv", "69.12M", "69.12M", "0"),
    ("resnet32", "adder", "0", "138.24M", "0"),
    ("resnet32", "binary", "0", "69.12M", "69.12M"),
    ("resnet18", "conv", "1.8G", "1.8G", "0"),
    ("resnet18", "adder", "0", "3.6G", "0"),
    ("resnet18", "binary", "0", "1.8G", "1.8G"),
    ("resnet50", "conv", "3.9G", "3.9G", "0"),
    ("resnet50", "adder", "0", "7.7G", "0"),
    ("resnet50", "binary", "0", "3.9G", "3.9G"),
]

UNPUBLISHED = [  # arguments, size
    (dict(name="resnet20", in_chans=1), None),
    (dict(name="resnet20", num_classes=11), None),
    (dict(name="resnet20"), (3, 64, 64)),
    (dict(name="resnet18", num_classes=10), None),
    (dict(name="lenet5bn", op="binary"), None),
    (dict(name="lenetpp"), None),
]


def recurrent():
    return nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), nn.LSTM(8, 2))


@pytest.mark.parametrize(
    ("model", "size", "text"),
    [
        (lambda: create_model("lenet5bn"), None, LENET),
        (lambda: create_model("vgg_small", op="binary"), None, VGG),
        (recurrent, (4, 10), FOREIGN),
    ],
)
def test_table_text(model, size, text):
    assert str(summary(model(), size)) == text


def conforms(value, schema):
    if isinstance(schema, dict):
        assert value.keys() == schema.keys()
        return all(conforms(value[key], schema[key]) for key in schema)
    return isinstance(value, schema)


@pytest.mark.parametrize("op", OPS)
def test_json_schema(op):
    data = json.loads(json.dumps(summary(create_model("resnet20", op=op)).to_dict()))
    assert conforms(data, SCHEMA)
    assert all(conforms(layer, LAYER) for layer in data["layers"])


def test_json_schema_of_a_foreign_model():
    data = json.loads(json.dumps(summary(recurrent(), (4, 10)).to_dict()))
    assert data["paper"] is None
    assert conforms(data, SCHEMA | {"paper": type(None)})
    assert all(conforms(layer, LAYER) for layer in data["layers"])


def test_dictionary_says_the_same_as_the_totals():
    counts = summary(create_model("resnet20", op="binary"))
    data = counts.to_dict()
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


@pytest.mark.parametrize(("name", "op", "mul", "add", "xnor"), PAPER)
def test_the_paper_s_counts(name, op, mul, add, xnor, on_meta):
    counts = summary(on_meta(name, op))
    assert counts.paper == (mul, add, xnor)
    assert counts.cells()[-1] == ["paper", "", "", "", mul, add, xnor]


@pytest.mark.parametrize(("arguments", "size"), UNPUBLISHED)
def test_the_paper_s_counts_stand_only_beside_the_paper_s_task(arguments, size):
    assert summary(create_model(**arguments), size).paper is None


def test_both_cifars_have_the_paper_s_counts():
    assert summary(create_model("resnet20", num_classes=100)).paper == ("0", "82.34M", "0")
