"""Turns, counts and medians, on a clock that only the candidates move."""

from types import SimpleNamespace

import pytest
import torch

from torchadder.lab.bench import timing


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


def test_candidates_take_turns_as_often_as_fills_the_least_time(clock):
    candidates = {"slow": clock.candidate("s", 0.5), "fast": clock.candidate("f", 0.25)}
    seconds = timing.interleaved(candidates, 3, timing.HostClock(least=1.0))
    assert "".join(clock.calls) == "ss" + "ff" + ("ss" + "ffff") * 3  # two untimed calls of each come first
    assert seconds == {"slow": [0.5] * 3, "fast": [0.25] * 3}


def test_a_call_longer_than_the_least_time_is_made_once_a_repetition(clock):
    timing.interleaved({"a": clock.candidate("a", 2.0)}, 5, timing.HostClock(least=1.0))
    assert len(clock.calls) == 2 + 5


def test_a_clock_too_coarse_to_see_a_call_does_not_divide_by_zero(clock):
    seconds = timing.interleaved({"a": clock.candidate("a", 0.0)}, 1, timing.HostClock(least=1e-6))
    assert seconds == {"a": [0.0]}
    assert len(clock.calls) == 2 + 10


def test_every_repetition_is_kept_and_the_median_forgives_one_slow_moment(clock):
    durations = iter([1.0, 1.0, 1.0, 60.0, 2.0])
    seconds = timing.interleaved({"a": clock.candidate("a", durations)}, 3, timing.HostClock(least=1.0))
    assert seconds == {"a": [1.0, 60.0, 2.0]}
    assert timing.medians(seconds) == {"a": 2.0}


@pytest.fixture
def device_clock(clock, pretended, monkeypatch):
    """A DeviceClock whose events are on the same clock: (bytes to overwrite, which takes 100 s) -> it."""
    monkeypatch.setattr(torch.cuda.Event, "now", staticmethod(lambda: clock.now))
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: clock.candidate(f"[{len(tensor)}]", 100.0)())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: clock.candidate("!", 1000.0)())
    return lambda flush: timing.DeviceClock(torch.device("cpu"), 1.0, flush)


def test_a_device_is_timed_between_events_and_waited_for_once_a_turn(clock, device_clock):
    candidates = {"slow": clock.candidate("s", 0.5), "fast": clock.candidate("f", 0.25)}
    seconds = timing.interleaved(candidates, 2, device_clock(0))
    assert "".join(clock.calls) == "ss!" + "ff!" + ("ss!" + "ffff!") * 2
    assert seconds == {"slow": [0.5] * 2, "fast": [0.25] * 2}


def test_what_overwrites_the_cache_before_each_call_is_not_timed(clock, device_clock):
    seconds = timing.interleaved({"a": clock.candidate("a", 0.5)}, 1, device_clock(7))
    assert "".join(clock.calls) == "a" + "[7]a!" + "[7]a[7]a!"
    assert seconds == {"a": [0.5]}


def test_threads_are_put_back_after_an_error_too():
    before, inside = torch.get_num_threads(), []

    def fail():
        with timing.threads(before + 1):
            inside.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [before + 1]
    assert torch.get_num_threads() == before
