"""Test the layer benchmarks: shapes of a model, candidates that compute one thing, and the rows that come out."""

import pytest
import torch

from torchadder.counts import summary
from torchadder.lab.bench import layers
from torchadder.lab.bench.layers import FamilyCase, LayerShape, candidates, layers_of
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
SHAPE = dict(layer="3->5 3x3 @7", c_in=3, c_out=5, kernel=3, stride=1, padding=1, size=7, count=1)


def silent(line):
    pass


def assert_close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_resnet20_has_seven_distinct_layers():
    assert layers_of("resnet20") == [LayerShape(*row[:7]) for row in RESNET20]


@pytest.mark.parametrize("row", RESNET20, ids=str)
def test_operations_by_hand(row):
    shape = LayerShape(*row[:7])
    assert shape.operations(1) == row[7]
    assert shape.operations(128) == 128 * row[7]


def test_the_total_equals_that_of_the_summary():
    total = sum(shape.count * shape.operations(1) for shape in layers_of("resnet20"))
    rows = summary(create_model("resnet20", op="adder")).rows
    assert total == 40_370_176
    assert 2 * total == sum(row.add for row in rows if row.kind == "AdderConv2d")


@pytest.mark.parametrize(("shape", "text"), [(TINY[0], "3->5 3x3 @7"), (TINY[1], "5->3 3x3/2 @8")])
def test_a_layer_is_named_by_its_shape(shape, text):
    assert str(shape) == text


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


def test_rows_of_a_real_measurement():
    rows = layers.measure(TINY[:1], [1], [Cpu(1)], layers.PASSES, 2, silent)
    assert [row["pass"] for row in rows] == list(layers.PASSES)
    for row in rows:
        assert row.keys() == {
            *(*SHAPE, "batch", "threads", "pass"),
            *("seconds", "adder_ms", "conv_ms", "adder_giga_ops", "conv_giga_ops", "ratio"),
        }
        assert set(row["seconds"]) == {f"{op} {name}" for op in ("adder", "conv") for name in layers.FORMATS}
        assert all(len(values) == 2 and min(values) > 0 for values in row["seconds"].values())
        assert row["ratio"] == pytest.approx(row["adder_ms"] / row["conv_ms"])
        assert row["ratio"] > 0
        assert row["adder_giga_ops"] > 0


def test_a_row_for_each_shape_batch_threads_and_pass(monkeypatch):
    threads_used, shown = [], []

    def interleaved(calls, repetitions, clock):
        threads_used.append(torch.get_num_threads())
        return {name: [1.0] * repetitions for name in calls}

    monkeypatch.setattr(layers, "interleaved", interleaved)
    rows = layers.measure(TINY[:2], [1, 2], [Cpu(1), Cpu(2)], layers.PASSES, 2, shown.append)
    assert len(rows) == len(shown) == 2 * 2 * 2 * 3
    assert len({(row["layer"], row["batch"], row["threads"], row["pass"]) for row in rows}) == len(rows)
    assert threads_used == [row["threads"] for row in rows]
    assert torch.get_num_threads() == 1


def test_each_operator_is_quoted_in_its_better_format(monkeypatch):
    seconds = {"adder contiguous": [4.0, 5.0], "adder channels_last": [3.0, 3.0]}
    seconds |= {"conv contiguous": [2.0, 2.0], "conv channels_last": [9.0, 1.0]}
    monkeypatch.setattr(layers, "interleaved", lambda calls, repetitions, clock: seconds)
    (row,) = layers.measure(TINY[:1], [1], [Cpu(1)], ["forward"], 2, silent)
    assert (row["adder_ms"], row["conv_ms"], row["ratio"]) == (3000, 2000, 1.5)
    assert row["conv_giga_ops"] == pytest.approx(TINY[0].operations(1) / 2 / 1e9)


def test_formulas_have_a_speedup_for_each_number_of_threads():
    rows = layers.measure_formulas(TINY[0], 2, [Cpu(1), Cpu(2)], 1, silent)
    assert [row["threads"] for row in rows] == [1, 2]
    assert all(row["speedup"].keys() == {"broadcast", "cdist"} for row in rows)
    assert all(value > 0 for row in rows for value in row["speedup"].values())


def test_a_formula_with_another_result_is_refused(monkeypatch):
    monkeypatch.setattr(layers, "cdist", lambda x, weight, shape: layers.broadcast(x, weight, shape) + 1)
    with pytest.raises(RuntimeError, match="do not agree"):
        layers.measure_formulas(TINY[0], 2, [Cpu(1)], 1, silent)


