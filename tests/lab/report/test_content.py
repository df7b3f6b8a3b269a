"""Test the content of the page: each number against the run, changed settings, the paper's number, pictures."""

import base64
import io
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from torchadder import quant
from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.lab.report import content
from torchadder.lab.report.content import Missing, collect, data_uri
from torchadder.lab.reproduce.experiments import BINARY
from torchadder.lab.runs import TrainedRun
from torchadder.models import create_model
from torchadder.train import get_recipe

UNTESTED = Missing("left out")


def row(epoch, accuracy, **changes):
    numbers = dict(train_loss=0.5, train_accuracy=90.0, test_loss=0.4, seconds=2.0, images_per_second=100.0 * epoch)
    return {"epoch": epoch, "test_accuracy": accuracy, "peak_rss_mib": 10.0 * epoch, **numbers, **changes}


def run_of(tmp_path, accuracies, recipe="lenet5bn-mnist", **changes):
    rows = [row(epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start=1)]
    return TrainedRun(tmp_path, get_recipe(recipe, changes), rows, {})


def test_the_headline_is_the_last_epoch_with_the_first_best_epoch(tmp_path):
    found = content.headline_of(run_of(tmp_path, [50.0, 70.0, 70.0, 60.0]))
    assert (found.accuracy, found.best_accuracy, found.best_epoch) == (60.0, 70.0, 2)
    assert (found.epochs, found.planned, found.seconds) == (4, 50, 8.0)
    assert (found.images_per_second, found.peak_mib) == (250.0, 40.0)


@pytest.mark.parametrize(
    ("recipe", "changes", "epochs", "paper", "gap"),
    [
        ("lenet5bn-mnist", {}, 50, 99.40, -0.15),
        ("lenet5bn-mnist", {"seed": 7}, 50, 99.40, -0.15),
        ("lenet5bn-mnist", {"op": "conv", "eta": 3.0}, 50, 99.40, -0.15),  # eta has no effect there
        ("lenet5bn-mnist", {"eta": 0.5}, 50, 99.30, -0.05),
        ("lenet5bn-mnist", {"lr_scheme": "ilr"}, 50, 98.99, 0.26),
        ("lenet5bn-mnist", {}, 49, 99.40, None),  # not finished
        ("lenet5bn-mnist", {"epochs": 5}, 5, 99.40, None),
        ("lenet5bn-mnist", {"epochs": 60}, 60, None, None),
        ("lenet5bn-mnist", {"eta": 0.3}, 50, None, None),
        ("lenet5bn-mnist", {"op": "binary"}, 50, None, None),
        ("lenet5bn-mnist", {"dataset": "fashion_mnist"}, 50, None, None),
        ("resnet20-cifar10", {"op": "binary", **BINARY, "epochs": 20}, 20, 84.87, None),
        ("resnet20-cifar10", {"op": "binary", "epochs": 20}, 20, None, None),  # with SGD: no row of the table
    ],
)
def test_the_published_number_is_that_of_the_recipe(tmp_path, recipe, changes, epochs, paper, gap):
    found = content.paper_of(run_of(tmp_path, [99.25] * epochs, recipe, **changes))
    assert (found and found.accuracy, found and found.gap) == (paper, gap)
    assert found is None or ("arXiv:1912.13200" in found.source and "](" not in found.source)


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, set()),
        ({"eta": 0.5, "seed": 1}, {"eta", "seed"}),
        ({"op": "conv"}, {"op"}),
        ({"name": "of an older version", "batch_size": 8}, {"batch_size", "eta"}),  # against the fields' defaults
    ],
)
def test_settings_that_differ_from_the_recipe_are_marked(changes, changed):
    groups = content.settings_of(get_recipe("lenet5bn-mnist", changes))
    settings = {setting.name: setting for group in groups.values() for setting in group}
    assert {name for name, setting in settings.items() if setting.changed} == changed
    assert not settings["ilr_factor"].used
    assert settings["eta"].used == (changes.get("op") != "conv")


def test_the_environment_names_no_folder():
    found = content.environment_of(
        {
            "command": "torchadder train lenet5bn-mnist --data /home/me/data --seed 3",
            "threads": 2,
            "numpy": None,
            "resumed": [{"after_epoch": 4}, {"after_epoch": 9}],
        }
    )
    assert found == {
        "command": "torchadder train lenet5bn-mnist --seed 3",
        "threads": "2",
        "resumed after epoch": "4, 9",
    }
    assert content.environment_of({"command": "an 'open quote", "resumed": []}) == {}


