"""What the tests of bench.process have served in a process of its own."""

import ctypes
import os
import sys
import threading

from torchadder.errors import UserError


class Served:
    def add(self, a, b):
        print("what is printed is no answer")
        return {"sum": a + b}

    def refuse(self):
        raise UserError("no: this cannot be")

    def fail(self):
        raise ValueError("two\nlines")

    def variable(self, name):
        return os.environ[name]

    def folder(self):
        return os.getcwd()

    def leave(self, code):
        print("first words", file=sys.stderr)
        print("last words\n", file=sys.stderr, flush=True)
        os._exit(code)

    def crash(self):
        ctypes.string_at(0)

    def hang(self):
        threading.Event().wait()
