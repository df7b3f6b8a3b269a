"""Test where the Triton kernels run, and the warning where they cannot."""

import importlib.util
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from torchadder.ops import triton

PROBLEMS = {  # change of a machine that has everything -> the problem
    "everything": ({}, None),
    "no Triton": ({"triton": False}, "Triton is not installed"),
    "an old Triton": ({"version": "3.2.0"}, "Triton 3.2.0 is too old: expected 3.3 or later"),
    "no compiler": ({"compiler": False}, "Triton finds no C compiler"),
}


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine with Triton, and some things changed."""

    def make(changes):
        has = {"triton": True, "version": "3.7.1", "compiler": True} | changes
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if has[name] else None)
        monkeypatch.setattr(shutil, "which", lambda name: name if has["compiler"] else None)
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=has["version"]))
        triton.route.cache_clear()

    yield make
    triton.route.cache_clear()


@pytest.mark.parametrize(("changes", "problem"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_problem_and_route(changes, problem, machine):
    machine(changes)
    assert triton.problem() == problem
    if problem is None:
        assert triton.route() == "triton"
    else:
        with pytest.warns(RuntimeWarning) as warned:
            assert triton.route() == "reference"
        assert f"no GPU kernels: {problem}; adder layers run on a slow reference" in str(warned[0].message)


def test_cpu_tensors_do_not_run_on_triton():
    assert not triton.runs(torch.zeros(1))
