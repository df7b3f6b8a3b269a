"""Test the engine benchmark: every step of the network has its row, and operations are those of the definition."""

import pytest

from torchadder.counts import summary
from torchadder.errors import UserError
from torchadder.lab.bench import steps
from torchadder.models import create_model


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_rows(op):
    rows = steps.measure("resnet20", op, 3, lambda line: None)
    assert [row["step"] for row in rows[:3]] == ["input", "conv 3->16 3x3 @32", f"{op} 16->16 3x3 @32"]
    assert rows[3]["step"].endswith("+ shortcut")
    assert rows[-2]["step"] == "AveragePool 64 @8"
    assert all(row["microseconds"] > 0 for row in rows)
    assert rows[2]["operations"] == 16 * 16 * 9 * 32 * 32
    assert rows[2]["giga_ops"] == pytest.approx(rows[2]["operations"] / rows[2]["microseconds"] / 1e3)
    total = summary(create_model("resnet20", "conv"), (3, 32, 32)).mul
    assert sum(row["operations"] for row in rows) == total


def test_an_unknown_operator():
    with pytest.raises(UserError, match="op=xor is unknown: choose adder"):
        steps.measure("resnet20", "xor", 3, print)
