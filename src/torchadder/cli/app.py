"""List the verbs, and turn every error into one line and an exit code (into a traceback as well with --debug)."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any

import typer
from rich.markup import escape

from torchadder.cli import console
from torchadder.cli.bench import bench
from torchadder.cli.demo import demo
from torchadder.cli.doctor import doctor
from torchadder.cli.eval import evaluate
from torchadder.cli.export import export
from torchadder.cli.figures import figures
from torchadder.cli.predict import predict
from torchadder.cli.quantize import quantize
from torchadder.cli.report import report
from torchadder.cli.reproduce import reproduce
from torchadder.cli.summary import summary
from torchadder.cli.train import train
from torchadder.errors import UserError

# click's UsageError: typer exports only a subclass of it, and since 0.29 brings its own click
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

# Parameters of the library whose flag has another name, as library -> command line.
ALIASES = {"data_dir": "data", "directory": "out", "path": "out", "lr": "finetune_lr"}

# name=value, where value ends before punctuation that ends a part of the sentence, or is quoted.
_ASSIGNMENT = re.compile(r"""(?<![\w./-])([a-z]\w*)=('[^']*'|"[^"]*"|[^\s'"]\S*?)(?=[.,:;)]*(?:\s|$))""")

app = typer.Typer(
    help="PyTorch layers that add instead of multiply: train, evaluate and inspect AdderNets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("quantize")(quantize)
app.command("predict")(predict)
app.command("export")(export)
app.command("demo")(demo)
app.command("report")(report)
app.command("reproduce")(reproduce)
app.command("summary")(summary)
app.command("figures")(figures)
app.command("doctor")(doctor)
app.add_typer(bench, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from torchadder.version import __version__

        print(f"torchadder {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    pass


def commands() -> Any:
    """Return the click group of all verbs. Help texts may contain brackets: they are escaped, for rich."""
    group = typer.main.get_command(app)
    for command in _tree(group):
        for owner in (command, *command.params):
            owner.help = escape(owner.help) if getattr(owner, "help", None) else None
    return group


def _tree(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _tree(inner)


def run(arguments: list[str]) -> int:
    """Run the verb that `arguments` name and return its exit code; every error ends here as one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal lacks must not end a command
            stream.reconfigure(errors="replace")
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    group = commands()
    try:
        for before, argument in pairwise(["", *arguments]):
            if re.fullmatch("(--[a-z-]+=)?", argument):  # a variable of the shell is unset
                name = argument[:-1] or (before if before.startswith("--") else "an argument")
                raise UserError(f"{name} is empty: give it a value, or leave it out")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: console.warning(" ".join(str(message).split()))
            code = group(arguments, prog_name="torchadder", standalone_mode=False)
        print(end="", flush=True)  # also where stdout is closed
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # `| head` has ended: print nothing more, not even at exit
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error, _parameters(group, arguments))
        if message:
            console.error(message)
        return code


def _explain(error: BaseException, parameters: Sequence[Any]) -> tuple[str, int]:
    """Return the line and the exit code of an error in a command with these click parameters."""
    if isinstance(error, UserError):
        return with_flags(str(error), parameters), 2
    if isinstance(error, UsageError):
        return _usage(error), 2
    if isinstance(error, OSError) and error.strerror:  # a full disk, a missing permission
        return f"{error.strerror}: {error.filename or 'no further reason was given'}", 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", 130
    reason = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {reason}; run again with --debug for the traceback", 1


def _usage(error: Any) -> str:
    message = error.format_message().rstrip(".")
    if hasattr(error.__cause__, "errors"):  # pydantic's, of typer since 0.29, whose text lacks the value
        message = message.replace("Invalid value", f"Invalid value {error.__cause__.errors()[0]['input']!r}", 1)
    command = error.ctx.command_path if error.ctx else "torchadder"
    return f"{message}: see {command} --help" if message else ""  # empty: the help itself was printed


def _parameters(command: Any, arguments: Sequence[str]) -> Sequence[Any]:
    """Return the click parameters of the verb that `arguments` name, `bench latency` for instance."""
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument, command)
    return command.params


def with_flags(message: str, parameters: Sequence[Any]) -> str:
    """Return a message of the library with each `name=value` written as on the command line.

    `epochs=0` becomes `--epochs 0`, `nesterov=False` becomes `--no-nesterov`, and the value of an argument stands
    alone. A name that the command has no parameter for stays.
    """
    known = {parameter.name: parameter for parameter in parameters}

    def spelled(match: re.Match[str]) -> str:
        name, value = match.groups()
        parameter = known.get(name) or known.get(ALIASES.get(name, name))
        if parameter is None:
            return match[0]
        inner = value.strip("'\"")
        value = inner if inner and " " not in inner else value
        if parameter.param_type_name == "argument":
            return value
        if value in ("True", "False") and parameter.is_flag:
            return max(parameter.opts if value == "True" else parameter.secondary_opts or parameter.opts, key=len)
        return f"{max(parameter.opts, key=len)} {value}"

    return _ASSIGNMENT.sub(spelled, message)
