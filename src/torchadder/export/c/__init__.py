"""Write a quantized network as C99 source code: one file of tables and kernels, a header, and a test.

    export_c("net.tadder", "net")      # net/net.c, net/net.h, net/net_test.c, ...

The data flows through the files in this order: network (the content of a .tadder file), steps (each as C, with weights
and arena), sources (the files).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from torchadder import files
from torchadder.errors import UserError, shortened
from torchadder.export.c.network import Network
from torchadder.export.c.sources import sources
from torchadder.export.c.steps import Draft
from torchadder.quant.program import Program

__all__ = ["export_c"]

# Words of C99 and C++, and standard headers, which a file of this name would hide.
WORDS = """
    auto break case char const continue default do double else enum extern float for goto if inline int long register
    restrict return short signed sizeof static struct switch typedef union unsigned void volatile while main
    and asm bool catch class constexpr delete explicit export false friend mutable namespace new not operator or private
    protected public template this throw true try typename using virtual xor
    arm_acle assert complex ctype errno fenv inttypes iso646 limits locale math setjmp signal stdarg stdbool stddef
    stdint stdio stdlib string tgmath time wchar wctype
"""
RESERVED = frozenset(WORDS.split())


def export_c(
    source: Program | str | Path,
    directory: str | Path,
    *,
    name: str = "net",
    max_flash: int | None = None,
    max_ram: int | None = None,
) -> Draft:
    """Write the C99 source code of a quantized network, which computes exactly what Engine computes.

        torchadder.export_c("net.tadder", "firmware/net", max_flash=65536)

    Args:
        source: a ``.tadder`` file, which may come from a stranger, or a Program.
        directory: gets ``NAME.c``, ``NAME.h``, ``NAME_test.c`` and files for CMake, PlatformIO and Arduino; it is
            made, or holds nothing but the files of an earlier export, which are replaced, and what its README.md and
            CMake build of them, ``NAME_test`` and ``build``, which stays.
        name: of the files, and the prefix of all public names: ``net_run``, ``NET_CLASSES``.
        max_flash: the most bytes of constant tables; the code comes on top.
        max_ram: the most bytes of arena, in which a run works; input, logits and stack come on top.

    Returns:
        what was written; its attributes ``flash``, ``arena`` and ``operations`` are the numbers of the header.

    Raises UserError where the file is damaged, a step has no form in C, an argument does not fit, or the directory
    holds other files. Nothing is written then.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name, re.ASCII) or name in RESERVED:
        raise UserError(f"name={name!r}: expected letters, digits and _ that are no word of C and no standard header")
    if "\0" in str(directory):
        raise UserError(f"directory={str(directory)!r}: expected a path without NUL")
    network = Network.of(source)
    draft = Draft(network)
    fewer = "4 bits, or " * bool(draft.adder_max)  # some adder weights need a byte, those of 4 bits half of one
    for limit, value, needed, what, advice in (
        ("max_flash", max_flash, draft.flash, "constant tables", f"{fewer}a smaller network"),
        ("max_ram", max_ram, draft.arena, "arena", "smaller images, or a smaller network"),
    ):
        if value is not None and needed > value:
            raise UserError(f"{limit}={value}: the network needs {needed:,} bytes of {what}; take {advice}")
    written = sources(draft, name)
    _write(Path(directory), written, built=(f"{name}_test", f"{name}_test.exe", "build"))
    return draft


def _write(directory: Path, written: dict[str, str], built: Collection[str]) -> None:
    """Write all files or none, beside those that were ``built`` of an earlier export.

    Raises UserError where the directory holds other files or cannot be written.
    """
    files.check_folder(directory, "directory")
    known = {*built, *written, *{Path(path).parts[0] for path in written}}
    found = os.listdir(directory) if os.path.isdir(directory) else []
    if others := sorted(set(found) - known):
        raise UserError(f"directory={directory}: holds other files ({shortened(others)}); choose another folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            for path, text in written.items():
                (Path(temporary) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / path).write_text(text, encoding="ascii", errors="replace")
            for path in written:
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(temporary) / path, directory / path)
    except OSError as error:
        raise UserError(f"directory={directory}: cannot be written ({error.strerror or error})") from error
