"""Run `torchadder bench`: adder kernels against torch's convolution, and whole networks against CNN runtimes, here."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchadder import files
from torchadder.cli import console
from torchadder.cli.options import MODELS, OPS, Json
from torchadder.errors import UserError

if TYPE_CHECKING:
    from torchadder.lab.bench.timing import Device

bench = typer.Typer(
    help="Measure adder against convolution: same shapes, same threads, same run.", no_args_is_help=True
)

LATENCY_MODELS = ("lenet5bn", "resnet20", "vgg_small", "resnet18")


def _model_argument(*default: str) -> Any:
    """Return the argument MODEL of a verb, several models, with the default in its help."""
    return typer.Argument(
        metavar="MODEL",
        help=f"One or more of: {', '.join(MODELS)} (default: {' '.join(default)}).",
        show_default=False,
    )


Models = Annotated[list[str] | None, _model_argument("resnet20")]
Batches = Annotated[str, typer.Option(help="Batch sizes, comma-separated.")]
Threads = Annotated[str | None, typer.Option(help="Numbers of threads, comma-separated (default: 1 and torch's).")]
DeviceName = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:N", help="Run on the CPU or on a GPU.")]
Repetitions = Annotated[int, typer.Option(min=1, help="Repetitions; the median is quoted.")]
Out = Annotated[Path | None, typer.Option(help="File of the record, JSON (default: runs/bench-VERB.json).")]


@bench.command()
def layers(
    model: Models = None,
    batch: Batches = "1,128",
    device: DeviceName = "cpu",
    threads: Threads = None,
    passes: Annotated[
        str, typer.Option(help="One or more of: forward, grad_input, grad_weight.")
    ] = "forward,grad_input",
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """Time the layers of MODEL one by one, and the formulas that other implementations use."""
    from torchadder.lab import record
    from torchadder.lab.bench import layers as layer_bench

    names = _models(model, ["resnet20"])
    chosen = _choices("--passes", passes, layer_bench.PASSES)
    batches, devices, path = _numbers("--batch", batch), _devices(device, threads), _path(out, "layers")
    shapes = list(dict.fromkeys(shape for name in names for shape in layer_bench.layers_of(name)))
    rows = layer_bench.measure(shapes, batches, devices, chosen, repetitions, _show)
    formulas = layer_bench.measure_formulas(shapes[0], max(batches), devices, 3, _show)
    result = record.make("layers", repetitions, rows, devices[0].device, formulas=formulas)
    _finish(result, path, json, _layer_tables(result))


@bench.command()
def train(
    model: Annotated[list[str] | None, _model_argument("resnet20", "lenet5bn")] = None,
    batch: Annotated[int, typer.Option(min=2, help="Batch size.")] = 128,
    device: DeviceName = "cpu",
    threads: Threads = None,
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """Time a training step of MODEL as AdderNet and as CNN, and measure its memory."""
    from torchadder.lab import record
    from torchadder.lab.bench import training

    names, devices, path = _models(model, ["resnet20", "lenet5bn"]), _devices(device, threads), _path(out, "train")
    rows = [row for name in names for row in training.measure(name, batch, devices, repetitions, _show)]
    result = record.make("train", repetitions, rows, devices[0].device)
    _finish(result, path, json, [_train_table(result)])


@bench.command()
def family(threads: Threads = None, repetitions: Repetitions = 11, out: Out = None, json: Json = False) -> None:
    """Time layers of every kind (1-d, 3-d, grouped, depthwise, tiny): the forward pass and a whole step."""
    from torchadder.lab import record
    from torchadder.lab.bench import layers as layer_bench

    counts, path = _threads(threads), _path(out, "family")
    rows = layer_bench.measure_modules(layer_bench.CASES, counts, repetitions, _show)
    result = record.make("family", repetitions, rows)
    _finish(result, path, json, [_module_table(result)])


@bench.command()
def latency(
    model: Annotated[list[str] | None, _model_argument(*LATENCY_MODELS)] = None,
    batch: Batches = "1,64",
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, comma-separated (default: 1,2).")] = None,
    repetitions: Repetitions = 11,
    cpu: Annotated[
        str | None,
        typer.Option(metavar="avx2", help="Hide newer instructions of this CPU from every runtime; in a checkout."),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Time MODEL as AdderNet (fp32, u8), XNOR network, and CNN in torch, ONNX Runtime and OpenVINO (fp32, int8)."""
    from torchadder.lab import record
    from torchadder.lab.bench import cpu_mask
    from torchadder.lab.bench import latency as latency_bench

    names, batches = _models(model, LATENCY_MODELS), _numbers("--batch", batch)
    counts = _latency_threads(threads)
    environment = cpu_mask.environment(cpu) if cpu else {}
    path = _path(out, "latency")
    left_out: list[str] = []

    def warn(line: str) -> None:
        left_out.append(line)
        _show(line)

    candidates = latency_bench.installed(warn)
    rows = []
    for name in names:
        rows += latency_bench.measure(name, batches, counts, repetitions, candidates, _show, warn, environment)
    if not rows:
        raise UserError("nothing could be measured: the lines above give the reasons")
    result = record.make("latency", repetitions, rows, left_out=left_out)
    if cpu:
        result["cpu"] = cpu_mask.description(cpu)
        result["environment"]["kernels"] = cpu
    _finish(result, path, json, _latency_tables(result))


