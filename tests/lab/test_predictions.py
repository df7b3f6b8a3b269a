"""Test predictions against a loop over the images: matrix, accuracies, frequent and confident mistakes."""

import math

import pytest
import torch

from torchadder.data import Batches, Split
from torchadder.lab.predictions import Predictions, predict


def forward(images):
    return 9 * images.flatten(1)[:, :4]  # the first four pixels are the logits


@pytest.fixture(params=[1, 7, 41, 100])
def batches(request):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(41, 1, 2, 3, generator=generator)
    return Batches(Split(images, torch.randint(0, 4, (41,), generator=generator)), request.param)


def test_matrix_and_mistakes_against_a_loop(batches):
    found = predict(forward, batches, classes=4, keep=5)
    confusion, mistakes = torch.zeros(4, 4, dtype=torch.int64), []
    for index, (image, label) in enumerate(zip(batches.pixels, batches.labels.tolist(), strict=True)):
        logits = forward(image[None])[0].double().tolist()
        predicted = logits.index(max(logits))
        confusion[label, predicted] += 1
        if predicted != label:
            confidence = 1 / sum(math.exp(logit - max(logits)) for logit in logits)
            mistakes.append((confidence, index, label, predicted))
    mistakes.sort(reverse=True)
    assert torch.equal(found.confusion, confusion)
    assert [(m.index, m.label, m.predicted) for m in found.mistakes] == [m[1:] for m in mistakes[:5]]
    assert [m.confidence for m in found.mistakes] == pytest.approx([m[0] for m in mistakes[:5]])
    for mistake in found.mistakes:
        assert torch.equal(mistake.image, batches.pixels[mistake.index])
    assert (found.images, found.correct) == (41, 41 - len(mistakes))
    assert found.accuracy == pytest.approx(100 * found.correct / 41)


def test_a_module_predicts_in_evaluation_mode(batches):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(6, 4))
    expected = model.eval()(batches.pixels).argmax(1)
    found = predict(model.train(), batches, classes=4)
    assert found.correct == int((expected == batches.labels).sum())


def test_accuracy_by_class_and_the_frequent_confusions():
    confusion = torch.tensor([[5, 1, 0], [0, 0, 0], [2, 2, 4]])
    found = Predictions(confusion, [])
    assert found.class_accuracy.tolist() == pytest.approx([100 * 5 / 6, math.nan, 50], nan_ok=True)
    assert found.confusions(2) == [(2, 0, 2), (2, 1, 2)]
    assert found.confusions(9) == [(2, 0, 2), (2, 1, 2), (0, 1, 1)]


def test_equal_confidences_keep_the_order_of_the_images():
    images = torch.zeros(6, 1, 2, 2)
    found = predict(forward, Batches(Split(images, torch.tensor([1, 0, 1, 1, 0, 1])), 2), classes=4, keep=3)
    assert [mistake.index for mistake in found.mistakes] == [0, 2, 3]
    assert [mistake.confidence for mistake in found.mistakes] == [0.25] * 3


def test_no_mistake_is_kept_with_keep_0(batches):
    assert predict(forward, batches, classes=4, keep=0).mistakes == []
