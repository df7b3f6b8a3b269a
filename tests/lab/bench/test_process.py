"""Test objects in processes of their own: answers, errors, and every kind of death, in one line each."""

import ctypes
import os
import sys
import threading
from contextlib import closing

import pytest

from torchadder.errors import UserError
from torchadder.lab.bench import cpu_mask
from torchadder.lab.bench.process import Process, ProcessError

LONG = 120  # seconds; no call here takes nearly as long


class Served:
    def add(self, a, b):
        print("printed text is not the answer")
        return {"sum": a + b}

    def refuse(self):
        raise UserError("no: this cannot be")

    def fail(self):
        raise ValueError("two\nlines")

    def variable(self, name):
        return os.environ[name]

    def folder(self):
        return os.getcwd()

    def end(self, code):
        print("first line", file=sys.stderr)
        print("last line\n", file=sys.stderr, flush=True)
        os._exit(code)

    def crash(self):
        ctypes.string_at(0)

    def hang(self):
        threading.Event().wait()


def served(folder, environment=None):
    return closing(Process(Served, folder, environment))


def test_answers_errors_and_last_words(tmp_path):
    with served(tmp_path, {"SOMETHING": "set"}) as process:
        assert process.call("add", LONG, a=2, b=3) == {"sum": 5}
        assert process.call("variable", LONG, name="SOMETHING") == "set"
        assert os.path.samefile(process.call("folder", LONG), tmp_path)
        with pytest.raises(ProcessError, match=r"^no: this cannot be$"):
            process.call("refuse", LONG)
        with pytest.raises(ProcessError, match=r"^ValueError: two lines$"):
            process.call("fail", LONG)
        assert process.alive
        with pytest.raises(ProcessError, match=r"^its process ended with code 3: last line$"):
            process.call("end", LONG, code=3)
        assert not process.alive
        with pytest.raises(ProcessError, match=r"^its process ended with code 3: last line$"):
            process.call("add", LONG, a=2, b=3)


def test_a_process_that_does_not_answer_is_ended(tmp_path):
    with served(tmp_path) as process:
        process.call("add", LONG, a=0, b=0)
        with pytest.raises(ProcessError, match=r"^no answer within 0\.1 s$"):
            process.call("hang", 0.1)
        assert not process.alive


def test_a_crash_is_named_even_if_a_handler_of_the_signal_hides_instructions(tmp_path):
    try:
        environment = cpu_mask.environment("avx2")
    except UserError:
        environment = {}
    with (
        served(tmp_path, environment) as process,
        pytest.raises(ProcessError, match="its process was ended by SIGSEGV"),
    ):
        process.call("crash", LONG)
