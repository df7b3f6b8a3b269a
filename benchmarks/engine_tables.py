"""Build the tables of the integer engine: latency of whole networks, the engine step by step, and its limits."""

from __future__ import annotations

from collections import Counter

from torchadder.lab.record import Record
from torchadder.lab.reproduce.table import machine, markdown

LOOPS = {"adder": "u8 adder", "conv": "u8 conv", "binary": "binary"}  # in results/limits-u8.json, by kind of layer
PICORV32 = ("with multiplier", "without multiplier")  # the two cores that are simulated
PRECISIONS = {"float32": ("fp32",), "8 bits": ("int8", "bf16")}  # the precisions that a CNN may compute in
CNN = "CNN, "  # begins the titles of CNNs


def processor(record: Record) -> str:
    """Return the CPU of a record."""
    return "; ".join(machine(record["environment"])[:1])


def summary_table(*records: Record) -> str:
    """Return all networks and batches on one thread: the 8-bit AdderNet, and the multiples of its time."""
    header = ["CPU", "network", "batch", "AdderNet u8, ms/image"]
    header += ["best fp32 CNN", "best int8 CNN", "XNOR network"]
    lines = []
    for record in records:
        seen = record.get("cpu", "as it is")
        for (model, batch), rows in _on_one_thread(record).items():
            own = next((row for row in rows if row["candidate"] == "adder_u8"), None)
            if own is None:
                continue
            best = [_named(_best_cnn(rows, precisions)) for precisions in PRECISIONS.values()]
            xnor = next((_ratio(row) for row in rows if row["candidate"] == "xnor"), "–")
            lines.append([seen, model, str(batch), _per_image(own), *best, xnor])
    where = processor(records[0])
    versions = ", ".join(f"{name} {number}" for name, number in sorted(_versions(records).items()))
    repetitions = " and ".join(dict.fromkeys(str(record["n"]) for record in records))
    caption = (
        f"{where}; one thread; medians of {repetitions} repetitions; times are multiples of the AdderNet's, **above 1 "
        f"the AdderNet is faster**; {versions}; {records[0]['date']}."
    )
    ranges = "\n".join(_ranges(record) for record in records)
    return f"{ranges}\n\n{markdown(header, lines, left=3)}\n\n{caption}"


def claims_table(*records: Record) -> str:
    """Return the table of README.md: the speedup of the 8-bit AdderNet over the best CNNs, one image on one thread."""
    header, cells = ["network"], {}
    others = [processor(record) for record in records if processor(record) != processor(records[0])]
    for record in records:
        other = record["environment"]["processor"] if processor(record) in others else ""
        cpu = record["cpu"].upper() if "cpu" in record else other
        cpu = f"{cpu.partition(' (')[0]}: " if cpu else ""
        header += [f"{cpu}best {precision} CNN" for precision in ("fp32", "int8")]
        for (model, batch), rows in _on_one_thread(record).items():
            if batch == 1:
                best = (_best_cnn(rows, precisions) for precisions in PRECISIONS.values())
                cells.setdefault(model, []).extend("–" if row is None else f"{_ratio(row)}×" for row in best)
    caption = (
        f"The speedup of the 8-bit AdderNet over the best CNN, one image on one thread: {processor(records[0])}, "
        f"as it is and limited to AVX2{''.join(f'; {other}' for other in others)}."
    )
    return f"{markdown(header, [[model, *row] for model, row in cells.items()])}\n\n{caption}"


def _ranges(record: Record) -> str:
    """Return the least and the largest ratio to the best CNN of each precision, on one thread."""
    found = []
    for name, precisions in PRECISIONS.items():
        best = [_best_cnn(rows, precisions) for rows in _on_one_thread(record).values()]
        ratios = [row["ratio"] for row in best if row and row["ratio"] is not None]
        if ratios:
            found.append(f"{min(ratios):.2f} to {max(ratios):.2f} times as fast as the best CNN in {name}")
    return f"- this CPU, {record.get('cpu', 'as it is')}: the 8-bit AdderNet is {', '.join(found)};"


