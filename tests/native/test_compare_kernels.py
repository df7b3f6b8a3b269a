"""Run native/tests/compare_kernels.cpp: every kernel against its reference, on this CPU and on Arm under qemu.

The programs have layers of each kind with strides, shortcuts, tails and patches of more than 128 steps, and two filters
that differ from a white and from a black image by 255 everywhere.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchadder import kernels
from torchadder.models.registry import OPS
from torchadder.nn import AdderConv2d, BinaryConv2d
from torchadder.quant import quantize

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
CHANNELS = 131
LAYERS = {"adder": AdderConv2d, "conv": nn.Conv2d, "binary": BinaryConv2d}
pytestmark = pytest.mark.skipif(not NATIVE.is_dir(), reason="needs the native sources")


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


class Network(nn.Module):
    """Chain layers of one kind: patches of 3 to 150 steps, a shortcut, a pooling, groups, depthwise and dilation."""

    def __init__(self, kind, channels=CHANNELS):
        super().__init__()
        sizes = [
            *[(channels, 21, 3, 1, 1, 1), (21, 21, 3, 1, 1, 1), (21, 131, 1, 2, 1, 1), (131, 131, 3, 1, 131, 1)],
            *[(131, 18, 3, 1, 1, 1), (18, 18, 3, 1, 2, 1), (18, 18, 2, 1, 1, 2)],
        ]
        self.layers = nn.ModuleList(
            LAYERS[kind](a, b, k, stride=s, padding=k // 2, groups=g, dilation=d) for a, b, k, s, g, d in sizes
        )
        with torch.no_grad():
            self.layers[0].weight[0], self.layers[0].weight[1] = -100, 100
        self.norms = nn.ModuleList(nn.BatchNorm2d(b, momentum=None) for _, b, *_ in sizes)
        self.activation = nn.Identity() if kind == "binary" else nn.ReLU()  # signs are all +1 after a ReLU
        self.head = nn.Linear(18, 10)

    def forward(self, x):
        x = self.activation(self.norms[0](self.layers[0](x)))
        x = self.activation(self.norms[1](self.layers[1](x)) + x)
        for layer, norm in zip(self.layers[2:5], self.norms[2:5], strict=True):
            x = self.activation(norm(layer(x)))
        x = F.max_pool2d(x, 2)
        for layer, norm in zip(self.layers[5:], self.norms[5:], strict=True):
            x = self.activation(norm(layer(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return the files of a program of each kind."""
    folder = tmp_path_factory.mktemp("programs")
    for kind in LAYERS:
        torch.manual_seed(1)
        model, images = Network(kind), torch.randn(4, CHANNELS, 11, 7)
        model(images)  # sets the running statistics
        program = quantize(model.eval(), [images], method="max")
        assert len(program(images).unique()) > 20
        program.save(folder / f"{kind}.tadder")
    return [folder / f"{kind}.tadder" for kind in OPS]


def compare(compiler, library, programs, folder, *emulator):
    program = folder / "compare_kernels"
    source, include = NATIVE / "tests" / "compare_kernels.cpp", f"-I{NATIVE / 'include'}"
    run(compiler, "-std=c++17", "-O1", include, source, "-o", program, library, f"-Wl,-rpath,{library.parent}")
    lines = run(*emulator, program, *programs).splitlines()
    assert lines[-1] == "0 failures"
    return {line for line in lines if line.split("_")[-1][0].isdigit() or line.endswith(("_any", "_fma", "_add"))}


def test_every_kernel_of_this_cpu_equals_its_reference(programs, tmp_path):
    names = compare(os.environ.get("CXX", "c++"), kernels.library_path(), programs, tmp_path)
    for isa in kernels.available():
        assert {name for name in kernels.names() if f"_{isa}_" in name} <= names
        if isa != "reference":
            assert {name.split(f"_{isa}_")[0] for name in names} >= {"adder_u8", "conv_u8", "binary"}
    assert {name.split("_")[0] for name in names if "_depthwise_" in name} >= {"adder", "conv"}


@pytest.fixture(scope="module")
def arm(made_once):
    """Build the library for 64-bit Arm; return its path and the command that runs a program for a given CPU."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    missing = [tool for tool in (compiler, emulator, "cmake") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    target = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}"]

    def make(folder):
        run("cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *target)
        run("cmake", "--build", folder, "--parallel", os.cpu_count())

    library = made_once("arm-library", make) / "libtorchadder.so"
    return library, lambda cpu: [emulator, "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu]


@pytest.mark.parametrize(("cpu", "isas"), [("cortex-a53", ["neon"]), ("max", ["neon", "neondot"])])
def test_every_kernel_of_arm_equals_its_reference(arm, programs, tmp_path, cpu, isas):
    library, emulator = arm
    names = compare("aarch64-linux-gnu-g++", library, programs, tmp_path, *emulator(cpu))
    assert {name.split("_neon_")[0] for name in names} >= {
        "forward_f32", "grad_input_f32", "grad_input_sign_f32", "grouped_f32", "depthwise_f32", "depthwise_grad_f32",
        "forward_u8", "grad_input_i16",
    }  # fmt: skip
    engine = {f"{op}_{isa}" for op in ("adder_u8", "conv_u8", "binary") for isa in isas}
    engine |= {"adder_depthwise_neon", "conv_depthwise_neon"}
    assert engine <= {name.rpartition("_")[0] for name in names}


def test_the_example_gives_the_same_logits_on_arm(arm, tmp_path):
    library, emulator = arm
    torch.manual_seed(0)
    model, images = Network("adder", 3), torch.randn(4, 3, 32, 32)
    model(images)
    quantize(model.eval(), [images]).save(tmp_path / "net.tadder", mean=[0.5] * 3, std=[0.25] * 3)
    pixels = torch.randint(0, 256, (32 * 32 * 3,), generator=torch.Generator().manual_seed(0)).byte()
    (tmp_path / "image").write_bytes(b"P6\n32 32\n255\n" + pixels.numpy().tobytes())
    printed = []
    for compiler, lib, prefix in (
        (os.environ.get("CC", "cc"), kernels.library_path(), []),
        ("aarch64-linux-gnu-gcc", library, emulator("cortex-a53")),
    ):
        program, source = tmp_path / f"classify-{len(printed)}", NATIVE / "examples" / "classify.c"
        run(compiler, "-std=c99", f"-I{NATIVE / 'include'}", source, "-o", program, lib, f"-Wl,-rpath,{lib.parent}")
        lines = run(*prefix, program, tmp_path / "net.tadder", tmp_path / "image").splitlines()
        printed.append([line for line in lines if "ms" not in line and "us" not in line])
    assert printed[0] == printed[1]
    assert len(printed[0]) >= 10
