"""Run an object in a process of its own: call it over a pipe with a time limit, and report in one line why it ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torchadder.errors import UserError

GRACE = 5.0


class ProcessError(Exception):
    """Report a failed call in one line; ``Process.alive`` says if another call is possible."""


class Process:
    """Create an object of the class ``target`` in a new Python process.

    What the process prints is not shown, except for its last line if the process dies.

    Args:
        environment: variables that differ from those of this process.
        folder: the working directory.
    """

    def __init__(self, target: Callable[[], Any], folder: Path, environment: Mapping[str, str] | None = None):
        context = multiprocessing.get_context("spawn")
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed with the process
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, target, folder, self._log.name), daemon=True)
        before = dict(os.environ)
        os.environ.update(environment or {})
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
            child_pipe.close()

    def call(self, method: str, timeout: float, **arguments: Any) -> Any:
        """Return what the object's ``method`` returns.

        Raises ProcessError if the method raises anything, if the process ends, or if the call takes longer than
        ``timeout`` seconds, which ends the process.
        """
        try:
            self._pipe.send((method, arguments))
            if not self._pipe.poll(timeout):
                self._process.kill()
                self.close()
                raise ProcessError(f"no answer within {timeout:g} s")
            value, reason = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ProcessError(self._reason_of_end()) from error
        if reason is not None:
            raise ProcessError(reason)
        return value

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def close(self) -> None:
        """End the process: by itself within GRACE seconds, so that it frees what it shares, or by force."""
        self._pipe.close()
        self._process.join(GRACE)
        self._process.kill()
        self._process.join()
        self._log.close()

    def _reason_of_end(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        lines = self._log.read().decode(errors="replace").split("\n")
        self._log.seek(0)
        last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process {how}{': ' if last_line else ''}{last_line}"


def _serve(pipe: Connection, target: Callable[[], Any], folder: Path, log: str) -> None:
    """Answer calls in the new process until the pipe is closed."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    served = target()
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(served, method)(**arguments), None))
        except UserError as error:
            pipe.send((None, str(error)))
        except Exception as error:
            pipe.send((None, f"{type(error).__name__}: {' '.join(str(error).split())}"))