def latency_table(record: Record) -> str:
    """Return milliseconds per image of every candidate, and the multiple of the 8-bit AdderNet's time."""
    parts = []
    settings = list(dict.fromkeys((row["batch"], row["threads"]) for row in record["rows"]))
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = {(row["title"], row["batch"], row["threads"]): row for row in record["rows"] if row["model"] == model}
        header = [model]
        for batch, threads in settings:
            header += [f"batch {batch}, {count_of_threads(threads)}: ms/image", "×"]
        lines = []
        for title in dict.fromkeys(title for title, _, _ in rows):
            line = [title]
            for setting in settings:
                row = rows.get((title, *setting))
                line += [_per_image(row), _ratio(row)] if row else ["–", "–"]
            lines.append(line)
        parts.append(markdown(header, lines))
    where = processor(record)
    seen = f"; **every runtime sees {record['cpu']}**" if "cpu" in record else ""
    repetitions = " and ".join(dict.fromkeys(str(row["n"]) for row in record["rows"]))
    meaning = f"medians of {repetitions} repetitions; × is the multiple of the 8-bit AdderNet's time"
    caption = f"{where}{seen}; {meaning}; {record['date']}."
    return "\n\n".join([caption, *parts])


def server_table(record: Record) -> str:
    """Return one row for each network and way to serve."""
    header = ["network", "way", "images/s", "of one thread"]
    lines = [[row["model"], row["way"], f"{row['median']:,.0f}", f"{row['ratio']:.2f}"] for row in record["rows"]]
    where = f"{processor(record)}, load average {record['load']:.1f}"
    caption = f"{where}; one image a call; medians of {record['n']} alternating repetitions; {record['date']}."
    return f"{markdown(header, lines, left=2)}\n\n{caption}"


def page_table(record: Record) -> str:
    """Return one row for each page of torchadder demo."""
    header = [
        "network",
        "page, kB",
        "first paint, ms",
        "first paint of one word, ms",
        "ms per image",
        "answers equal to the engine's",
    ]
    lines = []
    for row in record["rows"]:
        paints = f"{row['first_paint_ms']:.0f}", f"{row['one_word_first_paint_ms']:.0f}"
        times = *paints, f"{row['image_ms']:.2f}"
        lines.append([row["model"], f"{row['bytes'] / 1e3:.0f}", *times, f"{row['equal']} of {row['images']}"])
    where = f"{processor(record)}, load average {record['load']:.1f}; {record['browser']}"
    caption = (
        f"{where}; opened from disk, alternating with a page of one word; medians of {record['n']}; {record['date']}."
    )
    return f"{markdown(header, lines, left=1)}\n\n{caption}"


def reference_table(record: Record) -> str:
    """Return how many times as long the reference takes as each instruction set, one row for each measurement."""
    ratios = {(row["what"], row["isa"]): row["ratio"] for row in record["rows"]}
    isas = [isa for isa in dict.fromkeys(row["isa"] for row in record["rows"]) if isa != "reference"]
    measured = dict.fromkeys(row["what"] for row in record["rows"])
    lines = [[what, *(f"{ratios[what, isa]:.0f}×" for isa in isas)] for what in measured]
    where = f"{processor(record)}, load average {record['load']:.1f}"
    caption = f"{where}; CPU times; medians of {record['n']} alternating repetitions; {record['date']}."
    return f"{markdown(['measured', *isas], lines, left=1)}\n\n{caption}"


def onnx_table(record: Record) -> str:
    """Return the time of networks in ONNX Runtime beside its own CNN, and how exact each network is."""
    timed = [row for row in record["rows"] if row["what"] == "network"]
    lines = [[row["name"], row["candidate"], f"{row['median_ms']:.3g}", _times(row["ratio"])] for row in timed]
    compared = [row for row in record["rows"] if row["what"] == "difference"]
    differences = [[row["name"], f"{row['to_torch']:.1e}", f"{row['torch_to_float64']:.1e}"] for row in compared]
    parts = [markdown(["network", "candidate", "ms", "times the CNN"], lines, left=2), _onnx_caption(record)]
    meaning = (
        "Largest difference of the logits in float32, relative to the largest logit: ONNX Runtime to torch, and torch "
        "to itself in float64. Weights are random; batch normalisation has the statistics of 64 random images."
    )
    header = ["network", "ONNX Runtime to torch", "torch to float64"]
    return "\n\n".join([*parts, meaning, markdown(header, differences)])


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}"


