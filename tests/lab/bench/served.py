"""Define the object that the tests of lab/bench/process.py run in a process of its own."""

import ctypes
import os
import sys
import threading

from torchadder.errors import UserError


class Served:
    def add(self, a, b):
        print("printed text is not the answer")
        return {"sum": a + b}

    def refuse(self):
        raise UserError("no: this cannot be")

    def fail(self):
        raise ValueError("two\nlines")

    def variable(self, name):
        return os.environ[name]

    def folder(self):
        return os.getcwd()

    def end(self, code):
        print("first line", file=sys.stderr)
        print("last line\n", file=sys.stderr, flush=True)
        os._exit(code)

    def crash(self):
        ctypes.string_at(0)

    def hang(self):
        threading.Event().wait()
