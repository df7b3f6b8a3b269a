"""Run `torchadder doctor`: describe this installation and check that its kernels compute what they should."""

from __future__ import annotations

import json as json_format
from typing import TYPE_CHECKING

from torchadder.cli.options import DataFolder, Json

if TYPE_CHECKING:
    from torchadder.doctor import Diagnosis

_MARKS = {True: "ok", False: "FAILED", None: "-"}


def doctor(data: DataFolder = None, json: Json = False) -> int:
    """Check this installation: versions, processor, GPUs, data, and every kernel that can run here.

    Kernels are compared with a brute-force reference in float64. Nothing is fetched. The exit code is 1 if a check
    fails.
    """
    from torchadder.doctor import diagnose

    diagnosis = diagnose(data)
    print(json_format.dumps(diagnosis.to_dict()) if json else "\n".join(_lines(diagnosis)))
    return 0 if diagnosis.sound else 1


def _lines(diagnosis: Diagnosis) -> list[str]:
    about = diagnosis.environment
    versions = " · ".join(f"{name} {about[name]}" for name in ("torchadder", "python", "torch", "numpy"))
    cores = f"logical cores: {about['cores']}, torch threads: {about['threads']}"
    lines = [versions, f"{about['processor']} · {cores}", ""]
    width = max(len(check.name) for check in diagnosis.checks)
    lines += [f"{_MARKS[check.ok]:6}  {check.name:{width}}  {check.detail}" for check in diagnosis.checks]
    for extra, packages in diagnosis.optional.items():
        found = ", ".join(f"{name} {version or 'not installed'}" for name, version in packages.items())
        lines.append(f"{_MARKS[None]:6}  {f'extra [{extra}]':{width}}  {found}")
    return [*lines, "", "everything that could be checked is sound" if diagnosis.sound else "a check FAILED"]
