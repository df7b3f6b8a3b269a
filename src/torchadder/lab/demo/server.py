"""The server of the demo: one page, what it is about, and answers to pixels; for the browser of this machine alone.

It listens on 127.0.0.1. A page of somebody else's in the same browser can neither read from it nor ask it: the name
that the browser was led to has to be this machine's (DNS rebinding), and a question has to come from the page itself.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from torchadder.errors import UserError

from .answers import Answers

HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds that a client may keep silent
QUESTION = "/classify"
PIXELS = "application/octet-stream"
JSON = "application/json"
PAGE = Path(__file__).with_name("page")
DOCUMENTS = {  # path: file, type
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


class Server(ThreadingHTTPServer):
    """Serves ``answers`` at ``url`` between ``serve_forever()`` and ``server_close()``.

    ``port``: 0 for any that is free. Raises UserError where it cannot be had.
    """

    def __init__(self, answers: Answers, port: int = 0):
        self.pixels = answers.shape[0] * answers.shape[1] * answers.shape[2]
        self.documents = {path: (kind, (PAGE / name).read_bytes()) for path, (name, kind) in DOCUMENTS.items()}
        self.documents["/program"] = (JSON, _line(answers.about()))
        self._answers = answers
        self._turns = ThreadPoolExecutor(1, "engine")  # one question after the other, on threads that stay
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"cannot listen on port {port} ({why}): choose another, or none for a free one") from error
        port = self.server_address[1]
        self.hosts = (f"{HOST}:{port}", f"localhost:{port}")
        self.url = f"http://{HOST}:{port}/"

    def server_bind(self) -> None:
        """Without the look-up of a name for the address that HTTPServer makes, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def answer(self, pixels: bytes) -> dict[str, Any]:
        return self._turns.submit(self._answers, pixels).result()

    def server_close(self) -> None:
        super().server_close()
        self._turns.shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may go away whenever they want
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self.send_error(HTTPStatus.FORBIDDEN, f"this is {self.server.url}, for nobody else")
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
        if self.path != QUESTION:
            return self._refuse_method()
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get("Origin") not in [f"http://{host}" for host in self.server.hosts]:
            return self.send_error(HTTPStatus.FORBIDDEN, "only its own page may ask")
        if not lengths or "Transfer-Encoding" in self.headers:
            return self.send_error(HTTPStatus.LENGTH_REQUIRED, "a question says its Content-Length")
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            return self.send_error(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        expected = self.server.pixels
        if len(lengths[0]) > 18 or int(lengths[0]) > expected:
            return self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected {expected} bytes, one a pixel")
        if int(lengths[0]) < expected:
            return self.send_error(HTTPStatus.BAD_REQUEST, f"expected {expected} bytes, got {lengths[0]}")
        if self.headers.get_content_type() != PIXELS:
            return self.send_error(HTTPStatus.BAD_REQUEST, f"expected {PIXELS}, got {self.headers.get_content_type()}")
        content = self.rfile.read(expected)
        if len(content) < expected:  # the client has gone
            self.close_connection = True
            return None
        try:
            answer = self.server.answer(content)
        except Exception as error:  # the page is told, and the next question answered
            reason = " ".join(str(error).split())
            return self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {reason}")
        return self._send(HTTPStatus.OK, JSON, _line(answer))

    def _refuse_method(self) -> None:
        path = self.path.partition("?")[0]
        allowed = {QUESTION: "POST", **dict.fromkeys(self.server.documents, "GET, HEAD")}.get(path)
        if allowed is None:
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such page")
        else:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, f"expected {allowed}", allowed)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One line of JSON; then the connection ends, whatever else the client was about to send.

        ``explain``: of a method that is not allowed, those that are.
        """
        self.close_connection = True
        allow = {"Allow": explain} if code == HTTPStatus.METHOD_NOT_ALLOWED and explain else {}
        reason = message or HTTPStatus(code).phrase
        self._send(code, JSON, _line({"error": reason}), {"Connection": "close", **allow})

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
        """Nothing: a drawing asks many times a second."""


def _line(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode()
