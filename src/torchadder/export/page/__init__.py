"""Write a quantized network as one HTML file that runs it in a browser, from disk, without server and network.

    export_page("net.tadder", "net.html")

The template's files, in the order in which data passes through them: program.js reads the .tadder file that the page
embeds, preprocessing.js makes the input of an image, executor.js runs the steps, worker.js answers the page;
the other files are the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import string
from pathlib import Path

from torchadder import files
from torchadder.engine import Classifier
from torchadder.errors import UserError
from torchadder.quant import file
from torchadder.version import __version__

__all__ = ["DIGITS", "TEMPLATE", "export_page"]

TEMPLATE = Path(__file__).with_name("template")
DIGITS = Path(__file__).parents[2] / "pretrained" / "pico_wide.tadder"  # reads MNIST
SUFFIX = ".html"
STYLE = ("base.css", "page.css")
WORKER = ("program.js", "preprocessing.js", "executor.js", "worker.js")
SCRIPT = ("drawing.js", "pictures.js", "page.js", "layers.js", "input.js")
GENERATOR = b'<meta name="generator" content="torchadder '  # marks a page of ours, within its first bytes
MARKED = 1024


def export_page(source: str | Path, out: str | Path) -> None:
    """Write a page that runs a ``.tadder`` file: it draws, classifies, and shows the values of every layer.

    Args:
        source: the file, which may come from a stranger; it must say how to prepare an image, see Program.save.
        out: a file named *.html; an earlier page is replaced.

    Raises UserError where the program is damaged or takes no images, and where ``out`` is not such a page or cannot be
    written.
    """
    out = Path(out)
    files.check_writable(out, SUFFIX)
    _check_replaceable(out)
    Classifier(source, threads=1)  # refuses what a page cannot run
    try:
        files.write_bytes(out, render(file.read(source), Path(source).name).encode(errors="replace"))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def render(content: bytes, name: str) -> str:
    """Return the page of the ``.tadder`` file with this content and name as HTML."""
    style, worker, script = (_joined(names) for names in (STYLE, WORKER, SCRIPT))
    template = string.Template((TEMPLATE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        version=__version__,
        policy=_policy(script, style),
        title=html.escape(f"{name} · torchadder"),
        name=html.escape(name),
        style=style,
        worker=worker,
        script=script,
        program=base64.b64encode(content).decode(),
    )


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((TEMPLATE / name).read_text(encoding="utf-8") for name in names)


def _policy(script: str, style: str) -> str:
    """Return a content security policy that runs only ``script`` and the worker made by it, and loads nothing."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style))
    code, look = (f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {code}; worker-src blob:; style-src {look}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _check_replaceable(out: Path) -> None:
    """Raise UserError where ``out`` is a file that is no page of ours."""
    try:
        with open(out, "rb") as opened:
            is_ours = GENERATOR in opened.read(MARKED)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"out={out}: cannot be read ({error.strerror or error}); choose another name") from error
    if not is_ours:
        raise UserError(f"out={out}: is no page that torchadder wrote; choose another name")
