"""The CUDA C++ kernels, compiled for the CPU, launched as on a GPU, against brute force; and compiled for GPUs."""

import contextlib
import copy
import importlib.util
import math
import shutil
import subprocess

import pytest
import torch
from tests.bench.conftest import script
from tests.ops.gpu.on_cpu import COMPILER, MULTIPROCESSORS, Machine
from tests.ops.test_conv import CASES, ROUNDED, UNIT, assert_equal, by_filter, exact
from tests.ops.test_nan import CASES as POISONED
from tests.ops.test_nan import WHERE, dependence, poisoned

from torchadder.analysis.bruteforce import Case, brute_force
from torchadder.nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear
from torchadder.ops import gpu, registration
from torchadder.ops.gpu import cuda, nvrtc, tuning
from torchadder.ops.gpu.cuda import FORWARD_TILES, GRAD_INPUT_TILES, Tile
from torchadder.ops.plan import CHANNELS_LAST

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler at hand")

SMALL = Tile(16, 8, 4, 4, 1, 1.0)  # its edges are met by small cases
LAYOUTS = {
    "contiguous": dict.fromkeys(CHANNELS_LAST, torch.contiguous_format),
    "channels_last": CHANNELS_LAST,
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return Machine(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(autouse=True)
def on_cpu(machine, monkeypatch):
    monkeypatch.setattr(nvrtc, "launch", machine.launch)
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda: MULTIPROCESSORS)
    use_tiles(monkeypatch, SMALL)


def use_tiles(monkeypatch, *tiles):
    for name in ("FORWARD_TILES", "GRAD_INPUT_TILES"):
        monkeypatch.setattr(cuda, name, tiles)
    for choices in (cuda._of_forward, cuda._of_grad_input):
        choices.cache_clear()


@pytest.fixture(params=LAYOUTS)
def layouts(request, machine):
    """Either memory format, and either order of a block's threads between barriers."""
    machine.backwards = request.param == "channels_last"
    return LAYOUTS[request.param]


def lifted(case):
    """A row of pixels as an image of height 1, as the operators hand it on."""
    if len(case.size) != 1:
        return case
    stride, padding, dilation, _ = case.geometry.lifted()
    return Case(
        case.n, case.c_in, case.c_out, (1, *case.size), (1, *case.kernel), stride, padding, dilation, case.groups
    )


def results(case, x, weight, grad, layout):
    """Output, dX, dX of the sign rule, dW of the sign rule."""
    options = case.geometry, layout
    return (
        cuda.forward(x, weight, None, *options),
        cuda.grad_input(grad, x, weight, case.geometry, "hardtanh", layout),
        cuda.grad_input(grad, x, weight, case.geometry, "sign", layout),
        cuda.grad_weight_sign(grad, x, weight, *options),
    )


def assert_all_equal(case, tensors, truth, layout):
    found = results(case, *tensors, layout)
    for ours, theirs in zip(found, truth, strict=True):
        assert_equal(ours, theirs.view(ours.shape))
        assert ours.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("case", [lifted(case) for case in CASES.values()], ids=CASES.keys())
def test_equals_brute_force_where_float32_is_exact(case, layouts):
    layout = layouts[len(case.size)]
    x, weight, grad, truth = exact(case)
    assert_all_equal(case, [t.contiguous(memory_format=layout) for t in (x, weight, grad)], truth, layout)


def test_fully_connected():
    case = Case(37, 29, 23, size=(1, 1), kernel=(1, 1))
    x, weight, grad, truth = exact(case)
    flat = Case(37, 29, 23, size=(), kernel=())
    assert_all_equal(flat, [t.flatten(1) for t in (x, weight, grad)], truth, torch.contiguous_format)


STRIDED = Case(2, 8, 12, size=(7, 6), kernel=(3, 2), stride=(2, 1), padding=(1, 1), groups=2)
STRANGE = {
    "every second element": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "images innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "an address that is no multiple of 16 bytes": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t),
    "expanded": lambda t: t[:1, :1].expand_as(t),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE.keys())
def test_any_strides_of_memory(strange, layouts):
    last = [t.contiguous(memory_format=layouts[2]) for t in exact(STRIDED)[:3]]
    tensors = [strange(t) for t in last]
    assert_all_equal(STRIDED, tensors, brute_force(STRIDED, *tensors), layouts[2])


BEYOND = Case(2, 20, 132, size=(9, 8), kernel=(3, 3), stride=(2, 1), padding=(1, 1))  # the edges of every tile


@pytest.mark.parametrize("tile", sorted({*FORWARD_TILES, *GRAD_INPUT_TILES}), ids=str)
def test_every_tile(tile, monkeypatch):
    use_tiles(monkeypatch, tile)
    x, weight, grad, truth = exact(BEYOND)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad)]
    y = truth.output
    if tile in FORWARD_TILES:
        assert_equal(cuda.forward(last[0], last[1], None, BEYOND.geometry, torch.channels_last), y)
    if tile in GRAD_INPUT_TILES:
        back = Case(2, 132, 20, size=(9, 8), kernel=(3, 3), stride=(2, 1), padding=(1, 1))
        x, weight, grad, truth = exact(back)
        last = [t.contiguous(memory_format=torch.channels_last) for t in (grad, x, weight)]
        assert_equal(cuda.grad_input(*last, back.geometry, "hardtanh", torch.channels_last), truth.grad_input)


