"""nvrtc.launch through cuda.core, to a stand-in for the driver: arguments, streams, threads."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ops.gpu.on_cpu import COMPILER

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler at hand")
@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="no cuda.core at hand")
def test_launches_on_torchs_stream_from_any_thread(tmp_path):
    program = [sys.executable, "-m", "tests.ops.gpu.on_driver", str(tmp_path)]
    found = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
