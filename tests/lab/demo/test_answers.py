"""Answers to pixels: those of the program itself, and the distances that its last layer sums up."""

import json

import pytest
import torch
import torch.nn.functional as F
from tests.lab.demo.conftest import NAMES

from torchadder.data.augment import CENTRE
from torchadder.errors import UserError
from torchadder.lab.demo.answers import Answers
from torchadder.quant import file


def random_pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_logits_of_a_drawing_are_those_of_the_program_on_the_image_as_it_was_trained(programs):
    answers = Answers(programs / "grey.tadder")
    assert answers.shape == (1, 28, 28)
    pixels = random_pixels(1, 28, 28)
    found = answers(pixels.numpy().tobytes())
    resized = F.interpolate(pixels[None].float(), (32, 32), mode="bilinear", antialias=True)
    program, _ = file.read(programs / "grey.tadder")
    assert torch.equal(torch.tensor(found["logits"]), program((resized / 255 - 0.1307) / 0.3081)[0])
    assert found["milliseconds"] > 0
    assert json.loads(json.dumps(found)) == found


def test_distances_are_the_sums_of_the_last_layer(programs):
    pixels = random_pixels(1, 28, 28)
    found = Answers(programs / "grey.tadder")(pixels.numpy().tobytes())
    program, _ = file.read(programs / "grey.tadder")
    resized = F.interpolate(pixels[None].float(), (32, 32), mode="bilinear", antialias=True)
    values = [program.codes((resized / 255 - 0.1307) / 0.3081)]
    for step in program.steps[:-1]:
        values.append(step(values[-1]))
    weight = program.steps[-1].weight.flatten(1).int()
    features = values[-1].flatten().int()
    assert len(features) == 84
    assert found["distances"] == (features - weight).abs().sum(1).tolist()


def test_colours_and_no_distances_after_an_ordinary_layer(programs):
    answers = Answers(programs / "colour.tadder")
    assert answers.shape == (3, 12, 16)
    pixels = random_pixels(3, 12, 16)
    found = answers(pixels.numpy().tobytes())
    program, _ = file.read(programs / "colour.tadder")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))
    assert torch.equal(torch.tensor(found["logits"]), program((pixels / 255 - mean)[None] / std)[0])
    assert found["distances"] is None


def test_what_the_page_is_told(programs, tmp_path):
    about = Answers(programs / "grey.tadder", threads=2).about()
    assert about.pop("kernels")
    assert about == {
        "file": "grey.tadder",
        "told": ["lenet5bn", "adder", "mnist", "8 bits"],
        "pixels": [1, 28, 28],
        "input": [1, 32, 32],
        "crop": None,
        "names": [str(digit) for digit in range(10)],
        "last": "adder",
        "features": 84,
        "threads": 2,
    }
    about = Answers(programs / "colour.tadder").about()
    assert (about["names"], about["last"], about["features"]) == (NAMES, "conv", 4 * 5 * 7)
    program, known = file.read(programs / "colour.tadder")
    file.write(program, tmp_path / "centre.tadder", {**known, "part": "centre", "model": "m" * 1000})
    about = Answers(tmp_path / "centre.tadder").about()
    assert (about["crop"], about["told"]) == (CENTRE, ["m" * 80])


def test_a_program_whose_logits_are_not_finite_still_answers_in_json(programs, tmp_path):
    program, about = file.read(programs / "grey.tadder")
    program.steps[-1].epilogue.gain[:2] = torch.tensor([torch.nan, 0.0])
    file.write(program, tmp_path / "odd.tadder", about)
    found = Answers(tmp_path / "odd.tadder")(bytes(784))
    assert found["logits"][0] is None
    assert found["distances"][:2] == [None, None]
    assert None not in found["distances"][2:]
    json.dumps(found, allow_nan=False)


def test_a_file_that_does_not_say_what_to_do_with_an_image(programs, tmp_path):
    program, about = file.read(programs / "grey.tadder")
    file.write(program, tmp_path / "bare.tadder", {"model": about["model"]})
    with pytest.raises(UserError, match=r"cannot tell from .*bare.tadder what to do with an image"):
        Answers(tmp_path / "bare.tadder")
