"""Test native/examples/classify.c: it classifies an image with a .tadder file, without Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from torchadder import kernels
from torchadder.engine import Engine
from torchadder.models import create_model
from torchadder.quant import quantize

NATIVE = Path(__file__).parents[2] / "native"


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    program, library = tmp_path_factory.mktemp("example") / "classify", kernels.library_path()
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{NATIVE / 'include'}"]
    link = [str(library), f"-Wl,-rpath,{library.parent}"]
    for compiler in {os.environ.get("CC", "cc"), *filter(shutil.which, ("gcc", "clang"))}:
        command = [compiler, *flags, str(NATIVE / "examples" / "classify.c"), "-o", str(program), *link]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def classify(*words, **environment):
        environment = {**os.environ, **environment}
        return subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, env=environment)

    return classify


@pytest.fixture(scope="module")
def programs():
    """Return programs for images of one channel and of three."""
    torch.manual_seed(0)
    models = {channels: create_model("lenet5bn", in_chans=channels).eval() for channels in (1, 3)}
    return {n: quantize(model, [torch.randn(4, n, 32, 32)], method="max") for n, model in models.items()}


@pytest.fixture
def written(programs, tmp_path):
    """Return a function that writes a program: (channels, **metadata) -> path."""

    def write(channels, **metadata):
        programs[channels].save(tmp_path / "net.tadder", **metadata)
        return tmp_path / "net.tadder"

    return write


@pytest.mark.parametrize("channels", [1, 3])
def test_its_logits_are_those_of_the_engine(classify, written, tmp_path, channels):
    mean, std = [0.5, 0.25, 0.4][:channels], [0.3, 0.2, 0.5][:channels]
    path = written(channels, mean=mean, std=std)
    pixels = torch.randint(0, 256, (32, 32, channels), generator=torch.Generator().manual_seed(0)).byte()
    header = b"P%d\n# a comment\n32 32\n255\n" % (5 if channels == 1 else 6)
    (tmp_path / "image").write_bytes(header + pixels.numpy().tobytes())
    done = classify(path, tmp_path / "image", 2)
    assert done.returncode == 0, done.stderr
    got = [float(row) for row in re.findall(r"^ +\d+ +(\S+)$", done.stdout, re.M)]
    scaled = pixels.permute(2, 0, 1).double() / 255
    images = ((scaled - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)).float()[None]
    want = Engine(path)(images)[0]
    # One quantized value may round the other way.
    assert torch.allclose(torch.tensor(got), want, atol=0.05 * float(want.abs().max()))
    assert f"class {got.index(max(got))} " in done.stdout


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"P5\n32 31\n255\n" + b"0" * 1024, "expected a binary P5 of 32 x 32 pixels"),
        (b"P6\n32 32\n255\n" + b"0" * 3072, "expected a binary P5"),
        (b"P5\n32 32\n255\n" + b"0" * 1023, "expected a binary P5"),
        (b"", "expected a binary P5"),
    ],
)
def test_bad_images(classify, written, tmp_path, image, words):
    path = written(1, mean=0, std=1)
    (tmp_path / "image").write_bytes(image)
    done = classify(path, tmp_path / "image")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("isa", kernels.available())
def test_the_environment_chooses_the_instruction_set(classify, written, tmp_path, isa):
    path = written(1, mean=0, std=1)
    (tmp_path / "image").write_bytes(b"P5\n32 32\n255\n" + b"0" * 1024)
    done = classify(path, tmp_path / "image", TORCHADDER_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert f"_{isa}" in done.stdout
    done = classify(path, tmp_path / "image", TORCHADDER_ISA="nonsense")
    assert done.returncode == 2
    assert "TORCHADDER_ISA=nonsense: 'nonsense' is not an instruction set of this library: choose" in done.stderr


def test_bad_files(classify, written, tmp_path):
    (tmp_path / "short.tadder").write_bytes(b"nothing")
    (tmp_path / "digit.pgm").write_bytes(b"P5\n32 32\n255\n" + b"0" * 1024)
    for words, path, threads in (
        ("it is too short for a .tadder file", tmp_path / "short.tadder", 1),
        ("it is no .tadder file, or a part of one: expected a whole one", tmp_path / "digit.pgm", 1),
        ("No such file", tmp_path / "none.tadder", 1),
        ("it has no mean and std", written(1), 1),
        ("threads: expected 1 to 1024", tmp_path / "short.tadder", 0),
    ):
        done = classify(path, "image.pgm", threads)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count(path.name) <= 1
    assert "image.pgm: No such file" in classify(written(1, mean=0, std=1), "image.pgm").stderr
    assert classify().returncode == 2
