"""Test the training loop: the paper's loop, batches in parts, augmentation, learning rates, average, determinism."""

import contextlib
import dataclasses
import math
import os
import re

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import tiny
from torch import nn
from torch.optim import lr_scheduler

from torchadder.data import Batches, Split
from torchadder.data import registry as datasets
from torchadder.data.images import Augmentation
from torchadder.data.registry import Normalization
from torchadder.models import create_model
from torchadder.models.checkpoint import load_checkpoint
from torchadder.optim import AdaptiveLR
from torchadder.train import Progress, Run, train
from torchadder.train.loop import (
    build_average,
    class_sizes,
    deterministic_algorithms,
    evaluate,
    forward_backward,
    has_learned_in_vain,
    rate_at,
    recompute_norm_statistics,
)


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


def test_training_keeps_freed_memory(tiny_recipe, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("torchadder.train.loop.keep_freed_memory", lambda: calls.append("kept"))
    train(Run.open(tmp_path, dataclasses.replace(tiny_recipe, epochs=1)))
    assert calls == ["kept"]


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


# the learning rate

EPOCHS, STEPS = 7, 5


def rates(recipe, change):
    recipe = dataclasses.replace(recipe, **{"epochs": EPOCHS, "lr": 0.3, **change})
    return [rate_at(recipe, step, STEPS) for step in range(EPOCHS * STEPS)]


def torch_rates(schedule, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler, found = schedule(optimizer), []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ({"schedule": "cosine"}, lambda left: lambda o: lr_scheduler.CosineAnnealingLR(o, left)),
        ({"schedule": "polynomial"}, lambda left: lambda o: lr_scheduler.PolynomialLR(o, left)),
        ({"schedule": "polynomial", "power": 0.9}, lambda left: lambda o: lr_scheduler.PolynomialLR(o, left, 0.9)),
        (
            {"schedule": "step", "milestones": "4,6"},
            lambda left: lambda o: lr_scheduler.MultiStepLR(o, [left - 3 * STEPS, left - STEPS]),
        ),
    ],
    ids=["cosine", "linear", "polynomial", "step"],
)
def test_torchs_schedule_after_the_warmup(tiny_recipe, change, reference, warmup):
    left = (EPOCHS - warmup) * STEPS
    found = rates(tiny_recipe, {"warmup_epochs": warmup, **change})
    rise = [0.3 * (step + 1) / (warmup * STEPS) for step in range(warmup * STEPS)]
    assert found == pytest.approx(rise + torch_rates(reference(left), left), rel=1e-9)


def test_the_default_is_the_papers_cosine_to_the_last_bit(tiny_recipe):
    total = EPOCHS * STEPS
    expected = [0.3 * 0.5 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert rates(tiny_recipe, {}) == expected


def test_milestones_beyond_the_end_and_out_of_order_do_no_harm(tiny_recipe):
    one = rates(tiny_recipe, {"schedule": "step", "milestones": "6,2,900"})
    assert one == rates(tiny_recipe, {"schedule": "step", "milestones": "2,6"})


# the running average of the weights


def test_the_average_of_the_weights(tiny_recipe):
    model = nn.Linear(3, 2)
    average = build_average(model, dataclasses.replace(tiny_recipe, ema=0.75))
    expected = None
    for _ in range(5):
        with torch.no_grad():
            model.weight.normal_()
        average.update_parameters(model)
        expected = model.weight.clone() if expected is None else 0.75 * expected + 0.25 * model.weight
    torch.testing.assert_close(average.module.weight, expected)


def test_none_without_a_decay(tiny_recipe):
    assert build_average(nn.Linear(3, 2), tiny_recipe) is None


def test_statistics_are_those_of_the_training_images_and_the_order_is_undisturbed():
    batches, untouched = (Batches(tiny().train, 10, train=True, seed=3) for _ in range(2))
    model = nn.Sequential(nn.BatchNorm2d(1))
    model[0].running_mean.fill_(50.0)
    recompute_norm_statistics(model, batches, 50)
    images = tiny().train.images  # five batches of ten: each image once
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))
    assert model[0].running_var.item() == pytest.approx(images.var().item(), rel=0.05)
    assert model[0].momentum == 0.1
    for (one, _), (other, _) in zip(batches, untouched, strict=True):
        assert torch.equal(one, other)


