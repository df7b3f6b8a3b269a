"""Test torchadder predict: it agrees with eval, what it prints, and the line of every image that it cannot use."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.conftest import CLASSES, pixels
from torch import nn

from torchadder.cli import main
from torchadder.engine import Engine
from torchadder.quant import Program, quantize


@pytest.fixture
def images(folder):
    """Write the test images as files and return their names, in order."""
    paths = [f"{number:02}.png" for number in range(30)]
    for path, image in zip(paths, pixels().test.pixels, strict=True):
        Image.fromarray(image[0].numpy()).save(path)
    return paths


def predicted(capsys, *arguments, code=0):
    assert main(["predict", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_predictions_are_those_of_eval(images, capsys):
    found = predicted(capsys, "run.tadder", *images, "--top", "10", "--threads", "1")
    program = Program.load("run.tadder")
    test = pixels().test
    scores = program(test.images).softmax(1)
    for number, image in enumerate(found["images"]):
        assert image["image"] == images[number]
        labels = [c["class"] for c in image["classes"]]
        assert sorted(labels) == [*range(10)]
        assert [c["name"] for c in image["classes"]] == [CLASSES[label] for label in labels]
        assert torch.equal(torch.tensor([c["score"] for c in image["classes"]]), scores[number, labels])
    right = [image["classes"][0]["class"] for image in found["images"]] == test.labels.numpy()
    assert main(["eval", "run.tadder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["correct"] == right.sum()
    assert (found["file"], found["failed"]) == ("run.tadder", [])


def test_a_line_an_image(images, capsys):
    assert main(["predict", "run.tadder", *images[:2], "--top", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 2
    for path, line in zip(images, out.splitlines(), strict=False):
        assert re.fullmatch(rf"{path}  ({'|'.join(CLASSES)}) [\d.]+%  \w+ [\d.]+%  [\d.]+ ms", line)


@pytest.mark.parametrize(("count", "told"), [(10, 1), (9, 0)])
def test_one_class_for_many_images_is_named(images, capsys, count, told):
    assert main(["predict", "run.tadder", *[images[0]] * count]) == 0
    assert capsys.readouterr().err.count("warning: all 10 images get the class ") == told


def test_images_are_converted_to_the_size_and_colours_of_the_program(images, capsys):
    with Image.open(images[0]) as image:
        image.resize((96, 64), Image.Resampling.NEAREST).convert("RGB").save("large.png")
        image.convert("RGBA").save("colour.png")
    found = predicted(capsys, "run.tadder", images[0], "colour.png")["images"]
    assert found[0]["classes"] == found[1]["classes"]
    assert main(["predict", "run.tadder", "large.png", "large.png", images[0]]) == 0
    assert capsys.readouterr().err == "large.png has 64 x 96 pixels: such images are resized to 32 x 32\n"


def test_the_other_ground_is_named_once_and_invert_helps(images, capsys):
    rewritten({"mean": "0.2"})
    with Image.open(images[0]) as image:
        Image.eval(image, lambda value: value // 4).save("dark.pgm")
        Image.eval(image, lambda value: 255 - value // 4).save("light.pgm")
    [dark] = predicted(capsys, "new.tadder", "dark.pgm")["images"]
    for arguments, line in (
        (["light.pgm", "light.pgm"], "light.pgm is drawn on a light ground, .* a dark one: pass --invert\n"),
        (["light.pgm", "--invert"], ""),
        (["dark.pgm", "--invert"], "dark.pgm is drawn on a light .*: leave out --invert\n"),
    ):
        assert main(["predict", "new.tadder", *arguments, "--json"]) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(line, err)
        if not line:
            assert json.loads(out)["images"][0]["classes"] == dark["classes"]


def test_an_image_that_cannot_be_used_leaves_the_others(images, capsys):
    Path("text.png").write_text("no image")
    Image.fromarray(np.zeros((32, 32), np.float32)).save("deep.tif")
    bad = ["text.png", "nowhere.png", "deep.tif", "run"]
    assert main(["predict", "run.tadder", bad[0], images[0], *bad[1:], images[1]]) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == images[:2]
    reasons = ["cannot identify image file", "No such file or directory", "mode F", "Is a directory"]
    for path, reason, line in zip(bad, reasons, err.splitlines(), strict=True):
        assert line.startswith(f"error: {path} cannot be used ({reason}")
    found = predicted(capsys, "run.tadder", *bad, images[0], code=2)
    assert [image["image"] for image in found["images"]] == images[:1]
    assert [failed["image"] for failed in found["failed"]] == bad


def test_a_model_of_ones_own_saved_from_python(folder, capsys):
    """The file says all that predict and eval need; images of another size are resized to the calibration images'."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 5 * 7, 3)).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    pixels = torch.randint(0, 256, (16, 3, 12, 16), generator=torch.Generator().manual_seed(0)).byte()
    images = (pixels / 255 - mean) / std
    program = quantize(model, [images])
    program.save("own.tadder", mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3], classes=["cat", "dog", "frog"])
    for name, image in zip("ab", pixels, strict=False):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{name}.png")
    found = predicted(capsys, "own.tadder", "a.png", "b.png")["images"]
    scores = program(images[:2]).softmax(1)
    for number, image in enumerate(found):
        by_name = {c["name"]: c["score"] for c in image["classes"]}
        assert torch.equal(torch.tensor([by_name[name] for name in ("cat", "dog", "frog")]), scores[number])
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).resize((32, 24)).save("large.png")
    assert main(["predict", "own.tadder", "large.png"]) == 0
    assert capsys.readouterr().err == "large.png has 24 x 32 pixels: such images are resized to 12 x 16\n"


