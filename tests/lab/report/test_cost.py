"""Test the costs of operations: the paper's cycles, the published energies, and which totals are left out."""

import pytest
from torch import nn

from torchadder.counts import summary
from torchadder.lab.report import cost
from torchadder.models import create_model

CYCLES = [  # op, exact cycles, cycles as the paper prints them
    ("conv", 416_520 * 4 + 416_520 * 2, "2.6M"),
    ("adder", 833_040 * 2, "1.7M"),
    ("binary", None, "-"),
]

RESNET20 = [
    ["cost of one image", "unit", "#Mul", "#Add", "total", "paper"],
    ["VIA Nano 2000, float", "cycles", "4", "2", "164,138,752", "-"],
    ["45 nm, int8", "pJ", "0.2", "0.03", "2,524,102", "-"],
    ["45 nm, int16", "pJ", "-", "0.05", "-", "-"],
    ["45 nm, int32", "pJ", "3.1", "0.1", "9,491,661", "-"],
    ["45 nm, fp16", "pJ", "1.1", "0.4", "32,960,653", "-"],
    ["45 nm, fp32", "pJ", "3.7", "0.9", "74,704,154", "-"],
]
NOTES = [
    "arithmetic alone, every operation at the row's width; memory and control are left out",
    "no total where the cost of a #Mul is not published: 45 nm, int16",
    "source: Chen et al., AdderNet, CVPR 2020, section 4.1",
    "source: Horowitz, Computing's energy problem, ISSCC 2014, 10.1109/ISSCC.2014.6757323",
]


def lenet(op):
    return summary(create_model("lenet5bn", op=op))


@pytest.mark.parametrize(("op", "cycles", "paper"), CYCLES)
def test_cycles_on_the_processor_of_the_paper(op, cycles, paper):
    nano = cost.COSTS[0]
    assert (nano.name, nano.unit, nano.total(lenet(op))) == ("VIA Nano 2000, float", "cycles", cycles)
    assert cost.cells(lenet(op))[1][-1] == paper
    if cycles:
        assert abs(cycles / 1e6 - float(paper[:-1])) <= 0.12  # the paper counts biases and more: 435K, not 416,520


def test_a_network_without_products_needs_no_cost_of_a_product():
    assert [row[-2] for row in cost.cells(lenet("adder"))[2:4]] == ["24,991", "41,652"]


def test_a_binary_network_has_no_total():
    counts = lenet("binary")
    assert {row[-2] for row in cost.cells(counts)[1:]} == {"-"}
    assert "no total: the cost of an #XNOR is not published" in cost.notes(counts)


def test_the_cycles_of_the_paper_stand_only_beside_its_network():
    assert cost.cells(summary(create_model("lenet5bn", num_classes=11)))[1][-1] == "-"


def test_cells_and_notes():
    counts = summary(create_model("resnet20"))
    assert cost.cells(counts) == RESNET20
    assert cost.notes(counts) == NOTES


def test_operations_that_are_not_counted_make_the_total_a_lower_bound():
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), nn.LSTM(8, 2))
    counts = summary(model, (4, 10))
    assert (counts.mul, counts.add) == (288, 288)
    assert cost.cells(counts)[1][-2] == ">= 1,728"
