"""Start two processes as torchrun does, with its environment variables and its store, but faster."""

import multiprocessing
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from torchadder.train import distributed

WORLD = 2


def run_together(cases, *arguments, limit_s=600):
    """Call each of ``cases`` with ``arguments`` in WORLD processes, each case like a new start of one command.

    Raises what a process raised, and AssertionError where they do not end in ``limit_s`` seconds.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    multiprocessing.set_forkserver_preload([__name__])  # torch is imported once for all processes
    context = start_processes(
        _work, (store.port, cases, arguments), nprocs=WORLD, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + limit_s
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"two processes did not end in {limit_s} s"
    finally:
        for process in context.processes:
            process.kill()


def _work(rank, port, cases, arguments):
    torch.set_num_threads(1)
    for attempt, case in enumerate(cases):
        os.environ |= {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
            **{"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": str(attempt)},
        }
        distributed._store.cache_clear()
        distributed._claim.cache_clear()
        case(*arguments)


def command(*arguments, processes=WORLD, restarts=0):
    """Return the torchrun command that starts ``arguments``, a script or -m and a module, in ``processes``."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(processes)]
    return [*torchrun, "--max-restarts", str(restarts), *map(str, arguments)]