def test_the_tile_does_not_change_a_bit(monkeypatch):
    case = Case(3, 12, 20, size=(5, 7), kernel=(3, 3), padding=(1, 1))
    found = []
    for tile in (SMALL, Tile(8, 16, 8, 4, 1, 1.0)):
        use_tiles(monkeypatch, tile)
        found.append(results(case, *case.tensors(), torch.contiguous_format))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_rounded_once(dtype, layouts):
    """On the grid on which sums are exact in float32."""
    case = CASES["stride 2"]
    x, weight, grad, truth = exact(case)
    x, grad = (t.to(dtype).contiguous(memory_format=layouts[2]) for t in (x, grad))
    y, dx, dx_sign, dw = results(case, x, weight, grad, layouts[2])
    for ours, theirs in ((y, truth.output), (dx, truth.grad_input), (dx_sign, truth.grad_input_sign)):
        assert torch.equal(ours, theirs.to(dtype))
    assert_equal(dw, truth.grad_weight_sign)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e-42, 3e38, 0.1, -0.3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_16_bits_is_torchs(value, dtype):
    """|0 - 0| subtracted from a bias is the bias."""
    y = cuda.forward(
        torch.zeros(1, 1, 1, 1, dtype=dtype),
        torch.zeros(1, 1, 1, 1),
        torch.tensor([value]),
        Case(1, 1, 1, (1, 1), (1, 1)).geometry,
        torch.contiguous_format,
    )
    torch.testing.assert_close(y.flatten(), torch.tensor([value]).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [4, 12, 16])
def test_bytes_are_summed_four_at_a_time(channels, kernel):
    case = Case(2, channels, 10, size=(6, 5), kernel=(kernel, kernel), stride=(2, 1), padding=(1, 1))
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(256, t.shape, dtype=torch.uint8, generator=generator) for t in case.tensors()[:2])
    words = script("gpu_u8").words
    y = cuda.forward(words(x), words(weight), None, case.geometry, torch.channels_last)
    assert torch.equal(y.double(), brute_force(case, x, weight, case.tensors()[2]).output)


def test_bias_is_added_once():
    case = CASES["3 groups, stride 2"]
    x, weight, _, truth = exact(case)
    bias = torch.arange(case.c_out).float()
    y = cuda.forward(x, weight, bias, case.geometry, torch.contiguous_format)
    assert_equal(y, truth.output + by_filter(case, bias).double())


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("case", POISONED.values(), ids=POISONED.keys())
def test_nan_reaches_what_depends_on_it(case, where, layouts):
    x, weight, grad = (t.contiguous(memory_format=layouts[2]) for t in poisoned(case, where, math.nan))
    depends = dependence(case, x, weight, grad)
    y, hardtanh, sign, dw = results(case, x, weight, grad, layouts[2])
    assert torch.equal(y.isnan(), depends.output)
    assert torch.equal(dw.isnan(), depends.grad_weight)
    for dx in (hardtanh.isnan(), sign.isnan()):
        may = depends.grad_input
        assert dx[may].all()
        if where == "weight":  # may spread over the input channel, border pixels too
            may = may.any(-1).any(-1).any(0)[:, None, None].expand_as(dx)
        assert not dx[~may].any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("case", [lifted(case) for case in ROUNDED.values()], ids=ROUNDED.keys())
