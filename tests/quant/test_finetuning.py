"""Test fine-tuning: accuracy comes back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.quant.test_lowering import seeded, trained
from torch import nn

from torchadder.data import Batches, Split
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.optim import AdaptiveLR
from torchadder.quant import finetune, quantize
from torchadder.quant.steps import Layer


def patterns(count, generator):
    """Return images of ten noisy patterns, labelled by pattern."""
    centres = torch.randn(10, 1, 32, 32, generator=seeded(7))
    labels = torch.randint(0, 10, (count,), generator=generator)
    return Split(centres[labels] + 0.5 * torch.randn(count, 1, 32, 32, generator=generator), labels)


@pytest.fixture(scope="module")
def splits():
    return patterns(320, seeded(8)), patterns(200, seeded(9))


@pytest.fixture(scope="module")
def model(splits):
    """Return an AdderNet trained on the patterns."""
    torch.manual_seed(0)
    model = create_model("lenet5bn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    AdaptiveLR(optimizer, 0.1)
    batches = Batches(splits[0], 16, train=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6 * len(batches))
    for _ in range(6):
        for images, labels in batches:
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def tuned(model, splits, **options):
    train, _ = splits
    return finetune(model, Batches(train, 16, train=True), [train.images[:64]], **{"bits": 2, **options})


@torch.no_grad()
def accuracy(network, split):
    return (network(split.images).argmax(1) == split.labels).double().mean().item()


def test_accuracy_comes_back(model, splits):
    losses = []
    program = tuned(model, splits, epochs=6, epoch_done=lambda epoch, loss: losses.append((epoch, loss)))
    calibrated = quantize(model, [splits[0].images[:64]], 2)
    before, without, after = (accuracy(network, splits[1]) for network in (model, calibrated, program))
    assert before > 0.9
    assert without < after <= before
    assert [epoch for epoch, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[0][1] > losses[-1][1]


def test_the_answers_come_back_without_labels(model, splits):
    images, losses = splits[0].images, []
    program = untaught(model, images.split(16), epoch_done=lambda epoch, loss: losses.append(loss))
    calibrated = quantize(model, [images[:16]], 3)
    assert divergence(model, program, splits[1]) < 0.9 * divergence(model, calibrated, splits[1])
    assert losses[0] > losses[-1]
    ignored = [(part, torch.zeros(len(part))) for part in images.split(16)]  # of no use as labels
    assert untaught(model, ignored).to_bytes() == program.to_bytes()


def untaught(model, batches, **options):
    images = batches[0][0] if isinstance(batches[0], tuple) else batches[0]
    return finetune(model, batches, [images], 3, labels=False, epochs=6, lr=0.01, eta=0.02, **options)


@torch.no_grad()
def divergence(model, program, split):
    answers, own = (network(split.images).log_softmax(1) for network in (model, program))
    return F.kl_div(own, answers, reduction="batchmean", log_target=True).item()


def test_results_repeat_and_the_model_stays(model, splits):
    before = copy.deepcopy(model.state_dict())
    one, other = (tuned(model, splits).state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("op", ["conv", "binary"])
def test_other_operators_are_fine_tuned_as_well(op, splits):
    torch.manual_seed(0)
    program = tuned(trained(create_model("lenet5bn", op), splits[0].images[:64]), splits, bits=4)
    assert {step.kind for step in program.steps if isinstance(step, Layer)} == {"conv", op}


BAD = [  # options, error, words of the message
    ({"bits": 1}, UserError, "bits=1 is out of range: expected 2 to 8"),
    ({"method": "entropy"}, UserError, "method=entropy is unknown"),
    ({"epochs": 0}, UserError, "epochs=0 is out of range: expected at least 1"),
    ({"eta": 0.0}, ValueError, r"eta=0.0 is out of range: expected a finite number above 0"),
    ({"lr": 0.0}, UserError, "lr=0.0 is out of range: expected a finite number above 0"),
    ({"lr": float("nan")}, UserError, "lr=nan is out of range"),
    ({"lr": 1e38}, UserError, "NaN or infinite numbers in epoch 1 of fine-tuning"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD)
def test_bad_arguments(model, splits, options, error, words):
    with pytest.raises(error, match=words):
        tuned(model, splits, **options)


def test_what_would_train_nothing_is_refused(model, splits):
    with pytest.raises(UserError, match=r"^batches is empty: expected"):
        finetune(model, [], splits[0].images[:64])
    with torch.no_grad(), pytest.raises(UserError, match=r"^no parameter has a gradient: call"):
        tuned(model, splits)
    with pytest.raises(UserError, match=r"^no parameter has a gradient: call"):
        tuned(copy.deepcopy(model).requires_grad_(False), splits)


def flat(layers):
    return nn.Sequential(nn.Conv2d(1, 4, 32), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, layers))


X, Y = torch.randn(16, 1, 32, 32, generator=seeded(1)), torch.arange(16) % 10
WRONG_BATCHES = {
    "a generator": (((X, Y) for _ in range(2)), "batches is a generator without a length: expected a list"),
    "one image": ([(X, Y), (X[:1], Y[:1])], "a batch has one image, and its values no variance .*: pass drop_last"),
    "a dict": ([{"image": X, "label": Y}], r"batches: expected tensors \(images, labels\), got dict"),
    "arrays": ([(X.numpy(), Y.numpy())], r"batches: expected tensors \(images, labels\), got ndarray, ndarray"),
    "pixels": ([(X.byte(), Y)], r"expected images float \(N, 1, 32, 32\), as the network takes them, got torch.uint8"),
    "another size": ([(X[..., 1:], Y)], r"expected images float \(N, 1, 32, 32\), .* got .* \(N, 1, 32, 31\)"),
    "soft labels": ([(X, torch.eye(16)[:, :10])], r"expected labels int64 \(N,\), got torch.float32 \(N, 10\)"),
    "labels from 1": ([(X, Y + 1)], "label 10 is out of range: the network has classes 0 to 9"),
    "label -1": ([(X, Y - 1)], "label -1 is out of range: the network has classes 0 to 9"),
}


@pytest.mark.parametrize(("batches", "words"), WRONG_BATCHES.values(), ids=WRONG_BATCHES.keys())
def test_batches_that_do_not_fit_are_refused(batches, words):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=words):
        finetune(flat(10).eval(), batches, X)


@pytest.mark.parametrize("batches", [[X.byte()], [(X[..., 1:], Y)], [[]]], ids=["pixels", "another size", "empty"])
def test_images_that_do_not_fit_are_refused_without_labels(batches):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"batches: expected images float \(N, 1, 32, 32\), as the network takes them"):
        finetune(flat(10).eval(), batches, X, labels=False)


def test_labels_may_be_any_integers():
    torch.manual_seed(0)
    model = flat(10).eval()
    programs = [finetune(model, [(X, labels)], X).to_bytes() for labels in (Y, Y.int(), Y.to(torch.uint8))]
    assert programs[0] == programs[1] == programs[2]


class Backbone(nn.Module):
    """Run all but the last layer in a way that gives them no gradient."""

    def __init__(self, freezing):
        super().__init__()
        self.net, self.freezing = flat(10), freezing

    def forward(self, x):
        return self.net[4](self.freezing(self.net[:4], x))


@torch.no_grad()
def without_gradient(net, x):
    return net(x)


FREEZING = {"no_grad": without_gradient, "detach": lambda net, x: net(x).detach()}


@pytest.mark.parametrize("freezing", FREEZING.values(), ids=FREEZING.keys())
def test_what_gets_no_gradient_stays(freezing):
    torch.manual_seed(0)
    model = Backbone(freezing).eval()
    before, after = quantize(model, X), finetune(model, [(X, Y)] * 3, X, lr=0.1)
    same = [torch.equal(a.weight, b.weight) for a, b in zip(before.steps, after.steps, strict=True)]
    assert same == [True, False]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_part_without_integer_form_is_named(splits):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(1800, 10))
    with pytest.raises(UserError, match="cannot quantize 1, GroupNorm"):
        tuned(network, splits)
