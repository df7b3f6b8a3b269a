"""Test the executor of the page in Node: bit-equal to the program in torch, and as careful with files as the engine."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.quant.random_programs import Maker
from tests.quant.test_file import CORPUS, UNSOUND, changed
from tests.quant.test_lowering import trained

from torchadder.data.preprocessing import Preprocessing
from torchadder.data.registry import Normalization
from torchadder.engine import Classifier
from torchadder.export.page import DIGITS, TEMPLATE
from torchadder.models import create_model
from torchadder.quant import Program, file, quantize

HERE = Path(__file__).parent

pytestmark = [pytest.mark.skipif(not shutil.which("node"), reason="needs node"), pytest.mark.usefixtures("one_thread")]


def run(cases):
    """Return the executor's answers to ``cases``, see run_programs.js."""
    lines = "\n".join(json.dumps(case) for case in cases)
    command = ["node", str(HERE / "run_programs.js"), str(TEMPLATE)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_equal(programs, folder, count=3):
    """Check all values and logits for random quantized values."""
    cases, expected = [], []
    for number, program in enumerate(programs):
        program.save(path := folder / f"{number}.tadder")
        q = torch.randint(0, program.qmax + 1, (count, *program.shape), dtype=torch.uint8)
        cases.append({"file": str(path), "q": q.permute(0, 2, 3, 1).flatten(1).tolist()})
        values = [q]
        for step in program.steps:
            values.append(step(*(values[i] for i in step.sources)))
        *values, logits = (value.permute(0, 2, 3, 1).flatten(1) for value in values)
        expected.append({"values": torch.cat(values, 1).tolist(), "logits": logits.tolist()})
    for number, (found, wanted) in enumerate(zip(run(cases), expected, strict=True)):
        assert found == wanted, number


def test_random_programs(tmp_path):
    """All kinds of steps, odd sizes, strides, groups, dilations, paddings, shortcuts, tables, concatenations."""
    torch.manual_seed(0)
    check_equal([Maker(seed, plain=seed % 5 == 0).program() for seed in range(50)], tmp_path)


def test_every_fault_that_the_native_reader_names_is_refused(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    program = quantize(trained(create_model("resnet20"), images), [images])
    paths = [tmp_path / f"{number}.tadder" for number in range(len(UNSOUND))]
    for path, (edit, _) in zip(paths, UNSOUND, strict=True):
        program.save(path)
        changed(path, edit)
    answers = run([{"file": str(path), "q": []} for path in paths])
    assert [words for answer, (_, words) in zip(answers, UNSOUND, strict=True) if "error" not in answer] == []


def test_files_that_the_native_reader_refuses_are_refused(tmp_path):
    """Damage the head and the data of files in random places, as the fuzzer does; whole files are read."""
    choose, paths, sound = random.Random(0), [], []
    for path in [*sorted(CORPUS.glob("*.tadder")), DIGITS]:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        for number in range(30):
            damaged = bytearray(content)
            if number:
                digits = [i for i in range(8, 8 + length) if chr(content[i]) in "0123456789"]
                for _ in range(choose.randint(1, 2)):
                    damaged[choose.choice(digits)] = choose.choice(b"0123456789")
            if number % 10 == 9:
                damaged = damaged[: choose.randrange(len(damaged))]
            paths.append(tmp_path / f"{len(paths)}.tadder")
            paths[-1].write_bytes(damaged)
            sound.append(not file.refusal(bytes(damaged)))
    answers = run([{"file": str(path), "q": []} for path in paths])
    assert ["error" not in answer for answer in answers] == sound
    assert 0.1 < np.mean(sound) < 0.9
    assert all("\n" not in answer.get("error", "") for answer in answers)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "too short"), (b"\x89PNG" * 9, "no .tadder file, or a part of one")]
)
def test_other_files_are_refused(tmp_path, content, words):
    (tmp_path / "other").write_bytes(content)
    (answer,) = run([{"file": str(tmp_path / "other"), "q": []}])
    assert words in answer["error"]


SIZES = [(32, 32), (28, 28), (33, 47), (90, 70), (200, 31), (5, 64), (1, 1)]


@pytest.mark.parametrize(("channels", "mean", "std"), [(1, [0.1307], [0.3081]), (3, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])])
def test_images_become_the_input_as_in_predict(tmp_path, channels, mean, std):
    """All sizes: enlarged, reduced with antialiasing, of another shape. Differences are roundings of float32."""
    torch.manual_seed(0)
    maker = Maker(3, sizes=(32, 32), plain=True)
    maker.shapes[0] = (channels, 32, 32)
    steps = [maker.layer("conv", last=True)]
    program = Program((channels, 32, 32), torch.rand(channels) / 50 + 0.01, torch.full((channels,), 40.0), steps)
    program.save(path := tmp_path / "net.tadder", mean=mean, std=std)
    preprocessing, cases, expected = Preprocessing(Normalization.of(mean, std)), [], []
    for height, width in SIZES:
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
        rgba = np.concatenate([np.broadcast_to(pixels, (height, width, 3)), np.full_like(pixels[..., :1], 255)], 2)
        cases.append({"rgba": rgba.flatten().tolist(), "width": width, "height": height})
        x = preprocessing.prepare(pixels.transpose(2, 0, 1), (32, 32))
        expected.append(program.quantize(x)[0].permute(1, 2, 0).flatten().numpy().astype(int))
    (answer,) = run([{"file": str(path), "images": cases}])
    for size, found, wanted in zip(SIZES, answer["q"], expected, strict=True):
        difference = np.abs(np.array(found) - wanted)
        exact = size in ((32, 32), (28, 28), (1, 1))
        assert difference.max() <= (not exact), size
        assert (difference > 0).mean() < 0.001, size


def test_pixels_to_logits_as_the_classifier(tmp_path):
    """Digits of 28 x 28 through pico_wide, which ships: the same logits, all of them."""
    digits = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    classifier = Classifier(DIGITS)
    rgba = [np.stack([digit] * 3 + [np.full_like(digit, 255)], 2).flatten().tolist() for digit in digits]
    images = [{"rgba": values, "width": 28, "height": 28} for values in rgba]
    (prepared,) = run([{"file": str(DIGITS), "images": images}])
    (answer,) = run([{"file": str(DIGITS), "q": prepared["q"]}])
    x = torch.cat([classifier.preprocessing.prepare(digit[None], (32, 32)) for digit in digits])
    assert answer["logits"] == classifier.engine(x).tolist()


@pytest.mark.parametrize(
    ("rgba", "expected"),
    [
        ([255, 0, 0, 255, 0, 255, 0, 255], [76, 150]),  # the weights of Pillow's conversion
        ([255, 255, 255, 255, 0, 0, 0, 0], [255, 0]),  # light strokes get a dark ground
        ([0, 0, 0, 255, 9, 9, 9, 0], [0, 255]),  # dark ones a light ground
    ],
)
def test_colours_and_transparency_become_grey(tmp_path, rgba, expected):
    maker = Maker(3, plain=True)
    maker.shapes[0] = (1, 1, 2)
    program = Program((1, 1, 2), torch.tensor([1 / 255]), torch.zeros(1), [maker.layer("conv", last=True)])
    program.save(path := tmp_path / "net.tadder", mean=0.0, std=1.0)
    (answer,) = run([{"file": str(path), "images": [{"rgba": rgba, "width": 2, "height": 1}]}])
    assert answer["q"] == [expected]
