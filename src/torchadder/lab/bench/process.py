"""Run an object in a process of its own: call it over a pipe with a time limit, and report in one line why it ended."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torchadder.errors import UserError


class ProcessError(Exception):
    """Report a failed call in one line; ``Process.alive`` says if another call is possible."""


class Process:
    """Create ``target``, "module:class", without arguments in a new Python process.

    What the process prints is not shown, except for its last line if the process dies.

    Args:
        environment: variables that differ from those of this process.
        folder: the working directory. Modules are found where this process finds them.
    """

    def __init__(self, target: str, folder: Path, environment: Mapping[str, str] | None = None):
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._pipe, child_pipe = multiprocessing.Pipe()
        with child_pipe:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(child_pipe.fileno()), target],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
                pass_fds=[child_pipe.fileno()],
            )

    def call(self, method: str, timeout: float, **arguments: Any) -> Any:
        """Return what the object's ``method`` returns; arguments and result are plain values for JSON.

        Raises ProcessError if the method raises anything, if the process ends, or if the call takes longer than
        ``timeout`` seconds, which ends the process.
        """
        try:
            self._pipe.send_bytes(json.dumps({"method": method, "arguments": arguments}).encode())
            if not self._pipe.poll(timeout):
                self.close()
                raise ProcessError(f"no answer within {timeout:g} s")
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise ProcessError(self._reason_of_end()) from error
        if "error" in answer:
            raise ProcessError(answer["error"])
        return answer["value"]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process immediately."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _reason_of_end(self) -> str:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process {how}{': ' if last_line else ''}{last_line}"


def main(descriptor: str, target: str) -> None:
    """Serve calls in the new process until the pipe is closed."""
    module, _, name = target.partition(":")
    with Connection(int(descriptor)) as pipe:
        served = getattr(importlib.import_module(module), name)()
        while True:
            try:
                request = json.loads(pipe.recv_bytes())
            except EOFError:
                return
            pipe.send_bytes(json.dumps(_answer(served, **request)).encode())


def _answer(served: Any, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": getattr(served, method)(**arguments)}
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
