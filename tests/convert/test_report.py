"""The report of a conversion, as it is printed and as plain values."""

import json

from torch import nn

from torchadder import convert


class ScaledConv2d(nn.Conv2d):
    def forward(self, x):
        return 0.5 * super().forward(x)


def network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ScaledConv2d(4, 4, 1), nn.BatchNorm2d(4))
    return model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)])


def test_the_report_as_it_is_printed():
    model = network()
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
    assert (
        str(convert(model, "conv").conversion)
        == """\
Sequential to conv: 1 converted, 2 already, 1 left

layer  was           is
0      Conv2d        already
2      ScaledConv2d  left: a subclass of Conv2d; only torch's own layer is converted
6      AdderLinear   Linear
8      Linear        already"""
    )
    assert str(convert(nn.Linear(2, 2)).conversion).splitlines()[-1] == "(model)  Linear  AdderLinear"


def test_the_report_as_plain_values():
    report = convert(network()).conversion.to_dict()
    assert json.loads(json.dumps(report)) == report
    assert (report["model"], report["to"], report["flow"]) == ("Sequential", "adder", "traced")
    assert report["layers"][2] == {
        "name": "6",
        "before": "Linear",
        "after": "AdderLinear",
        "outcome": "converted",
        "note": "",
    }
