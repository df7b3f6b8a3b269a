"""Test torchadder demo: what it prints, when it opens a browser, how it ends, what it refuses."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

import torchadder
from torchadder.cli import main
from torchadder.engine import Engine
from torchadder.lab.demo import Server
from torchadder.quant import Program

URL = r"http://127\.0\.0\.1:\d+/"


@pytest.fixture
def interrupted(monkeypatch):
    """Interrupt servers as soon as they serve, or after the request for a browser, which is recorded and not opened."""
    opened, asked = [], threading.Event()
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)

    def serve(server):
        if "DISPLAY" in os.environ:
            assert asked.wait(20)
        raise KeyboardInterrupt

    def show(url):
        opened.append(url)
        asked.set()

    monkeypatch.setattr(Server, "serve_forever", serve)
    monkeypatch.setattr("webbrowser.open", show)
    return opened


def test_it_says_where_it_is_and_ends_with_ctrl_c(folder, interrupted, capsys):
    assert main(["demo", "run.tadder", "--no-open"]) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first == "run.tadder · lenet5bn · adder · pixels · 8 bits"
    assert re.fullmatch(rf"draw at {URL}  \(Ctrl-C ends it\)", second)
    assert rest == [""]
    assert interrupted == []


def test_the_browser_is_opened_where_there_is_a_screen(folder, interrupted, capsys, monkeypatch):
    assert main(["demo", "run.tadder"]) == 0
    assert interrupted == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(["demo", "run.tadder"]) == 0
    assert interrupted == re.findall(URL, capsys.readouterr().out)[-1:]


@pytest.fixture
def hearing():
    """Let processes receive interrupts: those of a background job of a shell ignore them, with their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_process_answers_and_an_interrupt_ends_it(folder, hearing):
    command = [sys.executable, "-m", "torchadder", "demo", "run.tadder", "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(Path(torchadder.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            process.stdout.readline()
            port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
                connection.request("GET", "/program")
                assert json.loads(connection.getresponse().read())["file"] == "run.tadder"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out.strip(), err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.tadder"], "cannot read nowhere.tadder: No such file"),
        (["run"], "cannot read 'run': expected the path of a .tadder file"),
        (["text.tadder"], "text.tadder is not a valid program"),
        (["run.tadder", "--threads", "2000"], "--threads 2000 is out of range"),
        (["run.tadder", "--port", "70000"], "Invalid value for '--port'"),
    ],
)
def test_refused(folder, interrupted, capsys, arguments, words):
    Path("text.tadder").write_text("no program")
    assert main(["demo", "--no-open", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_a_port_that_is_taken(folder, interrupted, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "run.tadder", "--no-open", "--port", str(port)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: cannot listen on port {port} (Address already in use): choose another")


def test_a_name_from_a_stranger_does_not_command_the_terminal(folder, interrupted, capsys):
    program, about = Program.load("run.tadder"), Engine("run.tadder").about
    program.save("new.tadder", about={**about, "model": "\x1b[2J\n"})
    assert main(["demo", "new.tadder", "--no-open"]) == 0
    assert capsys.readouterr().out.startswith("new.tadder · ?[2J? · adder")