def onnx_bodies_table(record: Record) -> str:
    """Return the time of a layer with each body of its ONNX function, as multiples of that of the first one."""
    rows = [row for row in record["rows"] if row["what"] == "body"]
    bodies = list(dict.fromkeys(row["candidate"] for row in rows))
    ratios = {(row["name"], row["candidate"]): row["ratio"] for row in rows}
    layers = dict.fromkeys(row["name"] for row in rows)
    lines = [[layer, *(f"{ratios[layer, body]:.2f}" for body in bodies)] for layer in layers]
    header = ["layer", *(body.replace("|", "\\|") for body in bodies)]
    return f"{markdown(header, lines)}\n\n{_onnx_caption(record)}"


def _onnx_caption(record: Record) -> str:
    where = f"{processor(record)}, load average {record['load']:.1f}; ONNX Runtime {record['versions']['onnxruntime']}"
    return f"{where}; one image, one thread; medians of {record['n']} alternating repetitions; {record['date']}."


def limits_u8_table(record: Record) -> str:
    """Return one row for each instruction set, loop and tile."""
    lines = [[row["isa"], row["loop"], row["tile"], f"{row['giga_ops']:.0f}"] for row in record["rows"]]
    where = processor(record)
    caption = f"{where}; one core; medians of {record['n']} repetitions; {record['date']}."
    return f"{caption}\n\n{markdown(['instructions', 'inner loop', 'tile', 'G element operations/s'], lines, left=3)}"


def neon_table(record: Record) -> str:
    """Return modelled element operations a cycle, one row for each kernel and one column for each core."""
    cores = list(dict.fromkeys(row["core"] for row in record["rows"]))
    rates = {(row["kernel"], row["core"]): row["elements"] / row["cycles"] for row in record["rows"]}
    lines = [
        [f"`{kernel}`", *(f"{rates[kernel, core]:.1f}" if (kernel, core) in rates else "–" for core in cores)]
        for kernel in dict.fromkeys(row["kernel"] for row in record["rows"])
    ]
    caption = f"Modelled, not measured: {'; '.join(record['versions'].values())}; {record['date']}."
    return f"{markdown(['element operations a cycle', *cores], lines)}\n\n{caption}"


def cores_table(record: Record) -> str:
    """Return cycles or instructions an element operation, one row for each core and one column for each network."""
    cells: dict[str, dict[str, float]] = {}
    units = {}
    for row in record["rows"]:
        if row["what"] == "loop":
            units[row["core"]] = "cycles, modelled" if "cycles" in row else "instructions, counted"
            each = row.get("cycles", row["instructions"]) / row["elements"]
            cells.setdefault(row["core"], {})[_exported(row)] = each
    columns = list(dict.fromkeys(column for found in cells.values() for column in found))
    lines = [
        [core, units[core], *(f"{found[column]:.2f}" if column in found else "–" for column in columns)]
        for core, found in cells.items()
    ]
    caption = f"For one |x - w| or one product; {'; '.join(record['versions'].values())}; {record['date']}."
    return f"{markdown(['core', 'unit', *columns], lines)}\n\n{caption}"


def riscv_table(record: Record) -> str:
    """Return the cycles of an image, one row for each network and one column for each core, beside the CNN's."""
    cycles = {(row["core"], _exported(row)): row["cycles"] for row in record["rows"]}
    cnn = {row["core"]: row["cycles"] for row in record["rows"] if row["op"] == "conv"}
    cores = list(dict.fromkeys(core for core, _ in cycles))
    header = ["network", *(f"{core}{unit}" for core in cores for unit in (", M cycles", ", CNN / this"))]
    lines = []
    for network in dict.fromkeys(network for _, network in cycles):
        line = [network]
        for core in cores:
            line += [f"{cycles[core, network] / 1e6:.2f}", f"{cnn[core] / cycles[core, network]:.2f}"]
        lines.append(line)
    return f"{markdown(header, lines)}\n\nMeasured in the simulated RTL of {_tools(record)}."


