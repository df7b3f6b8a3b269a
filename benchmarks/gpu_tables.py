"""Tables of what was counted and measured on GPUs."""

from __future__ import annotations

from torchadder.lab.reproduce.record import Record
from torchadder.lab.reproduce.table import machine, markdown


def instructions_table(record: Record) -> str:
    """One row for each layer and pass, one column for each route, format and dtype: share of FP32 instructions.

    Marked: loops that spill registers, and those that use what they load before half of their arithmetic is done.
    """
    cells = {}
    for row in record["rows"]:
        column = f"{row['route']}: {row['format']} {row['dtype']}"
        waits = 2 * row.get("hidden_by", row["arithmetic"]) < row["arithmetic"]  # not in records before it was counted
        marks = ("*" if row["spills"] else "") + ("†" if waits else "")
        cells[f"{row['layer']} {row['operator']}", column] = f"{100 * row['share']:.0f}%{marks}"
    columns = sorted({column for _, column in cells})
    rows = [[line, *(cells[line, column] for column in columns)] for line in dict.fromkeys(line for line, _ in cells)]
    versions = f"Triton {record['triton']}, NVRTC {record['nvrtc']}; {record['date']}"
    marks = (
        "* spills registers in the loop; † less than half of the loop's arithmetic stands between a load from global "
        "memory and the use of what it brings, so that a warp waits for memory in every round"
    )
    caption = f"Compute capability {record['capability'] / 10}; {versions}. {marks}."
    return f"{caption}\n\n{markdown(['', *columns], rows)}"


def rates_table(record: Record) -> str:
    """One row for each loop of gpu_rates.py."""
    rows = [[row["loop"], f"{row['giga_ops']:,.0f}"] for row in record["rows"]]
    return f"{_caption(record)}\n\n{markdown(['loop', 'G element operations/s'], rows)}"


def u8_table(record: Record) -> str:
    """One row for each layer, rates of four ways to compute it."""
    sides = list(record["rows"][0]["giga_ops"])
    rows = [[row["layer"], *(f"{row['giga_ops'][side]:,.0f}" for side in sides)] for row in record["rows"]]
    caption = f"G element operations/s, batch {record['rows'][0]['batch']}; {_caption(record)}"
    return f"{caption}\n\n{markdown(['layer', *sides], rows)}"


def layers_table(record: Record) -> str:
    """One row for each layer and pass, beside cuDNN with TF32 off and on, and the formulas of others."""
    header = ["layer", "batch", "pass", "adder ms", "cuDNN ms", "ratio", "to TF32", "share of the limit"]
    rows = [
        [
            *(row["layer"], str(row["batch"]), row["pass"]),
            *(f"{row[side]:.3f}" for side in ("adder_ms", "conv_ms")),
            *(f"{row[name]:.2f}" for name in ("ratio", "tf32_ratio")),
            f"{100 * row['limit_share']:.0f}%" if row["limit_share"] else "–",
        ]
        for row in record["rows"]
    ]
    faster = [
        f"The forward pass of {row['layer']}, batch {row['batch']}, takes broadcasting "
        f"{row['speedup']['broadcast']:,.0f} times and torch.cdist {row['speedup']['cdist']:,.0f} times as long."
        for row in record["formulas"]
    ]
    return "\n\n".join([_caption(record), markdown(header, rows, left=3), *faster])


def train_table(record: Record) -> str:
    """One row for each model, beside its CNN twin with TF32 off and on."""
    header = ["model", "batch", "adder ms/step", "CNN ms/step", "ratio", "to TF32", "memory ratio"]
    rows = [
        [
            *(row["model"], str(row["batch"])),
            *(f"{row[side]:.2f}" for side in ("adder_ms", "conv_ms")),
            *(f"{row[name]:.2f}" for name in ("ratio", "tf32_ratio", "memory_ratio")),
        ]
        for row in record["rows"]
    ]
    return f"{_caption(record)}\n\n{markdown(header, rows)}"


def _caption(record: Record) -> str:
    return f"{'; '.join(machine(record['environment']))}; medians of {record['n']} repetitions; {record['date']}."
