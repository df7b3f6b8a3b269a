"""The layers that are compared with torch's, one of every kind."""

import pytest
import torch

from torchadder.lab.bench import family
from torchadder.nn import Adder

cases = pytest.mark.parametrize("case", family.CASES, ids=str)


@cases
def test_both_sides_are_the_same_layer_but_for_the_operator(case):
    layers = case.layers()
    assert isinstance(layers["adder"], Adder)
    assert isinstance(layers["adder"], type(layers["conv"]))
    shapes = [{name: p.shape for name, p in layer.named_parameters()} for layer in layers.values()]
    assert shapes[0] == shapes[1]
    assert len(family.candidates(case, "forward")) == (2 if len(case.size) == 1 else 4)


@pytest.mark.parametrize("which", family.PASSES)
def test_both_sides_give_results_of_the_same_shapes(which):
    case = family.LayerCase("small", 2, 4, 6, 3, (5, 4), stride=2, groups=2)
    results = [call() for call in family.candidates(case, which).values()]
    results = [[result] if isinstance(result, torch.Tensor) else result for result in results]
    assert len(results) == 4
    assert len({tuple(tensor.shape for tensor in result) for result in results}) == 1
    assert len(results[0]) == (1 if which == "forward" else 3)
    assert which == "step" or all(result[0].requires_grad for result in results)


def test_rows(monkeypatch):
    seconds = {"adder a": [3.0], "adder b": [6.0], "conv a": [4.0], "conv b": [2.0]}
    monkeypatch.setattr(family, "interleaved", lambda calls, repetitions: seconds)
    case = family.LayerCase("small", 2, 4, 6, 3, (5, 4), stride=2, groups=2)
    rows = family.measure([case], [1, 2], 1, lambda text: None)
    assert [(row["threads"], row["pass"]) for row in rows] == [(1, "forward"), (1, "step"), (2, "forward"), (2, "step")]
    assert rows[0] == {
        **{"layer": "small: 4->6 3x3/2, 2 groups on 2x4x5x4", "threads": 1, "pass": "forward", "seconds": seconds},
        **{"adder_ms": 3000.0, "conv_ms": 2000.0, "ratio": 1.5},
    }
