"""Test latency: rows, the order of repetitions, failures, and a whole small run in the runtimes installed here."""

import re
from typing import ClassVar

import pytest
import torch

from torchadder.counts import summary
from torchadder.errors import UserError
from torchadder.lab.bench import candidates, cpu_mask, latency, networks
from torchadder.lab.bench.candidates import CANDIDATES, Candidate, Worker
from torchadder.lab.bench.process import ProcessError
from torchadder.models import create_model

BY_KEY = {candidate.key: candidate for candidate in CANDIDATES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LeNet-5-BN as files, without ONNX."""
    folder = tmp_path_factory.mktemp("networks")
    networks.NetworkWriter().write("lenet5bn", str(folder), onnx=False, int8=False)
    return folder


@pytest.fixture(scope="module")
def run():
    """Return the rows of a small run, and whether instruction sets beyond AVX2 were hidden in it."""
    try:
        environment = cpu_mask.environment("avx2")
        avx2 = True
    except UserError:
        environment, avx2 = {}, False
    keys = ("adder_u8", "torch_fp32", "onnxruntime_int8", "openvino_int8")
    chosen = [BY_KEY[key] for key in keys if not BY_KEY[key].missing]
    shown = []
    rows = latency.measure("lenet5bn", [2], [1], 2, chosen, shown.append, shown.append, environment, 0.001)
    assert shown == ["lenet5bn: networks", "lenet5bn, batch 2, 1 thread"]
    assert [row["candidate"] for row in rows] == [candidate.key for candidate in chosen]
    return {row["candidate"]: row for row in rows}, avx2


def test_rows_of_a_run(run):
    rows, _ = run
    for key, row in rows.items():
        assert (row["model"], row["batch"], row["threads"], row["n"]) == ("lenet5bn", 2, 1, 2)
        assert row["title"] == BY_KEY[key].title
        assert len(row["seconds"]) == 2
        assert 0 < row["minimum_ms"] <= row["milliseconds"]
        assert row["images_per_second"] == pytest.approx(2e3 / row["milliseconds"])
        assert row["ratio"] == pytest.approx(row["milliseconds"] / rows["adder_u8"]["milliseconds"])
        assert row["versions"].keys() == {"torch", *BY_KEY[key].packages}
        assert row["kernels"]


def test_kernels_of_an_avx2_cpu(run):
    rows, avx2 = run
    if not avx2:
        pytest.skip("this CPU cannot hide instruction sets")
    ran = {key: " ".join(row["kernels"]) for key, row in rows.items()}
    assert not re.search("avx512|vnni|amx|bf16", " ".join(ran.values()).lower())
    assert "adder_u8_avx2" in ran["adder_u8"]
    assert "AVX2" in ran["torch_fp32"]
    assert "jit_avx2_I8" in ran.get("openvino_int8", "jit_avx2_I8")
    assert re.search(r"\(avx2\).* QLinearConv", ran.get("onnxruntime_int8", "(avx2) QLinearConv"))


@pytest.mark.parametrize(
    ("key", "batch"), [("adder_u8", 1), *((candidate.key, 17) for candidate in CANDIDATES if not candidate.packages)]
)
def test_a_worker_computes_its_network(folder, monkeypatch, key, batch):
    checked = []
    check = candidates._check

    def note(candidate, logits, expected):
        checked.append((candidate.key, logits.shape, expected))
        check(candidate, logits, expected)

    monkeypatch.setattr(candidates, "_check", note)
    worker = Worker()
    about = worker.open(key, str(folder), batch, 1)
    assert about["kernels"]
    assert about["versions"] == {"torch": torch.__version__}
    ((name, shape, expected),) = checked
    assert (name, shape) == (key, (batch, 10))
    known = networks.reference(folder)[BY_KEY[key].op]
    assert torch.equal(expected[:16], known[:batch])
    assert batch == 1 or torch.equal(expected[16], known[0])
    assert worker.repeat(0.001) > 0


@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.1), ("bf16", 0.4), ("int8", 0.8)])
def test_another_network_is_noticed(precision, share):
    candidate = Candidate("a", "a", "conv", "torch", precision, None)
    expected, other = torch.randn(2, 100, 10, generator=torch.Generator().manual_seed(0))
    candidates._check(candidate, expected, expected)
    with pytest.raises(RuntimeError, match="computes another network: cosine of the logits is 0"):
        candidates._check(candidate, expected + share * other, expected)
    with pytest.raises(RuntimeError, match="is nan"):
        candidates._check(candidate, expected * float("nan"), expected)


def test_a_repetition_warms_up_and_fills_its_time(monkeypatch):
    class Clock:
        now = 0.0

    calls = []

    def call():
        calls.append(Clock.now)
        Clock.now += 0.25

    monkeypatch.setattr(candidates.time, "perf_counter", lambda: Clock.now)
    worker = Worker()
    with pytest.raises(RuntimeError, match="repeat before open"):
        worker.repeat(1.0)
    worker._session, worker._seconds = candidates.Session(call, None, []), 0.5
    assert worker.repeat(2.0) == 0.25
    assert len(calls) == 2 + 4  # 2 s at 0.5 s a call
    calls.clear()
    assert worker.repeat(2.0) == 0.25
    assert len(calls) == 4 + 8
    calls.clear()
    assert worker.repeat(0.001) == 0.25
    assert len(calls) == 1


class FakeProcess:
    """Answer from a script instead of measuring; ``log`` holds the calls of all processes in order."""

    log: ClassVar[list] = []
    script: ClassVar[dict] = {}  # (key, method) -> answers in order; a text is an error, "its process ..." a death

    def __init__(self, target, folder, environment):
        self.target, self.alive, self.key = target, True, None
        self.environment = environment

    def call(self, method, timeout, **arguments):
        assert timeout == latency.TIMEOUT
        self.key = arguments.get("key", self.key)
        self.log.append((self.key, method))
        answers = self.script.get((self.key, method))
        answer = answers.pop(0) if answers else {"write": None, "open": {"kernels": ["k"]}, "repeat": 0.001}[method]
        if isinstance(answer, str):
            self.alive = not answer.startswith("its process")
            raise ProcessError(answer)
        return answer

    def close(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeProcess, "log", [])
    monkeypatch.setattr(FakeProcess, "script", {})
    monkeypatch.setattr(latency, "Process", FakeProcess)
    return FakeProcess


def measured(keys, batches=(1,), threads=(1,), repetitions=2):
    warned = []
    chosen = [BY_KEY[key] for key in keys]
    rows = latency.measure("lenet5bn", batches, threads, repetitions, chosen, lambda line: None, warned.append)
    return rows, warned


def test_repetitions_are_interleaved(fake):
    fake.script["adder_u8", "repeat"] = [0.001, 0.004, 0.002]
    fake.script["torch_fp32", "repeat"] = [0.010, 0.010, 0.010]
    rows, warned = measured(["adder_u8", "torch_fp32"], batches=(4,), repetitions=3)
    assert warned == []
    opened = [(None, "write"), ("adder_u8", "open"), ("torch_fp32", "open")]
    assert fake.log == opened + [("adder_u8", "repeat"), ("torch_fp32", "repeat")] * 3
    adder, conv = rows
    assert adder == {
        **{"model": "lenet5bn", "batch": 4, "threads": 1, "candidate": "adder_u8", "title": "AdderNet u8 (engine)"},
        **{"runtime": "engine", "precision": "u8", "milliseconds": 2.0, "images_per_second": 2000.0, "ratio": 1.0},
        **{"minimum_ms": 1.0, "spread": 1.5, "n": 3, "seconds": [0.001, 0.004, 0.002], "kernels": ["k"]},
    }
    assert (conv["ratio"], conv["spread"]) == (5.0, 0.0)


def test_without_the_integer_engine_there_is_no_ratio(fake):
    rows, _ = measured(["torch_fp32", "adder_fp32"])
    assert [row["ratio"] for row in rows] == [None, None]


def test_an_unsupported_candidate_has_no_row_and_no_warning(fake):
    fake.script["openvino_bf16", "open"] = [None]
    rows, warned = measured(["adder_u8", "openvino_bf16"])
    assert [row["candidate"] for row in rows] == ["adder_u8"]
    assert warned == []


DEATH = "its process was ended by SIGKILL"
FAILING = [  # method, its answers, warnings, batches (of 1 and 2) with a row
    ("open", ["no memory"], ["no memory"], [2]),
    ("open", [DEATH], [DEATH], []),
    ("repeat", [0.001, "a sum failed"], ["a sum failed"], [2]),
    ("repeat", [0.001, DEATH], [DEATH], []),
]


@pytest.mark.parametrize(("method", "answers", "lines", "batches"), FAILING)
def test_the_others_continue_after_a_failure(fake, method, answers, lines, batches):
    fake.script["xnor", method] = answers
    rows, warned = measured(["adder_u8", "xnor", "engine_int8", "torch_fp32"], batches=(1, 2))
    assert warned == [f"XNOR (engine) is left out of lenet5bn, batch 1, 1 thread: {line}" for line in lines]
    assert [row["batch"] for row in rows if row["candidate"] == "xnor"] == batches
    for key in ("adder_u8", "torch_fp32"):
        assert [row["n"] for row in rows if row["candidate"] == key] == [2, 2]


def test_networks_that_cannot_be_made(fake):
    fake.script[None, "write"] = ["ValueError: no"]
    with pytest.raises(UserError, match=r"^lenet5bn: the networks could not be made: ValueError: no$"):
        measured(["adder_u8"])


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_every_step_of_the_engine_has_a_row(op):
    rows = latency.measure_steps("resnet20", op, 3, lambda line: None)
    assert [row["step"] for row in rows[:3]] == ["input", "conv 3->16 3x3 @32", f"{op} 16->16 3x3 @32"]
    assert rows[3]["step"].endswith("+ shortcut")
    assert rows[-2]["step"] == "AveragePool 64 @8"
    assert all(row["microseconds"] > 0 for row in rows)
    assert rows[2]["operations"] == 16 * 16 * 9 * 32 * 32
    assert rows[2]["giga_ops"] == pytest.approx(rows[2]["operations"] / rows[2]["microseconds"] / 1e3)
    total = summary(create_model("resnet20", "conv"), (3, 32, 32)).mul
    assert sum(row["operations"] for row in rows) == total
