"""Test native code in the processes that people have: defaults, copies, forks, threads, interrupts, the end."""

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from torchadder import AdderConv1d, AdderConv2d, AdderLinear, BinaryConv2d, create_model, kernels, quantize
from torchadder.engine import Classifier, Engine
from torchadder.errors import UserError
from torchadder.functional import GradientRule
from torchadder.quant.program import Program

SECONDS = 60  # after which a child that hangs is ended


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def path(tmp_path_factory, images):
    """Return a file of all kinds of layers with preprocessing."""
    torch.manual_seed(0)
    network = create_model("lenet5bn", in_chans=3).eval()
    network.conv1, network.conv2 = BinaryConv2d(3, 6, 5, bias=False), nn.Conv2d(6, 16, 5, bias=False)
    path = tmp_path_factory.mktemp("program") / "net.tadder"
    quantize(network, [images], method="max").save(path, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    return path


def gradients(layer, x):
    y = layer(x := x.clone().requires_grad_())
    y.backward(torch.ones_like(y))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.fixture(scope="module")
def calls(path, images):
    """Return calls that reach each native function, by name: () -> tensors."""
    torch.manual_seed(0)
    pixels = (images * 50 + 128).clamp(0, 255).byte()
    engine, keeps = Engine(path, threads=2), Engine(path, threads=2, keep_values=True)
    program, large = Program.load(path), torch.randn(8, 16, 32, 32)
    last = large.contiguous(memory_format=torch.channels_last)
    plain, sign = AdderConv2d(16, 24, 3, padding=1), AdderConv2d(16, 24, 3, grad=GradientRule("sign", "sign"))
    row, linear, binary = AdderConv1d(16, 8, 3), AdderLinear(1024, 40), BinaryConv2d(16, 8, 3)
    network = create_model("lenet5bn").eval()
    return {
        "engine": lambda: [engine(images)],
        "one image": lambda: [engine(images[:1])],
        "pixels": lambda: [engine(pixels), engine(pixels.numpy())],
        "quantized values": lambda: [engine(pixels, quantized=True), *keeps.values(images[:1])],
        "a new engine": lambda: [Engine(path, threads=2)(images)],
        "classifier": lambda: [Classifier(path).preprocessing.prepare(pixels[0].numpy()[:, 3:], (32, 32))],
        "program": lambda: [program(images), program(images.double()), Program.load(path)(images)],
        "quantize": lambda: [quantize(network, [images[:, :1]])(images[:, :1])],
        "layer": lambda: gradients(plain, large),
        "channels last": lambda: gradients(plain, last),
        "sign": lambda: gradients(sign, large) + gradients(sign, last),
        "row": lambda: gradients(row, large.flatten(2)),
        "linear": lambda: gradients(linear, large.flatten(2)[:, 0]),
        "binary": lambda: gradients(binary, large),
    }


NAMES = [
    *("engine", "one image", "pixels", "quantized values", "a new engine", "classifier", "program", "quantize"),
    *("layer", "channels last", "sign", "row", "linear", "binary"),
]


def equal(found, want):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, want, strict=True))


# Defaults of the process


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "with meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_defaults_change_no_bit(name, default, calls):
    want = calls[name]()
    with DEFAULTS[default]():
        found = calls[name]()
    assert equal(found, want)


# Copies


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda engine: pickle.loads(pickle.dumps(engine)),
    "module": lambda engine: copy.deepcopy(nn.ModuleDict({"layer": Holder(engine)}))["layer"].engine,
}


class Holder(nn.Module):
    """Hold an engine as an attribute."""

    def __init__(self, engine):
        super().__init__()
        self.engine = engine


@pytest.mark.parametrize("keep_values", [False, True])
@pytest.mark.parametrize("make", COPIES)
def test_a_copy_is_an_engine_of_its_own(make, keep_values, path, images):
    engine = Engine(path, threads=2, isa="reference", keep_values=keep_values)
    want, about, kernels = engine(images), vars(engine).copy(), engine.kernels()
    found = COPIES[make](engine)
    engine.close()
    for one in (found, COPIES[make](found)):
        assert torch.equal(one(images), want)
        assert one.kernels() == kernels
        assert all(getattr(one, name) == about[name] for name in about if not name.startswith("_"))
        assert not keep_values or one.values(images[:1])
    assert torch.equal(found(images), want)


def test_a_copy_of_a_classifier_and_one_in_another_process(path, images):
    classifier = Classifier(path, threads=1)
    want = classifier.engine(images)
    found = copy.deepcopy(classifier)
    classifier.engine.close()
    assert found.names == classifier.names
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert torch.equal(pool.submit(found.engine, images.numpy()).result(), want)


