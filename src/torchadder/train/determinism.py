"""What makes two runs equal bit by bit: the state of the random numbers, and algorithms without races."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cudnn


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    """Within, torch uses deterministic algorithms only, and raises RuntimeError for an operator without one.

    A CPU needs it for no operator of ours; a GPU does, and is slower for it. Unless ``on``, cuDNN and our own kernels
    measure which of several ways is fastest for each shape; that makes a difference on a GPU alone.
    """
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
    cudnn.benchmark = not on
    try:
        yield
    finally:
        if on:  # (the call alone imports torch's compiler)
            torch.use_deterministic_algorithms(before[0])
        cudnn.benchmark = before[1]


def rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
