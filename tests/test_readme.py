"""The README's Python runs and its commands exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from torchadder.cli.app import app

README = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^torchadder (.+)$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_with_their_flags(command):
    verb, *words = command.split("  ")[0].split()
    verbs = get_command(app).commands
    assert verb in verbs
    flags = {flag for parameter in verbs[verb].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= flags


def test_there_is_something_to_test():
    assert PYTHON
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("table", ["layers", "train", "mnist"])
def test_tables_have_their_place(table):
    assert re.search(rf"<!-- table: {table} -->\n(.*\n)*?<!-- /table -->", README)