CLOSED = {
    "call": lambda engine, images: engine(images),
    "profile": lambda engine, images: engine.profile(images),
    "values": lambda engine, images: engine.values(images[:1]),
    "kernels": lambda engine, images: engine.kernels(),
    "benchmark": lambda engine, images: engine.benchmark(1, 1),
    "copy": lambda engine, images: copy.copy(engine),
    "pickle": lambda engine, images: pickle.dumps(engine),
}


@pytest.mark.parametrize("use", CLOSED)
def test_a_closed_engine_says_so(use, path, images):
    with Engine(path, threads=1) as engine:
        engine(images)
    engine.close()
    with pytest.raises(UserError, match=r"^the engine is closed: make a new one"):
        CLOSED[use](engine, images)
    assert engine.shape == (3, 32, 32)


# Forks


def in_child(work):
    """Return True if ``work``, run in a fork of this process, returns True within SECONDS."""
    if not (child := os.fork()):
        signal.alarm(SECONDS)
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


needs_openmp = pytest.mark.skipif(
    not kernels.library().torchadder_has_threads(), reason="without OpenMP no handler ends torch's pool at a fork"
)


@needs_openmp
@pytest.mark.parametrize("name", NAMES)
def test_a_fork_computes_the_same(name, calls):
    """Test a child and its child, after this process has used the pool of OpenMP, which both lack."""
    want = calls[name]()
    assert in_child(lambda: equal(calls[name](), want) and in_child(lambda: equal(calls[name](), want)))
    assert equal(calls[name](), want)


@needs_openmp
@pytest.mark.parametrize("name", ["one image", "a new engine", "sign"])
def test_a_fork_beside_a_running_call(name, calls):
    """Test that the child inherits no lock that the other thread held."""
    want, stop = calls[name](), threading.Event()

    def run():
        while not stop.is_set():
            calls[name]()

    other = threading.Thread(target=run)
    other.start()
    try:
        assert all(in_child(lambda: equal(calls[name](), want)) for _ in range(10))
    finally:
        stop.set()
        other.join()


# Threads and interrupts


def count_threads():
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_threads_that_come_and_go_leave_nothing_behind(calls):
    want = calls["engine"]()
    before = count_threads()
    for _ in range(8):
        with ThreadPoolExecutor(8) as pool:
            assert all(equal(found, want) for found in pool.map(lambda _: calls["engine"](), range(16)))
    end = time.monotonic() + SECONDS
    while count_threads() > before:  # OpenMP ends the pool of a thread soon after the thread
        assert time.monotonic() < end
        os.sched_yield()


def test_close_beside_running_calls(path, images):
    engine = Engine(path, threads=2)
    want = engine(images)

    def run():
        try:
            while True:
                assert torch.equal(engine(images), want)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(run) for _ in range(2)]
        engine(images)
        engine.close()
        assert all("closed" in one.result() for one in running)


@pytest.mark.parametrize("name", ["engine", "layer"])
def test_an_interrupt_leaves_nothing_locked(name, calls):
    want = calls[name]()

    def run(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while True:
            calls[name]()

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for seconds in np.linspace(0.001, 0.02, 10):
            with pytest.raises(KeyboardInterrupt):
                run(seconds)
            assert equal(calls[name](), want)
    finally:
        signal.signal(signal.SIGALRM, before)


# Processes of their own

SCRIPTS = {
    "a fork before the library is used": """
        torch.randn(512, 512).mm(torch.randn(512, 512)), torch.randn(4, 512, 512).transpose(1, 2).contiguous()
        child = os.fork()
        if not child:
            signal.alarm(60)
            Engine(path, threads=2)(torch.zeros(1, 3, 32, 32))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0""",
    "an engine at the end": "engine = Engine(path); engine(images)",
    # The thread calls no operator of torch: one that waits for Python's lock when the interpreter ends aborts in torch.
    "an engine that runs at the end": """
        engine = Engine(path, threads=2)
        native, logits = torchadder.kernels.library(), torch.empty(len(images), engine.classes)
        pointers = engine._handle, images.data_ptr(), len(images), logits.data_ptr(), None
        started = threading.Event()
        def run():
            while not native.torchadder_engine_run_f32(*pointers):
                started.set()
        threading.Thread(target=run, daemon=True).start()
        assert started.wait(60)
        engine(images)""",
    "a cycle that holds an engine": "engine = Engine(path); engine.cycle = engine; del engine",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script, path):
    head = "import os, signal, threading, torch, torchadder\nfrom torchadder import Engine\ntorch.set_num_threads(2)\n"
    body = "\n".join(line.removeprefix(" " * 8) for line in SCRIPTS[script].splitlines())
    program = f"{head}path, images = {str(path)!r}, torch.zeros(4, 3, 32, 32)\n{body}\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=4 * SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
