"""Rebuild the tables of README.md and docs/*.md from results/: python benchmarks/tables.py [--check].

A table stands between the markers <!-- table: NAME --> and <!-- /table -->; TABLES and EXPERIMENTS have the names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from engine_tables import (
    claims_table,
    cores_table,
    count_of_threads,
    exports_table,
    latency_table,
    limits_u8_table,
    neon_table,
    onnx_bodies_table,
    onnx_table,
    page_table,
    pico_table,
    processor,
    quantisation_table,
    reference_table,
    resnet8_table,
    riscv_table,
    server_table,
    steps_table,
    summary_table,
)
from torchadder import files
from torchadder.errors import UserError
from torchadder.lab import record
from torchadder.lab.bench.training import OTHER
from torchadder.lab.record import Record
from torchadder.lab.reproduce import EXPERIMENTS
from torchadder.lab.reproduce.runs import read_records
from torchadder.lab.reproduce.table import document, machine, markdown, others

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
MISSING = "Not measured yet."


def layers_table(record: Record) -> str:
    """Return forward by layer and batch, the input gradient at the largest batch, and the speedup over formulas."""
    rows = record["rows"]
    forward = [row for row in rows if row["pass"] == "forward"]
    largest = max(row["batch"] for row in rows)
    backward = [row for row in rows if row["pass"] == "grad_input" and row["batch"] == largest]
    parts = [_caption(record, "ratio is adder / conv, each in its better memory format")]
    if forward:
        parts += ["Forward:", _by_threads(forward)]
    if backward:
        parts += [f"Gradient of the input, batch {largest}:", _by_threads(backward)]
    parts += [_formula(row) for row in record.get("formulas", [])]
    return "\n\n".join(parts)


def family_table(record: Record) -> str:
    """Return one row for each layer, with the forward pass and the whole step by number of threads."""
    counts = sorted({row["threads"] for row in record["rows"]})
    cells = {(row["layer"], row["threads"], row["pass"]): row for row in record["rows"]}
    header = ["layer"]
    for count in counts:
        header += [f"{count_of_threads(count)}: forward, adder ms", "conv ms", "ratio", "step ratio"]
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in record["rows"]):
        line = [layer]
        for count in counts:
            row, step = cells[layer, count, "forward"], cells[layer, count, "step"]
            line += [_digits(row["adder_ms"]), _digits(row["conv_ms"]), f"{row['ratio']:.2f}", f"{step['ratio']:.2f}"]
        lines.append(line)
    meaning = "ratio is adder / conv, each in its better memory format; step is forward and all gradients"
    return f"{_caption(record, meaning)}\n\n{markdown(header, lines)}"


def train_table(record: Record) -> str:
    """Return one row for each model and number of threads."""
    in_integers = any("int8_ms" in row for row in record["rows"])  # records of earlier versions lack it
    header = ["model", "batch", "threads", "adder ms/step", *["int8 ms/step"] * in_integers, "CNN ms/step", "ratio"]
    header += [*["int8 ratio"] * in_integers, "memory ratio", "process ratio"]
    times = ("adder_ms", *["int8_ms"] * in_integers, "conv_ms")
    ratios = ("ratio", *["int8_ratio"] * in_integers, "memory_ratio")
    rows = [
        [
            *(str(row[key]) for key in ("model", "batch", "threads")),
            *(_digits(row[key]) for key in times),
            *("–" if row[key] is None else f"{row[key]:.2f}" for key in ratios),
            f"{row['memory_mib']['adder']['total'] / row['memory_mib']['conv']['total']:.2f}",
        ]
        for row in record["rows"]
    ]
    meaning = (
        "ratios are adder / CNN, each in its better memory format; memory is the peak of what a step needs, process "
        "that of the whole process with malloc's leftovers"
    )
    meaning = "int8 is the AdderNet trained in integers; " * in_integers + meaning
    caption = _caption(record, meaning)
    return f"{caption}\n\n{markdown(header, rows)}"


def limits_table(record: Record) -> str:
    """Return one row for each loop and one column for each instruction set."""
    isas = list(dict.fromkeys(row["isa"] for row in record["rows"]))
    rates = {(row["loop"], row["isa"]): row["giga_ops"] for row in record["rows"]}
    loops = list(dict.fromkeys(row["loop"] for row in record["rows"]))
    lines = [[loop, *(f"{rates[loop, isa]:.1f}" if (loop, isa) in rates else "–" for isa in isas)] for loop in loops]
    numbers = f"medians of {record['n']} repetitions; {record['date']}"
    caption = f"G element operations a second and core; {processor(record)}; {numbers}."
    return f"{caption}\n\n{markdown(['inner loop', *isas], lines)}"


def distance_table(record: Record, limits: Record) -> str:
    """Return rates at the largest batch on one thread, their share of the limit, and the ratio at the limit."""
    isa = record["environment"]["kernels"].partition(":")[0]
    best: dict[str, float] = {}
    for row in limits["rows"]:
        name = row["loop"].partition(":")[0]
        if row["isa"] == isa:
            best[name] = max(best.get(name, 0.0), row["giga_ops"])
    largest = max(row["batch"] for row in record["rows"])
    lines = []
    for row in record["rows"]:
        if row["batch"] != largest or row["threads"] != 1 or row["pass"] not in best:
            continue
        limit, inside = best[row["pass"]], _inside(row)
        done = row["adder_giga_ops"] * inside
        ratios = (row["ratio"], row["conv_giga_ops"] * inside / limit)
        line = [row["layer"], row["pass"], f"{done:.1f}", f"{limit:.1f}", f"{100 * done / limit:.0f}%"]
        lines.append([*line, *(f"{ratio:.2f}" for ratio in ratios)])
    header = ["layer", "pass", "G/s", "limit", "share", "ratio to convolution", "ratio at the limit"]
    return f"{isa} kernels, batch {largest}:\n\n{markdown(header, lines, left=2)}"


PROFILED = {"adder": "AdderNet", "int8": "in integers", "conv": "CNN"}


def breakdown_table(record: Record) -> str:
    """Return the milliseconds of a step by operator for each network, for each model on one thread."""
    parts = []
    for row in record["rows"]:
        if row["threads"] != 1:
            continue
        networks = [op for op in PROFILED if op in row["profile"]]
        profiles = [row["profile"][op] for op in networks]
        names = [name for name in dict.fromkeys(chain(*profiles)) if name != OTHER]
        lines = [[f"`{name}`", *(_milliseconds(profile.get(name)) for profile in profiles)] for name in names]
        lines.append(["other", *(_milliseconds(profile.get(OTHER)) for profile in profiles)])
        lines.append(["**step under the profiler**", *(_milliseconds(sum(profile.values())) for profile in profiles)])
        header = [f"{row['model']}, batch {row['batch']}, 1 thread", *(f"{PROFILED[op]}, ms" for op in networks)]
        parts.append(markdown(header, lines))
    return "\n\n".join(parts)


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _inside(row: Record) -> float:
    """Return the share of a square layer's taps that lie in the image and not in its padding."""
    size_out = (row["size"] + 2 * row["padding"] - row["kernel"]) // row["stride"] + 1
    positions = [i * row["stride"] + a - row["padding"] for i in range(size_out) for a in range(row["kernel"])]
    return (sum(0 <= position < row["size"] for position in positions) / len(positions)) ** 2


