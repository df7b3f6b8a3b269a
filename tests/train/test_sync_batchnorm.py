"""Test SyncBatchNorm: two processes with parts of a batch compute what nn.BatchNorm computes with the whole."""

import copy

import pytest
import torch
import torch.distributed as dist
from tests.train.torchrun import run_together
from torch import nn

from torchadder.train.distributed import SyncBatchNorm1d, SyncBatchNorm2d, joined, synchronise

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

KINDS = {  # class of layer, its options, shape of an input without the batch, numbers of images of the two processes
    "1d": (nn.BatchNorm1d, {}, (3,), (4, 4)),
    "1d with positions": (nn.BatchNorm1d, {}, (3, 5), (4, 4)),
    "2d": (nn.BatchNorm2d, {}, (3, 5, 2), (4, 4)),
    "3d": (nn.BatchNorm3d, {}, (2, 3, 2, 2), (4, 4)),
    "shares of two sizes": (nn.BatchNorm2d, {}, (3, 2, 2), (7, 2)),
    "nothing and everything": (nn.BatchNorm2d, {}, (3, 2, 2), (0, 5)),
    "one image each": (nn.BatchNorm1d, {}, (3,), (1, 1)),
    "without weight and bias": (nn.BatchNorm2d, {"affine": False}, (3, 2, 2), (3, 4)),
    "without running statistics": (nn.BatchNorm2d, {"track_running_stats": False}, (3, 2, 2), (3, 4)),
    "cumulative average": (nn.BatchNorm2d, {"momentum": None}, (3, 2, 2), (3, 4)),
    "other options": (nn.BatchNorm2d, {"momentum": 0.3, "eps": 0.1}, (3, 2, 2), (3, 4)),
}


def case(name):
    """Return the layer, and for each of two steps the images and the gradient of the layer's output."""
    kind, options, shape, counts = KINDS[name]
    generator = torch.Generator().manual_seed(0)
    layer = kind(shape[0], **options).double()
    for p in layer.parameters():
        nn.init.normal_(p, generator=generator)
    size = (2, 2, sum(counts), *shape)
    steps = torch.randn(size, generator=generator, dtype=torch.float64) * 3 - 20
    return layer, steps, counts


def take_steps(layer, steps, part=slice(None)):
    """Return outputs for ``part`` of the images, gradients of input and parameters, and the state of the layer."""
    found = []
    for images, by_output in steps:
        x = images[part].clone().requires_grad_()
        y = layer(x)
        y.backward(by_output[part])
        found.append((y.detach(), x.grad, [p.grad.clone() for p in layer.parameters()]))
    return found, layer.state_dict()


def in_two(folder):
    with joined() as processes:
        for name in KINDS:
            layer, steps, counts = case(name)
            synchronise(layer)
            start = sum(counts[: processes.rank])
            part = slice(start, start + counts[processes.rank])
            torch.save(take_steps(layer, steps, part), folder / f"{name}-{processes.rank}.pt")


LARGE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # dtype -> tolerance of the outputs


def far_from_zero(dtype):
    """Return numbers like the outputs of an adder layer, whose mean is up to a thousand standard deviations."""
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x - 1000 if dtype == torch.float32 else x.to(dtype)


def in_two_of_32_and_16_bits(folder):
    with joined() as processes:
        for dtype in LARGE:
            layer = nn.BatchNorm2d(3)
            synchronise(layer)
            x = far_from_zero(dtype)[processes.share.of(0, 16)].requires_grad_()
            y = layer(x)
            y.square().sum().backward()
            assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (dtype, dtype, torch.float32)
            if processes.first:
                torch.save((y.detach(), layer.state_dict()), folder / f"{dtype}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_together([in_two, in_two_of_32_and_16_bits], folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_two_parts_are_normalised_as_one(folder, name):
    """Compare outputs, gradients, running statistics and the number of batches, to the rounding of float64."""
    layer, steps, _ = case(name)
    one, state = take_steps(layer, steps)
    first, second = (torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first[1], dict(state), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second[1], first[1], rtol=0, atol=0)
    for (y, x_grad, grads), ours, theirs in zip(one, first[0], second[0], strict=True):
        torch.testing.assert_close(torch.cat([ours[0], theirs[0]]), y, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(torch.cat([ours[1], theirs[1]]), x_grad, rtol=1e-11, atol=1e-11)
        for a, b, whole in zip(ours[2], theirs[2], grads, strict=True):
            torch.testing.assert_close(a + b, whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", LARGE)
def test_large_means_and_16_bits(folder, dtype):
    x = far_from_zero(dtype).double()
    y, state = torch.load(folder / f"{dtype}.pt", weights_only=True)
    layer = nn.BatchNorm2d(3).double()
    torch.testing.assert_close(y.double(), layer(x).detach()[:8], rtol=LARGE[dtype], atol=LARGE[dtype])
    expected = {name: tensor.to(state[name].dtype) for name, tensor in layer.state_dict().items()}
    torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-6)


def test_conversion_changes_the_class_and_nothing_else():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3), nn.LayerNorm(3)))
    state, modules = net.state_dict(keep_vars=True), list(net.modules())
    synchronise(net)
    assert list(net.modules()) == modules
    assert all(a is b for a, b in zip(net.state_dict(keep_vars=True).values(), state.values(), strict=True))
    assert [type(m) for m in net.modules() if m in (net[1], net[2][0])] == [SyncBatchNorm2d, SyncBatchNorm1d]
    plain = nn.BatchNorm2d(2)
    plain.load_state_dict(net[1].state_dict())  # checkpoints are interchangeable
    assert list(plain.state_dict()) == list(net[1].state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_plain_batch_normalisation(training):
    plain = nn.BatchNorm2d(3).train(training)
    layer = copy.deepcopy(plain)
    synchronise(layer)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.running_var, plain.running_var)