def test_rounding_stays_within_the_derived_bound(case, scale):
    """A sum of n terms is wrong by at most n UNIT sum |term|; 1/2 - x/2 + w/2 by UNIT (1 + |x| + |clamped w|)."""
    x, weight, grad = case.tensors()
    x, weight = x * scale, weight * scale
    truth = brute_force(case, x, weight, grad)
    y, dx, dx_sign, dw = (t.double() for t in results(case, x, weight, grad, torch.contiguous_format))

    terms = weight[0].numel()
    assert ((y - truth.output).abs() <= (terms + 2) * UNIT * truth.output.abs()).all()

    terms = terms * case.c_out // case.c_in
    above = torch.full_like(weight, 1e9)  # sign(above - x) = 1: brute force sums |dY| itself
    total = brute_force(case, x, above, grad.abs()).grad_input_sign
    assert ((dx - truth.grad_input).abs() <= (3 * terms + 8) * UNIT * (1 + x.double().abs()) * total).all()
    assert ((dx_sign - truth.grad_input_sign).abs() <= terms * UNIT * total).all()

    terms = grad[:, 0].numel()
    total = grad.double().abs().transpose(0, 1).flatten(1).sum(1).view(-1, *[1] * (weight.dim() - 1))
    assert ((dw - truth.grad_weight_sign).abs() <= terms * UNIT * total).all()


def test_zero_gradient():
    case = CASES["primes"]
    x, weight, grad = case.tensors()
    _, *gradients = results(case, x, weight, torch.zeros_like(grad), torch.contiguous_format)
    assert all((gradient == 0).all() for gradient in gradients)


def test_no_images():
    case = Case(1, 3, 5, size=(4, 4), kernel=(3, 3))
    x, weight, grad = case.tensors()
    y, dx, dx_sign, dw = results(case, x[:0], weight, grad[:0], torch.contiguous_format)
    assert (y.shape, dx.shape, dx_sign.shape) == ((0, 5, 2, 2), (0, 3, 4, 4), (0, 3, 4, 4))
    assert torch.equal(dw, torch.zeros(5, 3, 3, 3))


def test_more_pixels_than_32_bits_count():
    x = torch.empty(1 << 16, 4, 256, 256, device="meta")
    geometry = Case(1, 1, 1, (1, 1), (1, 1)).geometry
    with pytest.raises(ValueError, match=r"4294967296 pixels.*split the batch"):
        cuda.grad_input(x, x, torch.zeros(4, 4, 1, 1), geometry, "hardtanh", torch.contiguous_format)


# Behind the operators


LAYERS = {
    "1-d": (AdderConv1d(6, 10, 3, stride=2, padding=1, groups=2), (3, 6, 11)),
    "2-d": (AdderConv2d(6, 10, 3, padding=1), (3, 6, 5, 4)),
    "3-d": (AdderConv3d(2, 3, 2), (2, 2, 3, 4, 3)),
    "linear": (AdderLinear(12, 5), (7, 12)),
}


