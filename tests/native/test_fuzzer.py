"""Run damaged program files under the sanitizers, for a few seconds on the reference kernels.

The reference is the skeleton of all kernels, with the same addresses. TORCHADDER_FUZZ_SECONDS=600 in the environment
runs for 600 seconds, on the kernels of every instruction set.
"""

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
SECONDS = os.environ.get("TORCHADDER_FUZZ_SECONDS")
X86 = SECONDS is not None and platform.machine() in ("x86_64", "AMD64")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
FLAGS_OF = {
    "kernels_avx2": ["-mavx2"],
    "kernels_avx2max": ["-mavx2"],
    "kernels_avx512": AVX512,
    "kernels_avx512vnni": [*AVX512, "-mavx512vnni", "-mavx512vpopcntdq"],
}
ARM = ("kernels_neon", "kernels_neondot")
FLAGS = [
    *("-std=c++17", "-g1", "-Og", "-w", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *(f"-DTORCHADDER_X86={int(X86)}", f"-I{NATIVE / 'include'}", f"-I{NATIVE}"),
]


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.fixture
def fuzzer(tmp_path):
    """Compile the fuzzer with the sanitizers."""
    compiler, folder = os.environ.get("CXX", "c++"), tmp_path
    (folder / "empty.cpp").write_text("int main() {}\n")
    if (
        run(compiler, *FLAGS, folder / "empty.cpp", "-o", folder / "empty").returncode
        or run(folder / "empty").returncode
    ):
        pytest.skip(f"{compiler} has no sanitizers")
    sources = [NATIVE / "fuzz" / "engine_fuzzer.cpp", *sorted((NATIVE / "common").glob("*.cpp"))]
    skipped = ARM if X86 else (*ARM, *FLAGS_OF)
    sources += [source for source in sorted((NATIVE / "engine").glob("*.cpp")) if source.stem not in skipped]

    def compile_one(source):
        compiled = folder / f"{source.stem}.o"
        done = run(compiler, *FLAGS, *FLAGS_OF.get(source.stem, []), "-c", source, "-o", compiled)
        assert done.returncode == 0, done.stderr
        return compiled

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    done = run(compiler, *FLAGS, *objects, "-o", folder / "engine_fuzzer")
    assert done.returncode == 0, done.stderr
    return folder / "engine_fuzzer"


def test_no_file_reaches_outside_the_buffers(fuzzer):
    symbols = run("nm", fuzzer).stdout
    assert "__asan_init" in symbols
    assert "__ubsan_handle" in symbols
    corpus = sorted((Path(__file__).parent / "corpus").glob("*.tadder"))
    done = run(fuzzer, SECONDS or 5, 1, *corpus)
    assert done.returncode == 0, done.stderr[-3000:]
    files, accepted = (int(word) for word in done.stdout.split() if word.isdigit())
    assert accepted > 0
    assert files > 5 * len(corpus)
    assert run(fuzzer, 1, 1, "no such file").returncode == 2
