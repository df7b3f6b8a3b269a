"""Provide the scripts of benchmarks/ as modules, one thread for every test, and a GPU that computes on the CPU."""

import importlib.util
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from torchadder.lab.bench import timing

ROOT = Path(__file__).parents[3]


def script(name):
    """Import benchmarks/NAME.py, which is in no package."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as for a script that is run
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def collect():
    return script("collect")


@pytest.fixture(scope="session")
def tables():
    return script("tables")


@pytest.fixture(scope="session")
def engine_tables():
    return script("engine_tables")


@pytest.fixture(autouse=True)
def small_and_steady(one_thread):
    pass


class Event:
    """Replace a CUDA event by the host's clock."""

    now = staticmethod(time.perf_counter)

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self._at = self.now()

    def elapsed_time(self, end):
        return (end._at - self._at) * 1e3


@pytest.fixture
def fake_gpu(monkeypatch):
    """Return a Gpu whose tensors are on the CPU."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    monkeypatch.setattr(timing, "FLUSH", 100)
    return timing.Gpu(torch.device("cpu"))