@bench.command()
def kernels(
    model: Models = None,
    op: Annotated[str, typer.Option(metavar="|".join(OPS), help="Operator of the network.")] = "adder",
    repetitions: Repetitions = 101,
    out: Out = None,
    json: Json = False,
) -> None:
    """Time the integer engine step by step, one image on one thread: the kernel, time and rate of each layer."""
    from torchadder.lab import record
    from torchadder.lab.bench.latency import measure_steps

    names, (chosen, *_) = _models(model, ["resnet20"]), _choices("--op", op, OPS)
    path = _path(out, "kernels")
    rows = [row for name in names for row in measure_steps(name, chosen, repetitions, _show)]
    result = record.make("kernels", repetitions, rows)
    _finish(result, path, json, [_step_table(result)])


def _show(line: str) -> None:
    """Print a line at once when a measurement ends: the next one may take minutes."""
    print(line, file=sys.stderr, flush=True)


def _models(given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(given or default))
    for name in names:
        if name not in MODELS:
            raise UserError(f"model={name} is unknown: expected one of {', '.join(MODELS)}")
    return names


def _choices(flag: str, text: str, allowed: Sequence[str]) -> list[str]:
    chosen = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if name not in allowed:
            raise UserError(f"{flag} {name}: choose from {', '.join(allowed)}")
    return chosen


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{flag} {text}: expected positive integers, e.g. 1,128")
    return numbers


def _threads(text: str | None) -> list[int]:
    import torch

    return sorted({1, torch.get_num_threads()}) if text is None else _numbers("--threads", text)


def _latency_threads(text: str | None) -> list[int]:
    from torchadder.environment import available_cores

    cores = available_cores()
    if text is None:
        return [count for count in (1, 2) if count <= cores]
    counts = _numbers("--threads", text)
    if max(counts) > cores:
        raise UserError(f"--threads {text}: this machine has {cores} core{'s' if cores > 1 else ''}")
    return counts


def _devices(device: str, threads: str | None) -> Sequence[Device]:
    from torchadder.lab.bench import timing

    found = timing.find_device(device)
    if found.type == "cpu":
        return [timing.Cpu(count) for count in _threads(threads)]
    if threads is not None:
        raise UserError(f"--threads {threads} cannot be set on a GPU: leave it out with --device {device}")
    return [timing.Gpu(found)]


def _path(out: Path | None, verb: str) -> Path:
    """Return the file of the record, checked before minutes are spent on measuring; git does not track the default."""
    path = out or Path(f"runs/bench-{verb}.json")
    if out is None:
        with suppress(OSError):  # check_writable names what stands in the way
            path.parent.mkdir(parents=True, exist_ok=True)
    files.check_writable(path)
    return path


Cells = tuple[str, list[str], list[list[str]], int]  # title, header, rows, number of leading columns that are text


