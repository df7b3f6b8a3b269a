"""What a run says of its surroundings: the command as a reader would give it again."""

import sys

import pytest

from torchadder.environment import describe_environment


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/torchadder", "train", "a b"], "torchadder train 'a b'"),
        (["/lib/python/torchadder/__main__.py", "train"], "torchadder train"),
        (["bench.py"], "bench.py"),
    ],
)
def test_the_command(monkeypatch, argv, command):
    monkeypatch.setattr(sys, "argv", argv)
    assert describe_environment()["command"] == command
