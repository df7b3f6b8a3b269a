"""Test the layer benchmarks: shapes of a model, candidates that compute one thing, and the rows that come out."""

import pytest
import torch

from torchadder.counts import summary
from torchadder.lab.bench import layers
from torchadder.lab.bench.layers import LayerCase, LayerShape, candidates, layers_of
from torchadder.lab.bench.timing import Cpu
from torchadder.models import create_model
from torchadder.nn import Adder

# By hand from section 4.2 of the paper's network: three stages of three blocks; 1x1 layers are the shortcuts.
RESNET20 = [  # c_in, c_out, kernel, stride, padding, input size, count, |x - w| for one image
    (16, 16, 3, 1, 1, 32, 6, 32 * 32 * 16 * 16 * 9),
    (16, 32, 3, 2, 1, 32, 1, 16 * 16 * 32 * 16 * 9),
    (32, 32, 3, 1, 1, 16, 5, 16 * 16 * 32 * 32 * 9),
    (16, 32, 1, 2, 0, 32, 1, 16 * 16 * 32 * 16),
    (32, 64, 3, 2, 1, 16, 1, 8 * 8 * 64 * 32 * 9),
    (64, 64, 3, 1, 1, 8, 5, 8 * 8 * 64 * 64 * 9),
    (32, 64, 1, 2, 0, 16, 1, 8 * 8 * 64 * 32),
]
TINY = [  # prime and odd sizes, a stride that leaves pixels over, a 1x1
    LayerShape(3, 5, 3, 1, 1, 7),
    LayerShape(5, 3, 3, 2, 1, 8),
    LayerShape(2, 7, 1, 2, 0, 5),
    LayerShape(1, 6, 5, 1, 0, 9),
]


def silent(line):
    pass


def assert_close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_layers_and_operations_of_resnet20_by_hand():
    shapes = layers_of("resnet20")
    assert shapes == [LayerShape(*row[:7]) for row in RESNET20]
    assert [(shape.count, shape.operations(128)) for shape in shapes] == [(row[6], 128 * row[7]) for row in RESNET20]
    rows = summary(create_model("resnet20", op="adder")).rows
    total = sum(shape.count * shape.operations(1) for shape in shapes)
    assert 2 * total == sum(row.add for row in rows if row.kind == "AdderConv2d") == 2 * 40_370_176


@pytest.mark.parametrize("shape", TINY, ids=str)
@pytest.mark.parametrize("pass_name", layers.PASSES)
def test_both_memory_formats_compute_the_same(shape, pass_name):
    results = {name: call() for name, call in candidates(shape, 3, pass_name).items()}
    for op in ("adder", "conv"):
        one, other = results[f"{op} contiguous"], results[f"{op} channels_last"]
        if isinstance(one, tuple):  # convolution_backward: dX, dW, dbias, None where not requested
            assert [part is None for part in one] == [part is None for part in other]
            assert sum(part is not None for part in one) == 1
            one, other = (next(part for part in parts if part is not None) for parts in (one, other))
        assert_close(one, other)


@pytest.mark.parametrize("shape", TINY, ids=str)
@pytest.mark.parametrize("formula", [layers.broadcast, layers.cdist])
def test_the_formulas_of_other_code_equal_the_operator(shape, formula):
    x, weight, _ = layers._tensors(shape, 3)
    with torch.no_grad():
        assert_close(formula(x, weight, shape), candidates(shape, 3, "forward")["adder contiguous"]())


def test_a_row_for_each_batch_number_of_threads_and_pass(monkeypatch):
    monkeypatch.setattr(layers, "interleaved", lambda calls, repetitions, clock: {key: [1.0, 2.0] for key in calls})
    shown = []
    rows = layers.measure(TINY[:1], [1, 2], [Cpu(1), Cpu(2)], layers.PASSES, 2, shown.append)
    assert len(rows) == len(shown) == 2 * 2 * 3
    assert len({(row["layer"], row["batch"], row["threads"], row["pass"]) for row in rows}) == len(rows)
    assert torch.get_num_threads() == 1
    for row in rows:
        assert set(row["seconds"]) == {f"{op} {name}" for op in ("adder", "conv") for name in layers.FORMATS}


