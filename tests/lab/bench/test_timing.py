"""Test repetitions, counts and medians on a clock that only the candidates move; devices and their settings."""

from types import SimpleNamespace

import pytest
import torch

from torchadder import environment
from torchadder.errors import UserError
from torchadder.lab.bench import timing
from torchadder.lab.bench.timing import find_device, interleaved


class Clock:
    def __init__(self):
        self.now = 0.0
        self.calls = []

    def candidate(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += next(seconds) if hasattr(seconds, "__next__") else seconds

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_repetitions_are_interleaved_and_fill_the_least_time(clock):
    candidates = {"slow": clock.candidate("s", 0.5), "fast": clock.candidate("f", 0.25)}
    seconds = interleaved(candidates, 3, timing.Clock(min_seconds=1.0))
    assert "".join(clock.calls) == "ss" + "ff" + ("ss" + "ffff") * 3  # two uncounted calls of each come first
    assert seconds == {"slow": [0.5] * 3, "fast": [0.25] * 3}


@pytest.mark.parametrize(
    ("duration", "min_seconds", "repetitions", "calls"),
    [(2.0, 1.0, 5, 5), (0.0, 1e-6, 1, 10)],
    ids=["longer than the least time", "too short for the clock"],
)
def test_calls_in_a_repetition(clock, duration, min_seconds, repetitions, calls):
    seconds = interleaved({"a": clock.candidate("a", duration)}, repetitions, timing.Clock(min_seconds))
    assert seconds == {"a": [duration] * repetitions}
    assert len(clock.calls) == 2 + calls


def test_every_repetition_is_kept_and_the_median_ignores_one_slow_moment(clock):
    durations = iter([1.0, 1.0, 1.0, 60.0, 2.0])
    seconds = interleaved({"a": clock.candidate("a", durations)}, 3, timing.Clock(min_seconds=1.0))
    assert seconds == {"a": [1.0, 60.0, 2.0]}
    assert timing.medians(seconds) == {"a": 2.0}


def test_the_work_of_a_gpu_is_waited_for_once_in_each_repetition(clock):
    device = timing.Clock(min_seconds=1.0, finish=clock.candidate("!", 0.5))
    seconds = interleaved({"a": clock.candidate("a", 0.25)}, 2, device)
    assert "".join(clock.calls) == "a!a!" + "a!a!"[:2] * 2
    assert seconds == {"a": [0.75] * 2}


def test_the_least_value_of_each_prefix():
    values = {"adder contiguous": 4.0, "adder channels_last": 3.0, "conv contiguous": 2.0}
    assert timing.best_by_prefix(values) == {"adder": 3.0, "conv": 2.0}


def test_threads_are_restored_after_an_error_too():
    before, inside = torch.get_num_threads(), []

    def fail():
        with timing.threads(before + 1):
            inside.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "device"), [("cpu", ("cpu",)), ("cuda", ("cuda", 0)), ("cuda:0", ("cuda", 0)), ("cuda:1", ("cuda", 1))]
)
def test_a_device_is_found(monkeypatch, name, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device(name) == torch.device(*device)


@pytest.mark.parametrize(
    ("name", "gpus", "words"),
    [
        ("cuda:2", 2, "device=cuda:2 does not exist: there are 2 GPUs, cuda:0 to cuda:1"),
        ("cuda:1", 1, "device=cuda:1 does not exist: there is one GPU, cuda:0"),
        ("cuda:-1", 2, "device=cuda:-1 is unknown: choose cpu, cuda or cuda:N"),
        ("cuda1", 2, "device=cuda1 is unknown: choose"),
        ("", 2, "device= is unknown: choose"),
    ],
)
def test_a_device_that_does_not_exist(monkeypatch, name, gpus, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=f"^{words}"):
        find_device(name)


@pytest.mark.parametrize(
    ("version", "words"), [(None, "is built without CUDA: install"), ("13.0", "finds no GPU that it can use: check")]
)
def test_no_gpu(monkeypatch, version, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    assert words in environment.lacks_gpu()
    torch_version = torch.__version__.partition("+")[0]
    with pytest.raises(UserError, match=f"^device=cuda cannot be used: torch {torch_version}.* {words}"):
        find_device("cuda")