def exports_table(record: Record) -> str:
    """Return the memory of each exported network, and how many images give what the engine gives."""
    lines = []
    rows = record["rows"]
    for network in dict.fromkeys(map(_exported, rows)):
        own = [row for row in rows if _exported(row) == network]
        size = next(row for row in own if row["what"] == "size" and row["core"] == "cortex-m4")
        equal = [row for row in own if row["what"] == "equality"]
        least = min(min(row["equal_classes"], row["equal_logits"]) for row in equal)
        line = [network, *(f"{size[part]:,}" for part in ("tables", "code", "arena"))]
        lines.append([*line, f"{least:,} of {equal[0]['images']:,}", f"{equal[0]['correct'] / equal[0]['images']:.2%}"])
    header = ["network", "tables, bytes", "code", "arena", "equal", "accuracy"]
    meaning = "equal: the test images for which all loops give the engine's class and exactly the program's logits"
    caption = f"Code for Cortex-M4, `-O2`; {meaning}; {record['date']}."
    return f"{markdown(header, lines)}\n\n{caption}"


def pico_table(record: Record) -> str:
    """Return accuracy, flash, memory and cycles of each network; flash is code and tables."""
    cores = {"cortex-m0": "Cortex-M0", "cortex-m4": "Cortex-M4", "rv32imc": "RV32IMC"}
    header = ["network", "accuracy of each seed", "mean", *(f"flash, {title}" for title in cores.values())]
    header += ["RAM, Cortex-M0: input + arena + stack", "M cycles, with multiplier", "without"]
    lines = []
    for row in record["rows"]:
        accuracy = [program["accuracy"] for program in row["programs"]]
        sizes = {size["core"]: size for size in row["sizes"]}
        line = [f"`{row['model']}`", ", ".join(f"{a:.2f}" for a in accuracy), f"{sum(accuracy) / len(accuracy):.2f}%"]
        line += [f"{sizes[core]['code'] + sizes[core]['tables']:,}" for core in cores]
        ram = row["input"], sizes["cortex-m0"]["arena"], sizes["cortex-m0"]["stack"]
        line += [f"{' + '.join(f'{part:,}' for part in ram)} = {sum(ram):,}"]
        lines.append([*line, *(f"{row['cycles'][core] / 1e6:.2f}" for core in PICORV32)])
    bits, images = (record["rows"][0][key] for key in ("bits", "programs"))
    of = f"Integer programs of {bits} bits on {images[0]['images']:,} test images after the last epoch"
    return f"{markdown(header, lines)}\n\n{of}; flash and memory in bytes, `-O2`; {_tools(record)}."


def resnet8_table(record: Record) -> str:
    """Return accuracy, flash, memory and cycles of AdderNets beside those of their CNN."""
    header = ["network", "accuracy", "in float32", "flash, Cortex-M4", "input + arena"]
    cores = [*record["rows"][0]["cycles"]]
    header += [f"{core}{unit}" for core in cores for unit in (", M cycles", ", CNN / this")]
    cnn = next(row for row in record["rows"] if row["op"] == "conv")
    lines = []
    for row in record["rows"]:
        program, size = row["programs"][0], next(size for size in row["sizes"] if size["core"] == "cortex-m4")
        line = [_exported(row), f"{program['accuracy']:.2f}%", f"{program['float_accuracy']:.2f}%"]
        line += [f"{size['code'] + size['tables']:,}", f"{row['input']:,} + {size['arena']:,}"]
        for core in cores:
            cycles = row["cycles"][core]
            line += [f"{cycles / 1e6:,.1f}", f"{cnn['cycles'][core] / cycles:.2f}"]
        lines.append(line)
    of = f"{cnn['programs'][0]['images']:,} test images, one seed; flash and memory in bytes, `-O2`"
    return f"{markdown(header, lines)}\n\n{of}; {_tools(record)}."


def _tools(record: Record) -> str:
    """Return the versions of core, simulator and compilers, and the date."""
    versions = record["versions"]
    tools = "; ".join([f"PicoRV32 {versions['picorv32']}", *(v for k, v in versions.items() if k != "picorv32")])
    return f"{tools}; {record['date']}"


