"""Which kernels serve a GPU, and what is said where none can."""

import importlib.util
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from torchadder.errors import UserError
from torchadder.ops import gpu

NVIDIA = {
    "cuda": True,
    "cuda.core": True,
    "cuda.bindings": True,
    "triton": True,
    "cc": True,
    "built for": "13.0",
    "version": "3.7.1",
    "version of cuda.core": "1.2.0",
}
CASES = {
    "everything": ({}, "cuda"),
    "no cuda.core": ({"cuda.core": False}, "triton"),
    "cuda.core alone": ({"cuda.bindings": False}, "triton"),
    "an old cuda.core": ({"version of cuda.core": "0.7.0"}, "triton"),
    "no cuda at all": ({"cuda": False, "cuda.core": False}, "triton"),
    "an AMD GPU": ({"built for": None}, "triton"),
}


@pytest.fixture
def place(monkeypatch):
    """A function that makes a machine of NVIDIA with some things changed."""

    def make(changed, wanted=None):
        there = NVIDIA | changed
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if there[name] else None)
        monkeypatch.setattr(shutil, "which", lambda name: name if there["cc"] else None)
        monkeypatch.setattr(torch.version, "cuda", there["built for"])
        monkeypatch.setattr(gpu, "version", lambda name: there[f"version of {name.replace('-', '.')}"])
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=there["version"]))
        monkeypatch.delenv("TORCHADDER_GPU", raising=False)
        if wanted is not None:
            monkeypatch.setenv("TORCHADDER_GPU", wanted)
        gpu.route.cache_clear()

    yield make
    gpu.route.cache_clear()


@pytest.mark.parametrize(("changed", "expected"), CASES.values(), ids=CASES.keys())
def test_the_first_that_is_at_hand(changed, expected, place):
    place(changed)
    assert gpu.route() == expected


@pytest.mark.parametrize("name", gpu.ROUTES)
def test_one_that_is_named(name, place):
    place({}, wanted=name)
    assert gpu.route() == name


def test_without_any_the_reference_computes_and_says_so(place):
    place({"cuda.core": False, "cc": False})
    with pytest.warns(RuntimeWarning, match=r"cuda.core is not installed .*cuda-core\[cu13\].*no C compiler.*slow"):
        assert gpu.route() == "reference"


REFUSED = {
    "a wrong name": ({}, "metal", "TORCHADDER_GPU=metal: choose one of cuda, triton, reference"),
    "no Triton": ({"triton": False}, "triton", "TORCHADDER_GPU=triton: Triton is not installed"),
    "an old Triton": (
        {"version": "3.2.0"},
        "triton",
        r"TORCHADDER_GPU=triton: Triton 3.2.0 is too old \(3.3 or later\)",
    ),
    "another build": ({"built for": None}, "cuda", "TORCHADDER_GPU=cuda: this torch is built without CUDA"),
}


@pytest.mark.parametrize(("changed", "wanted", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(changed, wanted, message, place):
    place(changed, wanted)
    with pytest.raises(UserError, match=message):
        gpu.route()


def test_cpu_tensors_are_not_its_business():
    assert not gpu.runs(torch.zeros(1))
