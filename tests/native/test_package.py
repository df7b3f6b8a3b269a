"""Test what C programs and other systems need: symbols, CMake package, pkg-config file, static library."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from torchadder import kernels

ROOT = Path(__file__).parents[2]
CLASSIFY = ROOT / "native" / "examples" / "classify.c"
PACKAGE = kernels.library_path().parents[1]
CONSUMER = """cmake_minimum_required(VERSION 3.24)
project(consumer LANGUAGES C CXX)
find_package(torchadder 0.1 REQUIRED)
add_executable(classify {source})
target_link_libraries(classify PRIVATE torchadder::torchadder)
"""
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None or not CLASSIFY.is_file(), reason="needs cmake, sources")


def run(*command, **environment):
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={**os.environ, **environment}
    )


def succeed(*command, **environment):
    done = run(*command, **environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.libc_ver() > ("glibc", "2.36"),
    reason="a newer compiler may need more: wheels are built in manylinux_2_28",
)
def test_the_library_runs_on_systems_of_manylinux_2_28():
    content = kernels.library_path().read_bytes()
    needed = set(re.findall(rb"\0(GLIBC|GLIBCXX|CXXABI)_([\d.]+)(?=\0)", content))
    assert {kind for kind, _ in needed} == {b"GLIBC", b"GLIBCXX", b"CXXABI"}
    newest = {b"GLIBC": (2, 28), b"GLIBCXX": (3, 4, 25), b"CXXABI": (1, 3, 11)}
    versions = [(kind, tuple(map(int, version.split(b".")))) for kind, version in needed]
    assert [(kind, version) for kind, version in versions if version > newest[kind]] == []


@pytest.fixture(scope="module")
def static(made_once):
    """Build and install a static library without OpenMP for a processor without kernels of its own."""
    options = ["-DBUILD_SHARED_LIBS=OFF", "-DTORCHADDER_OPENMP=OFF"]
    other = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=other"]

    def make(folder):
        succeed("cmake", "-S", ROOT, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", *options, *other)
        succeed("cmake", "--build", folder / "build", "--parallel", os.cpu_count())
        succeed("cmake", "--install", folder / "build", "--prefix", folder / "prefix")

    return made_once("static-library", make) / "prefix"


@pytest.fixture(params=["static", "package"])
def prefix(request):
    """Return the prefix of a static library, and that of the package itself."""
    if request.param == "static":
        return request.getfixturevalue("static")
    if not (PACKAGE / "lib" / "cmake").is_dir():
        pytest.skip("needs an installed package")
    return PACKAGE


def check(program, prefix):
    file = Path(__file__).parent / "corpus" / "0.tadder"
    assert "it has no mean and std" in run(program, file, "image").stderr
    named = run(program, file, "image", TORCHADDER_ISA="nonsense").stderr
    runnable = ["reference"] if prefix != PACKAGE else kernels.available()
    assert named.endswith(f"choose one of {', '.join(runnable)}\n")


@needs_cmake
def test_cmake_finds_it(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER.format(source=CLASSIFY))
    succeed("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    succeed("cmake", "--build", tmp_path / "build")
    check(tmp_path / "build" / "classify", prefix)


@needs_cmake
@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_pkg_config_finds_it(prefix, tmp_path):
    (path,) = prefix.glob("lib/pkgconfig")
    kind = ["--static"] if prefix != PACKAGE else []
    flags = succeed("pkg-config", *kind, "--cflags", "--libs", "torchadder", PKG_CONFIG_PATH=str(path)).split()
    program = tmp_path / "classify"
    rpath = f"-Wl,-rpath,{path.parent}"
    succeed(os.environ.get("CC", "cc"), "-std=c99", CLASSIFY, *flags, rpath, "-o", program)
    check(program, prefix)


@needs_cmake
@pytest.mark.parametrize("variables", [{"PATH": "{tools}", "CXX": ""}, {"CXX": "no-such-compiler"}])
def test_a_missing_compiler_is_named(tmp_path, variables):
    (tmp_path / "tools").mkdir()
    for tool in ("cmake", "make", "ninja"):
        if path := shutil.which(tool):
            (tmp_path / "tools" / tool).symlink_to(path)
    variables = {name: value.format(tools=tmp_path / "tools") for name, value in variables.items()}
    done = run(shutil.which("cmake"), "-S", ROOT, "-B", tmp_path / "build", **variables)
    assert done.returncode
    assert "no C++ compiler found: install one" in " ".join(done.stderr.split())
