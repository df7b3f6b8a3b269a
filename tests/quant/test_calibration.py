"""Test calibration: statistics over batches, and the range that each method takes from them."""

import pytest
import torch
from torch import fx, nn

from torchadder.quant.calibration import BINS, observe


@pytest.fixture
def statistics():
    """Return 20,000 normal numbers with one outlier, and their statistics."""
    values = torch.randn(200, 2, 10, 5, generator=torch.Generator().manual_seed(0))
    values[7, 1, 3, 2] = 40.0
    module = fx.symbolic_trace(nn.Sequential(nn.Identity()))
    found = observe(module, values.split(64))
    assert {"input_1", "_0"} <= found.keys()
    return values, found["_0"]


def test_statistics_cover_all_batches(statistics):
    values, found = statistics
    assert torch.equal(found.low, values.amin((0, 2, 3)))
    assert torch.equal(found.high, values.amax((0, 2, 3)))
    assert torch.equal(found.histogram, torch.histc(values, BINS, values.min(), values.max()).double())


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
    found = observe(fx.symbolic_trace(nn.Sequential(nn.Identity())), [torch.zeros(4, 1, 2, 2)])
    assert found["_0"].range(method) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["mse", "max", "percentile"])
def test_zero_is_always_in_the_range(method):
    values = torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(0)) + 5
    low, high = observe(fx.symbolic_trace(nn.Sequential(nn.Identity())), [values])["_0"].range(method)
    assert low == 0
    assert 5 < high <= values.max().item()
