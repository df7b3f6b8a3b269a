"""Compile exported networks for this machine and run them: the three inner loops, compilers and sanitizers."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from torchadder.export import export_c

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
# Arm's instructions in portable C stand in for <arm_acle.h>.
DSP = ["-D__ARM_FEATURE_DSP", "-D__ARM_FEATURE_SIMD32", f"-isystem{Path(__file__).parent / 'acle'}"]
LOOPS = {"portable": [], "scalar": ["-DTORCHADDER_SCALAR"], "dsp": DSP}
COMPILERS = [name for name in (os.environ.get("CC", "cc"), "clang", "clang-19") if shutil.which(name)]


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


class Compiled:
    """Run net.c of a folder as a shared library: ``compiled(q)`` -> logits int32 (N, classes), classes."""

    def __init__(self, folder, draft, flags=(), compiler="cc"):
        library = folder / "net.so"
        run(compiler, *STRICT, *flags, "-O1", "-shared", "-fPIC", folder / "net.c", "-o", library)
        self.library, self.draft = ctypes.CDLL(str(library)), draft
        library.unlink()

    def __call__(self, q):
        """``q``: uint8 (N, C, H, W)."""
        logits = np.zeros((len(q), self.draft.network.program.classes), np.int32)
        arena = np.random.default_rng(0).integers(0, 256, self.draft.arena + 64, np.uint8)
        before = arena[self.draft.arena :].copy()
        found = []
        for image, to in zip(np.ascontiguousarray(q.permute(0, 2, 3, 1).numpy()), logits, strict=True):
            found.append(self.library.net_run(*(array.ctypes.data_as(ctypes.c_void_p) for array in (arena, image, to))))
        assert (arena[self.draft.arena :] == before).all()  # nothing is written behind the arena
        return logits, np.array(found)


@pytest.fixture
def exported(tmp_path):
    """Return a function that exports a program: program -> (folder, draft)."""

    def export(program, **options):
        return tmp_path / "net", export_c(program, tmp_path / "net", **options)

    return export


def inputs(program, count, seed=0):
    """Return quantized values uint8 (count, C, H, W) that the input of a program may have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, program.qmax + 1, (count, *program.shape), generator=generator).byte()
