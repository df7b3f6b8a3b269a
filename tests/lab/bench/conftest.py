"""Provide the scripts of benchmarks/ as modules and one thread for every test."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def script(name):
    """Import benchmarks/NAME.py, which is in no package."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as for a script that is run
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def collect():
    return script("collect")


@pytest.fixture(scope="session")
def tables():
    return script("tables")


@pytest.fixture(scope="session")
def engine_tables():
    return script("engine_tables")


@pytest.fixture(autouse=True)
def small_and_steady(one_thread):
    pass
