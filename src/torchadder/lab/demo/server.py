"""Serve the demo page and classify the pixels that it sends, for the browser of this machine alone.

The server listens on 127.0.0.1. A page from another site in the same browser can neither read from it nor send to it:
the Host header must name this machine (DNS rebinding), and a POST must have the Origin of the demo page.
"""

from __future__ import annotations

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import numpy as np
from torch import Tensor

from torchadder.data.images import CENTRE as CROP
from torchadder.data.preprocessing import CENTRE
from torchadder.engine import Classifier
from torchadder.errors import UserError
from torchadder.quant.program import Program
from torchadder.quant.steps import Logits

HOST = "127.0.0.1"
TIMEOUT = 10.0  # seconds that a client may be silent
CLASSIFY = "/classify"
PIXELS = "application/octet-stream"
JSON = "application/json"
PAGE = Path(__file__).with_name("page")
DOCUMENTS = {  # path: file, content type
    "/": ("index.html", "text/html; charset=utf-8"),
    "/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
    "/drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
DRAWING = (28, 28)  # height and width of a grey drawing, those of an MNIST digit
SHOWN = {"model": "{}", "op": "{}", "dataset": "{}", "bits": "{} bits"}  # metadata in the heading of the page


class DemoClassifier:
    """Classify the pixels of the page with the program in ``file``, in one thread at a time.

    Attributes:
        shape: (C, H, W) of the pixels: 28 x 28 for one channel, otherwise the input size of the program.

    Raises UserError as Classifier does.
    """

    def __init__(self, file: Path, threads: int = 1):
        self._file = file
        self._classifier = Classifier(file, threads)
        self._last: Any = Program.load(file).steps[-1]
        channels, *size = self._classifier.engine.shape
        self._size = (size[0], size[1])
        self.shape = (channels, *(DRAWING if channels == 1 else self._size))
        self._latency = self._classifier.engine.benchmark()

    def describe(self) -> dict[str, Any]:
        """Return what the page shows of the program, as plain values for JSON.

        The time is the latency of one image as everywhere: ``Engine.benchmark``.
        """
        engine, about = self._classifier.engine, self._classifier.engine.about
        return {
            "file": self._file.name,
            "about": [text.format(str(about[name])[:80]) for name, text in SHOWN.items() if name in about],
            "pixels": [*self.shape],
            "input": [*engine.shape],
            "crop": CROP if self._classifier.preprocessing.part == CENTRE else None,
            "names": self._classifier.names,
            "last": self._last.kind,
            "features": self._last.weight[0].numel(),
            "threads": engine.threads,
            "milliseconds": 1e3 * self._latency,
            "kernels": list(dict.fromkeys(engine.kernels())),
        }

    def classify(self, pixels: bytes) -> dict[str, Any]:
        """Return logits and distances of pixels uint8 (C, H, W), as plain values for JSON.

        If the last layer is an adder layer, the distance of a class is its sum |feature - filter| over quantized
        values; otherwise distances is None. A number that is not finite becomes None.
        """
        array = np.frombuffer(pixels, np.uint8).reshape(self.shape)
        image = self._classifier.preprocessing.prepare(array, self._size)
        (logits,) = self._classifier.engine(image)
        distances = _distances(logits, self._last.epilogue) if self._last.kind == "adder" else None
        return {"logits": _finite(logits), "distances": None if distances is None else _finite(distances)}


def _distances(logits: Tensor, epilogue: Logits) -> Tensor:
    """Return the accumulators behind ``logits`` = accumulator * scale + bias."""
    return ((logits.double() - epilogue.bias) / epilogue.scale).round()


def _finite(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


class Server(ThreadingHTTPServer):
    """Serve the page for ``classifier`` at ``url`` between ``serve_forever()`` and ``server_close()``.

    ``port``: 0 chooses a free one. Raises UserError if the port is not available.
    """

    def __init__(self, classifier: DemoClassifier, port: int = 0):
        self.pixels = math.prod(classifier.shape)
        self.documents = {path: (kind, (PAGE / name).read_bytes()) for path, (name, kind) in DOCUMENTS.items()}
        self.documents["/program"] = (JSON, _json_line(classifier.describe()))
        self._classifier = classifier
        # All inferences run on one thread, for which OpenMP keeps its own threads.
        self._executor = ThreadPoolExecutor(1, "engine")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"cannot listen on port {port} ({why}): choose another, or 0 for a free port") from error
        port = self.server_address[1]
        self.hosts = (f"{HOST}:{port}", f"localhost:{port}")
        self.url = f"http://{HOST}:{port}/"

    def server_bind(self) -> None:
        """Bind without the name lookup of HTTPServer, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def classify(self, pixels: bytes) -> dict[str, Any]:
        return self._executor.submit(self._classifier.classify, pixels).result()

    def server_close(self) -> None:
        super().server_close()
        self._executor.shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # A client may close its connection at any time.
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self.send_error(HTTPStatus.FORBIDDEN, f"expected the Host header of {self.server.url}")
            return False
        if self.command not in ("GET", "HEAD", "POST"):
            self._refuse_method()
            return False
        return True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.server.documents:
            self._send(HTTPStatus.OK, *self.server.documents[path])
        else:
            self._refuse_method()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        if self.path != CLASSIFY:
            return self._refuse_method()
        lengths = self.headers.get_all("Content-Length", [])
        expected = self.server.pixels
        if self.headers.get("Origin") not in [f"http://{host}" for host in self.server.hosts]:
            return self.send_error(HTTPStatus.FORBIDDEN, "expected a request from the demo page")
        if not lengths or "Transfer-Encoding" in self.headers:
            return self.send_error(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length header")
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            return self.send_error(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
        if len(lengths[0]) > 18 or int(lengths[0]) > expected:
            return self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected {expected} bytes, one per pixel")
        if int(lengths[0]) < expected:
            return self.send_error(HTTPStatus.BAD_REQUEST, f"expected {expected} bytes, got {lengths[0]}")
        if self.headers.get_content_type() != PIXELS:
            return self.send_error(HTTPStatus.BAD_REQUEST, f"expected {PIXELS}, got {self.headers.get_content_type()}")
        content = self.rfile.read(expected)
        if len(content) < expected:  # The client closed the connection.
            self.close_connection = True
            return None
        try:
            result = self.server.classify(content)
        except Exception as error:  # The page shows the error, and the server goes on.
            reason = " ".join(str(error).split())
            return self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {reason}")
        return self._send(HTTPStatus.OK, JSON, _json_line(result))

    def _refuse_method(self) -> None:
        path = self.path.partition("?")[0]
        allowed = {CLASSIFY: "POST", **dict.fromkeys(self.server.documents, "GET, HEAD")}.get(path)
        if allowed is None:
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such page")
        else:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, f"expected {allowed}", allowed)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send one line of JSON and close the connection. ``explain``: the allowed methods after a wrong one."""
        self.close_connection = True
        allow = {"Allow": explain} if code == HTTPStatus.METHOD_NOT_ALLOWED and explain else {}
        reason = message or HTTPStatus(code).phrase
        self._send(code, JSON, _json_line({"error": reason}), {"Connection": "close", **allow})

    def _send(self, code: int, kind: str, content: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS, **(more or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        return "torchadder"

    def log_message(self, *args: Any) -> None:
        """Log nothing: the page sends many requests per second."""


def _json_line(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode()