def decode(uri):
    head, _, text = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [((1, 5, 7), "L", (7, 5)), ((3, 4, 4), "RGB", (4, 4)), ((2, 3, 3), "L", (3, 3)), ((3, 128, 64), "RGB", (32, 64))],
)
def test_a_picture_has_the_pixels_of_the_image(shape, mode, size):
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    image = decode(data_uri(levels / 255))
    assert (image.mode, image.size) == (mode, size)
    if max(shape) <= content.LARGEST_SIDE and mode == "RGB":
        assert [image.getpixel((x, 2)) for x in range(4)] == [tuple(levels[:, 2, x].tolist()) for x in range(4)]


def test_content_of_a_run_with_data_and_program(world):
    run = world["adder"]
    dataset = run.dataset()
    found = collect(run, "a title", dataset)
    model = run.model()
    with torch.no_grad():
        predicted = model(dataset.test.images).argmax(1)
        engine = Engine(run.folder / "int8.tadder")
        classified = engine(dataset.test.images).argmax(1)
    assert found.predictions.correct == int((predicted == dataset.test.labels).sum()) < 30
    assert found.predictions.accuracy == pytest.approx(run.metrics[-1]["test_accuracy"])
    assert len(found.pictures) == min(content.MISTAKES, 30 - found.predictions.correct)
    first, mistake = found.pictures[0], found.predictions.mistakes[0]
    assert (first.label, first.predicted) == (dataset.classes[mistake.label], dataset.classes[mistake.predicted])
    pixels = torch.tensor([*decode(first.uri).tobytes()]).view(32, 32)
    assert torch.equal(pixels, dataset.test.pixels[mistake.index, 0].long())
    (program,) = found.programs
    assert program.accuracy == pytest.approx(100 * (classified == dataset.test.labels).double().mean().item())
    assert program.seconds > 0
    assert found.layers.mul == 0
    assert [layer.name for layer in found.weights] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert not found.stretched
    assert found.missing == []


def test_without_data_the_program_is_timed_and_not_tested(world):
    found = collect(world["adder"], "a title", UNTESTED)
    assert found.predictions is None
    assert found.pictures == []
    assert found.programs[0].accuracy is None
    assert found.programs[0].seconds > 0
    assert found.missing == [UNTESTED]


def test_images_without_a_normalisation_are_scaled_to_their_range(trained):
    run = TrainedRun.read(trained())
    found = collect(run, "a title", run.dataset())
    assert found.stretched
    assert decode(found.pictures[0].uri).getextrema() == (0, 255)


def test_a_program_in_the_directory_that_does_not_fit_is_left_out(world, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(world["conv"].folder, folder)
    (folder / "damaged.tadder").write_bytes(b"not a program")
    stranger = create_model("lenet5bn", num_classes=3)
    quant.quantize(stranger.eval(), [torch.randn(2, 1, 32, 32)]).save(folder / "stranger.tadder")
    found = collect(TrainedRun.read(folder), "a title", UNTESTED)
    assert found.programs == []
    assert [str(folder) in part.text for part in found.missing] == [False] * 4
    text = "\n".join(map(str, found.missing))
    assert "damaged.tadder: it is damaged" in text
    assert "stranger.tadder has 1 channels and 3 classes, the run's model 1 and 10" in text
    with pytest.raises(UserError, match="was not made from this run"):
        collect(TrainedRun.read(folder), "a title", UNTESTED, folder / "stranger.tadder")


def test_metrics_that_lack_a_number_are_damaged(tmp_path):
    for value in (None, "99", True, [1]):
        run = TrainedRun(tmp_path, get_recipe("lenet5bn-mnist"), [row(1, 50.0), row(2, 50.0, test_loss=value)], {})
        with pytest.raises(UserError, match=r"is damaged: epoch 2 of metrics\.jsonl has test_loss = "):
            content.check_metrics(run)


def test_a_data_set_of_another_shape_is_refused(world):
    run = world["adder"]
    other = replace(run.dataset(), num_classes=7)
    with pytest.raises(UserError, match=r"has a model of 1 channels and 10 classes; .* has 1 and 7"):
        collect(run, "a title", other)