def test_each_operator_is_quoted_in_its_better_format(monkeypatch):
    seconds = {"adder contiguous": [4.0, 5.0], "adder channels_last": [3.0, 3.0]}
    seconds |= {"conv contiguous": [2.0, 2.0], "conv channels_last": [9.0, 1.0]}
    monkeypatch.setattr(layers, "interleaved", lambda calls, repetitions, clock: seconds)
    (row,) = layers.measure(TINY[:1], [2], [Cpu(1)], ["forward"], 2, silent)
    assert row == {
        **{
            "layer": "3->5 3x3 @7",
            "c_in": 3,
            "c_out": 5,
            "kernel": 3,
            "stride": 1,
            "padding": 1,
            "size": 7,
            "count": 1,
        },
        **{"batch": 2, "threads": 1, "pass": "forward", "seconds": seconds},
        **{"adder_ms": 3000.0, "conv_ms": 2000.0, "ratio": 1.5},
        "adder_giga_ops": pytest.approx(TINY[0].operations(2) / 3 / 1e9),
        "conv_giga_ops": pytest.approx(TINY[0].operations(2) / 2 / 1e9),
    }


def test_formulas_have_a_speedup_for_each_number_of_threads():
    rows = layers.measure_formulas(TINY[0], 2, [Cpu(1), Cpu(2)], 1, silent)
    assert [row["threads"] for row in rows] == [1, 2]
    assert all(row["speedup"].keys() == {"broadcast", "cdist"} for row in rows)
    assert all(value > 0 for row in rows for value in row["speedup"].values())


def test_a_formula_with_another_result_is_refused(monkeypatch):
    monkeypatch.setattr(layers, "cdist", lambda x, weight, shape: layers.broadcast(x, weight, shape) + 1)
    with pytest.raises(RuntimeError, match="do not agree"):
        layers.measure_formulas(TINY[0], 2, [Cpu(1)], 1, silent)


SMALL = LayerCase("small", 2, 4, 6, 3, (5, 4), stride=2, groups=2)


@pytest.mark.parametrize("case", layers.CASES, ids=str)
def test_both_layers_of_a_case_differ_in_the_operator_only(case):
    found = case.layers()
    assert isinstance(found["adder"], Adder)
    assert isinstance(found["adder"], type(found["conv"]))
    shapes = [{name: p.shape for name, p in layer.named_parameters()} for layer in found.values()]
    assert shapes[0] == shapes[1]
    assert len(layers.module_candidates(case, "forward")) == (2 if len(case.size) == 1 else 4)


@pytest.mark.parametrize("pass_name", layers.MODULE_PASSES)
def test_module_candidates_give_results_of_the_same_shapes(pass_name):
    results = [call() for call in layers.module_candidates(SMALL, pass_name).values()]
    results = [[result] if isinstance(result, torch.Tensor) else result for result in results]
    assert len(results) == 4
    assert len({tuple(tensor.shape for tensor in result) for result in results}) == 1
    assert len(results[0]) == (1 if pass_name == "forward" else 3)
    assert pass_name == "step" or all(result[0].requires_grad for result in results)


def test_rows_of_cases(monkeypatch):
    seconds = {"adder a": [3.0], "adder b": [6.0], "conv a": [4.0], "conv b": [2.0]}
    monkeypatch.setattr(layers, "interleaved", lambda calls, repetitions: seconds)
    rows = layers.measure_modules([SMALL], [1, 2], 1, silent)
    assert [(row["threads"], row["pass"]) for row in rows] == [(1, "forward"), (1, "step"), (2, "forward"), (2, "step")]
    assert rows[0] == {
        **{"layer": "small: 4->6 3x3/2, 2 groups on 2x4x5x4", "threads": 1, "pass": "forward", "seconds": seconds},
        **{"adder_ms": 3000.0, "conv_ms": 2000.0, "ratio": 1.5},
    }