def _exported(row: dict[str, str]) -> str:
    """Return the name of an exported network."""
    name = {"adder": "AdderNet", "conv": "CNN", "binary": "binary"}[row["op"]]
    return f"{name}, {row['bits']} bits"


def steps_table(record: Record, limits: Record) -> str:
    """Return every distinct step: its time, its rate, and its share of the rate that its instructions allow."""
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
    where = processor(record)
    caption = f"{where}; one image on one thread; medians of {record['n']} repetitions; {record['date']}."
    return "\n\n".join([caption, *parts])


def _limit(step: str, kernel: str, limits: Record) -> float | None:
    """Return the rate of the kernel's instructions: that of the loop `issue`, or of the fastest tile without one."""
    loop = LOOPS.get(step.partition(" ")[0])
    isa = next((isa for isa in ("avx512vnni", "avx512", "avx2") if isa in kernel), None)
    rows = [
        row for row in limits["rows"] if row["loop"] == loop and row["isa"] in (isa, isa and isa.removesuffix("vnni"))
    ]
    own = [row for row in rows if row["isa"] == isa] or rows
    issue = [row for row in own if row["tile"] == "issue"] or own
    return max((row["giga_ops"] for row in issue), default=None)


def _on_one_thread(record: Record) -> dict[tuple[str, int], list[Record]]:
    """Return the rows of one thread by model and batch."""
    found: dict[tuple[str, int], list[Record]] = {}
    for row in record["rows"]:
        if row["threads"] == 1:
            found.setdefault((row["model"], row["batch"]), []).append(row)
    return found


def _best_cnn(rows: list[Record], precisions: tuple[str, ...]) -> Record | None:
    """Return the fastest row of a CNN in one of the precisions."""
    found = [row for row in rows if row["title"].startswith(CNN) and row["precision"] in precisions]
    return min(found, key=lambda row: row["milliseconds"], default=None)


def _named(row: Record | None) -> str:
    """Return the multiple of a CNN, with the name of its runtime."""
    if row is None:
        return "–"
    name = row["title"].removeprefix(CNN).removesuffix(f" {row['precision']}")
    return f"{_ratio(row)} ({name}{', bf16' if row['precision'] == 'bf16' else ''})"


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


def count_of_threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def quantisation_table(*records: Record) -> str:
    """Return the accuracy of each model in float32 and in 8 bits and fewer."""
    rows = [row for record in records for row in record["rows"]]
    bits = sorted({row["bits"] for row in rows}, reverse=True)
    header = ["model", "test images", "float32, %", *(f"{number} bits" for number in bits)]
    lines = []
    for model, dataset, tuned in dict.fromkeys(map(_subject, rows)):
        some = {row["bits"]: row for row in rows if _subject(row) == (model, dataset, tuned)}
        first = next(iter(some.values()))
        place = f"`{model}` ({first['op']}, {dataset}){tuned}"
        cells = [
            f"{some[number]['accuracy']:.2f} ({some[number]['accuracy'] - some[number]['float_accuracy']:+.2f})"
            if number in some
            else "–"
            for number in bits
        ]
        lines.append([place, f"{first['images']:,}", f"{first['float_accuracy']:.2f}", *cells])
    how = f"calibrated with {rows[0]['calibration_images']} training images, method {rows[0]['method']}"
    dates = " and ".join(dict.fromkeys(record["date"] for record in records))
    caption = (
        f"Bits of activations and adder filters; {how}, fine-tuned where it says so; in brackets points against "
        f"float32; {dates}."
    )
    return f"{caption}\n\n{markdown(header, lines)}"


def _subject(row: Record) -> tuple[str, str, str]:
    """Return what the accuracies of a line of the table share: checkpoint, data set, and how it was fine-tuned."""
    epochs, target = row["finetune_epochs"], row.get("finetune_target", "labels")
    tuned = f", fine-tuned to its {target}, epochs: {epochs}" if epochs else ""
    if "trained_on" in row:
        tuned += f", on {row['trained_on']}" if epochs else f", calibrated on {row['trained_on']}"
    return row["checkpoint"], row["dataset"], tuned
