"""The processes of a run: alone, or several that torchrun started, which share each batch and agree on every number."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchadder.data import Share
from torchadder.errors import UserError
from torchadder.train.recipe import Recipe
from torchadder.train.run import Run
from torchadder.train.sync_batchnorm import synchronise

TIMEOUT = timedelta(hours=2)  # the first process of a machine may fetch and decode data while the others wait
CPU = torch.device("cpu")
_NEWER = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
_SYNC_BUFFERS = "forward_sync_buffers" if _NEWER else "broadcast_buffers"
_CLAIMED, _TOLD = "claimed", "told"  # keys of the store


@dataclass(frozen=True)
class Processes:
    """All processes of a run as one of them sees them: its place among them, and what they do together.

    A process alone (ALONE) does nothing together: each method then gives back what it got. With others, every
    process must call the same methods in the same order.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes the run directory."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This one's part of every batch."""
        return Share(self.rank, self.world)

    def check(self, recipe: Recipe) -> None:
        """Raises UserError where the batch of ``recipe`` leaves parts of one image to normalise."""
        least = 2 * self.world * recipe.accumulate
        if self.world > 1 and recipe.batch_size < least:
            raise UserError(
                f"--batch-size {recipe.batch_size} is of all {self.world} processes together and leaves parts of one "
                f"image: expected at least {least}"
            )

    def open(self, open_run: Callable[[], Run]) -> Run:
        """The run that ``open_run`` gives the first process; the others follow it."""
        if self.world == 1:
            return open_run()
        told: list[Any] = [None]
        if self.first:
            run = open_run()
            told = [(run.folder, run.recipe, run.epoch)]
        dist.broadcast_object_list(told)
        if not self.first:
            run = Run.follow(*told[0])
        run.processes = self.world
        return run

    @contextmanager
    def one_a_machine_ahead(self) -> Iterator[None]:
        """Within, the first process of each machine goes before its others: files are fetched and decoded once."""
        if self.world > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.world > 1 and self.local_rank == 0:
            dist.barrier()

    def synchronise_norms(self, *models: nn.Module | None) -> None:
        """Make batch normalisation inside ``models`` go over the images of all processes."""
        for model in models:
            if self.world > 1 and model is not None:
                if self.device.type == "cuda":
                    nn.SyncBatchNorm.convert_sync_batchnorm(model)
                else:
                    synchronise(model)

    def parallel(self, model: nn.Module) -> nn.Module:
        """``model``, whose backward passes average the gradients over the processes."""
        if self.world == 1:
            return model
        options: dict[str, Any] = {_SYNC_BUFFERS: False}  # they are averaged once an epoch instead: average_buffers
        if self.device.type == "cuda":
            options["device_ids"] = [self.device]
        return DistributedDataParallel(model, **options)

    def average_gradients(self, model: nn.Module) -> None:
        """Make the gradients of ``model``, which is not parallel, their mean over the processes."""
        self._average(p.grad for p in model.parameters() if p.grad is not None)

    def average_buffers(self, *models: nn.Module | None) -> None:
        """Make the buffers of ``models``, the running statistics, their mean over the processes."""
        buffers = {id(buffer): buffer for model in models if model is not None for buffer in model.buffers()}
        self._average(buffer for buffer in buffers.values() if buffer.is_floating_point())

    def sum(self, *numbers: Tensor) -> tuple[Tensor, ...]:
        """Each of ``numbers`` (scalars), added up over the processes."""
        if self.world == 1:
            return numbers
        total = torch.stack([number.double() for number in numbers])
        dist.all_reduce(total)
        return tuple(part.to(number.dtype) for part, number in zip(total, numbers, strict=True))

    def gather(self, value: Any) -> list[Any]:
        """The plain ``value`` of every process, in the order of ranks."""
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
    """A process alone on this machine's best device: its first GPU, or the CPU where there is none."""
    return Processes(device=_device(0))


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, as a process group that is left at the end, whatever happens.

    Over gloo on the CPU, or over nccl where there are GPUs, each process on its own. A process that torchrun did not
    start, or started alone, has no group; it too takes a GPU where there is one.

    Raises UserError where a machine has fewer GPUs than processes, and where another process was lost.
    """
    if not _launched():
        yield alone()
        return
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = _device(local_rank)
    if world == 1:
        yield Processes(device=device)
        return
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    try:
        dist.init_process_group(
            backend, store=_store(), rank=rank, world_size=world, timeout=TIMEOUT, device_id=device_id
        )
        yield Processes(rank, world, local_rank, device)
    except BaseException as error:
        _claim()  # before the others can see that this one has left, and report that
        if isinstance(error, RuntimeError) and _is_of_the_group(error):
            raise UserError(
                "another process of the run was lost; what was saved is kept. Start again with --resume, or let "
                "torchrun do so with --max-restarts"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def no_sync(model: nn.Module, on: bool) -> AbstractContextManager[None]:
    """Within, if ``on``, the gradients of a parallel ``model`` add up in each process: more parts are to come."""
    return model.no_sync() if on and isinstance(model, DistributedDataParallel) else nullcontext()


def restarts() -> bool:
    """Whether torchrun starts the command again after a failure (--max-restarts).

    Its count of restarts would not do: that of a machine which joined later is 0.
    """
    return _launched() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def tell_once(tell: Callable[[], None]) -> None:
    """Call ``tell`` in the first process that comes here; the others return when it has done so."""
    if not several() or _claim():
        tell()
    if several():
        with suppress(RuntimeError):
            if _claim():
                _store().set(_TOLD, "")
            else:
                _store().wait([_TOLD], timedelta(seconds=10))


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def several() -> bool:
    """Whether torchrun started more than one process."""
    return _launched() and int(os.environ["WORLD_SIZE"]) > 1


@cache
def _store() -> dist.Store:
    """Where the processes leave notes for each other, and the addresses that the group begins with."""
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore(_fresh_name(store, rank, world), store)


def _fresh_name(store: dist.Store, rank: int, world: int) -> str:
    """A name that the processes of this start share, and that no earlier start had.

    torchrun keeps one store over all restarts, and torch 2.13 takes addresses of the dead for those of the living.
    So everyone asks under a number of its own, and the first answers with the name until all of them have it.
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
            raise UserError(f"not all {world} processes of the run came within {TIMEOUT}")
        time.sleep(0.01)
    return name


@cache
def _claim() -> bool:
    """Whether this process is the one that reports the end of the run: the first that asks."""
    try:
        return int(_store().add(_CLAIMED, 1)) == 1
    except RuntimeError:  # nobody is left to report it twice
        return True


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"{count} GPU{'s' if count > 1 else ''} for more processes: start at most {count} on this machine "
            "(--nproc-per-node), or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _is_of_the_group(error: RuntimeError) -> bool:
    """Whether a collective failed, because a process at its other end is gone; gloo has no exception of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
