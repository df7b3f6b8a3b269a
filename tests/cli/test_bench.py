"""Test torchadder bench: its files, its JSON, its lines and tables, and its refusals."""

import json

import pytest
import torch

from torchadder import environment
from torchadder.cli import main
from torchadder.cli.bench import LATENCY_MODELS
from torchadder.lab.bench import candidates, cpu_mask, latency, layers, training

LAYERS = ["bench", "layers", "lenet5bn", "--batch", "1", "--threads", "1", "--repetitions", "1"]
LATENCY = ["bench", "latency", "lenet5bn", "--batch", "4", "--threads", "1", "--repetitions", "3"]
TRAIN = ["bench", "train", "lenet5bn", "--batch", "2", "--threads", "1", "--repetitions", "1"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    monkeypatch.setattr(training, "peak_memory", lambda *arguments: {"step": 1.0, "total": 2.0})


@pytest.fixture
def no_time(monkeypatch):
    """Fail the test if anything is measured."""

    def measured(*arguments):
        raise AssertionError("measured before the arguments were checked")

    monkeypatch.setattr(layers, "interleaved", measured)
    monkeypatch.setattr(training, "interleaved", measured)
    monkeypatch.setattr(latency, "measure", measured)
    monkeypatch.setattr(latency, "measure_steps", measured)


def test_layers_json_is_one_object_and_equals_the_file(capsys, tmp_path):
    out = tmp_path / "a.json"
    assert main([*LAYERS, "--passes", "forward", "--json", "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert err.splitlines()[0] == "1->6 5x5 @32, batch 1, 1 thread, forward"
    assert len(err.splitlines()) == 4  # three layers, and the formulas
    assert printed.count("\n") == 1
    record = json.loads(printed)
    assert json.loads(out.read_text()) == record
    assert (record["benchmark"], record["n"]) == ("layers", 1)
    assert [row["layer"] for row in record["rows"]] == ["1->6 5x5 @32", "6->16 5x5 @14", "16->120 5x5 @5"]
    assert [row["layer"] for row in record["formulas"]] == ["1->6 5x5 @32"]
    assert str(tmp_path) not in out.read_text()


def test_train_writes_to_runs_and_prints_a_table(capsys, tmp_path):
    assert main(TRAIN) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == ["lenet5bn, batch 2, 1 thread", "lenet5bn, batch 2, 1 thread, memory"]
    assert "lenet5bn" in out
    assert out.endswith("written to runs/bench-train.json\n")
    (row,) = json.loads((tmp_path / "runs" / "bench-train.json").read_text())["rows"]
    assert (row["model"], row["batch"], row["threads"]) == ("lenet5bn", 2, 1)


def test_layers_prints_both_tables(capsys, tmp_path):
    assert main([*LAYERS, "--passes", "grad_weight,forward,grad_weight"]) == 0
    out = capsys.readouterr().out
    assert out.count("1->6 5x5 @32") == 3  # each pass once, and the formulas
    assert "cdist" in out
    assert (tmp_path / "runs" / "bench-layers.json").exists()


def test_kernels_names_each_step_and_what_it_ran_on(capsys, tmp_path):
    assert main(["bench", "kernels", "lenet5bn", "--op", "binary", "--repetitions", "2"]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "runs" / "bench-kernels.json").read_text())
    assert (record["benchmark"], record["n"], len(record["rows"])) == ("kernels", 2, 8)
    for row in record["rows"]:
        assert row["step"] in out
        assert row["kernel"] in out
    assert record["rows"][3]["kernel"].startswith("binary_")


def test_family_prints_every_layer_and_pass(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "CASES", layers.CASES[:2])
    assert main(["bench", "family", "--threads", "1", "--repetitions", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.count("tiny") == err.count("tiny") == 4
    rows = json.loads((tmp_path / "runs" / "bench-family.json").read_text())["rows"]
    assert [row["pass"] for row in rows] == ["forward", "step", "forward", "step"]


@pytest.fixture
def measured(monkeypatch):
    """Collect the arguments of each call of latency.measure, which returns a row for CNN and AdderNet."""
    calls = []

    def measure(name, batches, counts, repetitions, chosen, show, warn, environment):
        calls.append((name, batches, counts, repetitions, [candidate.key for candidate in chosen], environment))
        about = {"model": name, "batch": batches[0], "threads": 1, "kernels": ["k8", "k4"]}
        show(f"{name}: networks")
        warn(f"XNOR (engine) is left out of {name}: died")
        return [
            {**about, "title": "AdderNet u8 (engine)", "milliseconds": 2.0, "images_per_second": 2000.0, "ratio": 1.0},
            {**about, "title": "CNN, torch fp32", "milliseconds": 5.0, "images_per_second": 800.0, "ratio": 2.5},
        ]

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: name)
    return calls


def test_latency_json(measured, capsys, tmp_path):
    assert main([*LATENCY, "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert out.count("\n") == 1
    assert err == "lenet5bn: networks\nXNOR (engine) is left out of lenet5bn: died\n"
    assert json.loads((tmp_path / "runs" / "bench-latency.json").read_text()) == record
    assert (record["benchmark"], record["n"], record["left_out"]) == (
        "latency",
        3,
        ["XNOR (engine) is left out of lenet5bn: died"],
    )
    assert "cpu" not in record
    assert [row["ratio"] for row in record["rows"]] == [1.0, 2.5]
    assert measured == [("lenet5bn", [4], [1], 3, [candidate.key for candidate in candidates.CANDIDATES], {})]


def test_latency_tables(measured, capsys):
    assert main(["bench", "latency", "lenet5bn", "resnet20", "lenet5bn", "--threads", "1"]) == 0
    out, _ = capsys.readouterr()
    words = lines(out)
    for name in ("lenet5bn", "resnet20"):
        assert [name, "1", "1", "CNN,", "torch", "fp32", "5", "800", "2.50"] in words
        assert [name, "CNN,", "torch", "fp32", "k8,", "k4"] in words
    assert [(call[0], call[1]) for call in measured] == [("lenet5bn", [1, 64]), ("resnet20", [1, 64])]


def test_latency_measures_the_four_models_by_default(measured):
    assert main(["bench", "latency"]) == 0
    assert tuple(call[0] for call in measured) == LATENCY_MODELS


def test_latency_on_another_cpu(measured, capsys, monkeypatch):
    monkeypatch.setattr(cpu_mask, "environment", lambda cpu: {"CPU": cpu})
    monkeypatch.setattr(cpu_mask, "description", lambda cpu: f"{cpu} (AMX hidden)")
    assert main([*LATENCY, "--cpu", "avx2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["cpu"], record["environment"]["kernels"]) == ("avx2 (AMX hidden)", "avx2")
    assert measured[0][-1] == {"CPU": "avx2"}


def test_latency_without_the_other_runtimes(measured, capsys, monkeypatch):
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: None)
    assert main(LATENCY) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("left out: CNN, ONNX Runtime fp32; CNN, ONNX Runtime int8; CNN, OpenVINO fp32; ")
    assert lines[0].endswith("openvino not installed: pip install 'torchadder[bench]'")
    assert measured[0][4] == ["adder_fp32", "adder_u8", "xnor", "engine_int8", "torch_fp32"]


def test_latency_of_nothing_is_an_error(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "measure", lambda *arguments: [])
    assert main(LATENCY) == 2
    assert "error: nothing could be measured" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "bench-latency.json").exists()


REFUSED = [  # arguments -> the words on stderr
    ([*LAYERS, "lenet6"], "lenet6 is unknown: expected one of"),
    ([*LAYERS, "lenet5bn,resnet20"], "lenet5bn,resnet20 is unknown: expected one of"),
    ([*LAYERS, "--batch", "0"], "--batch 0: expected positive integers, e.g. 1,128"),
    ([*LAYERS, "--batch", "1,-2"], "--batch 1,-2: expected positive"),
    ([*LAYERS, "--batch", " "], "--batch  : expected positive"),
    ([*LAYERS, "--threads", "all"], "--threads all: expected positive"),
    ([*LAYERS, "--passes", "backward"], "--passes backward: choose from forward, grad_input, grad_weight"),
    ([*LAYERS, "--repetitions", "0"], "--repetitions"),
    ([*LAYERS, "--out", "folder"], "folder: is a folder"),
    ([*LAYERS, "--out", "file/a.json"], "file/a.json: file is no folder"),
    ([*LAYERS, "--out", "nowhere/b.json"], "nowhere/b.json: nowhere is no folder"),
    ([*TRAIN, "--batch", "1"], "--batch"),
    ([*LATENCY, " "], "  is unknown: expected one of"),
    ([*LATENCY, "--threads", "100000"], "--threads 100000: this machine has"),
    ([*LATENCY, "--cpu", "sse2"], "sse2 is unknown: choose avx2"),
    (["bench", "kernels", "--op", "xor"], "--op xor: choose from adder, conv, binary"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused_before_anything_is_measured(no_time, tmp_path, refused, arguments, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert words in refused(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.fixture
def two_gpus(monkeypatch):
    """Pretend two GPUs and their measurements."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(environment, "describe_gpu", lambda device: {"name": "Abacus 9", "route": "cuda"})

    def layer(shapes, batches, devices, passes, repetitions, show):
        about = {"layer": str(shapes[0]), "batch": batches[0], **devices[0].fields}
        numbers = {"adder_ms": 2.5, "conv_ms": 1.25, "adder_giga_ops": 7500.0, "ratio": 2.0}
        return [{**about, **numbers, "conv_giga_ops": 15000.0, "pass": pass_name} for pass_name in passes]

    def formulas(shape, batch, devices, repetitions, show):
        return [
            {"layer": str(shape), "batch": batch, **devices[0].fields, "speedup": {"broadcast": 40.0, "cdist": 9.0}}
        ]

    def step(name, batch, devices, repetitions, show):
        numbers = {"adder_ms": 9.0, "conv_ms": 6.0, "ratio": 1.5, "memory_ratio": 1.0}
        memory = {"adder": {"step": 100.0}, "conv": {"step": 100.0}}
        return [{"model": name, "batch": batch, **devices[0].fields, **numbers, "memory_mib": memory}]

    monkeypatch.setattr(layers, "measure", layer)
    monkeypatch.setattr(layers, "measure_formulas", formulas)
    monkeypatch.setattr(training, "measure", step)


def lines(text):
    """Return the words of each line of a table."""
    return [line.replace("│", " ").split() for line in text.splitlines()]


def test_layers_on_a_gpu(two_gpus, capsys, tmp_path):
    arguments = ["lenet5bn", "--batch", "1", "--passes", "forward,grad_weight", "--device", "cuda:1"]
    assert main(["bench", "layers", *arguments]) == 0
    out = capsys.readouterr().out
    about = ["1->6", "5x5", "@32", "1", "cuda:1"]
    numbers = ["2.500", "1.250", "7500.0", "15000.0", "2.00"]
    assert [*about, "forward", *numbers] in lines(out)
    assert [*about, "grad_weight", *numbers] in lines(out)
    assert [*about, "40x", "9x"] in lines(out)
    record = json.loads((tmp_path / "runs" / "bench-layers.json").read_text())
    assert record["environment"]["gpu"] == {"name": "Abacus 9", "route": "cuda"}


def test_train_on_a_gpu(two_gpus, capsys, tmp_path):
    assert main(["bench", "train", "lenet5bn", "--device", "cuda"]) == 0
    row = ["lenet5bn", "128", "cuda:0", "9.0", "6.0", "1.50", "100", "100", "1.00"]
    assert row in lines(capsys.readouterr().out)
    record = json.loads((tmp_path / "runs" / "bench-train.json").read_text())
    assert record["environment"]["gpu"]["name"] == "Abacus 9"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda:2"], "cuda:2 does not exist: there are 2 GPUs, cuda:0 to cuda:1"),
        (["--device", "cuda", "--threads", "2"], "--threads 2 cannot be set on a GPU: leave it out with --device cuda"),
    ],
)
@pytest.mark.parametrize("verb", ["layers", "train"])
def test_refused_on_a_gpu(two_gpus, refused, tmp_path, verb, arguments, words):
    assert words in refused(["bench", verb, *arguments])
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_layers_on_a_real_gpu(capsys):
    arguments = ["lenet5bn", "--batch", "2", "--repetitions", "2", "--device", "cuda", "--json"]
    assert main(["bench", "layers", *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["environment"]["gpu"]["name"] == torch.cuda.get_device_name(0)
    for row in record["rows"]:
        assert row["conv_ms"] > 0


def test_a_disk_that_fills_up_meanwhile_is_one_line(capsys, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchadder.lab.record.files.write_bytes", full)
    assert main(TRAIN) == 2
    out, err = capsys.readouterr()
    assert out == ""
    words = "cannot write runs/bench-train.json: No space left on device; choose another folder"
    assert err.endswith(f"\nerror: {words}\n")
