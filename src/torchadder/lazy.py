"""Import the names of a package when they are first used.

`import torch` takes seconds. The command line prints its help and most errors without it, so the packages that it
imports at its start (`torchadder`, `torchadder.train`) import the modules that need torch only on demand (PEP 562).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def import_on_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of `package`.

    It imports a name from the module that `homes` gives for it. Any other name is a module of the package.
    """

    def get(name: str) -> Any:
        path = homes.get(name, f"{package}.{name}")
        try:
            module = import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:  # torch is missing, for instance
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        value = getattr(module, name) if name in homes else module
        setattr(sys.modules[package], name, value)
        return value

    return get
