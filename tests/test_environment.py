"""Test the description of the environment of a run."""

import sys
from types import SimpleNamespace

import pytest
import torch

from torchadder import environment
from torchadder.environment import describe_environment


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/torchadder", "train", "a b"], "torchadder train 'a b'"),
        (["/lib/python/torchadder/__main__.py", "train"], "torchadder train"),
        (["bench.py"], "bench.py"),
    ],
)
def test_the_command(monkeypatch, argv, command):
    monkeypatch.setattr(sys, "argv", argv)
    assert describe_environment()["command"] == command


VERSIONS = [  # the kernel module's file -> the driver's version
    ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
    ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build\nGCC version:  12.3", "580.65"),
    ("", None),
    (None, None),
]


@pytest.mark.parametrize(("text", "version"), VERSIONS)
def test_the_driver(monkeypatch, tmp_path, text, version):
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    asked = []
    monkeypatch.setattr(environment, "Path", lambda name: asked.append(name) or path)
    assert environment._driver() == version
    assert asked == ["/proc/driver/nvidia/version"]


def test_the_gpu_of_a_run(monkeypatch):
    properties = SimpleNamespace(
        name="Abacus 9", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30 + 1
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", {torch.device("cuda", 1): properties}.get)
    monkeypatch.setattr(environment.triton, "route", lambda: "triton")
    monkeypatch.setattr(environment, "_driver", lambda: "580.65")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    about = describe_environment(torch.device("cuda", 1))
    assert about["gpu"] == {
        **{"name": "Abacus 9", "compute_capability": "9.0", "multiprocessors": 132, "memory_gib": 80.0},
        **{"cuda": "13.0", "cudnn": 91000, "driver": "580.65", "route": "triton"},
    }
    assert describe_environment(torch.device("cpu")) == describe_environment()
    assert "gpu" not in describe_environment()