Sources = tuple[tuple[str, ...], ...]  # files of results/, those that a table takes together
ONE_FILE: dict[str, Callable[[Record], str]] = {  # the table NAME of bench-NAME.json
    **dict.fromkeys(("layers", "layers-avx2"), layers_table),
    **dict.fromkeys(("train", "train-avx2", "train-zen3", "train-zen4"), train_table),
    **dict.fromkeys(("latency", "latency-avx2", "latency-zen1", "latency-zen4"), latency_table),
    "family": family_table,
}
LATENCY: Sources = (("bench-latency.json", "bench-latency-avx2.json"),)
TABLES: dict[str, tuple[Callable[..., str], Sources]] = {
    **{name: (build, ((f"bench-{name}.json",),)) for name, build in ONE_FILE.items()},
    "limits": (limits_table, (("limits.json",),)),
    "distance": (distance_table, (("bench-layers.json", "limits.json"), ("bench-layers-avx2.json", "limits.json"))),
    "breakdown": (breakdown_table, (("bench-train.json",),)),
    "server": (server_table, (("engine-server.json",),)),
    "page": (page_table, (("page.json",),)),
    "reference": (reference_table, (("reference.json",),)),
    "onnx": (onnx_table, (("onnx-runtime.json",),)),
    "onnx-bodies": (onnx_bodies_table, (("onnx-runtime.json",),)),
    "neon-model": (neon_table, (("neon-model.json",),)),
    "cores": (cores_table, (("microcontrollers.json",),)),
    "riscv": (riscv_table, (("picorv32.json",),)),
    "pico": (pico_table, (("pico.json",),)),
    "resnet8": (resnet8_table, (("resnet8.json",),)),
    "exports": (exports_table, (("microcontrollers.json",),)),
    "limits-u8": (limits_u8_table, (("limits-u8.json",),)),
    "steps": (steps_table, (("bench-kernels-avx2.json", "limits-u8.json"), ("bench-kernels.json", "limits-u8.json"))),
    "quantisation": (
        quantisation_table,
        (
            (
                "quantisation-cifar10.json",
                "quantisation-cifar10-jpeg.json",
                "quantisation-finetuned.json",
                "quantisation-finetuned-epochs-3.json",
                "quantisation-resnet20.json",
                "quantisation-mnist.json",
            ),
        ),
    ),
    "latency-summary": (summary_table, LATENCY),
    "claims": (claims_table, ((*LATENCY[0], "bench-latency-zen1.json"),)),
}
KNOWN = (*TABLES, *EXPERIMENTS, "other-runs")


