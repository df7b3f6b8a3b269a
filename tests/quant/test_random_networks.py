"""Test random networks of all parts: the engine computes what the program does, and both what the network does."""

import statistics

import pytest
import torch
from tests.quant.random_networks import RandomNetwork
from tests.quant.test_lowering import trained
from tests.test_engine import ISAS

from torchadder.engine import Engine
from torchadder.quant import quantize
from torchadder.quant.program import Program

SEEDS = range(8)


def error(program, model, images):
    """Return the distance of the logits for the median image, relative to how much the logits of images differ.

    It is 0 for a network that has lost the image in constants, whose last digits a normalisation may blow up.
    """
    with torch.no_grad():
        found, logits = program(images), model(images)
    spread = (logits - logits.mean(0)).norm(dim=1).median()
    is_alive = spread > 1e-2 * logits.norm(dim=1).median()
    return float((found - logits).norm(dim=1).median() / spread) if is_alive else 0.0


@pytest.fixture(scope="module")
def errors():
    return []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_engine_computes_what_the_program_does(seed, errors, tmp_path):
    network = RandomNetwork(seed)
    images = network.images()
    trained(network, images)
    program = quantize(network, images, bits=5 if seed % 4 == 3 else 8, method=["max", "mse", "percentile"][seed % 3])
    program.save(path := tmp_path / "net.tadder")
    beyond = torch.cat([images, 3 * images, torch.full_like(images[:2], torch.inf)])
    expected = program(beyond)
    assert torch.equal(Program.load(path)(beyond), expected)
    for isa in ISAS:
        assert torch.equal(Engine(path, isa=isa, threads=1)(beyond), expected), isa
    if seed % 4 != 3:
        errors.append(error(program, network, images))


def test_programs_compute_what_their_networks_do(errors):
    """A wrong lowering gives an error of about 1."""
    assert statistics.median(errors) < 0.05
    assert max(errors) < 0.5
