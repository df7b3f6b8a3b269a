"""Test torchadder doctor: its report on a sound installation, and that it notices an unsound one."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from torchadder import doctor, kernels
from torchadder.bruteforce import Case, brute_force
from torchadder.cli import main
from torchadder.data.mnist import MNIST
from torchadder.errors import UserError


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHADDER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def checks(capsys, *arguments: str) -> tuple[int, dict[str, dict]]:
    code = main(["doctor", "--json", *arguments])
    result = json.loads(capsys.readouterr().out)
    assert result["sound"] == (code == 0)
    return code, {check["name"]: check for check in result["checks"]}


def test_a_sound_installation(capsys):
    code, found = checks(capsys)
    assert code == 0
    assert found["native library"]["ok"] is True
    for isa in kernels.compiled():
        assert found[f"kernels {isa}"]["ok"] is (True if isa in kernels.available() else None)
    assert found["data mnist"]["ok"] is None


def test_plain_text(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for words in (
        f"torch {torch.__version__}",
        str(kernels.library_path()),
        "kernels reference",
        "extra [cli]",
    ):
        assert words in printed
    assert printed.endswith("everything that could be checked is sound\n")


def test_the_isa_in_use_stays_in_use():
    with kernels.using("reference"):
        doctor.check_kernels()
        assert kernels.isa() == "reference"


def test_an_isa_of_another_machine_is_named_and_fails_nothing(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: ["reference"])
    monkeypatch.setattr(kernels, "compiled", lambda: ["reference", "avx1024"])
    code, found = checks(capsys)
    assert code == 0
    assert found["kernels avx1024"]["ok"] is None
    assert "not checked" in found["kernels avx1024"]["detail"]


@pytest.mark.parametrize("damage", [lambda y: y + 0.01 * y.abs().max(), lambda y: y * torch.nan])
def test_a_wrong_kernel_is_noticed(capsys, monkeypatch, damage):
    right = doctor.functional.adder_conv2d
    monkeypatch.setattr(doctor.functional, "adder_conv2d", lambda *args, **kwargs: damage(right(*args, **kwargs)))
    code, found = checks(capsys)
    assert code == 1
    assert found["kernels reference"]["ok"] is False
    assert "forward" in found["kernels reference"]["detail"]


CPU = torch.device("cpu")


def describe(route):
    """Return a describe_gpu that describes the CPU as a GPU."""
    return lambda device: {"name": "Abacus 9", "compute_capability": "9.0", "route": route}


def test_no_gpu_fails_nothing(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    code, found = checks(capsys)
    assert (code, found["GPU"]["ok"]) == (0, None)
    assert f"torch {torch.__version__} is built without CUDA" in found["GPU"]["detail"]


def test_each_gpu_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor, "check_gpu", str)
    assert doctor.check_gpus() == ["cuda:0", "cuda:1"]


def test_a_device_that_computes_what_it_should(monkeypatch):
    monkeypatch.setattr(doctor, "describe_gpu", describe("cuda"))
    check = doctor.check_gpu(CPU)
    assert check.ok is True
    assert check.detail.startswith("Abacus 9, compute capability 9.0, route cuda; 9 shapes, forward and gradients")
    assert "in float32" in check.detail
    assert "in bfloat16" in check.detail


def only(dtype, damage):
    right = doctor.functional.adder_conv1d
    return lambda x, *args, **kwargs: (damage if x.dtype is dtype else lambda y: y)(right(x, *args, **kwargs))


@pytest.mark.parametrize("damage", [lambda y: y + 0.02 * y.abs().max(), lambda y: y * torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_device_is_noticed(monkeypatch, dtype, damage):
    monkeypatch.setattr(doctor, "describe_gpu", describe("triton"))
    monkeypatch.setattr(doctor.functional, "adder_conv1d", only(dtype, damage))
    check = doctor.check_gpu(CPU)
    assert check.ok is False
    assert (
        f"route triton; WRONG against the brute-force reference: forward in {dtype}".replace("torch.", "")
        in check.detail
    )


def test_without_kernels_it_says_why(monkeypatch):
    def warn(device):
        warnings.warn("no GPU kernels", RuntimeWarning, stacklevel=2)
        return describe("reference")(device)

    monkeypatch.setattr(doctor.triton, "problem", lambda: "Triton is not installed")
    monkeypatch.setattr(doctor, "describe_gpu", warn)
    check = doctor.check_gpu(CPU)
    assert check.ok is True
    assert "route reference, which is slow: Triton is not installed;" in check.detail


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (UserError("no kernels for this dtype"), "no kernels for this dtype"),
        (RuntimeError("no kernel image\n  for this device"), "RuntimeError: no kernel image for this device"),
    ],
)
def test_a_gpu_that_does_not_run_is_one_line(monkeypatch, error, detail):
    def refuse(device):
        raise error

    monkeypatch.setattr(doctor, "describe_gpu", refuse)
    assert doctor.check_gpu(torch.device("cuda", 3)) == doctor.Check("GPU 3", False, detail)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu(capsys):
    code, found = checks(capsys)
    assert (code, found["GPU 0"]["ok"]) == (0, True)
    assert torch.cuda.get_device_name(0) in found["GPU 0"]["detail"]


def test_a_library_that_does_not_load_is_noticed(capsys, monkeypatch):
    def refuse():
        raise UserError("the native library does not load")

    monkeypatch.setattr(kernels, "variant", refuse)
    code, found = checks(capsys)
    assert code == 1
    assert found["native library"] == {
        "name": "native library",
        "ok": False,
        "detail": "the native library does not load",
    }


def test_data_found_missing_and_incomplete(capsys, tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    names = list(MNIST.md5)
    for name in names[:-1]:
        Path(folder / f"{name}.gz").touch()
    code, found = checks(capsys, "--data", str(tmp_path))
    assert code == 1
    assert names[-1] in found["data mnist"]["detail"]
    Path(folder / f"{names[-1]}.gz").touch()
    code, found = checks(capsys, "--data", str(tmp_path))
    assert (code, found["data mnist"]["ok"]) == (0, True)
    assert str(folder) in found["data mnist"]["detail"]


def test_brute_force_by_hand():
    case = Case(1, 1, 1, size=(1, 3), kernel=(1, 2))
    x, weight, grad = (
        torch.tensor([[[[1.0, 4.0, 2.0]]]]),
        torch.tensor([[[[3.0, 2.5]]]]),
        torch.tensor([[[[1.0, 2.0]]]]),
    )
    truth = brute_force(case, x, weight, grad)
    assert truth.output.flatten().tolist() == [-3.5, -1.5]
    assert truth.grad_input.flatten().tolist() == [1.0, -1.0 - 2.0, 2.0 * 0.5]
    assert truth.grad_input_sign.flatten().tolist() == [1.0, -1.0 - 2.0, 2.0]
    assert truth.grad_weight_sign.flatten().tolist() == [-1.0 + 2.0, 1.0 - 2.0]
