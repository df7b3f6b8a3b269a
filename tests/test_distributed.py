"""Test that DistributedDataParallel and FSDP2 take the steps of one process with the whole batch, in two processes."""

import contextlib
import copy
import gc
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torchadder.nn import Adder, AdderConv2d, AdderLinear, BinaryConv2d
from torchadder.optim import AdaptiveLR

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

STEPS = 3


def network():
    """Build a network whose filters two processes cannot share evenly; normalisation by sample lets parts add up."""
    torch.manual_seed(0)
    net = nn.Sequential(
        AdderConv2d(2, 5, 3, bias=False),
        nn.GroupNorm(1, 5),
        nn.ReLU(),
        AdderConv2d(5, 3, 2, recenter=True),
        nn.GroupNorm(1, 3),
        BinaryConv2d(3, 3, 2),
        nn.Flatten(),
        AdderLinear(3 * 3 * 3, 5),
        nn.LayerNorm(5),
        nn.Linear(5, 4),
    )
    return net.double()


def share(step, rank=0, of=1):
    """Return the images and labels of one of `of` processes."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 2, 7, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (8,), generator=generator)
    return images.chunk(of)[rank], labels.chunk(of)[rank]


def optimizer_of(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    AdaptiveLR(optimizer)
    return optimizer


def train(model, optimizer, rank=0, of=1, no_sync=None):
    """Take STEPS steps; with `no_sync`, a context that keeps gradients in their process, each batch in two parts."""
    for step in range(STEPS):
        parts = 2 if no_sync else 1
        images, labels = (t.chunk(parts) for t in share(step, rank, of))
        for k in range(parts):
            with no_sync() if k < parts - 1 else contextlib.nullcontext():
                (F.cross_entropy(model(images[k]), labels[k]) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()


def ddp(net, rank):
    train(nn.parallel.DistributedDataParallel(net), optimizer_of(net), rank, 2)
    return net.state_dict()


def ddp_accumulated(net, rank):
    model = nn.parallel.DistributedDataParallel(net)
    train(model, optimizer_of(net), rank, 2, model.no_sync)
    return net.state_dict()


def sharded(net):
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for module in [*net, net]:
        if module is net or isinstance(module, Adder):
            fully_shard(module, mesh=mesh)
    weights = [module.weight for module in net if isinstance(module, Adder)]
    assert all(isinstance(weight, DTensor) and weight.adder for weight in weights)
    assert any(weight.to_local().shape[0] * 2 != weight.shape[0] for weight in weights)
    return net


def whole(net):
    return {name: p.full_tensor() for name, p in net.state_dict().items()}


def fsdp(net, rank):
    train(sharded(net), optimizer_of(net), rank, 2)
    return whole(net)


def fsdp_accumulated(net, rank):
    @contextlib.contextmanager
    def no_sync():
        net.set_requires_gradient_sync(False)
        yield
        net.set_requires_gradient_sync(True)

    train(sharded(net), optimizer_of(net), rank, 2, no_sync)
    return whole(net)


def fsdp_from_meta(net, rank):
    """Build the network as large models are built: shapes first, then shards, then memory, then numbers."""
    state = net.state_dict()
    sharded(net.to("meta")).to_empty(device="cpu")
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(dist.tensor.distribute_tensor(state[name], p.device_mesh, p.placements))
    train(net, optimizer_of(net), rank, 2)
    return whole(net)


def one_of_two_processes(rank, folder, net, variants):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for variant in variants:  # the network arrives in memory that both processes share
        torch.save(variant(copy.deepcopy(net), rank), f"{folder}/{variant.__name__}-{rank}.pt")
    dist.barrier()
    gc.collect()  # modules and meshes in cycles hold the group, whose threads must end before the process does
    dist.destroy_process_group()
    gc.collect()


VARIANTS = (ddp, ddp_accumulated, fsdp, fsdp_accumulated, fsdp_from_meta)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_take_the_steps_of_one(tmp_path):
    """Compare in float64: sums in another order differ in three steps by far less than the tolerances."""
    net = network()
    torch.multiprocessing.spawn(one_of_two_processes, (tmp_path, net, VARIANTS), nprocs=2)
    train(net, optimizer_of(net))
    for variant in VARIANTS:
        for rank in range(2):
            found = torch.load(tmp_path / f"{variant.__name__}-{rank}.pt", weights_only=True)
            torch.testing.assert_close(found, dict(net.state_dict()), rtol=1e-9, atol=1e-10, msg=variant.__name__)


def test_conversion_to_synchronised_batch_norm_keeps_the_layers():
    net = nn.Sequential(
        AdderConv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Sequential(BinaryConv2d(4, 3, 2), nn.BatchNorm2d(3))
    )
    x = share(0)[0].float()
    expected = copy.deepcopy(net).eval()(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()
    kinds = [type(module) for module in converted.modules()]
    sync = nn.SyncBatchNorm
    assert kinds == [nn.Sequential, AdderConv2d, sync, nn.Sequential, BinaryConv2d, sync]
    assert torch.equal(converted(x), expected)
    assert converted[0].weight.adder