def test_rows_of_a_gpu(fake_gpu, monkeypatch):
    seconds = {"adder contiguous": [4.0], "adder channels_last": [3.0], "conv contiguous": [2.0]}
    seconds |= {"conv channels_last": [9.0], "tf32 contiguous": [1.5], "tf32 channels_last": [1.0]}
    with_tf32 = {"tf32_adder contiguous": [2.5], "tf32_adder channels_last": [2.0]}
    flushed = []

    def interleaved(calls, repetitions, clock):
        flushed.append(len(clock._overwritten))
        found = seconds if len(flushed) == 1 else seconds | with_tf32
        assert calls.keys() == found.keys()
        return found

    monkeypatch.setattr(layers, "interleaved", interleaved)
    forward, grad_weight = layers.measure(TINY[:1], [2], [fake_gpu], ["forward", "grad_weight"], 1, silent)
    rate = TINY[0].operations(2) / 3 / 1e9
    assert forward == {
        **SHAPE,
        **{"batch": 2, "device": "cpu", "pass": "forward", "seconds": seconds},
        **{"adder_ms": 3000.0, "conv_ms": 2000.0, "tf32_ms": 1000.0, "ratio": 1.5, "tf32_ratio": 3.0},
        "adder_giga_ops": pytest.approx(rate),
        "conv_giga_ops": pytest.approx(rate * 3 / 2),
        "tf32_giga_ops": pytest.approx(rate * 3),
    }
    assert (grad_weight["ratio"], grad_weight["tf32_ratio"]) == (1.5, 2.0)
    assert flushed == [100, 100]


def test_a_real_measurement_by_events(fake_gpu):
    (row,) = layers.measure(TINY[:1], [1], [fake_gpu], ["grad_input"], 2, silent)
    assert set(row["seconds"]) == {f"{op} {name}" for op in ("adder", "conv", "tf32") for name in layers.FORMATS}
    assert all(len(values) == 2 and min(values) > 0 for values in row["seconds"].values())


def test_formulas_take_as_many_images_as_a_gpu_holds(fake_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12 * TINY[0].operations(3) + 1, 0))
    (row,) = layers.measure_formulas(TINY[0], 8, [fake_gpu], 1, silent)
    assert (row["batch"], row["device"]) == (3, "cpu")


SMALL = FamilyCase("small", 2, 4, 6, 3, (5, 4), stride=2, groups=2)


@pytest.mark.parametrize("case", layers.FAMILY, ids=str)
def test_family_layers_differ_in_the_operator_only(case):
    found = case.layers()
    assert isinstance(found["adder"], Adder)
    assert isinstance(found["adder"], type(found["conv"]))
    shapes = [{name: p.shape for name, p in layer.named_parameters()} for layer in found.values()]
    assert shapes[0] == shapes[1]
    assert len(layers.family_candidates(case, "forward")) == (2 if len(case.size) == 1 else 4)


@pytest.mark.parametrize("pass_name", layers.FAMILY_PASSES)
def test_family_candidates_give_results_of_the_same_shapes(pass_name):
    results = [call() for call in layers.family_candidates(SMALL, pass_name).values()]
    results = [[result] if isinstance(result, torch.Tensor) else result for result in results]
    assert len(results) == 4
    assert len({tuple(tensor.shape for tensor in result) for result in results}) == 1
    assert len(results[0]) == (1 if pass_name == "forward" else 3)
    assert pass_name == "step" or all(result[0].requires_grad for result in results)


def test_family_rows(monkeypatch):
    seconds = {"adder a": [3.0], "adder b": [6.0], "conv a": [4.0], "conv b": [2.0]}
    monkeypatch.setattr(layers, "interleaved", lambda calls, repetitions: seconds)
    rows = layers.measure_family([SMALL], [1, 2], 1, silent)
    assert [(row["threads"], row["pass"]) for row in rows] == [(1, "forward"), (1, "step"), (2, "forward"), (2, "step")]
    assert rows[0] == {
        **{"layer": "small: 4->6 3x3/2, 2 groups on 2x4x5x4", "threads": 1, "pass": "forward", "seconds": seconds},
        **{"adder_ms": 3000.0, "conv_ms": 2000.0, "ratio": 1.5},
    }
