"""Where a benchmark runs: names of devices, settings that are put back, rivals with TF32."""

import pytest
import torch

from torchadder import environment
from torchadder.errors import UserError
from torchadder.lab.bench import devices
from torchadder.lab.bench.devices import Cpu


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("name", "device"), [("cpu", ("cpu",)), ("cuda", ("cuda", 0)), ("cuda:0", ("cuda", 0)), ("cuda:1", ("cuda", 1))]
)
def test_a_device_is_found(two_gpus, name, device):
    assert devices.find(name) == torch.device(*device)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda:2", "--device cuda:2: there are 2 GPUs, cuda:0 to cuda:1"),
        ("cuda:-1", "--device cuda:-1: choose of cpu, cuda, cuda:N"),
        ("cuda1", "--device cuda1: choose of"),
        ("gpu", "--device gpu: choose of"),
        ("", "--device : choose of"),
    ],
)
def test_a_device_that_is_not_there(two_gpus, name, words):
    with pytest.raises(UserError, match=f"^{words}"):
        devices.find(name)


def test_one_gpu_is_called_one(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"there is one GPU, cuda:0$"):
        devices.find("cuda:1")


@pytest.mark.parametrize(
    ("version", "words"), [(None, "is built without CUDA: install"), ("13.0", "finds no GPU that it can use: see")]
)
def test_no_gpu(monkeypatch, version, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    assert words in environment.lacks_gpu()
    with pytest.raises(UserError, match=f"--device cuda: torch {torch.__version__.partition('+')[0]}.* {words}"):
        devices.find("cuda")


def settings():
    return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


def test_tf32_is_for_the_rivals_alone_and_all_is_put_back(pretended):
    before = settings()
    calls = dict.fromkeys(("adder contiguous", "conv contiguous", "conv channels_last"), settings)
    with pretended.in_use():
        rivals = pretended.rivals(calls)
        assert {name: call() for name, call in calls.items()} == dict.fromkeys(calls, (False, True))
        assert {name: call() for name, call in rivals.items()} == {
            "tf32_adder contiguous": (True, True),
            "tf32 contiguous": (True, True),
            "tf32 channels_last": (True, True),
        }
        assert settings() == (False, True)
    assert settings() == before
    assert Cpu(1).rivals(calls) == {}


def test_the_limit_is_measured_once_and_not_without_its_compiler(pretended, monkeypatch):
    asked = []
    monkeypatch.setattr(devices.gpu, "issue_limit", lambda device: asked.append(device) or 3.0, raising=False)
    assert (pretended.limit, pretended.limit) == (3.0, 3.0)
    assert asked == [pretended.device]
    monkeypatch.setattr(devices.gpu, "lacking", lambda: {"cuda": "cuda.core is not installed"})
    assert devices.Gpu(pretended.device).limit is None


@pytest.mark.parametrize(("free", "images"), [(0, 1), (99, 1), (100, 1), (399, 3), (10_000, 8)])
def test_as_many_images_as_fit(pretended, monkeypatch, free, images):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    assert pretended.most(8, 100) == images
    assert Cpu(1).most(8, 100) == 8