@pytest.mark.parametrize(("layer", "size"), LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_compute_and_train_as_on_the_cpu(layer, size, dtype, monkeypatch, machine):
    layer = copy.deepcopy(layer)
    layer.recenter = dtype != torch.float32
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    plan_of = registration.plan_of
    outcomes = []
    for on_gpu in (False, True):
        if on_gpu:
            monkeypatch.setattr(registration, "plan_of", lambda *a, **k: plan_of(*a, **k)._replace(native=False))
            monkeypatch.setattr(gpu, "runs", lambda tensor: True)
            monkeypatch.setattr(gpu, "route", lambda: "cuda")
            machine.launched.clear()
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            y = layer(inputs)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
        outcomes.append((y.detach(), inputs.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    assert [kernel.macro for kernel in machine.launched] == ["FORWARD", "GRAD_INPUT"]
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-4}
    for ours, theirs in zip(*outcomes, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


# Which kernel


def test_many_channels_get_a_wide_tile_and_few_pixels_a_small_one(monkeypatch):
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda: 132)
    tiles = {
        (1 << 20, 256): FORWARD_TILES[0],
        (1 << 20, 64): FORWARD_TILES[2],
        (1 << 20, 16): FORWARD_TILES[6],
        (128 * 64, 64): FORWARD_TILES[5],  # ResNet-20's last layers: most multiprocessors get two blocks
    }
    for (pixels, channels), tile in tiles.items():
        assert min(FORWARD_TILES, key=lambda one: cuda._clocks(one, pixels, channels, 1)) == tile


def test_depthwise_computes_an_element_a_thread(machine):
    case = CASES["depthwise"]
    results(case, *case.tensors(), torch.contiguous_format)
    functions = [kernel.function for kernel in machine.launched[-4:]]
    assert functions == ["forward_narrow", "grad_input_narrow", "grad_input_narrow", "grad_weight_sign_split"]


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """torch.backends.cudnn.benchmark on, an empty cache, and a clock by which the last kernel is the fastest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    measured = []

    def measure(call, tensors):
        measured.append(call)
        return 1.0 / len(measured)

    monkeypatch.setattr(tuning, "_measure", measure)
    tuning._kept.cache_clear()
    yield measured
    tuning._kept.cache_clear()


def test_the_fastest_tile_is_measured_once_and_kept(benchmark, machine, monkeypatch):
    tiles = (SMALL, Tile(8, 16, 8, 4, 1, 0.9))
    case = CASES["primes"]
    x, weight, _, truth = exact(case)
    for process in range(2):
        use_tiles(monkeypatch, *tiles)
        tuning._kept.cache_clear()
        for _ in range(2):
            assert_equal(cuda.forward(x, weight, None, case.geometry, torch.contiguous_format), truth.output)
        assert len(benchmark) == 2, process
        assert machine.launched[-1] == benchmark[-1].kernel


# Compiled for GPUs: no GPU is needed


def production_kernels():
    """One of each tile, and one of each kind of element."""
    flags = (True, True, False, True)
    for tile in FORWARD_TILES:
        yield nvrtc.Kernel(
            "FORWARD", tile.threads, tile.resident, "forward_tile", ("float", *tile[:4], *flags), "float"
        )
    for tile in GRAD_INPUT_TILES:
        arguments = ("HardTanh", "Bfloat", *tile[:4], *flags, True)
        yield nvrtc.Kernel("GRAD_INPUT", tile.threads, tile.resident, "grad_input_tile", arguments, "Bfloat")
    yield nvrtc.Kernel("FORWARD", 256, 1, "forward_narrow", ("Half", True), "Half")
    yield nvrtc.Kernel("GRAD_INPUT", 256, 1, "grad_input_narrow", ("Sign", "float", False), "float")
    yield nvrtc.Kernel("GRAD_WEIGHT_SIGN", 256, 1, "grad_weight_sign_split", ("float",), "float")
    tile = FORWARD_TILES[0]
    arguments = ("unsigned", *tile[:4], *flags)
    yield nvrtc.Kernel("FORWARD", tile.threads, tile.resident, "forward_tile", arguments, "unsigned")
    yield nvrtc.Kernel("ISSUE", 256, 2, "issue", (), "float")


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="no cuda.core at hand")
def test_nvrtc_compiles_every_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kernel in production_kernels():
        assert nvrtc.compile(kernel, "sm_90").code
    assert nvrtc.compile(kernel, "sm_80").code


def test_what_does_not_compile_is_said_in_a_line(monkeypatch):
    def compile(kernel, architecture):
        raise OSError("libnvrtc is not there")

    monkeypatch.setattr(nvrtc, "compile", compile)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(RuntimeError, match=r"load for sm_90 \(libnvrtc is not there\): set TORCHADDER_GPU=triton"):
        nvrtc._loaded(next(production_kernels()), 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured: run the layer once before it"):
        nvrtc._loaded(next(production_kernels()), 0)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc at hand")
def test_nvcc_compiles_every_kernel(tmp_path):
    lines = [kernel.instance(f"kernel{i}") for i, kernel in enumerate(production_kernels())]
    file = tmp_path / "kernels.cu"
    file.write_text("\n".join([nvrtc.source(), *lines]))
    command = ["nvcc", "-arch=sm_90", "-std=c++17", "-cubin", "-o", tmp_path / "kernels.cubin", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
