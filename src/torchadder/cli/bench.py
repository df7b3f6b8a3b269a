"""torchadder bench: adder kernels against torch's convolution, and whole networks against CNN runtimes, here."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from torchadder.cli import bench_tables
from torchadder.cli.options import MODELS, OPS, Json
from torchadder.errors import UserError

if TYPE_CHECKING:
    from torchadder.lab.bench import devices

CPUS = ("avx2",)
LATENCY_MODELS = ("lenet5bn", "resnet20", "vgg_small", "resnet18")

bench = typer.Typer(
    help="Measure adder against convolution: same shapes, same threads, same run.", no_args_is_help=True
)

Models = Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(MODELS)}.")]
Batches = Annotated[str, typer.Option(help="Batch sizes, comma-separated.")]
Threads = Annotated[str | None, typer.Option(help="Numbers of threads, comma-separated (default: 1 and torch's).")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:N", help="Where it runs: the processor, or a GPU.")]
Repetitions = Annotated[int, typer.Option(min=1, help="Repetitions; the median is quoted.")]
Out = Annotated[Path | None, typer.Option(help="Where the JSON goes (default: results/bench-NAME.json).")]


@bench.command()
def layers(
    model: Models = "resnet20",
    batch: Batches = "1,128",
    device: Device = "cpu",
    threads: Threads = None,
    passes: Annotated[str, typer.Option(help="Of: forward, grad_input, grad_weight.")] = "forward,grad_input",
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """The layers of MODEL one by one, and the formulas that other implementations use."""
    from torchadder.lab.bench import layers as layer_bench
    from torchadder.lab.bench import record

    shapes = list(dict.fromkeys(shape for name in _names(model) for shape in layer_bench.layers_of(name)))
    chosen = _chosen(passes, layer_bench.PASSES, "--passes")
    batches, places = _numbers(batch, "--batch"), _places(device, threads)
    destination, progress = _destination(out, "layers" if device == "cpu" else "layers-cuda"), _progress()
    rows = layer_bench.measure(shapes, batches, places, chosen, repetitions, progress)
    formulas = layer_bench.measure_formulas(shapes[0], max(batches), places, 3, progress)
    result = record.make("layers", repetitions, rows, places[0].device, formulas=formulas)
    _finish(result, destination, json, bench_tables.layer_tables(result))


@bench.command()
def train(
    model: Models = "resnet20,lenet5bn",
    batch: Annotated[int, typer.Option(min=2, help="Batch size.")] = 128,
    device: Device = "cpu",
    threads: Threads = None,
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """A whole training step of MODEL as AdderNet and as CNN, and the memory that it takes."""
    from torchadder.lab.bench import record, training

    names, places = _names(model), _places(device, threads)
    destination, progress = _destination(out, "train" if device == "cpu" else "train-cuda"), _progress()
    rows = []
    for name in names:
        rows += training.measure(name, batch, places, repetitions, progress)
    result = record.make("train", repetitions, rows, places[0].device)
    _finish(result, destination, json, [bench_tables.train_table(result)])


@bench.command()
def family(
    threads: Threads = None,
    repetitions: Repetitions = 11,
    out: Out = None,
    json: Json = False,
) -> None:
    """Layers of every kind: 1-d, 3-d, grouped, depthwise, tiny; the forward pass and a whole step."""
    from torchadder.lab.bench import family as family_bench
    from torchadder.lab.bench import record

    counts, destination, progress = _threads(threads), _destination(out, "family"), _progress()
    rows = family_bench.measure(family_bench.CASES, counts, repetitions, progress)
    result = record.make("family", repetitions, rows)
    _finish(result, destination, json, [bench_tables.family_table(result)])


@bench.command()
def latency(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help=f"(default: {', '.join(LATENCY_MODELS)})", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The same, comma-separated.", show_default=False)] = None,
    batch: Batches = "1,64",
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, comma-separated (default: 1,2).")] = None,
    repetitions: Repetitions = 11,
    cpu: Annotated[
        str | None,
        typer.Option(metavar="|".join(CPUS), help="Hide from every runtime what this CPU has beyond this."),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """MODEL as AdderNet (fp32, u8), as XNOR network, and as CNN in torch, ONNX Runtime and OpenVINO (fp32, int8)."""
    from torchadder.lab.bench import cpu_mask, record
    from torchadder.lab.bench import latency as latency_bench

    given = [*(models or []), *([] if model is None else [model])]
    names = _names(",".join(given or LATENCY_MODELS))
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
    _finish(result, destination, json, bench_tables.latency_tables(result))


@bench.command()
def kernels(
    model: Models = "resnet20",
    op: Annotated[str, typer.Option(metavar="|".join(OPS), help="What the network is made of.")] = "adder",
    repetitions: Repetitions = 101,
    out: Out = None,
    json: Json = False,
) -> None:
    """The integer engine step by step: the kernel of each layer, its time and its rate, one image on one thread."""
    from torchadder.lab.bench import record
    from torchadder.lab.bench import steps as step_bench

    names, (chosen, *_) = _names(model), _chosen(op, OPS, "--op")
    destination, progress = _destination(out, "kernels"), _progress()
    rows = [row for name in names for row in step_bench.measure(name, chosen, repetitions, progress)]
    result = record.make("kernels", repetitions, rows)
    _finish(result, destination, json, [bench_tables.step_table(result)])


def _latency_threads(text: str | None) -> list[int]:
    from torchadder.environment import available_cores

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
    from torchadder.lab.bench import record

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


def _progress() -> Callable[[str], None]:
    terminal = Console(file=sys.stderr)

    def show(text: str) -> None:
        if terminal.is_terminal:
            terminal.print(text, style="dim", highlight=False)

    return show


def _names(text: str) -> list[str]:
    from torchadder.models import list_models

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
    import torch

    return sorted({1, torch.get_num_threads()}) if text is None else _numbers(text, "--threads")


def _places(device: str, threads: str | None) -> Sequence[devices.Place]:
    from torchadder.lab.bench import devices

    found = devices.find(device)
    if found.type == "cpu":
        return [devices.Cpu(count) for count in _threads(threads)]
    if threads is not None:
        raise UserError(f"--threads {threads}: a GPU has none to set; leave it out with --device {device}")
    return [devices.Gpu(found)]
