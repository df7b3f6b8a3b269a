"""Latency of a whole network: AdderNet, binary network and CNN in the best runtimes; same machine, threads and run.

Every candidate has a process of its own, so that no runtime's threads, clock or version of a library meets another's.
They take turns; the median of the turns is quoted.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from torchadder.errors import UserError

from .candidates import CANDIDATES, U8, Candidate
from .process import Process, ProcessError

MODELS = ("lenet5bn", "resnet20", "vgg_small", "resnet18")
TURN = 0.1  # seconds
PATIENCE = 600.0  # seconds that one request may take
Tell = Callable[[str], None]


def present(tell: Tell, candidates: Sequence[Candidate] = CANDIDATES) -> list[Candidate]:
    """Those that can run here; of the others a line is told."""
    absent = [candidate for candidate in candidates if candidate.missing]
    if absent:
        packages = ", ".join(dict.fromkeys(name for candidate in absent for name in candidate.missing))
        titles = "; ".join(candidate.title for candidate in absent)
        tell(f"left out: {titles}; {packages} not installed: pip install 'torchadder[bench]'")
    return [candidate for candidate in candidates if not candidate.missing]


def measure(
    name: str,
    batches: Iterable[int],
    thread_counts: Sequence[int],
    repetitions: int,
    candidates: Sequence[Candidate],
    progress: Tell,
    tell: Tell,
    environment: Mapping[str, str] | None = None,
    turn: float = TURN,
) -> list[dict[str, Any]]:
    """One row for each batch, number of threads and candidate of the model ``name``.

    Args:
        turn: seconds that a candidate's turn takes, at least one call.
        tell: is given a line for whoever fails; the others go on.
        environment: variables of the candidates' processes.

    ``ratio`` is a candidate's median over that of the 8-bit AdderNet, None without one.
    """
    rows = []
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)

        def start(target: str) -> Process:
            return stack.enter_context(closing(Process(target, folder, environment)))

        processes = {candidate: start(f"{__package__}.candidates:Contestant") for candidate in candidates}
        progress(f"{name}: networks")
        wanted = {package for candidate in candidates for package in candidate.packages}
        networks = start(f"{__package__}.networks:Networks")
        try:
            networks.ask("make", PATIENCE, name=name, folder=place, onnx="onnx" in wanted, int8="onnxruntime" in wanted)
        except ProcessError as error:
            raise UserError(f"{name}: the networks could not be made: {error}") from error
        networks.close()
        for batch in batches:
            for threads in thread_counts:
                setting = {"model": name, "batch": batch, "threads": threads}
                progress(_words(setting))
                rows += _rows(setting, _turns(processes, setting, repetitions, turn, place, tell))
    return rows


Turns = dict[Candidate, tuple[dict[str, Any], list[float]]]


def _turns(
    processes: dict[Candidate, Process], setting: dict[str, Any], repetitions: int, turn: float, folder: str, tell: Tell
) -> Turns:
    """What each candidate says about itself, and its seconds a call, turn by turn; those that fail are not in it."""
    found: Turns = {}

    def ask(candidate: Candidate, method: str, **arguments: Any) -> Any:
        try:
            return processes[candidate].ask(method, PATIENCE, **arguments)
        except ProcessError as error:
            tell(f"{candidate.title} is left out of {_words(setting)}: {error}")
            found.pop(candidate, None)
            if not processes[candidate].alive:
                del processes[candidate]
            return None

    for candidate in list(processes):
        about = ask(
            candidate, "open", key=candidate.key, folder=folder, batch=setting["batch"], threads=setting["threads"]
        )
        if about is not None:
            found[candidate] = (about, [])
    for _ in range(repetitions):
        for candidate in list(found):
            seconds = ask(candidate, "turn", least=turn)
            if seconds is not None:
                found[candidate][1].append(seconds)
    return found


def _words(setting: dict[str, Any]) -> str:
    threads = f"{setting['threads']} thread{'s' if setting['threads'] > 1 else ''}"
    return f"{setting['model']}, batch {setting['batch']}, {threads}"


def _rows(setting: dict[str, Any], turns: Turns) -> list[dict[str, Any]]:
    middle = {candidate.key: statistics.median(seconds) for candidate, (_, seconds) in turns.items()}
    return [
        {
            **setting,
            "candidate": candidate.key,
            "title": candidate.title,
            "runtime": candidate.runtime,
            "precision": candidate.precision,
            "milliseconds": middle[candidate.key] * 1e3,
            "images_per_second": setting["batch"] / middle[candidate.key],
            "ratio": middle[candidate.key] / middle[U8] if U8 in middle else None,
            "minimum_ms": min(seconds) * 1e3,
            "spread": (max(seconds) - min(seconds)) / middle[candidate.key],
            "n": len(seconds),
            "seconds": seconds,
            **about,
        }
        for candidate, (about, seconds) in turns.items()
    ]
