"""Test the Triton kernels in the interpreter against the brute-force reference, and compile them for GPUs."""

import importlib.util
from functools import partial

import pytest
import torch
from tests.ops.compiled import compiling, hottest_loop
from tests.ops.test_conv import CASES, UNIT, assert_equal, by_filter, exact
from tests.ops.test_nan import WHERE, poisoned

from torchadder.bruteforce import Case, Gradients, brute_force
from torchadder.ops.geometry import Geometry

pytest.importorskip("triton", reason="needs Triton")

from torchadder.ops import triton as route
from torchadder.ops import triton_kernels
from torchadder.ops.geometry import CHANNELS_LAST
from torchadder.ops.triton import Tile

NAMES = (  # the interpreter takes a second for what a GPU does in microseconds
    *("1 of everything", "1x1 kernel", "1x1 kernel, stride 2", "stride 3, last pixels unused"),
    *("stride above the kernel", "dilation and stride", "padding above the image"),
    *("groups, 1x1 kernel", "1-d, stride 3, dilation 2", "3-d, 1x1x1 kernel"),
)
TABLE = {name: CASES[name] for name in NAMES} | {
    "stride 2": Case(3, 5, 6, size=(4, 5), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "primes": Case(2, 5, 3, size=(5, 7), kernel=(2, 3), padding=(0, 1)),
    "no axes": Case(17, 37, 11, size=(), kernel=()),
    "67 filters of 65 channels": Case(2, 65, 67, size=(1, 3), kernel=(1, 1)),
    "3-d, all different": Case(
        1, 4, 6, size=(3, 5, 4), kernel=(2, 3, 1), stride=(1, 2, 3), padding=(2, 0, 1), dilation=(3, 2, 1), groups=2
    ),
}
NARROW = {
    "depthwise, stride 2": Case(3, 3, 3, size=(5, 4), kernel=(3, 2), stride=(2, 2), padding=(1, 1), groups=3),
    "groups of 1 channel, 3 filters": Case(2, 2, 6, size=(4, 5), kernel=(3, 2), padding=(3, 3), groups=2),
    "groups of 3 channels, 1 filter": Case(2, 6, 2, size=(4, 5), kernel=(3, 2), padding=(1, 1), groups=2),
    "3-d, depthwise": Case(2, 3, 3, size=(4, 3, 5), kernel=(2, 1, 3), padding=(1, 0, 1), groups=3),
}
LAYOUTS = {
    "contiguous": dict.fromkeys(CHANNELS_LAST, torch.contiguous_format),
    "channels_last": CHANNELS_LAST,
}
GENERAL = Case(2, 32, 16, size=(5, 4), kernel=(2, 2), stride=(2, 1), padding=(1, 1), groups=2)
DEPTHWISE = Case(2, 2, 4, size=(5, 4), kernel=(2, 2), stride=(2, 1), padding=(1, 1), groups=2)
KERNELS = ("output", "grad_input", "grad_weight_sign")  # each once
both = pytest.mark.parametrize("case", [GENERAL, DEPTHWISE], ids=["tiles", "narrow"])


@pytest.fixture(scope="module")
def interpreted():
    """Load a copy of the kernels' module: TRITON_INTERPRET decides, when it is imported, that they are interpreted."""
    spec = importlib.util.spec_from_file_location("interpreted_kernels", triton_kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def few_programs(interpreted, monkeypatch, one_thread):
    monkeypatch.setattr(route, "kernels", lambda: interpreted)
    monkeypatch.setattr(route, "_MIN_PROGRAMS", 1)


@pytest.fixture(params=LAYOUTS)
def layouts(request):
    return LAYOUTS[request.param]


def results(case, x, weight, grad, layout=torch.contiguous_format, names=Gradients._fields):
    """Return the results that `names` lists, named as in bruteforce.Gradients."""
    geometry = case.geometry
    calls = {
        "output": lambda: route.forward(x, weight, None, geometry, False, layout),
        "grad_input": lambda: route.grad_input(grad, x, weight, geometry, "hardtanh", layout),
        "grad_input_sign": lambda: route.grad_input(grad, x, weight, geometry, "sign", layout),
        "grad_weight_sign": lambda: route.grad_weight_sign(grad, x, weight, geometry, layout),
    }
    return {name: calls[name]() for name in names}


def assert_all_equal(case, tensors, truth, layout=torch.contiguous_format, names=Gradients._fields):
    for name, found in results(case, *tensors, layout, names).items():
        assert found.is_contiguous(memory_format=layout)
        assert_equal(found, getattr(truth, name))


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_equals_brute_force_where_float32_is_exact(case):
    *tensors, truth = exact(case)
    assert_all_equal(case, tensors, truth)


@pytest.mark.parametrize("case", NARROW.values(), ids=NARROW.keys())
def test_narrow_groups_in_either_memory_format(case, layouts):
    *tensors, truth = exact(case)
    layout = layouts[len(case.size)]
    assert_all_equal(case, [t.contiguous(memory_format=layout) for t in tensors], truth, layout)


def test_channels_last():
    *tensors, truth = exact(GENERAL)
    last = torch.channels_last
    assert_all_equal(GENERAL, [t.contiguous(memory_format=last) for t in tensors], truth, last, KERNELS)


@both
def test_any_strides(case):
    *tensors, truth = exact(case)
    gapped = [torch.stack([t, t + 1], -1)[..., 0] for t in tensors]
    assert_all_equal(case, [t.transpose(2, 3).contiguous().transpose(2, 3) for t in gapped], truth, names=KERNELS)


@both
def test_offsets_of_64_bits(case, monkeypatch):
    monkeypatch.setattr(route, "_is_wide", lambda *tensors: True)
    *tensors, truth = exact(case)
    assert_all_equal(case, tensors, truth, names=KERNELS)


def test_64_bits_where_an_offset_needs_them():
    rows = torch.empty(1, device="meta").expand(2, 1 << 15)
    assert not route._is_wide(rows.as_strided((2, 1 << 15), ((1 << 31) - (1 << 15), 1)))
    assert route._is_wide(rows, rows.as_strided((2, 1 << 15), ((1 << 31) - (1 << 15) + 1, 1)))


@pytest.mark.parametrize(("case", "dtype"), [(GENERAL, torch.bfloat16), (DEPTHWISE, torch.float16)])
def test_16_bit_activations(case, dtype):
    """Exact sums, rounded at the end (the interpreter cuts bfloat16 off); weights and their gradient stay float32."""
    x, weight, grad, truth = exact(case)
    for name, found in results(case, x.to(dtype), weight, grad.to(dtype), names=KERNELS).items():
        expected = getattr(truth, name)
        if name == "grad_weight_sign":
            assert_equal(found, expected)
            continue
        assert found.dtype == dtype
        rounded = expected.to(dtype)
        representable = rounded.double() == expected
        assert torch.equal(found[representable], rounded[representable])
        assert ((found.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs()).all()


@both
def test_bias(case):
    x, weight, _, truth = exact(case)
    bias = torch.arange(case.c_out) / 4
    assert_equal(
        route.forward(x, weight, bias, case.geometry, False, torch.contiguous_format),
        truth.output + by_filter(case, bias),
    )


def test_no_result_depends_on_the_tile(monkeypatch):
    tiled = partial(results, GENERAL, *GENERAL.tensors(), names=("output", "grad_input"))
    expected = tiled()
    for tile in (Tile(32, 4, 2), Tile(64, 16, 4)):
        monkeypatch.setattr(route, "_tiles", lambda work, source, tile=tile: [tile])
        for name, found in tiled().items():
            assert torch.equal(found, expected[name])


# Rounded are |x - w| and each of K subtractions; 1 / 2 - x / 2, that plus w / 2, each product with dY and each sum, all
# of them doubled; each sum of dY; and the difference of the two.
@both
def test_rounding_stays_within_the_derived_bound(case):
    x, weight, grad = case.tensors()
    truth = brute_force(case, x, weight, grad)
    y, dx, dx_sign, dw_sign = (t.double() for t in results(case, x, weight, grad).values())

    terms = weight[0].numel()
    size = -brute_force(case, x.abs(), -weight.abs(), grad).output  # sum of |x| + |w|
    assert ((y - truth.output).abs() <= (terms + 2) * UNIT * size).all()

    terms = terms * case.c_out // case.c_in  # most outputs that depend on one input element
    total = brute_force(case, x, torch.full_like(weight, 1e9), grad.abs()).grad_input_sign  # sum of |dY|
    assert ((dx - truth.grad_input).abs() <= (3 * terms + 8 + x.double().abs()) * UNIT * total).all()
    assert ((dx_sign - truth.grad_input_sign).abs() <= terms * UNIT * total).all()

    total = grad.double().abs().transpose(0, 1).flatten(1).sum(1)[:, None, None, None]
    assert ((dw_sign - truth.grad_weight_sign).abs() <= grad[:, 0].numel() * UNIT * total).all()


@pytest.mark.parametrize("where", WHERE)
@both
def test_nan_reaches_what_depends_on_it(case, where):
    *tensors, depends = poisoned(case, where, float("nan"))
    y, dx, dx_sign, dw = (t.isnan() for t in results(case, *tensors).values())
    assert torch.equal(y, depends.output)
    assert torch.equal(dw, depends.grad_weight)
    may_be = depends.grad_input
    if where == "weight":  # may spread over the input channel, border pixels too
        may_be = may_be.any(-1).any(-1).any(0)[:, None, None].expand_as(may_be)
    for found in (dx, dx_sign):
        assert found[depends.grad_input].all()
        assert not found[~may_be].any()


def test_zero_gradient_gives_zero():
    x, weight, grad = GENERAL.tensors()
    names = ("grad_input", "grad_weight_sign")
    assert not any(t.any() for t in results(GENERAL, x, weight, torch.zeros_like(grad), names=names).values())


@both
def test_batch_of_0(case):
    x, weight, grad = case.tensors()
    y, dx, dw = results(case, x[:0], weight, grad[:0], names=KERNELS).values()
    assert (y.shape, dx.shape) == (grad[:0].shape, x[:0].shape)
    assert torch.equal(dw, torch.zeros_like(weight))


def test_image_of_height_0_is_all_padding():
    weight = torch.randint(-4, 5, (3, 2, 2, 2)).float()
    case = Case(2, 2, 3, size=(0, 3), kernel=(2, 2), padding=(2, 2))
    y, dx, _ = results(case, torch.empty(2, 2, 0, 3), weight, torch.ones(2, 3, 3, 6), names=KERNELS).values()
    assert torch.equal(y, -weight.abs().sum((1, 2, 3))[:, None, None].expand(2, 3, 3, 6))
    assert dx.shape == (2, 2, 0, 3)


def test_each_tile_is_timed_once(monkeypatch):
    timed = []

    def do_bench(run, warmup, rep, quantiles):
        run()
        timed.append(len(timed))
        return [abs(len(timed) - 2.0)] * 3  # the second is the fastest

    monkeypatch.setenv("TRITON_INTERPRET", "1")  # keeps no times on disk
    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(route, "_is_timed", lambda tensor: True)
    monkeypatch.setattr(route, "_tiles", lambda work, source: [Tile(32, 16, 2), Tile(64, 16, 1), Tile(32, 16, 2)])
    case = CASES["1x1 kernel, stride 2"]
    *tensors, truth = exact(case)
    for _ in range(2):
        assert_all_equal(case, tensors, truth, names=("output", "grad_input"))
    assert len(timed) == 2 * 2


def test_cpu_tensors_are_not_timed(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert not route._is_timed(torch.zeros(1))


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_to_two_instructions_an_element(capability, monkeypatch, tmp_path):
    pytest.importorskip("triton.backends.nvidia", reason="needs Triton for NVIDIA")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(route, "_tiles", lambda work, source: [Tile(64, 64, 8)])
    geometry, layout = Geometry((1, 1), (1, 1), (1, 1)), torch.channels_last
    x, weight = torch.empty(9, 64, 8, 8, device="meta"), torch.empty(64, 64, 3, 3, device="meta")
    x, weight = (t.to(memory_format=layout) for t in (x, weight))
    with compiling(capability) as kernels:
        route.forward(x, weight, None, geometry, False, layout)
        route.grad_input(x, x, weight, geometry, "hardtanh", layout)
        route.grad_weight_sign(x, x, weight, geometry, layout)
    cubins = {name: kernel.result.asm["cubin"] for name, kernel in kernels.items()}
    elements = 64 * 64 * 8 // 128  # of a thread
    for name, instruction in {"forward": "FADD", "grad_input": "FFMA"}.items():
        counts = hottest_loop(cubins[name], name)
        assert counts[instruction] == 2 * elements
        assert counts.total() < 3 * elements
        assert counts["BAR"] <= 2
    assert hottest_loop(cubins["grad_weight_sign"], "grad_weight_sign").total() > 0