def table(name: str, results: Path) -> str:
    """Return a table, one part for each group of files that exists. Raises UserError for a damaged record."""
    if name in EXPERIMENTS:
        return document(EXPERIMENTS[name], read_records(results))
    if name == "other-runs":
        return others(read_records(results)) or MISSING
    build, sources = TABLES[name]
    parts = []
    for paths in ([results / file for file in together] for together in sources):
        if not all(path.exists() for path in paths):
            continue
        try:
            parts.append(build(*map(record.read, paths)))
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{paths[0].name} is not a record of {name} ({error!r}): measure it again") from error
    return "\n\n".join(parts) or MISSING


def rebuild(text: str, results: Path, file: str) -> str:
    """Return the text of a file with its tables from `results`. Raises UserError for an unknown or unclosed table."""

    def fill(found: re.Match[str]) -> str:
        start, name, body, end = found.groups()
        if name not in KNOWN:
            raise UserError(f"{file}: table={name} is unknown: expected one of {', '.join(KNOWN)}")
        if "<!-- table:" in body:
            raise UserError(f"{file}: table {name!r} has no <!-- /table -->")
        return f"{start}\n{table(name, results)}\n\n{end}"

    if text.count("<!-- table:") != len(MARKED.findall(text)):
        raise UserError(f"{file}: a table has no <!-- /table -->, or its marker is not <!-- table: NAME -->")
    return MARKED.sub(fill, text)


def stale(root: Path) -> dict[Path, str]:
    """Return the documents whose tables differ from results/, with the text that they should have."""
    found = {}
    for path in [root / "README.md", *sorted(root.glob("docs/*.md"))]:
        text = path.read_text(encoding="utf-8")
        if (new := rebuild(text, root / "results", str(path.relative_to(root)))) != text:
            found[path] = new
    return found


def _by_threads(rows: list[Record]) -> str:
    """Return one row for each layer and batch, with three columns for each number of threads."""
    counts = sorted({row["threads"] for row in rows})
    cells = {(row["batch"], row["layer"], row["threads"]): row for row in reversed(rows)}
    header = ["layer", "batch"]
    for count in counts:
        header += [f"{count_of_threads(count)}: adder ms", "conv ms", "ratio"]
    lines = []
    for batch in sorted({row["batch"] for row in rows}):
        for layer in dict.fromkeys(row["layer"] for row in rows if row["batch"] == batch):
            line = [layer, str(batch)]
            for count in counts:
                row = cells.get((batch, layer, count))
                line += [_digits(row["adder_ms"]), _digits(row["conv_ms"]), f"{row['ratio']:.2f}"] if row else ["–"] * 3
            lines.append(line)
    return markdown(header, lines)


def _formula(row: Record) -> str:
    speedup = row["speedup"]
    place = f"batch {row['batch']}, layer {row['layer']}, {count_of_threads(row['threads'])}"
    return (
        f"{speedup['broadcast']:.0f} times faster than the broadcast formula, {speedup['cdist']:.0f} times faster than "
        f"`torch.cdist` ({place})."
    )


def _caption(record: Record, meaning: str) -> str:
    environment = record["environment"]
    parts = [
        *machine(environment),
        f"medians of {record['n']} repetitions",
        *([_limits(environment["limits"])] if environment["limits"] else []),
        meaning,
        record["date"],
    ]
    return "; ".join(parts) + "."


def _limits(limits: dict[str, str]) -> str:
    """Return the limits of torch's and our kernels; the four variables together limit both to one instruction set."""
    levels = {value.lower() for value in limits.values()}
    if len(levels) == 1 and set(record.CPU_LIMITS) == limits.keys():
        return f"**torch and torchadder both limited to {levels.pop().upper()}**"
    return "with " + ", ".join(f"`{name}={value}`" for name, value in limits.items())


def _digits(value: float) -> str:
    """Return a number with three significant digits, at most three decimals: 0.123, 1.23, 12.3, 123."""
    return f"{value:.{max(0, 3 - (len(str(int(value))) if value >= 1 else 0))}f}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Rebuild the tables of the documents from results/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is out of date")
    options = parser.parse_args(arguments)
    try:
        found = stale(root)
        names = ", ".join(str(path.relative_to(root)) for path in found)
        if options.check and found:
            print(f"out of date: {names}; run python benchmarks/tables.py", file=sys.stderr)
            return 1
        for path, text in found.items():
            files.write_bytes(path, text.encode())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"rebuilt: {names}" if found else "up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
