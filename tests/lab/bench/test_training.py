"""Test the training step that is timed, its profile, and the memory that is counted for it."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from torchadder.functional import GradientRule
from torchadder.lab.bench import training
from torchadder.lab.bench.layers import FORMATS
from torchadder.lab.bench.timing import Cpu
from torchadder.models import create_model


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("op", training.OPS)
def test_a_step_trains_every_weight(monkeypatch, op, layout):
    rule = GradientRule(numbers="int8") if op == "int8" else None
    model = create_model("lenet5bn", op="conv" if op == "conv" else "adder", grad=rule)
    adaptive, rescale = [], training.AdaptiveLR
    rules = []
    monkeypatch.setattr(training, "create_model", lambda name, op, grad: rules.append(grad) or model)
    monkeypatch.setattr(training, "AdaptiveLR", lambda optimizer: adaptive.append(rescale(optimizer)))
    step = training.training_step("lenet5bn", op, layout, 16)
    before = [p.detach().clone() for p in model.parameters()]
    step()
    step()
    after = list(model.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(p.isfinite().all() for p in after)
    assert len(adaptive) == (op != "conv")
    assert rules == [rule]


def test_rows(monkeypatch):
    asked = []

    def memory(name, op, layout, batch, count):
        asked.append((name, op, layout, batch, count))
        return {"step": {"adder": 3.0, "int8": 4.0, "conv": 2.0}[op], "total": 100.0}

    monkeypatch.setattr(training, "peak_memory", memory)
    seconds = {"adder contiguous": [4.0], "adder channels_last": [3.0], "conv contiguous": [2.0]}
    seconds |= {"conv channels_last": [8.0], "int8 contiguous": [1.0], "int8 channels_last": [5.0]}
    monkeypatch.setattr(training, "profile", lambda step, device: {"aten::mm": 1.0})
    monkeypatch.setattr(training, "interleaved", lambda steps, repetitions, clock: seconds)
    first, second = training.measure("lenet5bn", 2, [Cpu(1), Cpu(2)], 1, lambda line: None)
    assert (first["threads"], second["threads"]) == (1, 2)
    assert first == {
        **{"model": "lenet5bn", "batch": 2, "threads": 1, "seconds": seconds},
        "format": {"adder": "channels_last", "int8": "contiguous", "conv": "contiguous"},
        **{"adder_ms": 3000.0, "int8_ms": 1000.0, "conv_ms": 2000.0},
        **{"ratio": 1.5, "int8_ratio": 0.5, "memory_ratio": 1.5},
        "images_per_second": {"adder": pytest.approx(2 / 3), "int8": 2.0, "conv": 1.0},
        "memory_mib": {
            op: {"step": size, "total": 100.0} for op, size in zip(training.OPS, (3.0, 4.0, 2.0), strict=True)
        },
        "profile": {op: {"aten::mm": 1.0} for op in training.OPS},
    }
    formats = zip(training.OPS, ("channels_last", "contiguous", "contiguous"), strict=True)
    assert asked[:3] == [("lenet5bn", op, layout, 2, 1) for op, layout in formats]


def test_real_steps_are_timed_and_a_step_too_small_to_be_seen_has_no_memory_ratio(monkeypatch):
    monkeypatch.setattr(training, "peak_memory", lambda *arguments: {"step": 0.0, "total": 1.0})
    (row,) = training.measure("lenet5bn", 2, [Cpu(1)], 2, lambda line: None)
    assert set(row["seconds"]) == {f"{op} {layout}" for op in training.OPS for layout in FORMATS}
    assert all(len(values) == 2 and min(values) > 0 for values in row["seconds"].values())
    assert row["ratio"] > 0
    assert row["memory_ratio"] is None


def test_memory_of_a_fresh_process(monkeypatch):
    monkeypatch.setattr(training, "_in_process", functools.cache(training._in_process))  # two processes, not four
    memory = training.peak_memory("lenet5bn", "adder", "contiguous", 64, 1)
    assert memory["step"] > 64 * 6 * 28 * 28 * 4 / 2**20  # at least the first layer's output
    assert memory["total"] > memory["step"]


def test_profile_lists_operators_the_longest_first_and_sums_to_the_step(monkeypatch):
    step = training.training_step("lenet5bn", "adder", "contiguous", 8)
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0])  # three steps, of which the second has the median time
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    times = training.profile(step, min_share=0.0)
    assert {"torchadder::adder_conv", "torchadder::adder_conv_grad_input"} <= times.keys()
    assert sum(times.values()) == pytest.approx(2000.0)
    *named, other = times.items()
    assert other[0] == training.OTHER
    assert [value for _, value in named] == sorted((value for _, value in named), reverse=True)
    assert all(value >= 0 for _, value in named)


def test_small_operators_are_part_of_other():
    times = training.profile(training.training_step("lenet5bn", "adder", "contiguous", 64))
    assert "torchadder::adder_conv_grad_input" in times
    assert all(value > 0.005 * sum(times.values()) for name, value in times.items() if name != training.OTHER)
    assert 0 < times[training.OTHER] < sum(times.values())


def test_kernels_count_once():
    def event(key, device, microseconds, annotated=False):
        return SimpleNamespace(
            key=key, device_type=device, self_device_time_total=microseconds, is_user_annotation=annotated
        )

    events = [
        event("aten::mm", DeviceType.CPU, 9000.0),
        event("Optimizer.step", DeviceType.CUDA, 9000.0, annotated=True),
        event("sgemm", DeviceType.CUDA, 6000.0),
        event("Memset (Device)", DeviceType.CUDA, 3000.0),
    ]
    assert training.kernel_times(events) == {"sgemm": 6.0, "Memset (Device)": 3.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_and_kernels_of_a_real_gpu():
    device = torch.device("cuda", 0)
    memory = training.gpu_peak_memory(
        lambda: training.training_step("lenet5bn", "adder", "contiguous", 64, device), device
    )
    assert memory["step"] > 64 * 6 * 28 * 28 * 4 / 2**20  # at least the first layer's output
    times = training.profile(training.training_step("lenet5bn", "conv", "contiguous", 8, device), device)
    assert len(times) > 1
    assert all(value > 0 for value in times.values())
