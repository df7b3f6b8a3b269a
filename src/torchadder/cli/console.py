"""Print for every verb: errors, tables, and the one progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

UNLIMITED = 10_000  # columns of a terminal that cuts nothing


def error(message: str) -> None:
    """Print an error as one line on stderr. Where torchrun started several processes, only one of them prints it."""

    def tell() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)

    if os.environ.get("WORLD_SIZE", "1") != "1":
        from torchadder.train.distributed import tell_once

        tell_once(tell)
    else:
        tell()


def warning(message: str) -> None:
    """Print a warning as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str] | None],
    *,
    texts: int = 1,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Print a table on stdout: with lines on a terminal that is wide enough, as aligned plain text elsewhere.

    Args:
        columns: the header.
        rows: the cells; None ends a section. A row that begins with "total" is bold.
        texts: how many of the first columns hold text; the others hold numbers, aligned at the right.
        notes: lines below the table.
    """
    terminal = Console(file=sys.stdout)
    if terminal.is_terminal:
        drawn = _table(columns, rows, texts)
        drawn.title, drawn.caption = title and escape(title), escape("\n".join(notes)) or None
        if Measurement.get(Console(width=UNLIMITED), terminal.options.update(width=UNLIMITED), drawn).maximum <= (
            terminal.width
        ):
            terminal.print(drawn)
            return
    plain = _table(columns, [row for row in rows if row is not None], texts)
    plain.box, plain.pad_edge, plain.padding = None, False, (0, 2, 0, 0)
    paper = Console(width=UNLIMITED, color_system=None, force_terminal=False)
    with paper.capture() as captured:
        paper.print(plain)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    print("\n".join([*([title, ""] if title else []), *lines, *notes]))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str] | None], texts: int) -> Table:
    table = Table(title_justify="left", caption_justify="left", box=HEAVY_HEAD)
    for position, name in enumerate(columns):
        table.add_column(escape(name), justify="left" if position < texts else "right", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(escape, row), style="bold" if row[0] == "total" else None)
    return table


class Bar:
    """Show the progress of a long command as one line that stays in place; show nothing where there is no terminal.

    `live` says which. Printing a line above the bar is possible in both cases:

        with Bar(sys.stderr) as bar:
            bar.update("epoch 2/50", done=1.4, total=50, text="loss 0.031")
            bar.print("epoch 1/50  test 98.94%")
    """

    def __init__(self, stream: IO[str], *, transient: bool = False) -> None:
        """Prepare a bar on `stream`; `transient` removes it from the terminal at the end."""
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.live = self._console.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.fields[text]}", markup=False),
        )
        self._progress = Progress(*columns, console=self._console, transient=transient, disable=not self.live)
        self._task = self._progress.add_task("", visible=False, text="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was. A second call does nothing."""
        self._progress.stop()

    def update(self, description: str, done: float, total: float, text: str = "") -> None:
        """Draw the bar at `done` of `total`, with `description` before it and `text` after it."""
        self._progress.update(self._task, description=description, completed=done, total=total, text=text, visible=True)

    def print(self, line: str) -> None:
        """Print a line at once, above the bar where there is one."""
        self._console.print(line)
        self._console.file.flush()


def printable(text: object) -> str:
    """Return a text that came with a file on one line, without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:80]


def clock(seconds: float) -> str:
    """Return a duration such as `2:11` or `1:02:11`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
