"""Where instruction sets can be hidden, and what is said where they cannot."""

import platform

import pytest

from torchadder.errors import UserError
from torchadder.lab.bench import cpu_mask

SAPPHIRE = "avx2 cpuid_fault avx512f avx512_vnni avx_vnni amx_tile"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """A machine whose CPU has the flags given, with the library in place."""

    def have(flags, machine="x86_64"):
        info = tmp_path / "cpuinfo"
        info.write_text(f"model name\t: Abacus 3000\nflags\t\t: fpu {flags}\n\nflags\t\t: of the second core\n")
        monkeypatch.setattr(cpu_mask, "CPUINFO", info)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        library = tmp_path / "mask.so"
        library.touch()
        monkeypatch.setattr(cpu_mask, "library_path", lambda: library)
        monkeypatch.delenv("LD_PRELOAD", raising=False)
        return library

    return have


def test_environment(cpu, monkeypatch):
    library = cpu(SAPPHIRE)
    environment = cpu_mask.environment("avx2")
    assert environment["LD_PRELOAD"] == str(library)
    assert environment["TORCHADDER_CPU"] == "avx2"
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    assert cpu_mask.environment("avx2")["LD_PRELOAD"] == f"{library} other.so"


@pytest.mark.parametrize(
    ("flags", "description"),
    [
        (SAPPHIRE, "avx2 (AVX-512, VNNI, AMX hidden)"),
        ("avx2 avx512f cpuid_fault", "avx2 (AVX-512 hidden)"),
        ("avx2 avx_vnni cpuid_fault", "avx2 (VNNI hidden)"),
        ("avx2 cpuid_fault", "avx2"),
    ],
)
def test_description(cpu, flags, description):
    cpu(flags)
    assert cpu_mask.description("avx2") == description


def test_nothing_to_hide_needs_nothing(cpu):
    cpu("avx2").unlink()
    assert cpu_mask.environment("avx2") == {}


REFUSED = [  # flags, machine, asked -> words
    (SAPPHIRE, "x86_64", "sse2", "--cpu sse2: choose of avx2"),
    ("sse2", "x86_64", "avx2", "--cpu avx2: this is no Linux machine with avx2"),
    ("avx2 avx512f", "x86_64", "avx2", "cannot hide instructions (no cpuid_fault in"),
    (SAPPHIRE, "i686", "avx2", "cannot hide instructions"),
]


@pytest.mark.parametrize(("flags", "machine", "asked", "words"), REFUSED)
def test_refused(cpu, flags, machine, asked, words):
    cpu(flags, machine)
    with pytest.raises(UserError) as caught:
        cpu_mask.environment(asked)
    assert words in str(caught.value)


def test_refused_without_the_library_or_without_linux(cpu, monkeypatch, tmp_path):
    cpu(SAPPHIRE).unlink()
    with pytest.raises(UserError, match=r"mask\.so is missing: reinstall torchadder"):
        cpu_mask.environment("avx2")
    monkeypatch.setattr(cpu_mask, "CPUINFO", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no Linux machine"):
        cpu_mask.environment("avx2")


def test_a_process_notices_that_it_sees_everything(monkeypatch):
    cpu_mask.check()
    monkeypatch.setenv("TORCHADDER_CPU", "avx2")
    with pytest.raises(UserError, match="was not loaded"):
        cpu_mask.check()
