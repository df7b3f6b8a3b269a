"""Test repetitions, counts and medians on a clock that only the candidates move; devices and their settings."""

from types import SimpleNamespace

import pytest
import torch

from torchadder import environment
from torchadder.errors import UserError
from torchadder.lab.bench import timing
from torchadder.lab.bench.timing import Cpu, HostClock, find_device, interleaved


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
    seconds = interleaved(candidates, 3, HostClock(min_seconds=1.0))
    assert "".join(clock.calls) == "ss" + "ff" + ("ss" + "ffff") * 3  # two uncounted calls of each come first
    assert seconds == {"slow": [0.5] * 3, "fast": [0.25] * 3}


@pytest.mark.parametrize(
    ("duration", "min_seconds", "repetitions", "calls"),
    [(2.0, 1.0, 5, 5), (0.0, 1e-6, 1, 10)],
    ids=["longer than the least time", "too short for the clock"],
)
def test_calls_in_a_repetition(clock, duration, min_seconds, repetitions, calls):
    seconds = interleaved({"a": clock.candidate("a", duration)}, repetitions, HostClock(min_seconds))
    assert seconds == {"a": [duration] * repetitions}
    assert len(clock.calls) == 2 + calls


def test_every_repetition_is_kept_and_the_median_ignores_one_slow_moment(clock):
    durations = iter([1.0, 1.0, 1.0, 60.0, 2.0])
    seconds = interleaved({"a": clock.candidate("a", durations)}, 3, HostClock(min_seconds=1.0))
    assert seconds == {"a": [1.0, 60.0, 2.0]}
    assert timing.medians(seconds) == {"a": 2.0}


@pytest.fixture
def device_clock(clock, fake_gpu, monkeypatch):
    """Return a function from bytes to overwrite, which takes 100 s, to a DeviceClock on the fake clock."""
    monkeypatch.setattr(torch.cuda.Event, "now", staticmethod(lambda: clock.now))
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: clock.candidate(f"[{len(tensor)}]", 100.0)())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: clock.candidate("!", 1000.0)())
    return lambda flush: timing.DeviceClock(torch.device("cpu"), 1.0, flush)


def test_a_gpu_is_timed_between_events_and_synchronized_once_a_repetition(clock, device_clock):
    candidates = {"slow": clock.candidate("s", 0.5), "fast": clock.candidate("f", 0.25)}
    seconds = interleaved(candidates, 2, device_clock(0))
    assert "".join(clock.calls) == "ss!" + "ff!" + ("ss!" + "ffff!") * 2
    assert seconds == {"slow": [0.5] * 2, "fast": [0.25] * 2}


def test_overwriting_the_cache_before_each_call_is_not_timed(clock, device_clock):
    seconds = interleaved({"a": clock.candidate("a", 0.5)}, 1, device_clock(7))
    assert "".join(clock.calls) == "a" + "[7]a!" + "[7]a[7]a!"
    assert seconds == {"a": [0.5]}


def test_the_least_value_of_each_prefix():
    values = {"adder contiguous": 4.0, "adder channels_last": 3.0, "tf32_adder contiguous": 1.0, "conv contiguous": 2.0}
    assert timing.best_by_prefix(values) == {"adder": 3.0, "tf32_adder": 1.0, "conv": 2.0}


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


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("name", "device"), [("cpu", ("cpu",)), ("cuda", ("cuda", 0)), ("cuda:0", ("cuda", 0)), ("cuda:1", ("cuda", 1))]
)
def test_a_device_is_found(two_gpus, name, device):
    assert find_device(name) == torch.device(*device)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda:2", "device=cuda:2 does not exist: there are 2 GPUs, cuda:0 to cuda:1"),
        ("cuda:-1", "device=cuda:-1 is unknown: choose cpu, cuda or cuda:N"),
        ("cuda1", "device=cuda1 is unknown: choose"),
        ("gpu", "device=gpu is unknown: choose"),
        ("", "device= is unknown: choose"),
    ],
)
def test_a_device_that_does_not_exist(two_gpus, name, words):
    with pytest.raises(UserError, match=f"^{words}"):
        find_device(name)


def test_a_single_gpu_is_named(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"there is one GPU, cuda:0$"):
        find_device("cuda:1")


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


def settings():
    return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


def test_only_the_tf32_variants_may_use_tf32_and_settings_are_restored(fake_gpu):
    before = settings()
    calls = dict.fromkeys(("adder contiguous", "conv contiguous", "conv channels_last"), settings)
    with fake_gpu.settings():
        variants = fake_gpu.tf32_variants(calls)
        assert {name: call() for name, call in calls.items()} == dict.fromkeys(calls, (False, True))
        assert {name: call() for name, call in variants.items()} == {
            "tf32_adder contiguous": (True, True),
            "tf32 contiguous": (True, True),
            "tf32 channels_last": (True, True),
        }
        assert settings() == (False, True)
    assert settings() == before
    assert Cpu(1).tf32_variants(calls) == {}


@pytest.mark.parametrize(("free", "images"), [(0, 1), (99, 1), (100, 1), (399, 3), (10_000, 8)])
def test_the_batch_fits_into_the_memory_of_a_gpu(fake_gpu, monkeypatch, free, images):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    assert fake_gpu.largest_batch(8, 100) == images
    assert Cpu(1).largest_batch(8, 100) == 8
