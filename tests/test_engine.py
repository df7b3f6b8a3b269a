"""Test that the engine equals the torch program bit for bit, on every instruction set, for any shape and threads."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.quant.random_programs import KINDS, Maker
from torch import nn

from torchadder import kernels
from torchadder.engine import Classifier, Engine
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.quant import quantize
from torchadder.quant.program import Program
from torchadder.quant.steps import Layer, Logits


def runs_here(isa):
    try:
        Engine(Maker(0).program(), isa=isa)
    except UserError:
        return False
    return True


ISAS = [isa for isa in ("reference", "avx2", "avx2max", "avx512", "avx512vnni") if runs_here(isa)]


def quantized(shape, count, seed=0):
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed)).byte()


def assert_equal(program, images, **options):
    """Compare every value of the first image, and the logits of all images."""
    engine = Engine(program, keep_values=True, **options)
    values = [images[:1]]
    for step in program.steps:
        values.append(step(*(values[source] for source in step.sources)))
    for number, (got, want) in enumerate(zip(engine.values(images[:1], quantized=True), values, strict=False)):
        assert torch.equal(got, want[0]), f"value {number}"
    found = Engine(program, **options)(images, quantized=True)
    assert torch.equal(found, program(images, quantized=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed, isa, one_thread):
    program = Maker(seed).program()
    assert_equal(program, quantized(program.shape, 1 + seed % 5), isa=isa, threads=1 + seed % 3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 65])
def test_edges_of_blocks_and_steps(kind, channels, isa, one_thread):
    """Test channels around every multiple of 8, of the input, of the output, and with a shortcut."""
    maker = Maker(channels, kinds=(kind,), sizes=(5, 7), channels=(channels, channels), steps=(4, 4))
    program = maker.program()
    assert_equal(program, quantized(program.shape, 2), isa=isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", range(1, 20))
def test_edges_of_tiles(width, isa):
    """Test every width that leaves a partial tile, with 1 to 3 threads."""
    for threads in (1, 2, 3):
        program = Maker(width, sizes=(width, width), channels=(8, 24), steps=(2, 2)).program()
        assert_equal(program, quantized(program.shape, 1), isa=isa, threads=threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_pooling_in_the_layer_before(kind, isa, one_thread):
    """Test layers of any geometry, negative multipliers, maps with a row or column that no window covers, threads."""
    fused = 0
    for seed in range(30):
        maker = Maker(seed, kinds=(kind,), sizes=(11, 24), channels=(1, 40))
        steps = maker.pooled_layer(kind)
        if 0 in maker.shapes[-1]:
            continue
        steps.append(maker.layer(kind, last=True))
        program = Program(maker.shapes[0], torch.ones(maker.shapes[0][0]), torch.zeros(maker.shapes[0][0]), steps)
        assert_equal(program, quantized(program.shape, 2 + seed % 2), isa=isa, threads=1 + seed % 3)
        fused += "in the layer before" in Engine(program, isa=isa).kernels()
    assert fused > 15 or isa == "avx2max"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_quantized_values(kind, isa):
    """Test the largest accumulators: all differences 255, all products of one sign, all signs different."""
    extremes = {
        "adder": ((0, 255), (255, 0)),
        "conv": ((255, 127), (255, -127)),
        "binary": ((255, -1), (0, -1), (0, 1)),
    }
    for x, w in extremes[kind]:
        dtype = torch.uint8 if kind == "adder" else torch.int8
        weight = torch.full((9, 333, 3, 3), w, dtype=dtype)
        zero_point = torch.full((333,), 128, dtype=torch.uint8)
        logits = Logits(torch.ones(9), torch.zeros(9))
        layer = Layer(kind, [0], weight, zero_point, (1, 1), (0, 0), logits)
        program = Program((333, 3, 3), torch.ones(333), torch.zeros(333), [layer])
        images = torch.full((1, 333, 3, 3), x, dtype=torch.uint8)
        assert torch.equal(Engine(program, isa=isa)(images, quantized=True), program(images, quantized=True))


@pytest.mark.parametrize("name", ["lenet5bn", "vgg_small", "resnet20"])
@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_networks(name, op, one_thread):
    torch.manual_seed(0)
    model = create_model(name, op).eval()
    images = torch.randn(1, model.config["in_chans"], 32, 32)
    program = quantize(model, [images], method="max")
    expected = program(images)
    for isa in ISAS:
        assert torch.equal(Engine(program, threads=2, isa=isa)(images), expected), isa


@pytest.mark.parametrize("isa", ISAS)
def test_images_are_quantized_as_in_torch(isa):
    """Test ties, clamped numbers and infinities, and NaN, which becomes 0."""
    each, logits = torch.eye(300).view(300, 1, 20, 15).to(torch.int8), Logits(torch.ones(300), torch.zeros(300))
    layer = Layer("conv", [0], each, torch.zeros(1).byte(), (1, 1), (0, 0), logits)
    program = Program((1, 20, 15), torch.tensor([0.1]), torch.tensor([3.5]), [layer], qmax=200)
    images = torch.randn(1, 1, 20, 15, generator=torch.Generator().manual_seed(0)) * 10
    images.flatten()[:8] = torch.tensor([0.0, 0.1, 0.2, -0.35, float("inf"), -float("inf"), float("nan"), 1e30])
    assert torch.equal(Engine(program, isa=isa)(images), program(images))


def read_only(array):
    array.flags.writeable = False
    return array


LAYOUTS = {  # of an array (N, C, H, W)
    "as it is": lambda x: x,
    "torch": torch.from_numpy,
    "torch, channels last": lambda x: torch.from_numpy(x).contiguous(memory_format=torch.channels_last),
    "every second image": lambda x: np.repeat(x, 2, 0)[::2],
    "negative strides": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "height, width, channels": lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "Fortran order": np.asfortranarray,
    "read only": read_only,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "a list": lambda x: x.tolist(),
    "no image": lambda x: x[:0],
    "needs a gradient": lambda x: torch.from_numpy(x).requires_grad_(),
    "negated view": lambda x: torch.complex(torch.zeros(x.shape), -torch.from_numpy(x).float()).conj().imag,
}
IMAGES = {  # type of the images -> quantized
    "float32": False,
    "float64": False,
    "float16": False,
    "uint8": True,
}


@pytest.mark.parametrize("dtype", IMAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_any_layout_and_type(layout, dtype):
    if dtype == "uint8" and layout in ("a list", "needs a gradient", "negated view"):
        pytest.skip("has no uint8 form")
    program, is_quantized = Maker(3).program(), IMAGES[dtype]
    images = (torch.rand(4, *program.shape, generator=torch.Generator().manual_seed(0)) * 40).numpy().astype(dtype)
    images.flat[:3] = images[0].max() if is_quantized else (np.nan, np.inf, -np.inf)
    given = LAYOUTS[layout](images.copy())
    want = program(torch.from_numpy(images[: len(given)]), quantized=is_quantized)
    assert torch.equal(Engine(program, threads=1)(given, quantized=is_quantized), want)


def test_uint8_images_are_pixels_where_the_file_knows_mean_and_std(tmp_path):
    maker = Maker(0)
    maker.shapes = [(3, 8, 6)]
    program = maker.program()
    program.save(tmp_path / "net.tadder", mean=[0.5, 0.25, 0.4], std=[0.1, 0.2, 0.3])
    pixels = quantized(program.shape, 2)
    prepared = [Classifier(tmp_path / "net.tadder").preprocessing.prepare(image.numpy(), (8, 6)) for image in pixels]
    for found in (Engine(tmp_path / "net.tadder")(pixels), Engine(tmp_path / "net.tadder")(pixels.numpy())):
        assert torch.equal(found, program(torch.cat(prepared)))


@pytest.mark.parametrize(
    ("images", "quantized", "error", "words"),
    [
        (torch.zeros(1, 2, 3, 3), False, ValueError, r"expected images \(N, 1, 1, 1\), got \(1, 2, 3, 3\)"),
        (torch.zeros(3, 3), False, ValueError, r"expected images \(N, "),
        (torch.zeros(1, 1, 1, 1).byte(), False, ValueError, "images are uint8: .* mean .*, or pass quantized=True"),
        (torch.zeros(1, 1, 1, 1), True, TypeError, "quantized=True: expected uint8 images, got torch.float32"),
        (np.zeros((1, 1, 1, 1), np.int64), False, TypeError, "expected images of floating point or uint8, got int64"),
        (torch.zeros(1, 1, 1, 1).int(), False, TypeError, "expected images of floating point or uint8"),
        (torch.zeros(1, 1, 1, 1, device="meta"), False, TypeError, "expected images on the CPU, got meta"),
        (torch.zeros(1, 1, 1, 1).to_sparse(), False, TypeError, "expected images in a dense tensor"),
        (([[1.0]], [2]), False, TypeError, "expected an array of images, got a tuple of several"),
        (np.zeros((1, 1, 1, 1), np.longdouble), False, TypeError, "expected images of .* uint8, got float128"),
        (np.full((1, 1, 1, 1), None), False, TypeError, "expected images of floating point or uint8, got object"),
    ],
)
def test_wrong_images_are_refused(images, quantized, error, words):
    one, logits = torch.ones(1, 1, 1, 1).byte(), Logits(torch.ones(1), torch.zeros(1))
    layer = Layer("adder", [0], one, torch.zeros(1).byte(), (1, 1), (0, 0), logits)
    program = Program((1, 1, 1), torch.ones(1), torch.zeros(1), [layer])
    with pytest.raises(error, match=words):
        Engine(program)(images, quantized=quantized)
    if isinstance(images, torch.Tensor) and images.is_cpu:
        with pytest.raises((TypeError, ValueError), match=r"quantized=True|expected images"):
            program(images, quantized=quantized)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, x: torch.func.vmap(engine)(x[None]),
        lambda engine, x: torch.func.grad(lambda y: engine(y).sum())(x),
        lambda engine, x: torch.export.export(Calls(engine), (x,)),
    ],
)
def test_images_without_numbers_are_refused(call):
    program = Maker(2).program()
    with pytest.raises(TypeError, match=r"images hold no numbers: an engine does not run under torch.func, export"):
        call(Engine(program, threads=1), torch.ones(1, *program.shape))


class Calls(torch.nn.Module):
    def __init__(self, engine):
        super().__init__()
        self.engine = engine

    def forward(self, x):
        return self.engine(x)


def overflowing():
    """Return a program whose first step has a shift of more than 31 bits."""
    program = Maker(2).program()  # begins with a layer
    program.steps[0].epilogue.shift.fill_(99)
    return program


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (overflowing(), {}, r"^the program is not a valid program: step 0: .*shift"),
        ("", {}, r"^cannot read '': expected the path of a .tadder file"),
        (".", {}, r"^cannot read '.': expected the path of a .tadder file"),
        ("a\0b", {}, r"^cannot read 'a\\x00b': expected the path of a .tadder file"),
        ("a" * 5000, {}, r"^cannot read 'a{100}': expected the path of a .tadder file"),
        ("none.tadder", {}, r"^cannot read none.tadder: No such file"),
        ("empty.tadder", {}, r"^empty.tadder is not a valid program: .* 0 bytes"),
        ("page.tadder", {}, r"^page.tadder is not a valid program: .* no .tadder file, or a part of one"),
        (None, {}, r"^source is of type NoneType: expected a .tadder file, as quantize makes one"),
        (nn.Linear(1, 1), {}, r"^source is of type Linear: expected a .tadder file"),
        (b"\x89PNG\r\n", {}, r"it is a PNG image, expected FILE.tadder, which quantize makes of a checkpoint"),
        (b"\xff\xd8\xff\xe0", {}, r"it is a JPEG image, expected FILE.tadder"),
        (b"PK\3\4", {}, r"it is a checkpoint or another zip archive, expected FILE.tadder"),
        (pickle.dumps([0]), {}, r"it is a checkpoint or another pickle, expected FILE.tadder"),
        (bytearray(), {}, r"^the program is not a valid program: .* 0 bytes"),
        (b"", {}, r"^the program is not a valid program: .* 0 bytes"),
        ("net.tadder", {"threads": 0}, "^threads=0 is out of range: expected 1 to 1024"),
        ("net.tadder", {"isa": "mmx"}, "^cannot run net.tadder: isa=mmx is not available on this CPU: choose one of"),
        ("net.tadder", {"isa": 3}, "^isa=3: expected a name"),
    ],
)
def test_wrong_arguments_are_refused(source, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Maker(0).program().save("net.tadder")
    Path("empty.tadder").touch()
    Path("page.tadder").write_text("<!DOCTYPE html><html><head>")
    with pytest.raises((UserError, TypeError), match=words):
        Engine(source, **options)


def test_from_a_file(tmp_path):
    program = Maker(5).program()
    program.save(tmp_path / "net.tadder", about={"model": "some", "accuracy": 12.5})
    engine = Engine(tmp_path / "net.tadder", threads=1)
    images = torch.randn(2, *program.shape)
    assert torch.equal(engine(images), Program.load(tmp_path / "net.tadder")(images))
    assert torch.equal(Engine((tmp_path / "net.tadder").read_bytes())(images), engine(images))
    assert engine.about == {"model": "some", "accuracy": 12.5}
    assert engine.file_bytes == (tmp_path / "net.tadder").stat().st_size


def test_an_engine_follows_the_instruction_set_in_use():
    program = Maker(1, kinds=("adder",), steps=(1, 1)).program()
    with kernels.using("reference"):
        assert Engine(program).kernels()[-1] == "adder_u8_reference_2x8"


def test_values_with_disjoint_live_ranges_share_memory():
    torch.manual_seed(0)
    program = quantize(create_model("resnet20").eval(), [torch.randn(2, 3, 32, 32)], method="max")
    engine, keeps = Engine(program, threads=1), Engine(program, threads=1, keep_values=True)
    assert engine.arena_bytes < 4 * 34 * 34 * 16 < keeps.arena_bytes
    assert Engine(program, threads=3).arena_bytes == 3 * engine.arena_bytes
    with pytest.raises(ValueError, match="does not keep its values"):
        engine.values(quantized(program.shape, 1), quantized=True)
    with pytest.raises(ValueError, match="expected one image, got 2"):
        keeps.values(quantized(program.shape, 2), quantized=True)


def test_profile_and_benchmark():
    program = Maker(7).program()
    engine = Engine(program, threads=2)
    seconds = engine.profile(quantized(program.shape, 3), quantized=True)
    assert len(seconds) == 1 + len(program.steps)
    assert all(value > 0 for value in seconds)
    assert engine.benchmark(2, 5) > 0
    for batch, repetitions in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match=f"^batch={batch}, repetitions={repetitions}: expected at least 1"):
            engine.benchmark(batch, repetitions)


def test_one_engine_in_two_threads_at_once():
    """Test calls from several threads, which run one after the other."""
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    program = quantize(create_model("lenet5bn").eval(), [torch.randn(2, 1, 32, 32)], method="max")
    engine = Engine(program, threads=1)
    batches = [torch.randn(5, *program.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    wanted = [program(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(engine, batches * 4), wanted * 4, strict=True):
            assert torch.equal(got, want)
