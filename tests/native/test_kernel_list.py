"""Test that the library has what kernels.inc and the C headers list."""

import ctypes
import platform
import re
from pathlib import Path

import pytest

from torchadder import kernels

NATIVE = Path(__file__).parents[2] / "native"
needs_sources = pytest.mark.skipif(not NATIVE.is_dir(), reason="needs the native sources")


def of_this_machine(path):
    """Return a list without the lines for other processors."""
    own = {"x86_64": "X86", "AMD64": "X86", "aarch64": "NEON", "arm64": "NEON"}.get(platform.machine())
    blocks = re.compile(r"^#if TORCHADDER_(\w+)\n(.*?)^#endif", re.MULTILINE | re.DOTALL)
    return blocks.sub(lambda block: block[2] if block[1] == own else "", path.read_text())


@needs_sources
def test_kernel_names_are_those_of_kernels_inc():
    text = of_this_machine(NATIVE / "kernels.inc")
    line = re.compile(r"^CONV_KERNEL\(\s*(\w+),\s*(\w+),\s*(\d+),\s*(\d+),\s*(\w+)\)", re.MULTILINE)
    listed = ["{}_{}_{}x{}_{}".format(*fields) for fields in line.findall(text)]
    assert kernels.names() == listed
    assert len(set(listed)) == len(listed)


def test_every_operator_has_a_kernel_in_every_instruction_set():
    def operators(names):
        return {re.fullmatch(r"(\w+_(?:f32|u8|i16))_[a-z0-9]+_\d+x\d+_\w+", name)[1] for name in names}

    for variant in kernels.variants():
        with kernels.using(variant):
            missing = operators(kernels.names()) - operators(kernels.names(in_use=True))
            lacks_few = variant.startswith("reference")  # grad_input_f32 takes its place
            assert missing == ({"few_grad_f32"} if lacks_few else set()), variant


@needs_sources
def test_instruction_sets_are_those_of_isa_inc():
    line = re.compile(r"^INSTRUCTION_SET\((\w+),\s*(\w+), (yes|no), (yes|no)", re.MULTILINE)
    listed = line.findall(of_this_machine(NATIVE / "common" / "isa.inc"))
    assert kernels.compiled() == [name for name, selected_as, conv, engine in listed if selected_as == name]
    for name, _, *rooms in listed:
        for room, is_in in zip(("conv", "engine"), rooms, strict=True):
            assert (NATIVE / room / f"kernels_{name}.cpp").is_file() == (is_in == "yes"), (name, room)


@needs_sources
def test_convolution_has_the_fields_of_the_header():
    header = (NATIVE / "include" / "torchadder.h").read_text()
    body = re.search(r"typedef struct \{(.*?)\} torchadder_convolution;", header, re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    fields = [f.strip() for names in re.findall(r"int64_t ([^;]*);", body) for f in names.split(",")]
    fields_of_ctypes = [
        name if kind is ctypes.c_int64 else f"{name}[{kind._length_}]" for name, kind in kernels.Convolution._fields_
    ]
    assert fields_of_ctypes == fields


@needs_sources
def test_every_function_of_the_header_is_in_the_library():
    header = (NATIVE / "include" / "torchadder.h").read_text()
    declared = re.findall(r"TORCHADDER_API [\w *]*?(torchadder_\w+)\(", header)
    assert len(declared) > 10
    for name in declared:
        assert getattr(kernels.library(), name) is not None
        assert getattr(kernels.library(), name).argtypes is not None, f"{name} has no ctypes signature"
