"""The loop: equal to the paper's written out, batches in parts, augmentation, and what is passed on to the data."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import tiny

from torchadder.data import Batches, Split
from torchadder.data import registry as datasets
from torchadder.data.images import Augmentation
from torchadder.data.registry import Normalization
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.optim import AdaptiveLR
from torchadder.train import Run, train
from torchadder.train.loop import evaluate, forward_backward


def trained(folder, recipe):
    run = Run.open(folder, recipe)
    train(run)
    return run.state["model"]


def test_the_default_is_the_papers_loop_to_the_last_bit(tiny_recipe, tmp_path):
    """No field that a recipe leaves alone touches a number."""
    batches = Batches(tiny().train, 16, train=True, seed=0)
    torch.manual_seed(0)
    model = create_model("lenet5bn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    AdaptiveLR(optimizer, 0.2)
    steps = 3 * len(batches)
    rates = (0.1 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps))
    for _ in range(3):
        for images, labels in batches:
            optimizer.param_groups[0]["lr"] = next(rates)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    expected, found = model.state_dict(), trained(tmp_path / "run", tiny_recipe)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("classes", "top5"), [(7, 100 * 4 / 7), (3, 100.0)])
def test_top5_counts_the_five_likeliest(classes, top5):
    """Images that are their own logits: the class of image i is the i-th likeliest of all."""
    logits = torch.arange(classes, 0, -1.0).expand(7, classes).clone()
    labels = torch.tensor([0, 0, 1, 2, 5, 6, 6]) if classes == 7 else torch.tensor([0, 0, 1, 2, 1, 1, 1])
    scores = evaluate(torch.nn.Identity(), Batches(Split(logits, labels), 2))
    assert (scores.accuracy, scores.top5) == (100 * 2 / 7, pytest.approx(top5))
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item())


@pytest.mark.parametrize("accumulate", [2, 3, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_parts_of_a_batch_add_up_to_its_mean(tiny_recipe, accumulate, smoothing):
    """Ten images in parts of unequal sizes; statistics are fixed, so that each image goes its own way."""
    recipe = dataclasses.replace(tiny_recipe, op="conv", accumulate=accumulate, label_smoothing=smoothing)
    torch.manual_seed(0)
    model = create_model("lenet5bn", op="conv").eval()
    images, labels = tiny().train.images[:10], tiny().train.labels[:10]
    loss, right = forward_backward(model, images, labels, recipe)
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logits = model(images)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    assert right == (logits.argmax(1) == labels).sum()
    for gradient, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-6)


@pytest.fixture
def augmented(monkeypatch):
    """The tiny data set in bytes, with an augmentation."""

    def load(data_dir=None):
        dataset = tiny()
        pixels = (dataset.train.images * 30 + 128).clamp(0, 255).to(torch.uint8)
        train = Split(pixels, dataset.train.labels, Normalization.of([0.5], [0.12]))
        return dataclasses.replace(dataset, train=train, augmentation=Augmentation())

    monkeypatch.setitem(datasets._DATASETS, "tiny", load)


def test_augmentation_varies_the_images_only_where_asked(tiny_recipe, tmp_path, augmented):
    one, again, other = (
        trained(tmp_path / name, dataclasses.replace(tiny_recipe, epochs=1, augment=augment))
        for name, augment in (("one", True), ("again", True), ("other", False))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_augmentation_that_the_data_set_does_not_have(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match=r"--augment: tiny has no augmentation; leave it out, or say --no-augment"):
        train(Run.open(tmp_path / "run", dataclasses.replace(tiny_recipe, augment=True)))
    assert not (tmp_path / "run").exists()


def test_what_data_to_accept_is_the_data_sets_to_judge(tiny_recipe, tmp_path, monkeypatch):
    seen = []

    def load(data_dir, **options):
        seen.append(options)
        return tiny()

    monkeypatch.setitem(datasets._DATASETS, "tiny", load)
    monkeypatch.setitem(datasets._OPTIONS, "tiny", ("partial", "on_error"))
    recipe = dataclasses.replace(tiny_recipe, epochs=1)
    train(Run.open(tmp_path / "one", recipe))
    train(Run.open(tmp_path / "other", dataclasses.replace(recipe, partial=True, on_error="skip")))
    assert seen == [{}, {"partial": True, "on_error": "skip"}]
