"""Test the arrangement of features: against loops over images, on clusters and sectors, and of trained networks."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from torchadder.data import load_dataset
from torchadder.lab.figures import FigureInputs, features
from torchadder.lab.figures.features import shape_of
from torchadder.lab.runs import TrainedRun
from torchadder.train import Recipe


@pytest.mark.parametrize("dimensions", [2, 3])
def test_numbers_against_a_loop(dimensions):
    generator = torch.Generator().manual_seed(dimensions)
    points = torch.randn(61, dimensions, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (61,), generator=generator)
    labels[labels == 2] = 7  # a class that does not occur
    shape, centres = shape_of(points, labels)

    classes = sorted(set(labels.tolist()))
    centre = {
        k: sum(p for p, label in zip(points, labels, strict=True) if label == k) / (labels == k).sum() for k in classes
    }
    direction = {k: sum(p / p.norm() for p, label in zip(points, labels, strict=True) if label == k) for k in classes}
    distances, along, right, right_by_direction = [], 0.0, 0, 0
    for point, label in zip(points, labels.tolist(), strict=True):
        distances.append(math.dist(point, centre[label]))
        along += (torch.dot(point - centre[label], centre[label]) / centre[label].norm()).item() ** 2
        right += min(classes, key=lambda k, p=point: math.dist(p, centre[k])) == label
        angle = {k: torch.dot(point, direction[k]) / (point.norm() * direction[k].norm()) for k in classes}
        right_by_direction += max(classes, key=angle.__getitem__) == label
    pairs = [math.dist(centre[a], centre[b]) for a, b in itertools.combinations(classes, 2)]

    torch.testing.assert_close(centres, torch.stack([centre[k] for k in classes]))
    assert shape.within == pytest.approx(sum(distances) / 61)
    assert shape.between == pytest.approx(sum(pairs) / len(pairs))
    assert shape.ratio == pytest.approx(shape.within / shape.between)
    assert shape.radial == pytest.approx(along / sum(d**2 for d in distances))
    assert shape.by_distance == pytest.approx(right / 61)
    assert shape.by_direction == pytest.approx(right_by_direction / 61)
    assert shape.dimensions == dimensions


def test_points_on_rays_are_sectors():
    angles = torch.arange(10).repeat_interleave(50) * 2 * math.pi / 10
    radii = torch.linspace(0.1, 3, 50).repeat(10)
    shape, _ = shape_of(radii[:, None] * torch.stack([angles.cos(), angles.sin()], 1), torch.arange(500) // 50)
    assert shape.radial == pytest.approx(1)
    assert shape.by_direction == 1
    assert shape.pattern == "sectors"


def test_round_clusters_in_one_direction_are_clusters():
    torch.manual_seed(0)
    labels = torch.arange(3000) % 3
    points = 0.1 * torch.randn(3000, 2) + torch.tensor([1.0, 1.0]) * (labels[:, None] + 1)
    shape, _ = shape_of(points, labels)
    assert shape.radial == pytest.approx(0.5, abs=0.05)
    assert shape.by_distance > 0.99 > shape.by_direction
    assert shape.pattern == "clusters"


def test_classes_along_one_ray_are_neither():
    labels = torch.arange(300) % 3
    along = torch.linspace(-0.4, 0.4, 300) + labels + 1
    shape, _ = shape_of(along[:, None] * torch.tensor([0.6, 0.8]), labels)
    assert shape.radial == pytest.approx(1)
    assert shape.by_distance == 1 > shape.by_direction
    assert shape.pattern == "neither"


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        shape_of(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))


def panel(op, pattern, ratio):
    numbers = {"radial": 0.5, "by_distance": 0.9, "by_direction": 0.8, "dimensions": 2}
    return {"title": op, "op": op, "pattern": pattern, "ratio": ratio, **numbers}


VERDICTS = [  # networks, words of the conclusion
    ([("adder", "clusters", 0.1), ("conv", "sectors", 0.2)], "As in the paper: clusters of the AdderNet, more compact"),
    ([("adder", "clusters", 0.1)], "As in the paper"),
    ([("conv", "clusters", 0.1)], "Not as in the paper: conv has clusters"),
    ([("adder", "sectors", 0.1), ("conv", "sectors", 0.2)], "Not as in the paper: adder has sectors by angle"),
    ([("conv", "neither", 0.1)], "Not as in the paper: conv has neither clusters nor sectors"),
    ([("adder", "clusters", 0.2), ("conv", "sectors", 0.2)], "Not as in the paper: an AdderNet is no more compact"),
    ([("adder", "clusters", 0.1), ("adder", "clusters", 0.3), ("conv", "sectors", 0.2)], "no more compact than a CNN"),
    ([("binary", "clusters", 0.1)], "The paper shows no such network"),
]


@pytest.mark.parametrize(("networks", "words"), VERDICTS)
def test_the_conclusion_follows_from_the_numbers(networks, words):
    line = features.describe({"panels": [panel(*network) for network in networks]})
    assert words in line
    assert "\n" not in line


REFUSED = [  # model and data set of each run, words of the reason
    ([("lenetpp", "mnist"), ("lenetpp", "mnist")], None),
    ([("lenetpp", "mnist"), ("lenet5bn", "mnist")], "lenet5bn has no features in a plane or in space"),
    ([("lenetpp", "mnist"), ("lenetpp_3d", "mnist")], "lenetpp and lenetpp_3d have different layers"),
    ([("lenetpp", "mnist"), ("lenetpp", "fashion_mnist")], "fashion_mnist and mnist have different classes"),
]


@pytest.mark.parametrize(("runs", "words"), REFUSED)
def test_runs_that_do_not_compare_are_refused(runs, words):
    recipes = [Recipe(f"{model}-{dataset}", model=model, dataset=dataset) for model, dataset in runs]
    reason = features.unsupported([TrainedRun(Path("run"), recipe, [], {}) for recipe in recipes])
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize("model", ["lenetpp", "lenetpp_3d"])
def test_the_features_are_those_of_the_network(trained, model):
    run = TrainedRun.read(trained(model=model, op="conv", epochs=1, batch_size=50))
    progress = []
    data = features.measure(FigureInputs([run], progress=lambda *part: progress.append(part)))
    (found,) = data["panels"]
    test = load_dataset("tiny").test
    with torch.no_grad():
        points = run.model().features(test.images)
    torch.testing.assert_close(torch.tensor(found["points"]), points, atol=6e-5, rtol=0)
    assert found["labels"] == test.labels.tolist()
    assert found["ratio"] == pytest.approx(shape_of(points, test.labels)[0].ratio)
    assert progress == [("features: CNN", 0, 1), ("features: CNN", 1, 1)]
    assert len(features.draw(data).axes) == 1
