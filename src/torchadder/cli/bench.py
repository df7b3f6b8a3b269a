"""torchadder bench: adder kernels against torch's convolution, and whole networks against CNN runtimes, here."""

import json as json_format
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from torchadder.bench import cpu_mask, record, training
from torchadder.bench import family as family_bench
from torchadder.bench import latency as latency_bench
from torchadder.bench import layers as layer_bench
from torchadder.bench import steps as step_bench
from torchadder.environment import available_cores
from torchadder.errors import UserError
from torchadder.models import list_models
from torchadder.models.registry import OPS

bench = typer.Typer(
    help="Measure adder against convolution: same shapes, same threads, same run.", no_args_is_help=True
)

Models = Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(list_models())}.")]
Batches = Annotated[str, typer.Option(help="Batch sizes, comma-separated.")]
Threads = Annotated[str | None, typer.Option(help="Numbers of threads, comma-separated (default: 1 and torch's).")]
Repetitions = Annotated[int, typer.Option(min=1, help="Repetitions; the median is quoted.")]
Out = Annotated[Path | None, typer.Option(help="Where the JSON goes (default: results/bench-NAME.json).")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as one JSON object.")]


@bench.command()
def layers(
    model: Models = "resnet20",
    batch: Batches = "1,128",
    threads: Threads = None,
    passes: Annotated[str, typer.Option(help="Of: forward, grad_input, grad_weight.")] = "forward,grad_input",
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """The layers of MODEL one by one, and the formulas that other implementations use."""
    shapes = [shape for name in _names(model) for shape in layer_bench.layers_of(name)]
    chosen = _chosen(passes, layer_bench.PASSES, "--passes")
    batches, counts = _numbers(batch, "--batch"), _threads(threads)
    destination, progress = _destination(out, "layers"), _progress()
    rows = layer_bench.measure(shapes, batches, counts, chosen, repetitions, progress)
    formulas = layer_bench.measure_formulas(shapes[0], max(batches), counts, 3, progress)
    result = record.make("layers", repetitions, rows, formulas=formulas)
    _finish(result, destination, json, _layer_tables(result))


@bench.command()
def train(
    model: Models = "resnet20,lenet5bn",
    batch: Annotated[int, typer.Option(min=2, help="Batch size.")] = 128,
    threads: Threads = None,
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """A whole training step of MODEL as AdderNet and as CNN, and the memory that it takes."""
    names, counts = _names(model), _threads(threads)
    destination, progress = _destination(out, "train"), _progress()
    rows = []
    for name in names:
        rows += training.measure(name, batch, counts, repetitions, progress)
    result = record.make("train", repetitions, rows)
    _finish(result, destination, json, [_train_table(result)])


@bench.command()
def family(
    threads: Threads = None,
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """Layers of every kind: 1-d, 3-d, grouped, depthwise, tiny; the forward pass and a whole step."""
    counts, destination, progress = _threads(threads), _destination(out, "family"), _progress()
    rows = family_bench.measure(family_bench.CASES, counts, repetitions, progress)
    result = record.make("family", repetitions, rows)
    _finish(result, destination, json, [_family_table(result)])


@bench.command()
def latency(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help=f"(default: {', '.join(latency_bench.MODELS)})", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The same, comma-separated.", show_default=False)] = None,
    batch: Batches = "1,64",
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, comma-separated (default: 1,2).")] = None,
    repetitions: Repetitions = 11,
    cpu: Annotated[
        str | None,
        typer.Option(metavar="|".join(cpu_mask.CPUS), help="Hide from every runtime what this CPU has beyond this."),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """MODEL as AdderNet (fp32, u8), as XNOR network, and as CNN in torch, ONNX Runtime and OpenVINO (fp32, int8)."""
    given = [*(models or []), *([] if model is None else [model])]
    names = _names(",".join(given or latency_bench.MODELS))
    batches, counts = _numbers(batch, "--batch"), _latency_threads(threads)
    environment = cpu_mask.environment(cpu) if cpu else {}
    destination, progress = _destination(out, "latency"), _progress()
    left_out: list[str] = []

    def tell(line: str) -> None:
        left_out.append(line)
        print(line, file=sys.stderr, flush=True)

    candidates = latency_bench.present(tell)
    rows = []
    for name in names:
        rows += latency_bench.measure(name, batches, counts, repetitions, candidates, progress, tell, environment)
    if not rows:
        raise UserError("nothing could be measured; what failed stands above")
    result = record.make("latency", repetitions, rows, left_out=left_out)
    if cpu:
        result["cpu"] = cpu_mask.description(cpu)
        result["environment"]["kernels"] = cpu
    _finish(result, destination, json, _latency_tables(result))


@bench.command()
def kernels(
    model: Models = "resnet20",
    op: Annotated[str, typer.Option(metavar="|".join(OPS), help="What the network is made of.")] = "adder",
    repetitions: Repetitions = 101,
    out: Out = None,
    json: Json = False,
) -> None:
    """The integer engine step by step: the kernel of each layer, its time and its rate, one image on one thread."""
    names, (chosen, *_) = _names(model), _chosen(op, OPS, "--op")
    destination, progress = _destination(out, "kernels"), _progress()
    rows = [row for name in names for row in step_bench.measure(name, chosen, repetitions, progress)]
    result = record.make("kernels", repetitions, rows)
    _finish(result, destination, json, [_step_table(result)])


def _latency_threads(text: str | None) -> list[int]:
    cores = available_cores()
    if text is None:
        return [count for count in (1, 2) if count <= cores]
    counts = _numbers(text, "--threads")
    if max(counts) > cores:
        raise UserError(f"--threads {text}: this machine has {cores} core{'s' if cores > 1 else ''}")
    return counts


def _destination(out: Path | None, name: str) -> Path:
    """Where the JSON goes. Raises UserError where that cannot be, before minutes are spent on measuring."""
    path = out or Path(f"results/bench-{name}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _unwritable(path, f"{path.parent} is no folder") from error
    except OSError as error:
        raise _unwritable(path, error.strerror) from error
    if path.is_dir():
        raise _unwritable(path, "is a folder")
    if not os.access(path.parent, os.W_OK):
        raise _unwritable(path, "no permission")
    return path


def _unwritable(path: Path, reason: str | None) -> UserError:
    return UserError(f"cannot write {path} ({reason}): choose another place with --out")


def _finish(result: dict[str, Any], out: Path, json: bool, tables: list[Table]) -> None:
    try:
        result = record.write(out, result)
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    if json:
        print(json_format.dumps(result))
        return
    terminal = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    for table in tables:
        terminal.print(table)
    terminal.print(f"written to {out}", highlight=False)


def _family_table(result: dict[str, Any]) -> Table:
    table = Table("layer", "threads", "pass", title="adder layers and torch's, medians", title_justify="left")
    for name in ("adder ms", "conv ms", "ratio"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        numbers = [f"{row[key]:.3f}" for key in ("adder_ms", "conv_ms")]
        table.add_row(row["layer"], str(row["threads"]), row["pass"], *numbers, f"{row['ratio']:.2f}")
    return table


def _latency_tables(result: dict[str, Any]) -> list[Table]:
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


def _step_table(result: dict[str, Any]) -> Table:
    table = Table("model", "step", "kernel", title="the engine, one image on one thread, medians", title_justify="left")
    for name in ("microseconds", "G/s"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        rate = f"{row['giga_ops']:.1f}" if row["operations"] else "-"
        table.add_row(row["model"], row["step"], row["kernel"], f"{row['microseconds']:.2f}", rate)
    return table


def _layer_tables(result: dict[str, Any]) -> list[Table]:
    main = Table("layer", "batch", "threads", "pass", title="adder and convolution, medians", title_justify="left")
    for name in ("adder ms", "conv ms", "adder G/s", "conv G/s", "ratio"):
        main.add_column(name, justify="right")
    for row in result["rows"]:
        main.add_row(
            row["layer"],
            *(str(row[key]) for key in ("batch", "threads", "pass")),
            *(f"{row[key]:.3f}" for key in ("adder_ms", "conv_ms")),
            *(f"{row[key]:.1f}" for key in ("adder_giga_ops", "conv_giga_ops")),
            f"{row['ratio']:.2f}",
        )
    formulas = Table("layer", "batch", "threads", title="how many times faster than", title_justify="left")
    for name in ("broadcast", "cdist"):
        formulas.add_column(name, justify="right")
    for row in result["formulas"]:
        formulas.add_row(
            row["layer"],
            *(str(row[key]) for key in ("batch", "threads")),
            *(f"{row['speedup'][name]:.0f}x" for name in ("broadcast", "cdist")),
        )
    return [main, formulas]


def _train_table(result: dict[str, Any]) -> Table:
    table = Table("model", "batch", "threads", title="training step, medians", title_justify="left")
    for name in ("adder ms", "conv ms", "ratio", "adder MiB", "conv MiB", "memory ratio"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(
            *(str(row[key]) for key in ("model", "batch", "threads")),
            *(f"{row[key]:.1f}" for key in ("adder_ms", "conv_ms")),
            f"{row['ratio']:.2f}",
            *(f"{row['memory_mib'][op]['step']:.0f}" for op in training.OPS),
            "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        )
    return table


def _progress() -> Callable[[str], None]:
    terminal = Console(file=sys.stderr)

    def show(text: str) -> None:
        if terminal.is_terminal:
            terminal.print(text, style="dim", highlight=False)

    return show


def _names(text: str) -> list[str]:
    return _chosen(text, list_models(), "--model")


def _chosen(text: str, allowed: Any, flag: str) -> list[str]:
    chosen = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if name not in allowed:
            raise UserError(f"{flag} {name}: choose of {', '.join(allowed)}")
    return chosen


def _numbers(text: str, flag: str) -> list[int]:
    try:
        numbers = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{flag} {text}: expected positive whole numbers, e.g. 1,128")
    return numbers


def _threads(text: str | None) -> list[int]:
    return sorted({1, torch.get_num_threads()}) if text is None else _numbers(text, "--threads")
