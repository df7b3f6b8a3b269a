"""Test the figures of weights, filters and curves against the runs."""

import json

import pytest
import torch

from torchadder.lab.figures import FigureInputs, curves, filters, weights
from torchadder.lab.weights import fits


@pytest.fixture
def inputs(runs):
    return FigureInputs(runs)


def test_weights_hold_fits_and_histograms(inputs):
    data = weights.measure(inputs)
    for panel, run in zip(data["panels"], inputs.runs, strict=True):
        layers = fits(run.model())
        assert [layer["name"] for layer in panel["layers"]] == [layer.name for layer in layers]
        for found, layer in zip(panel["layers"], layers, strict=True):
            assert found["laplace"]["log_likelihood"] == layer.laplace.log_likelihood
            assert found["gaussian"]["scale"] == layer.gaussian.scale
            edges = torch.tensor(found["edges"])
            inside = (torch.tensor(found["density"]) * edges.diff()).sum().item()
            assert inside == pytest.approx(1, abs=0.01)
        laplace = sum(layer.better is layer.laplace for layer in layers)
        assert panel["better"] == {"Laplace": laplace, "Gaussian": 5 - laplace}


VERDICTS = [  # operator, number of layers with each better fit, words of the conclusion
    (
        "adder",
        {"Laplace": 5, "Gaussian": 0},
        "Laplace likelier in 5 of 5 layers, on average by +0.100 nats a weight. As",
    ),
    ("adder", {"Laplace": 2, "Gaussian": 3}, "Not as in the paper: most layers of adder are not Laplace-like"),
    (
        "conv",
        {"Laplace": 1, "Gaussian": 4},
        "Gaussian likelier in 4 of 5 layers, on average by -0.100 nats a weight. As",
    ),
    ("conv", {"Laplace": 5, "Gaussian": 0}, "Not as in the paper: most layers of conv are not Gaussian-like"),
    ("binary", {"Laplace": 3, "Gaussian": 0}, ""),
]


@pytest.mark.parametrize(("op", "better", "words"), VERDICTS)
def test_the_conclusion_follows_from_the_numbers(op, better, words):
    line = weights.describe({"panels": [{"title": op, "op": op, "better": better, "gain": 0.1}]})
    assert words in line
    assert ("paper" in line) == (op != "binary")


def test_filters_are_those_of_the_first_layer(inputs):
    data = filters.measure(inputs)
    for panel, run in zip(data["panels"], inputs.runs, strict=True):
        weight = run.model().conv1.weight
        assert torch.equal(torch.tensor(panel["weight"]), weight)
        assert panel["largest"] == weight.abs().max().item()
    assert filters.describe(data).startswith("6 filters of 5x5, largest |weight| of AdderNet")


@pytest.mark.parametrize("shape", [(6, 1, 5, 5), (16, 3, 3, 3), (4, 2, 3, 5), (1, 1, 1, 1)])
def test_filters_on_any_number_of_channels_are_drawn(shape):
    weight = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    panels = [{"title": "a network", "layer": "conv1", "largest": weight.max().item(), "weight": weight.tolist()}]
    axes = filters.draw({"panels": panels}).axes[0]
    drawn = axes.images[0].get_array()
    if shape[1] == 3:
        first = 0.5 + weight[0].movedim(0, -1) / weight.max() / 2
        torch.testing.assert_close(torch.tensor(drawn[:3, :3].data), first, check_dtype=False)
    else:
        assert sorted(drawn.compressed()) == weight.flatten().tolist()


def test_curves_are_the_metrics_of_the_epochs(inputs):
    data = curves.measure(inputs)
    for curve, run in zip(data["curves"], inputs.runs, strict=True):
        assert curve["epoch"] == [1, 2]
        for name in ("train_loss", "test_loss", "test_accuracy"):
            assert curve[name] == [row[name] for row in run.metrics]
    accuracy = inputs.runs[1].metrics[-1]["test_accuracy"]
    assert f"CNN {accuracy:.2f}% after epoch 2" in curves.describe(data)


def test_curves_of_numbers_that_are_missing_or_infinite(inputs):
    run = inputs.runs[0]
    del run.metrics[0]["test_loss"]
    run.metrics[1]["test_loss"] = float("inf")
    data = curves.measure(FigureInputs([run]))
    assert data["curves"][0]["test_loss"] == [None, None]
    json.dumps(data, allow_nan=False)
    assert len(curves.draw(data).axes) == 3


ACCURACIES = [[10.0, 90.0, 99.5], [100.0, 100.0], [0.0, 100.0], [97.0, 97.5], [10.0, 99.0, 100.0], [None, 50.0]]


@pytest.mark.parametrize("accuracies", ACCURACIES)
def test_every_accuracy_is_inside_the_axis(accuracies):
    epochs = list(range(1, len(accuracies) + 1))
    losses = {"train_loss": [1.0] * len(epochs), "test_loss": [0.0] * len(epochs)}
    curve = {"title": "a run", "epoch": epochs, "test_accuracy": accuracies, **losses}
    figure = curves.draw({"curves": [curve]})
    axes = figure.axes[2]
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    shown = [accuracy for accuracy in accuracies if accuracy is not None]
    assert low <= min(shown)
    assert max(shown) <= high + 1e-6 or max(shown) == 100
