"""Test that the number of threads changes no bit."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from torchadder import kernels, ops
from torchadder.bruteforce import Case
from torchadder.ops.geometry import Geometry

CASES = {  # each has work for three threads
    "3x3": Case(5, 16, 33, size=(17, 13), kernel=(3, 3), padding=(1, 1)),
    "batch 1": Case(1, 64, 67, size=(8, 7), kernel=(3, 3), padding=(1, 1)),
    "batch 1, stride 2": Case(1, 61, 64, size=(13, 13), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "batch 1, 1x1": Case(1, 128, 67, size=(8, 8), kernel=(1, 1)),
    "batch 1, 1x1 output": Case(1, 31, 67, size=(5, 5), kernel=(5, 5)),
    "linear, batch 1": Case(1, 1031, 513, size=(1, 1), kernel=(1, 1)),
    "linear": Case(37, 256, 129, size=(1, 1), kernel=(1, 1)),
    "2 groups": Case(3, 32, 34, size=(11, 11), kernel=(3, 3), padding=(1, 1), groups=2),
    "groups of 4": Case(3, 132, 132, size=(17, 16), kernel=(3, 3), padding=(1, 1), groups=33),
    "depthwise": Case(7, 67, 67, size=(17, 16), kernel=(3, 3), padding=(1, 1), groups=67),
    "depthwise, batch 1": Case(1, 131, 131, size=(23, 22), kernel=(5, 5), padding=(2, 2), groups=131),
    "a volume": Case(2, 17, 33, size=(7, 9, 8), kernel=(3, 3, 3), padding=(1, 1, 1)),
    "a row": Case(3, 17, 33, size=(257,), kernel=(7,), padding=(3,)),
    "33 images": Case(33, 9, 16, size=(8, 8), kernel=(3, 3)),
}


def results(case, x, weight, grad):
    yield ops.adder_conv(x, weight, torch.ones(case.c_out), case.geometry, False)
    for rule in ("hardtanh", "sign"):
        yield ops.adder_conv_grad_input(grad, x, weight, case.geometry, rule)
    yield ops.adder_conv_grad_weight(grad, x, weight, case.geometry, "sign")


@pytest.mark.skipif(not kernels.library().torchadder_has_threads(), reason="the library was built without threads")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_thread_equals_many_bit_for_bit(case, variant, threads):
    tensors = case.tensors()
    threads(1)
    one = list(results(case, *tensors))
    for count in (2, 3, 7):
        threads(count)
        for found, expected in zip(results(case, *tensors), one, strict=True):
            assert torch.equal(found, expected), count


def test_simultaneous_calls_are_independent(variant, threads):
    """Test many Python threads in the library at the same time, with many shapes (calls release the GIL)."""
    threads(1)
    cases = [
        Case(2, 5, 9, size=(5 + i, 7), kernel=(3, 2), stride=(1 + i % 3, 1), padding=(1, i % 2)) for i in range(40)
    ]
    tensors = [case.tensors() for case in cases]
    expected = [list(results(case, *t)) for case, t in zip(cases, tensors, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [list(results(c, *t)) for c, t in zip(cases, tensors, strict=True)], range(8)):
            for ours, theirs in zip(found, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_more_shapes_than_the_library_caches(threads):
    first = Case(1, 2, 3, size=(4, 5), kernel=(2, 3)), Case(1, 2, 3, size=(5, 4), kernel=(2, 3))
    before = [list(results(case, *case.tensors())) for case in first]
    for width in range(3, 603):
        ops.adder_conv(
            torch.ones(1, 1, 3, width), torch.ones(1, 1, 3, 3), None, Geometry((1, 1), (0, 0), (1, 1), 1), False
        )
    for case, expected in zip(first, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(results(case, *case.tensors()), expected, strict=True))


def test_number_of_threads_is_that_of_torch(threads):
    threads(1)
    assert kernels.threads() == 1
    threads(3)
    assert kernels.threads() == (3 if kernels.library().torchadder_has_threads() else 1)
