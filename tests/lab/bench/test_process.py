"""Objects in processes of their own: answers, errors, and every way to die, one line each."""

import os
from contextlib import closing

import pytest

from torchadder.errors import UserError
from torchadder.lab.bench import cpu_mask
from torchadder.lab.bench.process import Process, ProcessError

LONG = 120  # seconds; nothing here comes near


def served(folder, environment=None):
    return closing(Process("tests.lab.bench.served:Served", folder, environment))


def test_answers_errors_and_last_words(tmp_path):
    with served(tmp_path, {"SOMETHING": "set"}) as process:
        assert process.ask("add", LONG, a=2, b=3) == {"sum": 5}
        assert process.ask("variable", LONG, name="SOMETHING") == "set"
        assert os.path.samefile(process.ask("folder", LONG), tmp_path)
        with pytest.raises(ProcessError, match=r"^no: this cannot be$"):
            process.ask("refuse", LONG)
        with pytest.raises(ProcessError, match=r"^ValueError: two lines$"):
            process.ask("fail", LONG)
        assert process.alive
        with pytest.raises(ProcessError, match=r"^its process ended with code 3: last words$"):
            process.ask("leave", LONG, code=3)
        assert not process.alive
        with pytest.raises(ProcessError, match=r"^its process ended with code 3: last words$"):
            process.ask("add", LONG, a=2, b=3)


def test_one_that_does_not_answer_is_ended(tmp_path):
    with served(tmp_path) as process:
        process.ask("add", LONG, a=0, b=0)
        with pytest.raises(ProcessError, match=r"^no answer within 0\.1 s$"):
            process.ask("hang", 0.1)
        assert not process.alive


def test_a_crash_is_named_also_where_the_signal_has_a_handler_that_hides_instructions(tmp_path):
    try:
        environment = cpu_mask.environment("avx2")
    except UserError:
        environment = {}
    with (
        served(tmp_path, environment) as process,
        pytest.raises(ProcessError, match="its process was ended by SIGSEGV"),
    ):
        process.ask("crash", LONG)
