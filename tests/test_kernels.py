"""Test how the instruction set is chosen, and the names that are refused."""

import os
import subprocess
import sys
from unittest.mock import MagicMock

import pytest
from tests.ops.conftest import runs_here

from torchadder import kernels
from torchadder.errors import UserError


@pytest.fixture(autouse=True)
def _best_afterwards():
    yield
    kernels.select("")


def lacking():
    return [isa for isa in kernels.compiled() if isa not in kernels.available()]


def test_reference_is_everywhere():
    assert kernels.compiled()[0] == kernels.available()[0] == "reference"
    assert set(kernels.available()) <= set(kernels.compiled())


def test_the_best_is_the_default():
    kernels.select("reference")
    kernels.select("")
    assert kernels.isa() == kernels.available()[-1]


def test_the_way_of_summing_is_timed_once_and_can_be_forced():
    kernels.select("")
    chosen = kernels.variant()
    assert chosen in [*kernels.variants(), "avx512:half"]
    assert kernels.variant() == chosen
    for variant in kernels.variants():
        with kernels.using(variant):
            assert kernels.variant() == variant


def test_variants_reach_every_kernel_that_runs_here():
    reached = set()
    for variant in kernels.variants():
        with kernels.using(variant):
            reached |= set(kernels.names(in_use=True))
    runs = {name for name in kernels.names() if runs_here(name.split("_")[-3])}
    assert reached == runs


@pytest.mark.parametrize("variant", kernels.variants())
def test_using_restores_the_variant_after_an_error_too(variant):
    before = kernels.isa(), kernels.names(in_use=True)
    with kernels.using(variant):
        chosen = kernels.isa(), kernels.names(in_use=True)
        assert chosen[0] == variant.split(":")[0]
        with kernels.using("reference"):
            assert kernels.isa() == "reference"
            assert kernels.names(in_use=True) != chosen[1] or variant == "reference"
        assert (kernels.isa(), kernels.names(in_use=True)) == chosen
        with pytest.raises(ZeroDivisionError), kernels.using("reference"):
            raise ZeroDivisionError
        assert (kernels.isa(), kernels.names(in_use=True)) == chosen
    assert (kernels.isa(), kernels.names(in_use=True)) == before


REFUSED = [  # name -> words that the message must contain
    ("nonsense", "'nonsense' is not an instruction set"),
    ("AVX2", "'AVX2' is not an instruction set"),
    ("avx", "'avx' is not an instruction set"),
    ("reference ", "'reference ' is not an instruction set"),
    ("reference:mul", "expected fma or add after the colon"),
    ("avx512:mul", "expected fma, half or add after the colon"),
    ("avx2:half", "expected fma or add after the colon"),
    ("reference:", "after the colon"),
    ("nonsense:fma", "'nonsense:fma' is not an instruction set"),
    (":fma", "':fma' is not an instruction set"),
    ("x" * 1000, "xxx"),
]


@pytest.mark.parametrize(("name", "words"), REFUSED)
def test_refused_as_argument_and_in_the_environment(name, words, monkeypatch):
    before = kernels.isa(), kernels.names(in_use=True)
    with pytest.raises(UserError, match=words):
        kernels.select(name)
    with pytest.raises(UserError), kernels.using(name):
        pass
    assert (kernels.isa(), kernels.names(in_use=True)) == before
    monkeypatch.setenv("TORCHADDER_ISA", name)
    with pytest.raises(UserError, match=words) as raised:
        kernels.library.__wrapped__()
    assert "TORCHADDER_ISA=" in str(raised.value)


@pytest.mark.skipif(not lacking(), reason="this CPU runs every instruction set of the library")
def test_an_instruction_set_that_this_cpu_lacks_is_refused():
    for isa in lacking():
        with pytest.raises(UserError, match=f"cannot run the instruction set '{isa}'"):
            kernels.select(isa)


@pytest.mark.parametrize("isa", kernels.available())
def test_environment_chooses(isa, monkeypatch):
    monkeypatch.setenv("TORCHADDER_ISA", isa)
    kernels.library.__wrapped__()
    assert kernels.isa() == isa


def test_environment_of_a_new_process():
    program = "from torchadder import kernels\nprint(kernels.isa())"
    environment = {**os.environ, "TORCHADDER_ISA": "reference"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "reference\n"), found.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"libtorchadder is missing: reinstall torchadder$"),
        (b"\x7fELF of another machine", r"does not load \(.*\): it was not built for this machine \(\w+\)"),
    ],
)
def test_a_library_that_does_not_load_is_an_error_of_the_installation(monkeypatch, tmp_path, content, words):
    path = tmp_path / "libtorchadder"
    if content:
        path.write_bytes(content)
    monkeypatch.setattr(kernels, "library_path", lambda: path)
    with pytest.raises(UserError, match=words) as raised:
        kernels.library.__wrapped__()
    assert "\n" not in str(raised.value)


def test_a_missing_openmp_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "library_path", lambda: tmp_path)
    monkeypatch.setattr(kernels.Path, "is_file", lambda path: True)

    def load(path):
        raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(kernels.ctypes, "CDLL", load)
    with pytest.raises(UserError, match=r"libgomp\.so\.1.*: install OpenMP \(Debian, Ubuntu: apt install libgomp1\)"):
        kernels.library.__wrapped__()


@pytest.mark.parametrize(("forced", "warns"), [("", True), ("reference", False)])
def test_a_cpu_without_kernels_is_warned_of_once(monkeypatch, forced, warns):
    native = MagicMock()
    native.torchadder_select_isa.return_value, native.torchadder_selected_isa.return_value = 0, b"reference"
    monkeypatch.setenv("TORCHADDER_ISA", forced)
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda path: native)
    if warns:
        with pytest.warns(RuntimeWarning, match=r"has no kernels for this CPU \(\w+\): .* correct and about .* slower"):
            kernels.library.__wrapped__()
    else:
        kernels.library.__wrapped__()
