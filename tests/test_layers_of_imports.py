"""Test that imports go one way: the library works without lab/ and cli/, and no two files import each other."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torchadder

ROOT = Path(torchadder.__file__).parent
CORE = {"torch", "numpy", "safetensors"}

# A package may import those that stand before it in this list, and itself.
ORDER = (
    *("errors", "version", "lazy", "files", "kernels", "ops", "functional", "nn", "optim", "convert"),
    *("environment", "bruteforce", "models", "data", "flops", "counts", "train", "quant", "engine", "export", "doctor"),
    *("lab", "cli"),
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("torchadder", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(name, top=False):
    """Yield what a module imports, as full names; with `top` only what is imported when the module is."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." * bool(node.module) if node.level else ""
            whole = base + (node.module or "")
            inner = [f"{whole}.{alias.name}" for alias in node.names]
            yield from (found if found in MODULES else whole for found in inner)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not (top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try)):
            waiting += ast.iter_child_nodes(node)


def room(name):
    return name.split(".")[1] if "." in name else ""


OURS = {name: {found for found in imported(name) if found in MODULES} - {name} for name in MODULES}


def test_packages_import_those_before_them():
    assert {room(name) for name in MODULES} - {"", "__main__"} == set(ORDER)
    wrong = [
        f"{name} imports {found}"
        for name, those in OURS.items()
        for found in those
        if room(name) in ORDER and room(found) in ORDER and ORDER.index(room(found)) > ORDER.index(room(name))
    ]
    assert wrong == []


def test_no_files_import_each_other():
    def reached(start):
        seen, waiting = set(), list(OURS[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += OURS[name]
        return seen

    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert [name for name in sorted(MODULES.keys() - packages) if name in reached(name)] == []


def test_optional_packages_are_imported_on_use():
    ours = CORE | sys.stdlib_module_names | {"torchadder"}
    optional = {
        name
        for name in MODULES
        if room(name) not in ("cli", "lab") and {found.partition(".")[0] for found in imported(name, top=True)} - ours
    }
    assert optional == {"torchadder.ops.triton_kernels"}  # a kernel is a decorated function at the top of its file
    assert [name for name in MODULES if optional & {*imported(name, top=True)}] == []


WITHOUT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not {"torchadder.lab", "torchadder.cli"} & set(sys.modules)
import torch, torchadder
assert torchadder.AdderConv2d(1, 2, 3)(torch.zeros(1, 1, 4, 4)).shape == (1, 2, 2, 2)
"""


def test_library_works_without_lab_and_command_line(tmp_path):
    copy = tmp_path / "torchadder"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("lab", "cli", "lib", "__pycache__"))
    (copy / "lib").symlink_to(ROOT / "lib")
    names = [name_of(ROOT / path.relative_to(copy)) for path in sorted(copy.rglob("*.py"))]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [
        sys.executable,
        "-c",
        WITHOUT,
        *(name for name in names if name != "torchadder.ops.triton_kernels" and "__main__" not in name),
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
