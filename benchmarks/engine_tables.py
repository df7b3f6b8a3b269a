"""Tables of the integer engine: whole networks against their rivals, the engine step by step, its limits."""

from __future__ import annotations

from collections import Counter

from torchadder.reproduce.record import Record
from torchadder.reproduce.table import machine, markdown

ENGINE = "engine"
LOOPS = {"adder": "u8 adder", "conv": "u8 conv", "binary": "binary"}  # of results/limits-u8.json, by kind of layer


def summary_table(*records: Record) -> str:
    """One thread: the 8-bit AdderNet, and how many times as long the best CNN and the binary network take."""
    header = ["CPU", "network", "batch", "AdderNet u8, ms/image"]
    header += ["best fp32 CNN", "best int8 CNN", "XNOR network"]
    lines = []
    for record in records:
        seen = record.get("cpu", "as it is")
        for model, batch in dict.fromkeys((row["model"], row["batch"]) for row in record["rows"]):
            rows = [row for row in record["rows"] if (row["model"], row["batch"], row["threads"]) == (model, batch, 1)]
            own = next((row for row in rows if row["candidate"] == "adder_u8"), None)
            if own is None:
                continue
            cells = [_best(rows, "conv", ("fp32",)), _best(rows, "conv", ("int8", "bf16")), _best(rows, "xnor", ())]
            lines.append([seen, model, str(batch), _per_image(own), *cells])
    where = "; ".join(machine(records[0]["environment"])[:1])
    versions = ", ".join(f"{name} {number}" for name, number in sorted(_versions(records).items()))
    turns = " and ".join(dict.fromkeys(str(record["n"]) for record in records))
    caption = (
        f"{where}; one thread; medians of {turns} turns; times are multiples of the AdderNet's, **above 1 "
        f"the AdderNet is faster**; {versions}; {records[0]['date']}."
    )
    ranges = "\n".join(_ranges(record) for record in records)
    return f"{ranges}\n\n{markdown(header, lines, left=3)}\n\n{caption}"


def _ranges(record: Record) -> str:
    """The least and the largest ratio to the best CNN of each precision, over networks and batches, on one thread."""
    settings = dict.fromkeys((row["model"], row["batch"]) for row in record["rows"])
    found = []
    for name, precisions in (("float32", ("fp32",)), ("8 bits", ("int8", "bf16"))):
        best = []
        for model, batch in settings:
            rows = [row for row in record["rows"] if (row["model"], row["batch"], row["threads"]) == (model, batch, 1)]
            ratios = [row["ratio"] for row in rows if row["precision"] in precisions and "CNN" in row["title"]]
            best += [min(ratios)] if ratios else []
        if best:
            found.append(f"{min(best):.2f} to {max(best):.2f} times as fast as the best CNN in {name}")
    return f"- this CPU, {record.get('cpu', 'as it is')}: the 8-bit AdderNet is {', '.join(found)};"


def latency_table(record: Record) -> str:
    """Every candidate: milliseconds an image and the multiple of the 8-bit AdderNet's, by batch and threads."""
    parts = []
    settings = list(dict.fromkeys((row["batch"], row["threads"]) for row in record["rows"]))
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = {(row["title"], row["batch"], row["threads"]): row for row in record["rows"] if row["model"] == model}
        header = [model]
        for batch, threads in settings:
            header += [f"batch {batch}, {_threads(threads)}: ms/image", "×"]
        lines = []
        for title in dict.fromkeys(title for title, _, _ in rows):
            line = [title]
            for setting in settings:
                row = rows.get((title, *setting))
                line += [_per_image(row), _ratio(row)] if row else ["–", "–"]
            lines.append(line)
        parts.append(markdown(header, lines))
    where = "; ".join(machine(record["environment"])[:1])
    seen = f"; **every runtime sees {record['cpu']}**" if "cpu" in record else ""
    meaning = f"medians of {record['n']} turns; × is the multiple of the 8-bit AdderNet's time"
    caption = f"{where}{seen}; {meaning}; {record['date']}."
    return "\n\n".join([caption, *parts])


def limits_u8_table(record: Record) -> str:
    """One row for each loop and tile, one column for each instruction set."""
    lines = [[row["isa"], row["loop"], row["tile"], f"{row['giga_ops']:.0f}"] for row in record["rows"]]
    where = "; ".join(machine(record["environment"])[:1])
    caption = f"{where}; one core; medians of {record['n']} repetitions; {record['date']}."
    return f"{caption}\n\n{markdown(['instructions', 'inner loop', 'tile', 'G element operations/s'], lines, left=3)}"


