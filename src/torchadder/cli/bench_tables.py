"""What torchadder bench prints of a record: its tables."""

from typing import Any

from rich.table import Table


def family_table(result: dict[str, Any]) -> Table:
    table = Table("layer", "threads", "pass", title="adder layers and torch's, medians", title_justify="left")
    for name in ("adder ms", "conv ms", "ratio"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        numbers = [f"{row[key]:.3f}" for key in ("adder_ms", "conv_ms")]
        table.add_row(row["layer"], str(row["threads"]), row["pass"], *numbers, f"{row['ratio']:.2f}")
    return table


def latency_tables(result: dict[str, Any]) -> list[Table]:
    where = f", {result['cpu']}" if "cpu" in result else ""
    title = f"latency of whole networks, medians of {result['n']}{where}"
    table = Table("model", "batch", "threads", "network", title=title, title_justify="left")
    for name in ("ms/image", "images/s", "x slower than u8 AdderNet"):
        table.add_column(name, justify="right")
    kernels = Table("model", "network", "kernels", title="what ran", title_justify="left")
    ran: dict[tuple[str, str], dict[str, None]] = {}
    for row, following in zip(result["rows"], [*result["rows"][1:], None], strict=True):
        setting = [str(row[key]) for key in ("model", "batch", "threads")]
        table.add_row(
            *setting,
            row["title"],
            f"{row['milliseconds'] / row['batch']:.4g}",
            f"{row['images_per_second']:.0f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            end_section=following is not None
            and setting != [str(following[key]) for key in ("model", "batch", "threads")],
        )
        ran.setdefault((row["model"], row["title"]), {}).update(dict.fromkeys(row["kernels"]))
    for names, used in ran.items():
        kernels.add_row(*names, ", ".join(used))
    return [table, kernels]


def step_table(result: dict[str, Any]) -> Table:
    table = Table("model", "step", "kernel", title="the engine, one image on one thread, medians", title_justify="left")
    for name in ("microseconds", "G/s"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        rate = f"{row['giga_ops']:.1f}" if row["operations"] else "-"
        table.add_row(row["model"], row["step"], row["kernel"], f"{row['microseconds']:.2f}", rate)
    return table


def layer_tables(result: dict[str, Any]) -> list[Table]:
    where, gpu = _place(result)
    main = Table("layer", "batch", where, "pass", title="adder and convolution, medians", title_justify="left")
    times, rates = ["adder_ms", "conv_ms", *["tf32_ms"] * gpu], ["adder_giga_ops", *["conv_giga_ops"] * (not gpu)]
    for name in (*times, *rates, "ratio", *["of limit"] * gpu):
        main.add_column(name.replace("_giga_ops", " G/s").replace("_", " "), justify="right")
    for row in result["rows"]:
        share = row.get("limit_share")
        main.add_row(
            row["layer"],
            *(str(row[key]) for key in ("batch", where, "pass")),
            *(f"{row[key]:.3f}" for key in times),
            *(f"{row[key]:.1f}" for key in rates),
            f"{row['ratio']:.2f}",
            *["-" if share is None else f"{share:.0%}"] * gpu,
        )
    formulas = Table("layer", "batch", where, title="how many times faster than", title_justify="left")
    for name in ("broadcast", "cdist"):
        formulas.add_column(name, justify="right")
    for row in result["formulas"]:
        formulas.add_row(
            row["layer"],
            *(str(row[key]) for key in ("batch", where)),
            *(f"{row['speedup'][name]:.0f}x" for name in ("broadcast", "cdist")),
        )
    return [main, formulas]


def train_table(result: dict[str, Any]) -> Table:
    where, gpu = _place(result)
    table = Table("model", "batch", where, title="training step, medians", title_justify="left")
    times = ["adder_ms", "conv_ms", *["tf32_ms"] * gpu]
    for name in (*times, "ratio", "adder MiB", "conv MiB", "memory ratio"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in result["rows"]:
        table.add_row(
            *(str(row[key]) for key in ("model", "batch", where)),
            *(f"{row[key]:.1f}" for key in times),
            f"{row['ratio']:.2f}",
            *(f"{row['memory_mib'][op]['step']:.0f}" for op in ("adder", "conv")),
            "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        )
    return table


def _place(result: dict[str, Any]) -> tuple[str, bool]:
    """Which key says where a row was measured, and whether on a GPU."""
    gpu = "device" in result["rows"][0]
    return ("device" if gpu else "threads"), gpu
