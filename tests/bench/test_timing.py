"""Turns, counts and medians, on a clock that only the candidates move."""

from types import SimpleNamespace

import pytest
import torch

from torchadder.bench import timing


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
    seconds = timing.interleaved(candidates, repetitions=3, least=1.0)
    assert "".join(clock.calls) == "ss" + "ff" + ("ss" + "ffff") * 3  # two untimed calls of each come first
    assert seconds == {"slow": [0.5] * 3, "fast": [0.25] * 3}


def test_a_call_longer_than_the_least_time_is_made_once_a_repetition(clock):
    timing.interleaved({"a": clock.candidate("a", 2.0)}, repetitions=5, least=1.0)
    assert len(clock.calls) == 2 + 5


def test_a_clock_too_coarse_to_see_a_call_does_not_divide_by_zero(clock):
    seconds = timing.interleaved({"a": clock.candidate("a", 0.0)}, repetitions=1, least=1e-6)
    assert seconds == {"a": [0.0]}
    assert len(clock.calls) == 2 + 10


def test_every_repetition_is_kept_and_the_median_forgives_one_slow_moment(clock):
    durations = iter([1.0, 1.0, 1.0, 60.0, 2.0])
    seconds = timing.interleaved({"a": clock.candidate("a", durations)}, repetitions=3, least=1.0)
    assert seconds == {"a": [1.0, 60.0, 2.0]}
    assert timing.medians(seconds) == {"a": 2.0}


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