def test_statistics_of_the_last_weights_are_tested_and_saved_and_change_no_weight(tiny_recipe, tmp_path):
    run = Run.open(tmp_path / "run", dataclasses.replace(tiny_recipe, norm_batches=3))
    outcome = train(run)
    plain, found = trained(tmp_path / "plain", tiny_recipe), load_checkpoint(tmp_path / "run/last.pt")
    for name, p in found.named_parameters():
        assert torch.equal(p, plain[name])
    assert not torch.equal(found.bn1.running_mean, plain["bn1.running_mean"])
    assert outcome.accuracy == evaluate(found, Batches(tiny().test, 30)).accuracy
    assert found.bn1.num_batches_tracked == 3


# a test at chance

SIZES = torch.tensor([50, 25, 25])
CHANCE = [  # sizes of the classes, accuracies in percent on training and test images: whether that is at chance
    (SIZES, 80.0, 50.0, True),
    (SIZES, 80.0, 20.0, True),
    (SIZES, 62.5, 60.0, True),  # a quarter of the way from 50% to 100%, and two standard errors above 50%
    (SIZES, 62.0, 50.0, False),
    (SIZES, 80.0, 61.0, False),
    (SIZES[:1], 100.0, 100.0, False),
]


def test_class_sizes_count_the_labels():
    split = Split(torch.zeros(5, 1, 2, 2), torch.tensor([2, 0, 2, 2, 0]))
    assert class_sizes(split).tolist() == [2, 0, 3]


@pytest.mark.parametrize(("sizes", "training", "test", "expected"), CHANCE)
def test_at_chance_is_no_better_than_one_answer_to_images_though_others_are_learned(sizes, training, test, expected):
    assert has_learned_in_vain({"train_accuracy": training, "test_accuracy": test}, sizes) is expected


@pytest.mark.parametrize(
    ("change", "epochs", "words"),
    [
        ({}, [3, 4], "running averages .* norm_batches=50, or train longer"),
        ({"norm_batches": 1}, [3, 4], "between training and test images"),
        ({"epochs": 2}, [2], r"after epoch 2 the test accuracy, [\d.]+%, is no better than one answer"),
    ],
)
def test_training_warns_after_the_third_and_the_last_epoch(tiny_recipe, tmp_path, monkeypatch, change, epochs, words):
    class Listen(Progress):
        def epoch_done(self, row):
            self.epoch = row["epoch"]

        def warned(self, line):
            heard.append((self.epoch, line))

    def unlearnable(data_dir=None):
        dataset = tiny()
        return dataclasses.replace(dataset, test=Split(dataset.train.images, (dataset.train.labels + 1) % 10))

    heard = []
    monkeypatch.setitem(datasets._DATASETS, "tiny", unlearnable)
    recipe = dataclasses.replace(tiny_recipe, **{"op": "conv", "epochs": 4, **change})
    train(Run.open(tmp_path / "run", recipe), progress=Listen())
    assert [epoch for epoch, _ in heard] == epochs
    assert all(re.search(words, line) and "\n" not in line for _, line in heard)


def test_the_average_is_what_is_tested_and_saved(tiny_recipe, tmp_path):
    recipe = dataclasses.replace(tiny_recipe, ema=0.5, epochs=1)
    run = Run.open(tmp_path / "run", recipe)
    outcome = train(run)
    plain = Run.open(tmp_path / "plain", dataclasses.replace(recipe, ema=0.0))
    train(plain)
    trained = run.state["trained"]
    last, best = load_checkpoint(tmp_path / "run/last.pt"), load_checkpoint(tmp_path / "run")
    for name, p in last.named_parameters():
        assert torch.equal(p, best.state_dict()[name])
        assert torch.equal(trained[name], plain.state["model"][name])  # training itself is as it was
        assert not torch.equal(p, trained[name])
    scores = evaluate(last, Batches(tiny().test, 30))
    assert outcome.accuracy == scores.accuracy


# deterministic algorithms


@pytest.fixture
def own_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


class Look(Progress):
    def started(self, recipe, model, epochs_done, steps_per_epoch):
        self.on = torch.are_deterministic_algorithms_enabled()
        self.measures = torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("own_environment")
@pytest.mark.parametrize("on", [False, True])
def test_training_is_deterministic_where_asked(tiny_recipe, tmp_path, on):
    look = Look()
    recipe = dataclasses.replace(tiny_recipe, epochs=1, deterministic=on)
    train(Run.open(tmp_path / "run", recipe), progress=look)
    assert look.on == on
    assert look.measures != on
    assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_are_restored_after_an_error(monkeypatch, own_environment):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with contextlib.suppress(KeyError), deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