def rewritten(about):
    program, known = Program.load("run.tadder"), Engine("run.tadder").about
    program.save("new.tadder", about={k: v for k, v in {**known, **about}.items() if v is not None})


BAD_ABOUT = [  # what the file says of itself, words of the line
    ({"mean": None}, "it does not say the mean of the pixels"),
    ({"std": 0.25}, "it does not say the std of the pixels"),
    ({"mean": "0.5 0.5 0.5"}, "mean is '0.5 0.5 0.5', expected 1 numbers"),
    ({"std": "-1"}, "std is '-1', expected numbers above 0"),
    ({"std": "nan"}, "std is 'nan', expected 1 numbers"),
    ({"mode": "RGB"}, "its images are 'RGB' with 1 channels"),
    ({"part": "left"}, "part is 'left', expected whole or centre"),
]


@pytest.mark.parametrize(("about", "words"), BAD_ABOUT)
def test_a_file_that_does_not_say_how_to_prepare_an_image(images, capsys, about, words):
    rewritten(about)
    assert main(["predict", "new.tadder", images[0]]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: cannot tell from new.tadder how to prepare an image: {words}")


@pytest.mark.parametrize("classes", [None, "no JSON", "{}", '["one"]', "[[[[" * 1000, json.dumps([*range(10)]), 3])
def test_without_names_classes_have_numbers(images, capsys, classes):
    rewritten({"classes": classes})
    [image] = predicted(capsys, "new.tadder", images[0])["images"]
    assert [c["name"] for c in image["classes"]] == [str(c["class"]) for c in image["classes"]]


def test_names_from_a_stranger_do_not_command_the_terminal(images, capsys):
    rewritten({"classes": json.dumps([f"\x1b[2J{label}\n" for label in range(10)])})
    assert main(["predict", "new.tadder", images[0]]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\n") == 1


BAD_FILES = [("nowhere.tadder", "cannot read nowhere.tadder"), ("00.png", "00.png is not a valid program")]


@pytest.mark.parametrize(("path", "words"), BAD_FILES)
def test_a_file_that_is_no_program(images, capsys, path, words):
    assert main(["predict", path, images[0]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {words}")
    assert err.count("\n") == 1
