"""Which of several kernels that compute the same: the best by count, or the fastest by measurement.

Measured where torch.backends.cudnn.benchmark is on, torch's own switch for this: once for each kind of call, kept in
gpu-tiles.json beside the fetched data sets. The result does not depend on the choice.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ... import atomic, cache
from . import nvrtc
from .nvrtc import Call

REPETITIONS = 5


class Choice:
    """Calls that compute the same, the best by count first."""

    def __init__(self, calls: Sequence[Call]):
        self.calls = tuple(calls)
        self._fastest: Call | None = None if len(self.calls) > 1 else self.calls[0]

    def launch(self, *tensors: Tensor | None) -> None:
        """Run one of them."""
        nvrtc.launch(self._best(tensors), tensors)

    def _best(self, tensors: tuple[Tensor | None, ...]) -> Call:
        if self._fastest is not None:
            return self._fastest
        if not torch.backends.cudnn.benchmark:
            return self.calls[0]
        with torch.cuda.device(tensors[0].device):  # type: ignore[union-attr]
            if torch.cuda.is_current_stream_capturing():
                return self.calls[0]
            self._fastest = self._measured(tensors)
        return self._fastest

    def _measured(self, tensors: tuple[Tensor | None, ...]) -> Call:
        """The fastest on the current GPU, as it was found earlier or now."""
        key = self._key()
        known = _kept().get(key)
        if known is None:
            seconds = [_measure(call, tensors) for call in self.calls]
            known = self.calls[seconds.index(min(seconds))].kernel.name
            _keep(key, known)
        return next((call for call in self.calls if call.kernel.name == known), self.calls[0])

    def _key(self) -> str:
        about = (torch.cuda.get_device_name(), nvrtc.source(), [(c.kernel, c.blocks) for c in self.calls])
        return sha256(repr((*about, [int(number) for number in self.calls[0].numbers])).encode()).hexdigest()


def _measure(call: Call, tensors: tuple[Tensor | None, ...]) -> float:
    """Seconds, the median."""
    return statistics.median(nvrtc.seconds(call, tensors, REPETITIONS))


def _path() -> Path:
    return cache.folder() / "gpu-tiles.json"


@functools.cache
def _kept() -> dict[str, str]:
    return _read()


def _read() -> dict[str, str]:
    try:
        found = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(key: str, name: str) -> None:
    _kept()[key] = name
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(_path(), json.dumps(_read() | _kept()).encode())  # other processes measure as well
    except OSError:  # measured again next time
        return