def _finish(result: dict[str, Any], out: Path, json: bool, tables: list[Cells]) -> None:
    from torchadder.lab import record

    result = record.write(out, result)
    if json:
        print(json_format.dumps(result))
        return
    for title, header, rows, texts in tables:
        console.table(header, rows, texts=texts, title=title)
        print()
    print(f"written to {out}")


def _table(title: str, rows: list[dict[str, Any]], texts: dict[str, str], numbers: dict[str, str]) -> Cells:
    """Return a table of `rows`: the columns `texts`, then `numbers`, each a header and the format of its cells."""
    columns = {**texts, **numbers}
    return title, list(columns), [[_cell(form, row) for form in columns.values()] for row in rows], len(texts)


def _cell(form: str, row: dict[str, Any]) -> str:
    try:
        return form.format_map(row)
    except TypeError:  # None, where there is nothing to compare
        return "-"


def _milliseconds(digits: int) -> dict[str, str]:
    return {f"{op} ms": f"{{{op}_ms:.{digits}f}}" for op in ("adder", "conv")}


def _module_table(result: dict[str, Any]) -> Cells:
    texts = {name: f"{{{name}}}" for name in ("layer", "threads", "pass")}
    numbers = {**_milliseconds(3), "ratio": "{ratio:.2f}"}
    return _table("adder layers and torch's, medians", result["rows"], texts, numbers)


def _latency_tables(result: dict[str, Any]) -> list[Cells]:
    seen = f", {result['cpu']}" if "cpu" in result else ""
    rows = [{**row, "per_image": row["milliseconds"] / row["batch"]} for row in result["rows"]]
    texts = {name: f"{{{name}}}" for name in ("model", "batch", "threads")} | {"network": "{title}"}
    numbers = {"ms/image": "{per_image:.4g}", "images/s": "{images_per_second:.0f}"}
    numbers |= {"x slower than u8 AdderNet": "{ratio:.2f}"}
    used: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        used.setdefault((row["model"], row["title"]), {}).update(dict.fromkeys(row["kernels"]))
    return [
        _table(f"latency of whole networks, medians of {result['n']}{seen}", rows, texts, numbers),
        ("kernels", ["model", "network", "kernels"], [[*key, ", ".join(names)] for key, names in used.items()], 3),
    ]


def _step_table(result: dict[str, Any]) -> Cells:
    texts = {name: f"{{{name}}}" for name in ("model", "step", "kernel")}
    numbers = {"microseconds": "{microseconds:.2f}", "G/s": "{giga_ops:.1f}"}
    return _table("the engine, one image on one thread, medians", result["rows"], texts, numbers)


def _layer_tables(result: dict[str, Any]) -> list[Cells]:
    where = {name: f"{{{name}}}" for name in ("layer", "batch", _where(result))}
    rates = {f"{op} G/s": f"{{{op}_giga_ops:.1f}}" for op in ("adder", "conv")}
    numbers = {**_milliseconds(3), **rates, "ratio": "{ratio:.2f}"}
    speedups = {name: f"{{speedup[{name}]:.0f}}x" for name in ("broadcast", "cdist")}
    return [
        _table("adder and convolution, medians", result["rows"], {**where, "pass": "{pass}"}, numbers),
        _table("speedup over other formulas", result["formulas"], where, speedups),
    ]


def _train_table(result: dict[str, Any]) -> Cells:
    texts = {name: f"{{{name}}}" for name in ("model", "batch", _where(result))}
    memory = {f"{op} MiB": f"{{memory_mib[{op}][step]:.0f}}" for op in ("adder", "conv")}
    times = {f"{op} ms": f"{{{op}_ms:.1f}}" for op in ("adder", "int8", "conv") if f"{op}_ms" in result["rows"][0]}
    ratios = {"ratio": "{ratio:.2f}", **({"int8 ratio": "{int8_ratio:.2f}"} if "int8 ms" in times else {})}
    numbers = {**times, **ratios, **memory, "memory ratio": "{memory_ratio:.2f}"}
    return _table("training step, medians", result["rows"], texts, numbers)


def _where(result: dict[str, Any]) -> str:
    """Return the key that says where a row was measured, "device" of a GPU or "threads"."""
    return "device" if "device" in result["rows"][0] else "threads"
