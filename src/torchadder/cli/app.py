"""The verbs in one list, and what becomes of an error: a line and an exit code, a traceback with --debug."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, Any

import typer

from torchadder.cli import console
from torchadder.cli.bench import bench
from torchadder.cli.demo import demo
from torchadder.cli.doctor import doctor
from torchadder.cli.eval import evaluate
from torchadder.cli.figures import figures
from torchadder.cli.predict import predict
from torchadder.cli.quantize import quantize
from torchadder.cli.report import report
from torchadder.cli.reproduce import reproduce
from torchadder.cli.summary import summary
from torchadder.cli.train import train
from torchadder.errors import UserError
from torchadder.version import __version__

# click's UsageError: typer exports only a subclass of it, and since 0.29 brings its own click
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

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
app.command("demo")(demo)
app.command("report")(report)
app.command("reproduce")(reproduce)
app.command("summary")(summary)
app.command("figures")(figures)
app.command("doctor")(doctor)
app.add_typer(bench, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
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


def run(arguments: list[str]) -> int:
    """Run the verb that ``arguments`` name; every error ends here as one line on stderr and an exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(arguments, prog_name="torchadder", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say, nor to flush at exit
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        if message:
            console.error(message)
        return code


def _explain(error: BaseException) -> tuple[str, int]:
    """The line and the exit code of an error."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, UsageError):
        return _usage(error), 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", 130
    reason = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {reason}; run again with --debug for the traceback", 1


def _usage(error: Any) -> str:
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx else "torchadder"
    return f"{message}: see {command} --help" if message else ""  # empty: the help itself was printed
