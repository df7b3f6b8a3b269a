"""Calls that go straight to an operator, and those for which the dispatcher has something to do."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchadder import ops
from torchadder.functional import adder_conv2d
from torchadder.ops.geometry import Geometry
from torchadder.ops.straight import keys_of_plain

GEOMETRY = Geometry((1, 1), (0, 0), (1, 1))
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def tensors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 5, 4, generator=generator), torch.randn(4, 3, 3, 2, generator=generator)


class Seen(TorchDispatchMode):
    """The operators of ours that were dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "torchadder":
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_keys_of_plain_tensors():
    cpu, cuda = keys_of_plain("CPU"), keys_of_plain("CUDA")
    assert cpu == torch._C._dispatch_keys(torch.empty(0)).raw_repr()
    assert cuda != cpu
    assert bin(cuda).count("1") == bin(cpu).count("1")


def through_vmap(x, weight):
    seen = []
    torch.vmap(lambda image: seen.append(ops.passes_through(image[None], weight, None)) or image)(x)
    return seen[0]


def through_trace(x, weight):
    seen = []
    torch.jit.trace(lambda image: seen.append(ops.passes_through(image, weight, None)) or image + 1, (x,))
    return seen[0]


def through_profiler(x, weight):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        return ops.passes_through(x, weight, None)


def through_mode(x, weight):
    with Seen():
        return ops.passes_through(x, weight, None)


def fake(x, weight):
    with FakeTensorMode() as mode:
        return ops.passes_through(mode.from_tensor(x), mode.from_tensor(weight), None)


WAYS = {  # a call -> whether it may go straight
    "plain": (lambda x, w: ops.passes_through(x, w, None), True),
    "parameter": (lambda x, w: ops.passes_through(x.requires_grad_(), torch.nn.Parameter(w), None), True),
    "autocast": (lambda x, w: torch.autocast("cpu")(ops.passes_through)(x, w, None), True),
    "negated view": (lambda x, w: ops.passes_through(torch.complex(x, x).conj().imag, w, None), False),
    "negated parameter": (lambda x, w: ops.passes_through(x, torch.nn.Parameter(torch._neg_view(w)), None), False),
    "meta": (lambda x, w: ops.passes_through(x, torch.nn.Parameter(w.to("meta")), None), False),
    "sparse": (lambda x, w: ops.passes_through(x.to_sparse(), w, None), False),
    "fake": (fake, False),
    "vmap": (through_vmap, False),
    "jit.trace": (through_trace, False),
    "profiler": (through_profiler, False),
    "dispatch mode": (through_mode, False),
}


@pytest.mark.parametrize(("call", "straight"), WAYS.values(), ids=WAYS.keys())
def test_straight_only_where_nothing_else_is_to_be_done(call, straight):
    assert call(*tensors()) is straight


def test_both_ways_give_the_same_bits():
    x, weight = tensors()
    with Seen() as seen:
        dispatched = ops.adder_conv(x, weight, None, GEOMETRY, False)
        grads = [
            ops.adder_conv_grad_input(dispatched, x, weight, GEOMETRY, "hardtanh"),
            ops.adder_conv_grad_weight(dispatched, x, weight, GEOMETRY, "full"),
        ]
    assert seen.names == [
        "torchadder::adder_conv",
        "torchadder::adder_conv_grad_input",
        "torchadder::adder_conv_grad_weight",
    ]
    assert torch.equal(dispatched, ops.adder_conv(x, weight, None, GEOMETRY, False))
    assert torch.equal(grads[0], ops.adder_conv_grad_input(dispatched, x, weight, GEOMETRY, "hardtanh"))
    assert torch.equal(grads[1], ops.adder_conv_grad_weight(dispatched, x, weight, GEOMETRY, "full"))


def test_a_lazily_negated_input_is_negated():
    x, weight = tensors()
    view = torch.complex(x, x).conj().imag
    assert view.is_neg()
    assert torch.equal(adder_conv2d(view, weight.requires_grad_()), adder_conv2d(-x, weight))


def test_the_profiler_sees_the_operator():
    x, weight = tensors()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        adder_conv2d(x, weight.requires_grad_())
    assert "torchadder::adder_conv" in {event.key for event in profile.key_averages()}
