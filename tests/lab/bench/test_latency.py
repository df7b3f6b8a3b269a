"""Latency: what is written into a row, who takes a turn when, and a whole small run in the runtimes that are here."""

import re
from typing import ClassVar

import pytest
import torch

from torchadder.errors import UserError
from torchadder.lab.bench import candidates, cpu_mask, latency, networks
from torchadder.lab.bench.candidates import CANDIDATES, Candidate, Contestant
from torchadder.lab.bench.process import ProcessError

BY_KEY = {candidate.key: candidate for candidate in CANDIDATES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LeNet-5-BN as files, without ONNX."""
    folder = tmp_path_factory.mktemp("networks")
    networks.Networks().make("lenet5bn", str(folder), onnx=False, int8=False)
    return folder


@pytest.fixture(scope="module")
def run():
    """A run of what is installed, on a CPU without AVX-512 where there is a way to have one: (rows, such a CPU)."""
    try:
        environment = cpu_mask.environment("avx2")
        avx2 = True
    except UserError:
        environment, avx2 = {}, False
    keys = ("adder_u8", "torch_fp32", "onnxruntime_int8", "openvino_int8")
    chosen = [BY_KEY[key] for key in keys if not BY_KEY[key].missing]
    said = []
    rows = latency.measure("lenet5bn", [2], [1], 2, chosen, said.append, said.append, environment, turn=0.001)
    assert said == ["lenet5bn: networks", "lenet5bn, batch 2, 1 thread"]
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


@pytest.mark.parametrize("key", [candidate.key for candidate in CANDIDATES if not candidate.packages])
@pytest.mark.parametrize("batch", [1, 17])
def test_a_contestant_computes_its_network(folder, monkeypatch, key, batch):
    checked = []
    check = candidates._check

    def note(candidate, logits, expected):
        checked.append((candidate.key, logits.shape, expected))
        check(candidate, logits, expected)

    monkeypatch.setattr(candidates, "_check", note)
    contestant = Contestant()
    about = contestant.open(key, str(folder), batch, 1)
    assert about["kernels"]
    assert about["versions"] == {"torch": torch.__version__}
    ((name, shape, expected),) = checked
    assert (name, shape) == (key, (batch, 10))
    known = networks.reference(folder)[BY_KEY[key].op]
    assert torch.equal(expected[:16], known[:batch])
    assert batch == 1 or torch.equal(expected[16], known[0])
    assert contestant.turn(0.001) > 0


@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.1), ("bf16", 0.4), ("int8", 0.8)])
def test_another_network_is_noticed(precision, share):
    candidate = Candidate("a", "a", "conv", "torch", precision, None)
    expected, other = torch.randn(2, 100, 10, generator=torch.Generator().manual_seed(0))
    candidates._check(candidate, expected, expected)
    with pytest.raises(RuntimeError, match="computes another network: cosine of the logits is 0"):
        candidates._check(candidate, expected + share * other, expected)
    with pytest.raises(RuntimeError, match="is nan"):
        candidates._check(candidate, expected * float("nan"), expected)


def test_a_turn_warms_up_and_fills_its_time(monkeypatch):
    class Clock:
        now = 0.0

    calls = []

    def call():
        calls.append(Clock.now)
        Clock.now += 0.25

    monkeypatch.setattr(candidates.time, "perf_counter", lambda: Clock.now)
    contestant = Contestant()
    with pytest.raises(RuntimeError, match="turn before open"):
        contestant.turn(1.0)
    contestant._session, contestant._each = candidates.Session(call, None, []), 0.5
    assert contestant.turn(2.0) == 0.25
    assert len(calls) == 2 + 4  # as many as 0.5 s each would be
    calls.clear()
    assert contestant.turn(2.0) == 0.25
    assert len(calls) == 4 + 8
    calls.clear()
    assert contestant.turn(0.001) == 0.25
    assert len(calls) == 1


class FakeProcess:
    """Answers from a script instead of measuring; ``log`` has every request of all of them, in order."""

    log: ClassVar[list] = []
    script: ClassVar[dict] = {}  # (key, method) -> answers in order; a text is an error, of which some are deaths

    def __init__(self, target, folder, environment):
        self.target, self.alive, self.key = target, True, None
        self.environment = environment

    def ask(self, method, seconds, **arguments):
        assert seconds == latency.PATIENCE
        self.key = arguments.get("key", self.key)
        self.log.append((self.key, method))
        answers = self.script.get((self.key, method))
        answer = answers.pop(0) if answers else {"make": None, "open": {"kernels": ["k"]}, "turn": 0.001}[method]
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
    said = []
    chosen = [BY_KEY[key] for key in keys]
    rows = latency.measure("lenet5bn", batches, threads, repetitions, chosen, lambda text: None, said.append)
    return rows, said


def test_candidates_take_turns(fake):
    fake.script["adder_u8", "turn"] = [0.001, 0.004, 0.002]
    fake.script["torch_fp32", "turn"] = [0.010, 0.010, 0.010]
    rows, said = measured(["adder_u8", "torch_fp32"], batches=(4,), repetitions=3)
    assert said == []
    opened = [(None, "make"), ("adder_u8", "open"), ("torch_fp32", "open")]
    assert fake.log == opened + [("adder_u8", "turn"), ("torch_fp32", "turn")] * 3
    ours, theirs = rows
    assert ours == {
        **{"model": "lenet5bn", "batch": 4, "threads": 1, "candidate": "adder_u8", "title": "AdderNet u8 (engine)"},
        **{"runtime": "engine", "precision": "u8", "milliseconds": 2.0, "images_per_second": 2000.0, "ratio": 1.0},
        **{"minimum_ms": 1.0, "spread": 1.5, "n": 3, "seconds": [0.001, 0.004, 0.002], "kernels": ["k"]},
    }
    assert (theirs["ratio"], theirs["spread"]) == (5.0, 0.0)


def test_without_the_integer_engine_there_is_no_ratio(fake):
    rows, _ = measured(["torch_fp32", "adder_fp32"])
    assert [row["ratio"] for row in rows] == [None, None]


def test_one_that_has_no_place_on_this_machine_is_no_row_and_no_word(fake):
    fake.script["openvino_bf16", "open"] = [None]
    rows, said = measured(["adder_u8", "openvino_bf16"])
    assert [row["candidate"] for row in rows] == ["adder_u8"]
    assert said == []


DYING = "its process was ended by SIGKILL"
FAILING = [  # method, its answers, lines, settings that it is in; of batch 1 and 2
    ("open", ["no memory"], ["no memory"], [2]),
    ("open", [DYING], [DYING], []),
    ("turn", [0.001, "a sum failed"], ["a sum failed"], [2]),
    ("turn", [0.001, DYING], [DYING], []),
]


@pytest.mark.parametrize(("method", "answers", "lines", "batches"), FAILING)
def test_the_others_go_on(fake, method, answers, lines, batches):
    fake.script["xnor", method] = answers
    rows, said = measured(["adder_u8", "xnor", "engine_int8", "torch_fp32"], batches=(1, 2))
    assert said == [f"XNOR (engine) is left out of lenet5bn, batch 1, 1 thread: {line}" for line in lines]
    assert [row["batch"] for row in rows if row["candidate"] == "xnor"] == batches
    for key in ("adder_u8", "torch_fp32"):
        assert [row["n"] for row in rows if row["candidate"] == key] == [2, 2]


def test_networks_that_cannot_be_made(fake):
    fake.script[None, "make"] = ["ValueError: no"]
    with pytest.raises(UserError, match=r"^lenet5bn: the networks could not be made: ValueError: no$"):
        measured(["adder_u8"])


def test_what_is_not_installed_is_left_out_in_one_line(monkeypatch):
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: None)
    said = []
    assert [candidate.key for candidate in latency.present(said.append)] == [
        *("adder_fp32", "adder_u8", "xnor", "engine_int8", "torch_fp32")
    ]
    (line,) = said
    assert line.startswith("left out: CNN, ONNX Runtime fp32; CNN, ONNX Runtime int8; CNN, OpenVINO fp32; ")
    assert line.endswith("onnx, onnxscript, onnxruntime, openvino not installed: pip install 'torchadder[bench]'")
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: name)
    assert latency.present(said.append) == list(CANDIDATES)
    assert len(said) == 1
