"""Test where instruction sets can be hidden, how the library for it is built, and the refusals elsewhere."""

import platform
import shutil
import subprocess

import pytest

from torchadder.errors import UserError
from torchadder.lab.bench import cpu_mask

SAPPHIRE_RAPIDS = "avx2 cpuid_fault avx512f avx512_vnni avx_vnni amx_tile"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Return a function that pretends a CPU with the flags given, in a checkout, with an empty cache."""

    def have(flags, machine="x86_64"):
        info = tmp_path / "cpuinfo"
        info.write_text(f"model name\t: Abacus 3000\nflags\t\t: fpu {flags}\n\nflags\t\t: of the second core\n")
        monkeypatch.setattr(cpu_mask, "CPUINFO", info)
        monkeypatch.setattr(platform, "machine", lambda: machine)

    (tmp_path / "benchmarks").mkdir()
    (tmp_path / cpu_mask.SOURCE).write_text('extern "C" int torchadder_cpu_is_masked() { return 1; }\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return have


needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")


@needs_compiler
def test_the_library_is_compiled_once_for_each_source(cpu, monkeypatch, tmp_path):
    cpu(SAPPHIRE_RAPIDS)
    environment = cpu_mask.environment("avx2")
    library = cpu_mask.library("avx2")
    assert library.read_bytes().startswith(b"\x7fELF")
    assert library.parent == tmp_path / "cache" / "torchadder"
    assert environment == {
        **{"LD_PRELOAD": str(library), "TORCHADDER_CPU": "avx2"},
        **{"PYTHONFAULTHANDLER": "", "PYTHONDEVMODE": ""},
    }
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", None)  # not needed a second time
        patched.setenv("LD_PRELOAD", "other.so")
        assert cpu_mask.environment("avx2")["LD_PRELOAD"] == f"{library} other.so"
    (tmp_path / cpu_mask.SOURCE).write_text("int another;\n")
    assert cpu_mask.library("avx2") != library
    assert len([*library.parent.iterdir()]) == 2


@pytest.mark.parametrize(
    ("flags", "description"),
    [
        (SAPPHIRE_RAPIDS, "avx2 (AVX-512, VNNI, AMX hidden)"),
        ("avx2 avx512f cpuid_fault", "avx2 (AVX-512 hidden)"),
        ("avx2 avx_vnni cpuid_fault", "avx2 (VNNI hidden)"),
        ("avx2 cpuid_fault", "avx2"),
    ],
)
def test_description(cpu, flags, description):
    cpu(flags)
    assert cpu_mask.description("avx2") == description


def test_nothing_to_hide_needs_no_library(cpu, tmp_path):
    cpu("avx2")
    (tmp_path / cpu_mask.SOURCE).unlink()
    assert cpu_mask.environment("avx2") == {}


REFUSED = [  # flags, machine, cpu -> words
    (SAPPHIRE_RAPIDS, "x86_64", "sse2", "cpu=sse2 is unknown: choose avx2"),
    ("sse2", "x86_64", "avx2", "cpu=avx2 needs a Linux machine with avx2"),
    ("avx2 avx512f", "x86_64", "avx2", "cannot hide instructions (no cpuid_fault in"),
    (SAPPHIRE_RAPIDS, "i686", "avx2", "cannot hide instructions"),
]


@pytest.mark.parametrize(("flags", "machine", "asked", "words"), REFUSED)
def test_refused(cpu, flags, machine, asked, words):
    cpu(flags, machine)
    with pytest.raises(UserError) as caught:
        cpu_mask.environment(asked)
    assert words in str(caught.value)


def without_source(tmp_path, monkeypatch):
    (tmp_path / cpu_mask.SOURCE).unlink()


def with_another_source(tmp_path, monkeypatch):
    (tmp_path / cpu_mask.SOURCE).write_text("no C++\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_source, "needs benchmarks/cpu_mask.cpp: run it in a source checkout of torchadder"),
        pytest.param(with_another_source, "c++ cannot compile benchmarks/cpu_mask.cpp (", marks=needs_compiler),
        (lambda tmp_path, patch: patch.setenv("PATH", str(tmp_path)), "needs a C++ compiler: install one"),
        (lambda tmp_path, patch: patch.setenv("CXX", "no-such-compiler"), "(No such file or directory)"),
        (lambda tmp_path, patch: (tmp_path / "cache").write_text(""), "set XDG_CACHE_HOME"),
        (lambda tmp_path, patch: patch.setattr(cpu_mask, "CPUINFO", tmp_path / "no"), "needs a Linux machine"),
    ],
)
def test_a_library_that_cannot_be_built_is_one_line(cpu, tmp_path, monkeypatch, change, words):
    cpu(SAPPHIRE_RAPIDS)
    change(tmp_path, monkeypatch)
    with pytest.raises(UserError) as caught:
        cpu_mask.environment("avx2")
    assert str(caught.value).startswith("cpu=avx2")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_process_notices_that_nothing_is_hidden(monkeypatch):
    cpu_mask.check()
    monkeypatch.setenv("TORCHADDER_CPU", "avx2")
    with pytest.raises(UserError, match="was not loaded"):
        cpu_mask.check()
