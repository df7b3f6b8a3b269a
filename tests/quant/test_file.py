"""Test .tadder files: what is saved is loaded again, metadata describes images, and every damaged file is refused."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from tests.quant.random_programs import Maker
from tests.quant.test_lowering import trained
from torch import nn

from torchadder.engine import Classifier, Engine
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.quant import Program, quantize
from torchadder.quant.file import pack_weight, unpack_weight

READERS = [Engine, Program.load]


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    return quantize(trained(create_model("resnet20"), images), [images])  # without statistics all channels are dead


@pytest.fixture
def path(program, tmp_path):
    program.save(tmp_path / "net.tadder", about={"model": "resnet20", "accuracy": 12.5})
    return tmp_path / "net.tadder"


@pytest.mark.parametrize(
    ("name", "op", "bits"),
    [
        *(("lenet5bn", op, 8) for op in ("adder", "conv", "binary")),
        *(("lenet5bn", "adder", 4), ("lenet5bn", "conv", 2), ("resnet20", "binary", 8)),
    ],
)
def test_a_loaded_program_is_the_one_that_was_saved(name, bits, op, tmp_path):
    torch.manual_seed(0)
    model = create_model(name, op).eval()
    x = torch.randn(2, model.config["in_chans"], 32, 32)
    program = quantize(model, [x], bits, method="max")
    program.save(tmp_path / "a.tadder")
    again = Program.load(tmp_path / "a.tadder")
    assert torch.equal(again(x), program(x))
    assert str(again) == str(program)
    again.save(tmp_path / "b.tadder")
    assert (tmp_path / "a.tadder").read_bytes() == (tmp_path / "b.tadder").read_bytes()


def test_images_of_another_size_are_refused(program):
    with pytest.raises(UserError, match=r"expected images \(N, 3, 32, 32\), got \(2, 3, 31, 32\)"):
        program(torch.zeros(2, 3, 31, 32))


@pytest.mark.parametrize(("path", "words"), [("no/folder.tadder", "No such file"), (".", "Is a directory")])
def test_a_disk_that_refuses(path, words, program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"cannot write {path}: {words}"):
        program.save(path)


NAMES = [f"class {label}" for label in range(10)]
METADATA = [  # arguments of save, entries of about
    ({}, {}),
    ({"about": {"model": "x", "bits": 8}, "classes": NAMES}, {"model": "x", "bits": 8, "classes": json.dumps(NAMES)}),
    (
        {"mean": [0.4914, 0.4822, 0.4465], "std": (0.2023, 0.1994, 0.201)},
        {"mode": "RGB", "mean": "0.4914 0.4822 0.4465", "std": "0.2023 0.1994 0.201", "part": "whole"},
    ),
    (
        {"mean": torch.zeros(3, 1, 1), "std": np.ones(3), "part": "centre"},
        {"mode": "RGB", "mean": "0.0 0.0 0.0", "std": "1.0 1.0 1.0", "part": "centre"},
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), METADATA)
def test_metadata_is_kept(program, tmp_path, arguments, expected):
    program.save(tmp_path / "net.tadder", **arguments)
    assert Engine(tmp_path / "net.tadder").about == expected
    if "mean" in arguments:
        classifier = Classifier(tmp_path / "net.tadder")
        assert classifier.preprocessing.to_dict() == expected
        assert classifier.names == [str(label) for label in range(10)]


def test_one_channel_is_grey_and_takes_one_number(tmp_path):
    program = quantize(create_model("lenet5bn").eval(), [torch.randn(2, 1, 32, 32)], method="max")
    program.save(tmp_path / "net.tadder", mean=0.1307, std=0.3081, classes=NAMES)
    classifier = Classifier(tmp_path / "net.tadder")
    assert classifier.names == NAMES
    expected = {"mode": "L", "mean": "0.1307", "std": "0.3081", "part": "whole", "classes": json.dumps(NAMES)}
    assert classifier.engine.about == expected


@pytest.mark.parametrize(
    ("images", "warned"),
    [
        (lambda x: (x - 0.3) / 0.2, False),
        (lambda x: (0.6 * x - 0.3) / 0.2, False),  # dark ones
        (lambda x: x, True),
        (lambda x: (255 * x - 0.3) / 0.2, True),
        (lambda x: (x / 255 - 0.3) / 0.2, True),
    ],
)
def test_images_of_another_normalisation_are_warned_of(images, warned, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    pixels = torch.linspace(0, 1, 60).view(5, 2, 2, 3).movedim(3, 1)
    program = quantize(model, images(pixels))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        program.save(tmp_path / "net.tadder", mean=[0.3] * 3, std=[0.2] * 3)
    words = "but pixels with this mean and std are -1.5 to 3.5: expected the same normalisation for both"
    assert [words in str(warning.message) for warning in found] == [True] * warned


def test_lines_of_a_file_are_names(program, tmp_path):
    program.save(tmp_path / "net.tadder", mean=[0.5] * 3, std=[0.5] * 3, classes=[f"{name}\r\n" for name in NAMES])
    assert Classifier(tmp_path / "net.tadder").names == NAMES


def test_names_may_come_with_their_numbers(program, tmp_path):
    numbers = {name: label for label, name in reversed([*enumerate(NAMES)])}
    program.save(tmp_path / "net.tadder", mean=[0.5] * 3, std=[0.5] * 3, classes=numbers)
    assert Classifier(tmp_path / "net.tadder").names == NAMES


BAD_METADATA = [  # arguments of save, words of the message
    ({"mean": [0, 0, 0]}, "mean and std belong together"),
    ({"std": [1, 1, 1]}, "mean and std belong together"),
    ({"mean": 0.5, "std": 0.5}, r"mean=\[0.5\] does not fit: expected 3 finite numbers"),
    ({"mean": [0, 0, 0], "std": [1, 1]}, r"std=\[1.0, 1.0\] does not fit: expected 3 finite numbers"),
    ({"mean": [0, 0, float("nan")], "std": [1, 1, 1]}, "mean=.* does not fit"),
    ({"mean": [0, 0, 0], "std": [1, 0, 1]}, r"std=\[1.0, 0.0, 1.0\] is out of range: expected numbers above 0"),
    ({"mean": [0, 28, 0], "std": [76, 76, 76]}, r"mean=\[0.0, 28.0, 0.0\] is out of range: expected .* from 0 to 1"),
    ({"mean": [0, 0, 0], "std": [1, 63, 1]}, r"std=\[1.0, 63.0, 1.0\] is out .* up to 1, .* divide .* by 255"),
    ({"mean": [0, 0, 0], "std": [1, 1, 1], "part": "left"}, "part='left' is unknown: expected whole or centre"),
    ({"classes": NAMES[1:]}, "classes=.* does not fit: expected 10 names"),
    ({"classes": [*range(10)]}, "classes=.* does not fit: expected 10 names"),
    ({"about": {"accuracy": [1]}}, r"about: accuracy=\[1\] is neither text nor a finite number"),
    ({"about": {"accuracy": float("nan")}}, "about: accuracy=nan is neither text nor a finite number"),
    ({"about": {"accuracy": torch.tensor(1)}}, r"about: accuracy=tensor\(1\) is neither text nor a finite number"),
    ({"classes": set(NAMES)}, "classes=.* does not fit: expected 10 names in the order of the logits"),
    ({"classes": dict(enumerate(NAMES))}, "classes=.* does not fit: .* or a dict that gives each name its number"),
    ({"classes": "0123456789"}, "classes=0123456789 does not fit: expected 10 names"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_METADATA)
def test_metadata_that_does_not_fit_the_program_is_refused(program, tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        program.save(tmp_path / "net.tadder", **arguments)
    assert not (tmp_path / "net.tadder").exists()


def test_images_that_are_neither_grey_nor_rgb_have_no_mean(tmp_path):
    two = quantize(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 4), torch.nn.Flatten()), [torch.randn(2, 2, 4, 4)])
    with pytest.raises(UserError, match="for grey or RGB images: the program takes 2 channels"):
        two.save(tmp_path / "net.tadder", mean=[0, 0], std=[1, 1])


def changed(path, edit):
    """Apply ``edit(head, tensors)`` to the file."""
    with safe_open(path, "pt") as file:
        head, tensors = json.loads(file.metadata()["tadder"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(head, tensors)
    safetensors.torch.save_file(tensors, path, {"tadder": json.dumps(head)})


def step(number, **fields):
    return lambda head, tensors: head["steps"][number].update(fields)


def image(**fields):
    return lambda head, tensors: head["input"].update(fields)


def tensor(name, value):
    return lambda head, tensors: tensors.update({name: value(tensors[name])})


def packed(filters, shape, dtype=torch.uint8):
    """Replace the weights of step 1 by packed ones, all of them 1."""
    return lambda head, tensors: (
        head.update(version=3),
        head["steps"][1].update(filters=filters),
        tensors.pop("1.weight"),
        tensors.update({"1.packed": torch.full(shape, 17, dtype=dtype)}),
    )


UNSOUND = [  # edit, words of the message
    (lambda h, t: h.update(version=4), "its version is 4, this torchadder reads 1 to 3"),
    (lambda h, t: h.pop("version"), "it lacks 'version'"),
    (lambda h, t: h.pop("input"), "it lacks 'input'"),
    (image(shape=[3, 32]), "input shape has 2 sizes, expected 3"),
    (image(shape=[3, 0, 32]), "input size 0 is out of range: expected 1 to 16384"),
    (image(shape=[3, 1 << 14, 1 << 14]), "its images have 805306368 .* expected at most"),
    (image(highest=256), "highest 256 is out of range: expected 1 to 255"),
    (lambda h, t: h.update(steps=[]), "it has 0 steps"),
    (lambda h, t: h["steps"].pop(), "gives no logits"),
    (step(3, op="exec"), "step 3: op 'exec' is unknown"),
    (step(3, sources=[4]), "step 3: source 4 is out of range: expected 0 to 3"),
    (step(3, sources=[-1]), "step 3: source -1 is out of range"),
    (step(3, sources=[True]), "step 3: source is true"),
    (step(3, sources=[]), "step 3: it has 0 sources"),
    (step(3, sources=[3, 3, 3]), "step 3: it has 3 sources"),
    (step(0, sources=[0, 0]), "step 0: it adds"),
    (step(1, stride=[0, 1]), "step 1: stride 0 is out of range"),
    (step(1, stride=[1]), "step 1: stride has 1 numbers, expected 2"),
    (step(1, padding=[1, 1, 1]), "step 1: padding has 3 numbers, expected 4"),
    (step(1, padding=[1 << 14] * 4), "step 1: its padded source has .* quantized values, expected at most"),
    (step(1, dilation=[40, 1]), "step 1: kernel 81 is larger than the padded source, 34"),
    (step(1, groups=3), "step 1: weight takes 16 channels in 3 groups, its source has 16"),
    (
        lambda h, t: (step(1, groups=16)(h, t), tensor("1.weight", lambda w: w[:9, :1].contiguous())(h, t)),
        "step 1: weight has 9 filters, which are not 16 groups",
    ),
    (step(1, stride=[3, 3]), "step 2: it adds"),
    (step(1, padding=[3, 1]), "step 2: it adds"),
    (step(1, padding=[1, -1]), "step 1: padding -1 is out of range"),
    (step(1, highest=0), "step 1: highest 0 is out of range"),
    (step(1, pre=32), "step 1: pre 32 is out of range: expected 0 to 31"),
    (lambda h, t: h["steps"][1].pop("pre"), "step 1: it lacks 'pre'"),
    (step(1, op="conv"), "step 1: weight is U8, expected I8"),
    (step(1, op="max_pool", kernel=2, stride=0), "step 1: stride 0 is out of range"),
    (step(3, op="average_pool", sources=[2], kernel=[2, 2], padding=[2, 0, 0, 0]), "step 3: window 0 has no pixel"),
    (step(3, op="average_pool", sources=[2], kernel=[32] * 2, padding=[31] * 4), "step 3: .* more than 32 bits"),
    (step(3, op="concat", sources=[]), "step 3: it has 0 sources, expected 1 to 65536"),
    (step(8, op="concat", sources=[7, 8]), "step 8: it concatenates images of 32 x 32 and 16 x 16"),
    (tensor("1.weight", lambda t: t[:, :8].contiguous()), "step 1: weight takes 8 channels in 1 groups, its"),
    (tensor("1.weight", lambda t: t[0]), "step 1: weight has 3 dimensions"),
    (tensor("1.weight", lambda t: t[:0]), "step 1: weight has 0 filters"),
    (
        lambda h, t: (h.update(version=3), step(1, filters=[16, 16, 3, 3])(h, t)),
        "step 1: it lacks the tensor '1.packed'",
    ),
    (
        lambda h, t: (packed([16, 16, 3, 3], (1152,))(h, t), h.update(version=2)),
        "step 1: it lacks the tensor '1.weight'",
    ),
    (
        lambda h, t: (packed([16, 16, 3, 3], (1152,))(h, t), h["steps"][1].pop("filters")),
        "step 1: it lacks the tensor '1.weight'",
    ),
    (lambda h, t: t.update({"1.packed": t["1.weight"].flatten() + 0}), "tensor '1.packed' belongs to no step"),
    (packed(None, (1152,)), "step 1: filters is null, expected a list"),
    (packed([16, 16, 3, 3, 1], (1152,)), "step 1: filters has 5 sizes, expected 4"),
    (packed([16, 16, 3, 3], (0,)), "step 1: packed has 0 bytes, which are too few for filters"),
    (packed([16, 16, 3, 3], (1151,)), "step 1: packed has 1151 bytes, which are too few for filters"),
    (packed([16, 16, 3, 3], (1153,)), "step 1: packed has 1153 bytes, which are too many for filters"),
    (packed([65536] * 4, (1152,)), "step 1: packed has 1152 bytes, which are too few"),
    (packed([16, 16, 3], (384,)), "step 1: filters has 3 sizes, expected 4"),
    (packed([16, 16, 0, 3], (1152,)), "step 1: a size of filters 0 is out of range: expected 1 to 65536"),
    (packed([15, 1, 3, 3], (68,)), "step 1: packed ends with half a byte that is not 0"),
    (packed([16, 16, 3, 3], (2, 576)), "step 1: packed is U8 with 2 dimensions, expected U8 with 1"),
    (packed([16, 16, 3, 3], (1152,), torch.int8), "step 1: packed is I8 with 1 dimensions"),
    (packed([16, 8, 3, 3], (576,)), "step 1: weight takes 8 channels in 1 groups"),
    (tensor("0.weight", lambda t: torch.full_like(t, -128)), "step 0: a weight is -128, expected -127 to 127"),
    (lambda h, t: (step(3, op="table")(h, t), t.update({"3.table": torch.zeros(1, 9).byte()})), "step 3: table has 2"),
    (lambda h, t: (step(3, op="table")(h, t), t.update({"3.table": torch.zeros(1, 256)})), "step 3: table is F32, exp"),
    (tensor("1.offset", lambda t: t[:3]), "step 1: 1.offset has"),
    (tensor("1.offset", lambda t: t.float()), "step 1: 1.offset is F32"),
    (tensor("1.offset", lambda t: torch.full_like(t, 2**31 - 1)), "step 1: .* needs more than 32 bits"),
    (tensor("1.multiplier", lambda t: t * 1000), "step 1: .* needs more than 32 bits"),
    (tensor("1.shift", lambda t: t - 100), "step 1: shift of channel 0 is -.*, expected 0 to 31"),
    (tensor("2.factor", lambda t: t + 2**24), "step 2: .* needs more than 32 bits"),
    (tensor("input.scale", lambda t: -t), "input.scale of channel 0 is .* expected a positive number"),
    (tensor("input.zero", lambda t: t / 0), "input.zero of channel 0 is .* expected a finite number"),
    (lambda h, t: (step(3, sources=[1])(h, t), tensor("3.zero", lambda z: z + 1)(h, t)), "step 3: it pads value 1"),
    (lambda h, t: t.pop("1.zero"), "step 1: it lacks the tensor '1.zero'"),
    (lambda h, t: t.update(more=torch.zeros(1)), "tensor 'more' belongs to no step"),
    (lambda h, t: h.update(about=[1]), "'about' is a list, expected an object"),
]


@pytest.mark.parametrize(("edit", "words"), UNSOUND)
def test_a_damaged_program_is_refused_and_its_fault_named(path, edit, words):
    changed(path, edit)
    for reader in READERS:
        with pytest.raises(UserError, match=rf"net\.tadder is not a valid program: .*{words}") as error:
            reader(path)
        assert "\n" not in str(error.value)


CORPUS = Path(__file__).parents[1] / "native" / "corpus"
NAMES_OF = {1: "v1-*.tadder", 2: "[0-9].tadder", 3: "packed.tadder"}


@pytest.mark.parametrize(
    ("version", "path"),
    [(v, path) for v, names in NAMES_OF.items() for path in sorted(CORPUS.glob(names))],
    ids=str,
)
def test_files_of_all_versions_are_read(version, path):
    program = Program.load(path)
    images = torch.randint(0, 256, (2, *program.shape), generator=torch.Generator().manual_seed(0)).byte()
    assert f'version\\": {version},'.encode() in path.read_bytes()
    assert torch.equal(Engine(path)(images, quantized=True), program(images, quantized=True))


def test_packed_weights_are_read(path):
    changed(path, packed([16, 16, 3, 3], (1152,)))
    assert Program.load(path).steps[1].weight.tolist() == torch.ones(16, 16, 3, 3).tolist()
    Engine(path)


def test_files_that_are_no_program(path, tmp_path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    bad = tmp_path / "bad.tadder"
    for broken in (
        b"",
        b"\0" * 100,
        content[:-1],
        content + b"\0",
        b"\xff" * 8 + content,
        content[:100],
        content[:8] + b"[" * length + content[8 + length :],
        content.replace(b'"tadder"', b'"tadler"', 1),
        content.replace(b'"dtype"', b'"dtyqe"', 1),
        content.replace(b'"U8"', b'"F8"', 1),
        content.replace(b'"data_offsets":[', b'"data_offsets":[1', 1),
        content.replace(b"resnet20", b"\xff\xfe\xfd\xfctttt", 1),  # no UTF-8
        content.replace(b'\\"accuracy\\": 12.5', b'\\"accuracy\\": 1..5', 1),
        safetensors.torch.save({"weight": torch.zeros(3)}),
    ):
        bad.write_bytes(broken)
        for reader in READERS:
            with pytest.raises(UserError, match=r"bad\.tadder is not a valid program: "):
                reader(bad)
    for reader in READERS:
        with pytest.raises(UserError, match="cannot read"):
            reader(tmp_path / "none.tadder")


VALUES = [-1, 0, 1, 2, 3, 17, 255, 256, 1 << 14, 1 << 40, 0.5, 1e3, None, "conv", "binary", [], {}, [0], [1, 1], True]


@pytest.mark.parametrize("seed", range(40))
def test_random_changes_of_the_head_are_refused_or_run(seed, tmp_path):
    """What the engine accepts, Program.load accepts as well, and both compute the same logits."""
    generator, file = random.Random(seed), tmp_path / "net.tadder"

    def edit(head, tensors):
        for _ in range(generator.randint(0, 2)):
            places = [head, head.get("input"), *(head["steps"] if isinstance(head["steps"], list) else [])]
            place = generator.choice([place for place in places if isinstance(place, dict) and place])
            name = generator.choice([*place])
            if isinstance(place[name], list) and place[name] and generator.random() < 0.7:
                place[name][generator.randrange(len(place[name]))] = generator.choice(VALUES)
            else:
                place[name] = generator.choice(VALUES)

    for number in range(10):
        Maker(seed * 10 + number, sizes=(1, 6), channels=(1, 6)).program().save(file)
        changed(file, edit)
        try:
            engine = Engine(file, threads=1)
        except UserError:
            with pytest.raises(UserError):
                Program.load(file)
        else:
            images = torch.randint(0, 256, (1, *engine.shape), generator=torch.Generator().manual_seed(seed)).byte()
            assert torch.equal(engine(images, quantized=True), Program.load(file)(images, quantized=True))


@pytest.mark.parametrize("signed", [False, True])
def test_weights_of_4_bits_are_packed_two_in_a_byte(signed):
    low, high = (-8, 7) if signed else (0, 15)
    every = torch.arange(low, high + 1, dtype=torch.int8 if signed else torch.uint8)
    for count in (1, 2, 5, 16):
        weight = every[-count:].view(1, count, 1, 1)
        halves = pack_weight(weight)
        assert halves.dtype == torch.uint8
        assert halves.shape == (-(-count // 2),)
        again = unpack_weight(halves, weight.shape, signed)
        assert again.dtype == weight.dtype
        assert torch.equal(again, weight)
    assert pack_weight(every.view(1, 16, 1, 1))[0] == (0x98 if signed else 0x10)
    for outside in (low - 1, high + 1) if signed else (high + 1,):
        last = torch.tensor([outside], dtype=every.dtype)
        assert pack_weight(torch.cat([every, last]).view(1, -1, 1, 1)) is None


def test_a_program_of_4_bits_is_saved_in_half_the_bytes(program, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    small = quantize(trained(create_model("resnet20"), images), [images], 4)
    small.save(tmp_path / "small.tadder")
    assert len(small.to_bytes()) < 0.6 * len(program.to_bytes())
    packed = [name for name in safetensors.torch.load(small.to_bytes()) if name.endswith(".packed")]
    assert len(packed) == sum(step.kind == "adder" for step in small.steps)
    for reader in READERS:
        assert torch.equal(reader(tmp_path / "small.tadder")(images), small(images))
