"""Test on a real GPU: the brute-force reference, the CPU's results, CUDA graphs, a network in training."""

import pytest
import torch
import torch.nn.functional as F
from tests.ops.test_conv import CASES, UNIT, assert_all_equal, exact

from torchadder import create_model, ops
from torchadder.bruteforce import Case
from torchadder.ops import triton

if not torch.cuda.is_available():
    pytest.skip("no GPU that torch can use", allow_module_level=True)

GPU = torch.device("cuda")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LARGE = {
    "ResNet-20": Case(32, 16, 16, size=(32, 32), kernel=(3, 3), padding=(1, 1)),
    "ResNet-18, stride 2": Case(8, 128, 256, size=(28, 28), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "ResNet-50, 1x1": Case(4, 1024, 256, size=(14, 14), kernel=(1, 1)),
    "depthwise": Case(4, 144, 144, size=(56, 56), kernel=(3, 3), padding=(1, 1), groups=144),
}


@pytest.fixture
def route():
    if problem := triton.problem():
        pytest.skip(problem)
    return triton.route()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS.keys())
def test_equals_brute_force_where_float32_is_exact(case, layout, route):
    x, weight, grad, truth = exact(case)
    if len(case.size) == 2:
        x, weight, grad = (t.contiguous(memory_format=layout) for t in (x, weight, grad))
    assert_all_equal(case, *(t.to(GPU) for t in (x, weight, grad)), type(truth)(*(t.to(GPU) for t in truth)))


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("benchmark", [False, True], ids=["first tile", "fastest tile"])
def test_agrees_with_the_cpu(case, layout, benchmark, route, monkeypatch):
    """Allow for the rounding of both: sums of n terms are wrong by at most (3 n + 8) UNIT times the sum of |terms|."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    x, weight, grad = (t.contiguous(memory_format=layout) for t in case.tensors())
    there = [t.to(GPU) for t in (x, weight, grad)]
    y = ops.adder_conv(x, weight, None, case.geometry, False)
    again = [ops.adder_conv(there[0], there[1], None, case.geometry, False) for _ in range(2)]
    assert torch.equal(*again)
    terms = weight[0].numel()
    size = (x.abs().max() + weight.abs().max()) * terms
    assert (again[0].cpu() - y).abs().max() <= 2 * (3 * terms + 8) * UNIT * size
    assert again[0].is_contiguous(memory_format=layout)

    dx = ops.adder_conv_grad_input(grad, x, weight, case.geometry, "hardtanh")
    again = [ops.adder_conv_grad_input(there[2], *there[:2], case.geometry, "hardtanh") for _ in range(2)]
    assert torch.equal(*again)
    terms = terms * case.c_out // case.c_in
    size = (1 + x.abs().max()) * grad.abs().max() * terms
    assert (again[0].cpu() - dx).abs().max() <= 2 * (3 * terms + 8) * UNIT * size


def test_a_captured_graph_replays(route):
    case = LARGE["ResNet-20"]
    x, weight, _ = (t.to(GPU) for t in case.tensors())
    expected = ops.adder_conv(x, weight, None, case.geometry, False)
    graph, there = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.cuda.graph(graph):
        y = ops.adder_conv(there, weight, None, case.geometry, False)
    there.copy_(x)
    graph.replay()
    assert torch.equal(y, expected)


def test_another_stream_waits_for_its_own_kernels_only(route):
    case = LARGE["ResNet-20"]
    x, weight, _ = (t.to(GPU) for t in case.tensors())
    expected = ops.adder_conv(x, weight, None, case.geometry, False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = ops.adder_conv(x, weight, None, case.geometry, False)
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_network_trains_as_on_the_cpu(compiled, route, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    model = create_model("lenet5bn")
    images, labels = torch.randn(16, *model.input_size), torch.randint(10, (16,))
    found = []
    for device in ("cpu", "cuda"):
        there = create_model("lenet5bn").to(device)
        there.load_state_dict(model.state_dict())
        step = torch.compile(there, fullgraph=True) if compiled else there
        F.cross_entropy(step(images.to(device)), labels.to(device)).backward()
        found.append({name: p.grad.cpu() for name, p in there.named_parameters()})
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_recentred_outputs_under_autocast_are_16_bits(route):
    model = create_model("resnet20", recenter=True).to(GPU)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t),
        torch.autocast("cuda", torch.bfloat16),
    ):
        loss = model(torch.randn(8, *model.input_size, device=GPU)).float().square().mean()
    loss.backward()
    assert torch.bfloat16 in kept
    assert all(p.grad.isfinite().all() for p in model.parameters())