def steps_table(record: Record, limits: Record) -> str:
    """Every distinct step: its time, its rate, its share of what the instructions alone would allow."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["model"] == model]
        total = sum(row["microseconds"] for row in rows)
        counts = Counter((row["step"], row["kernel"]) for row in rows)
        lines = []
        for (step, kernel), count in counts.items():
            some = [row for row in rows if (row["step"], row["kernel"]) == (step, kernel)]
            time = sum(row["microseconds"] for row in some)
            rate = sum(row["operations"] for row in some) / time / 1e3
            limit = _limit(step, kernel, limits)
            share = [f"{rate:.0f}", f"{100 * rate / limit:.0f}%"] if limit and rate else ["–", "–"]
            lines.append(
                [step, f"{count}×", f"`{kernel}`", f"{time / count:.2f}", *share, f"{100 * time / total:.1f}%"]
            )
        header = [f"{model}, {total:.0f} µs", "", "kernel", "µs each", "G/s", "of the limit", "of the time"]
        parts.append(markdown(header, lines, left=3))
    where = "; ".join(machine(record["environment"])[:1])
    caption = f"{where}; one image on one thread; medians of {record['n']} repetitions; {record['date']}."
    return "\n\n".join([caption, *parts])


def _limit(step: str, kernel: str, limits: Record) -> float | None:
    """The rate of the kernel's instructions: `issue` where it was measured, else the fastest tile."""
    loop = LOOPS.get(step.partition(" ")[0])
    isa = next((isa for isa in ("avx512vnni", "avx512", "avx2") if isa in kernel), None)
    rows = [
        row for row in limits["rows"] if row["loop"] == loop and row["isa"] in (isa, isa and isa.removesuffix("vnni"))
    ]
    own = [row for row in rows if row["isa"] == isa] or rows
    issue = [row for row in own if row["tile"] == "issue"] or own
    return max((row["giga_ops"] for row in issue), default=None)


def _best(rows: list[Record], which: str, precisions: tuple[str, ...]) -> str:
    """The fastest row of a CNN in one of the precisions, or the candidate `which`, as a multiple with its name."""
    if precisions:
        found = [row for row in rows if row["candidate"].startswith(("torch", "onnx", "openvino", "engine"))]
        found = [row for row in found if row["precision"] in precisions]
    else:
        found = [row for row in rows if row["candidate"] == which]
    if not found:
        return "–"
    best = min(found, key=lambda row: row["milliseconds"])
    if not precisions:
        return _ratio(best)
    name = best["title"].removeprefix("CNN, ").removesuffix(f" {best['precision']}")
    return f"{_ratio(best)} ({name}{', bf16' if best['precision'] == 'bf16' else ''})"


def _per_image(row: Record) -> str:
    return f"{row['milliseconds'] / row['batch']:.3g}"


def _ratio(row: Record) -> str:
    return "–" if row["ratio"] is None else f"{row['ratio']:.2f}"


def _versions(records: tuple[Record, ...]) -> dict[str, str]:
    wanted = ("onnxruntime", "openvino", "torch")
    return {
        name: number
        for record in records
        for row in record["rows"]
        for name, number in row["versions"].items()
        if name in wanted
    }


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def quantisation_table(*records: Record) -> str:
    """One row for each model: its accuracy in float32 and in so many bits."""
    rows = [row for record in records for row in record["rows"]]
    bits = sorted({row["bits"] for row in rows}, reverse=True)
    header = ["model", "test images", "float32, %", *(f"{number} bits" for number in bits)]
    lines = []
    for model in dict.fromkeys(row["checkpoint"] for row in rows):
        some = {row["bits"]: row for row in rows if row["checkpoint"] == model}
        first = next(iter(some.values()))
        place = f"`{model}` ({first['model']}, {first['dataset']})"
        cells = [
            f"{some[number]['accuracy']:.2f} ({some[number]['accuracy'] - some[number]['float_accuracy']:+.2f})"
            for number in bits
        ]
        lines.append([place, f"{first['images']:,}", f"{first['float_accuracy']:.2f}", *cells])
    how = f"calibrated with {rows[0]['calibration_images']} training images, method {rows[0]['method']}"
    caption = f"AdderNets, {how}, no fine-tuning; in brackets points against float32; {records[-1]['date']}."
    return f"{caption}\n\n{markdown(header, lines)}"
