"""Train in several processes that torchrun started: they share each batch and compute the numbers of one process.

The training loop calls the methods of Processes; in a single process they change nothing. SyncBatchNorm normalises over
the batch of all processes on the CPU, where torch's own class does not work.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.parallel import DistributedDataParallel

from torchadder.data import Share
from torchadder.errors import UserError

from .recipe import Recipe
from .run import Run

TIMEOUT = timedelta(hours=2)  # one process of a machine may fetch and decode data while the others wait
CPU = torch.device("cpu")
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.13
_SYNC_BUFFERS = "forward_sync_buffers" if _RENAMED else "broadcast_buffers"
_CLAIMED, _REPORTED = "claimed", "reported"  # keys of the store


@dataclass(frozen=True)
class Processes:
    """Describe the place of this process among those of a run, and do the operations that they do together.

    In a single process (ALONE) they change nothing. Several processes must all call the same methods in the same order.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those on this machine
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Say whether this process is the one that prints and writes the run directory."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """Return the part of every batch that this process takes."""
        return Share(self.rank, self.world)

    def check(self, recipe: Recipe) -> None:
        """Raise UserError where a batch is too small: batch normalisation needs two images in each part of a share."""
        least = 2 * self.world * recipe.accumulate
        if self.world > 1 and recipe.batch_size < least:
            raise UserError(
                f"batch_size={recipe.batch_size} is shared by {self.world} processes and leaves parts of one image: "
                f"expected at least {least}"
            )

    def open(self, open_run: Callable[[], Run]) -> Run:
        """Open a run: the first process calls ``open_run``, and the others follow its run."""
        if self.world == 1:
            return open_run()
        message: list[Any] = [None]
        if self.first:
            run = open_run()
            message = [(run.folder, run.recipe, run.epoch)]
        dist.broadcast_object_list(message)
        if not self.first:
            run = Run.follow(*message[0])
        run.processes = self.world
        return run

    @contextmanager
    def first_on_machine_goes_first(self) -> Iterator[None]:
        """Run the block in the first process of each machine before the others, so that files are fetched once."""
        if self.world > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.world > 1 and self.local_rank == 0:
            dist.barrier()

    def synchronise_norms(self, *models: nn.Module | None) -> None:
        """Make the batch normalisations of ``models`` take the images of all processes together."""
        for model in models:
            if self.world > 1 and model is not None:
                if self.device.type == "cuda":
                    nn.SyncBatchNorm.convert_sync_batchnorm(model)
                else:
                    synchronise(model)

    def parallel(self, model: nn.Module) -> nn.Module:
        """Wrap ``model`` so that its backward passes average the gradients over the processes."""
        if self.world == 1:
            return model
        options: dict[str, Any] = {_SYNC_BUFFERS: False}  # average_buffers does it, once an epoch
        if self.device.type == "cuda":
            options["device_ids"] = [self.device]
        return DistributedDataParallel(model, **options)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace the gradients of ``model``, which is not parallel, by their mean over the processes."""
        self._average(p.grad for p in model.parameters() if p.grad is not None)

    def average_buffers(self, *models: nn.Module | None) -> None:
        """Replace the buffers of ``models``, the running statistics, by their mean over the processes."""
        buffers = {id(buffer): buffer for model in models if model is not None for buffer in model.buffers()}
        self._average(buffer for buffer in buffers.values() if buffer.is_floating_point())

    def sum(self, *numbers: Tensor) -> tuple[Tensor, ...]:
        """Return the sum of each of ``numbers`` (scalars) over the processes."""
        if self.world == 1:
            return numbers
        total = torch.stack([number.double() for number in numbers])
        dist.all_reduce(total)
        return tuple(part.to(number.dtype) for part, number in zip(total, numbers, strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Return the plain ``value`` of every process, in the order of ranks."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def _average(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors if self.world > 1 else ():
            dist.all_reduce(tensor)
            tensor /= self.world


ALONE = Processes()


def alone() -> Processes:
    """Return a single process on the first GPU of this machine, or on the CPU where there is none."""
    return Processes(device=_device(0))


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started into a process group, and leave it at the end in any case.

    They communicate by gloo on the CPU, or by nccl with one GPU for each process. A process that torchrun did not
    start, or started alone, has no group; it takes a GPU where there is one.

    Raises UserError where a machine has fewer GPUs than processes, and where another process was lost.
    """
    if not _started_by_torchrun():
        yield alone()
        return
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = _device(local_rank)
    if world == 1:
        yield Processes(device=device)
        return
    importlib.import_module("torch.distributed.nn.functional")  # imported later, its defaults would keep the group
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    try:
        dist.init_process_group(
            backend, store=_store(), rank=rank, world_size=world, timeout=TIMEOUT, device_id=device_id
        )
        yield Processes(rank, world, local_rank, device)
    except BaseException as error:
        _claim()  # claims the report before the others notice that this process has left, and report only that
        _clear_frames(error)
        if isinstance(error, RuntimeError) and _is_lost_process(error):
            raise UserError(
                "another process of the run was lost; what was saved is kept: start again with resume=True, or let "
                "torchrun restart the processes (torchrun --max-restarts N)"
            ) from error
        raise
    finally:
        # A parallel model that outlives the group frees it later, without releasing Python's lock, and waits for gloo's
        # threads, which may need that lock to free their last tensor; so does the end of the interpreter.
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Free what the functions that ``error`` ended, and the errors that it followed, still hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def no_sync(model: nn.Module, on: bool) -> AbstractContextManager[None]:
    """Return a block in which, if ``on``, the gradients of a parallel ``model`` only add up within each process."""
    return model.no_sync() if on and isinstance(model, DistributedDataParallel) else nullcontext()


def restarts() -> bool:
    """Say whether torchrun starts the command again after a failure (torchrun --max-restarts).

    It reads the restarts that are allowed, because the number of those so far is 0 on a machine that joined later.
    """
    return _started_by_torchrun() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def tell_once(tell: Callable[[], None]) -> None:
    """Call ``tell`` in the first process that calls this function; the others wait for it, at most 10 seconds."""
    if not several() or _claim():
        tell()
    if several():
        with suppress(RuntimeError):
            if _claim():
                _store().set(_REPORTED, "")
            else:
                _store().wait([_REPORTED], timedelta(seconds=10))


def _started_by_torchrun() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def several() -> bool:
    """Say whether torchrun started more than one process."""
    return _started_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1


@cache
def _store() -> dist.Store:
    """Return the store in which the processes exchange messages and the addresses for the process group."""
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore(_fresh_name(store, rank, world), store)


def _fresh_name(store: dist.Store, rank: int, world: int) -> str:
    """Agree with the other processes of this start on a name that no earlier start has used.

    torchrun keeps one store over all restarts, and torch 2.13 would take the addresses that dead processes left there
    for those of the new ones. Therefore each process asks with a random key, and the process of rank 0 answers under
    that key until all others have the name.
    """
    if rank > 0:
        question = uuid4().hex
        store.set(f"torchadder/{rank}", question)
        name = store.get(question).decode()
        store.add(name, 1)
        return name
    name = uuid4().hex
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while store.add(name, 0) < world - 1:
        for key in (f"torchadder/{other}" for other in range(1, world)):
            if store.check([key]):
                store.set(store.get(key).decode(), name)
        if time.monotonic() > deadline:
            raise UserError(f"not all {world} processes of the run started within {TIMEOUT}: start the run again")
        time.sleep(0.01)
    return name


@cache
def _claim() -> bool:
    """Say whether this process reports the end of the run: the first one that asks does."""
    try:
        return int(_store().add(_CLAIMED, 1)) == 1
    except RuntimeError:  # the store is gone, and with it the processes that could report as well
        return True


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"{count} GPU{'s' if count > 1 else ''} cannot serve more processes: start at most {count} on this machine "
            "(torchrun --nproc-per-node N), or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _is_lost_process(error: RuntimeError) -> bool:
    """Say whether a collective failed because another process is gone; gloo has no exception of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


# batch normalisation over all processes, on the CPU


def synchronise(model: nn.Module) -> None:
    """Make every nn.BatchNorm in ``model`` normalise over all processes. Only its class changes."""
    for module in model.modules():
        if type(module) in _SYNCHRONISED:
            module.__class__ = _SYNCHRONISED[type(module)]


class SyncBatchNorm:
    """Normalise as nn.BatchNorm1d, 2d and 3d do, with the same state dict, over the batch of all processes.

    Shapes: (N, C, ...) -> the same; N may differ between processes. During training each process must call the layer
    equally often, forward and backward. Without a process group, or in evaluation mode, it is plain nn.BatchNorm.

    The gradients of ``weight`` and ``bias`` are this process's part of the sum; DistributedDataParallel adds them up.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)  # type: ignore[misc]  # of the nn.BatchNorm beside this class
        if x.dim() < 2:
            raise ValueError(f"expected an input of two or more dimensions, got shape {tuple(x.shape)}")
        count, mean, var = _moments(x.detach())
        if count < 2:
            raise ValueError(f"expected more than one value a channel over all processes, got shape {tuple(x.shape)}")
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), momentum)
        wide = torch.promote_types(x.dtype, torch.float32)
        return _Normalize.apply(x, self.weight, self.bias, mean.to(wide), var.to(wide), count, self.eps)


class SyncBatchNorm1d(SyncBatchNorm, nn.BatchNorm1d):
    """Normalise as nn.BatchNorm1d does, over all processes."""


class SyncBatchNorm2d(SyncBatchNorm, nn.BatchNorm2d):
    """Normalise as nn.BatchNorm2d does, over all processes."""


class SyncBatchNorm3d(SyncBatchNorm, nn.BatchNorm3d):
    """Normalise as nn.BatchNorm3d does, over all processes."""


_SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
}


def _moments(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return count, mean and biased variance of the values of each channel of ``x`` (N, C, ...) over all processes.

    Mean and variance are float64 (C). Each process sums the squares around its own mean: the mean of adder outputs is
    up to a thousand times their standard deviation, so that a variance from squares around 0 would cancel.
    """
    axes = [0, *range(2, x.dim())]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = x.numel() // x.shape[1]
    mean = wide.sum(axes) / max(count, 1)
    squares = (wide - _by_channel(mean, x)).square_().sum(axes)
    ours = torch.cat([mean.new_tensor([count], dtype=torch.float64), mean.double(), squares.double()])
    parts = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, ours)
    counts, means, all_squares = torch.stack(parts).split([1, x.shape[1], x.shape[1]], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    var = (all_squares + counts * (means - mean).square()).sum(0) / total
    return total.item(), mean, var


class _Normalize(Function):
    """Compute (x - mean) / sqrt(var + eps) * weight + bias, with mean and var over the values of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.count = count
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        wide = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - _by_channel(mean, x)) * _by_channel(scale, x)
        grad_bias, grad_weight = wide.sum(axes), (wide * normal).sum(axes)
        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums)
        by_mean, by_scale = sums / ctx.count  # the parts of the gradient that go through mean and variance
        factor = scale if weight is None else scale * weight
        grad_x = (wide - _by_channel(by_mean, x) - normal * _by_channel(by_scale, x)) * _by_channel(factor, x)
        grads = (grad_weight, grad_bias) if weight is not None else (None, None)
        return grad_x.to(x.dtype), *grads, None, None, None, None


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape ``values`` (C) so that it broadcasts with ``x`` (N, C, ...)."""
    return values.view(-1, *[1] * (x.dim() - 2))
