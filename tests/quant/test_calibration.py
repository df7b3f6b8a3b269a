"""Test calibration: statistics over batches, and the range that each method takes from them."""

import re
import warnings

import pytest
import torch
from torch import nn

from torchadder.errors import UserError
from torchadder.quant import quantize
from torchadder.quant.calibration import BINS, Recorder, image_batches, observe
from torchadder.quant.graph import capture


def observed(batches):
    """Return the statistics of the images."""
    network = capture(nn.Conv2d(batches[0].shape[1], 1, 1), batches[0])
    return observe(Recorder(network, {network.images.name}), batches)[network.images.name]


@pytest.fixture
def statistics():
    """Return 20,000 normal numbers with one outlier, and their statistics."""
    values = torch.randn(200, 2, 10, 5, generator=torch.Generator().manual_seed(0))
    values[7, 1, 3, 2] = 40.0
    return values, observed(values.split(64))


def test_statistics_cover_all_batches(statistics):
    values, found = statistics
    assert torch.equal(found.low, values.amin((0, 2, 3)))
    assert torch.equal(found.high, values.amax((0, 2, 3)))
    assert torch.equal(found.histogram, torch.histc(values, BINS, values.min(), values.max()).double())


def test_one_answer_to_all_images_is_warned_of():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(10, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model[1].bias.data += torch.tensor([0.0, 9.0, 0.0])
    expected = "the network gives all 10 calibration images class 1: a classifier needs images of several classes"
    for count, warned in ((10, True), (9, False)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            quantize(model, images[:count].split(4))
        assert [str(warning.message).startswith(expected) for warning in found] == [True] * warned


def test_max_covers_all_numbers(statistics):
    values, found = statistics
    assert found.range("max") == (values.min().item(), 40.0)


def test_percentile_leaves_out_the_outlier(statistics):
    low, high = statistics[1].range("percentile")
    assert -4.5 < low < -3
    assert 3 < high < 4.5


@pytest.mark.parametrize("qmax", [255, 15])
def test_mse_has_the_smallest_error(statistics, qmax):
    values, found = statistics

    def error(low, high):
        scale = (high - low) / qmax
        return ((values / scale).round().mul(scale).clamp(low, high) - values).square().sum().item()

    low, high = values.min().item(), values.max().item()
    best = min(error(low * share / 100, high * share / 100) for share in range(20, 101))
    assert error(*found.range("mse", qmax)) == pytest.approx(best, rel=0.02)  # the histogram has bins only


@pytest.mark.parametrize("method", ["mse", "max", "percentile"])
def test_a_value_that_is_always_zero(method):
    assert observed([torch.zeros(4, 1, 2, 2)]).range(method) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["mse", "max", "percentile"])
def test_zero_is_always_in_the_range(method):
    values = torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(0)) + 5
    low, high = observed([values]).range(method)
    assert low == 0
    assert 5 < high <= values.max().item()


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    "calibration", [IMAGES, [IMAGES], [(IMAGES, torch.zeros(2))], ([IMAGES, 0, 0],), iter([IMAGES])]
)
def test_batches_of_a_loader_are_taken(calibration):
    assert [batch is IMAGES for batch in image_batches(calibration)] == [True]


@pytest.mark.parametrize(
    ("calibration", "found"),
    [
        ([], "nothing"),
        (None, "NoneType"),
        ([None], "NoneType"),
        (IMAGES.numpy(), "ndarray"),
        ([{"pixel_values": IMAGES}], "dict"),
        (IMAGES[:0], "torch.float32 (0, 3, 8, 8)"),
        (IMAGES[0, 0, 0], "torch.float32 (N)"),
        (torch.tensor(1.0), "torch.float32 ()"),
        (IMAGES.byte(), "torch.uint8 (N, 3, 8, 8)"),
        ([IMAGES, IMAGES[..., 1:]], "torch.float32 (N, 3, 8, 8), torch.float32 (N, 3, 8, 7)"),
        ([IMAGES, IMAGES.double()], "torch.float32 (N, 3, 8, 8), torch.float64 (N, 3, 8, 8)"),
    ],
)
def test_what_holds_no_images_is_refused(calibration, found):
    words = f"calibration: expected tensors of images (N, C, H, W), float, of one size; got {found}"
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        image_batches(calibration)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    """Name the first batch with such an image, also where the captured network is checked on that batch before."""
    wrong = IMAGES.clone()
    wrong[1, 2, 3, 4] = value
    for number, batches in ((1, [wrong, IMAGES]), (2, [IMAGES, wrong])):
        words = f"calibration meets NaN or infinite numbers in the images: look at batch {number} of 2"
        with pytest.raises(UserError, match=words):
            quantize(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()), batches)


def test_logits_that_are_not_finite_are_refused():
    layer = nn.Linear(4, 3)
    layer.weight.data.fill_(1e38)
    words = "calibration meets NaN or infinite numbers in the logits: look at batch 2 of 2"
    with pytest.raises(UserError, match=words):
        quantize(nn.Sequential(nn.Flatten(), layer), [torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)])
