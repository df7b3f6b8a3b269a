"""The file of a program: read back it is the same program, and no file leads out of its tensors or out of 32 bits."""

import json
import random

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.quant import quantize
from torchadder.quant.file import read, write


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return quantize(create_model("resnet20").eval(), [images()])


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(program, tmp_path):
    write(program, tmp_path / "net.tadder", {"model": "resnet20", "accuracy": 12.5})
    return tmp_path / "net.tadder"


@pytest.mark.parametrize("name", ["lenet5bn", "vgg_small", "resnet20"])
@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_read_back_it_is_the_same(name, op, tmp_path):
    torch.manual_seed(0)
    model = create_model(name, op).eval()
    x = torch.randn(2, model.config["in_chans"], 32, 32)
    program = quantize(model, [x], method="max")
    program.save(tmp_path / "a.tadder")
    again, about = read(tmp_path / "a.tadder")
    assert about == {}
    assert torch.equal(again(x), program(x))
    assert str(again) == str(program)
    again.save(tmp_path / "b.tadder")
    assert (tmp_path / "a.tadder").read_bytes() == (tmp_path / "b.tadder").read_bytes()


@pytest.mark.parametrize("bits", [2, 4])
def test_fewer_bits_fit_into_32_as_well(bits, tmp_path):
    torch.manual_seed(0)
    model, x = create_model("lenet5bn").eval(), torch.randn(2, 1, 32, 32)
    program = quantize(model, [x], bits, "max")
    program.save(tmp_path / "few.tadder")
    assert torch.equal(read(tmp_path / "few.tadder")[0](x), program(x))


def test_what_is_kept_beside_it(path):
    assert read(path)[1] == {"model": "resnet20", "accuracy": 12.5}


def test_images_of_another_size_are_refused(program):
    with pytest.raises(ValueError, match=r"expected images \(N, 3, 32, 32\), got \(2, 3, 31, 32\)"):
        program(torch.zeros(2, 3, 31, 32))


def changed(path, edit):
    """The file after ``edit(head, tensors)``."""
    with safe_open(path, "pt") as file:
        head, tensors = json.loads(file.metadata()["tadder"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(head, tensors)
    safetensors.torch.save_file(tensors, path, {"tadder": json.dumps(head)})


def step(number, **fields):
    return lambda head, tensors: head["steps"][number].update(fields)


def tensor(name, value):
    return lambda head, tensors: tensors.update({name: value(tensors[name])})


UNSOUND = [  # edit, words of the message
    (lambda h, t: h.update(version=2), "its version is 2, this torchadder reads 1"),
    (lambda h, t: h.pop("version"), "it lacks 'version'"),
    (lambda h, t: h.pop("input"), "it lacks 'input'"),
    (lambda h, t: h["input"].update(shape=[3, 32]), "not enough values"),
    (lambda h, t: h["input"].update(shape=[3, 0, 32]), "input size 0 is out of range: expected 1 to 16384"),
    (
        lambda h, t: h["input"].update(shape=[3, 1 << 14, 1 << 14]),
        "its images have 805,306,368 codes, expected at most",
    ),
    (lambda h, t: h["input"].update(highest=256), "highest code 256 is out of range"),
    (lambda h, t: h.update(steps=[]), "it has 0 steps"),
    (lambda h, t: h["steps"].pop(), "tensor|gives no logits"),
    (step(3, op="exec"), "step 3 is 'exec', which is unknown"),
    (step(3, sources=[4]), "source of step 3 4 is out of range: expected 0 to 3"),
    (step(3, sources=[-1]), "source of step 3 -1 is out of range"),
    (step(3, sources=[True]), "source of step 3 True is out of range"),
    (step(3, sources=[]), "step 3 has 0 sources"),
    (step(3, sources=[3, 3, 3]), "step 3 has 3 sources"),
    (step(0, sources=[0, 0]), "step 0 adds"),
    (step(1, stride=[0, 1]), "stride 0 is out of range"),
    (step(1, stride=[1]), "not enough values"),
    (step(1, stride=[3, 3]), "step 2 adds"),
    (step(1, padding=[3, 1]), r"step 1 has a padding \(3, 1\) as wide as its kernel"),
    (step(1, padding=[1, -1]), "padding -1 is out of range"),
    (step(1, highest=0), "highest code 0 is out of range"),
    (step(1, pre=32), "pre 32 is out of range: expected 0 to 31"),
    (lambda h, t: h["steps"][1].pop("pre"), "it lacks 'pre'"),
    (step(1, op="conv"), r"1.weight is torch.uint8 \(16, 16, 3, 3\), expected torch.int8"),
    (step(1, op="max_pool", kernel=2, stride=2, padding=2), "padding 2 is out of range: expected 0 to 1"),
    (tensor("1.weight", lambda t: t[:, :8].contiguous()), r"step 1 has a weight \(16, 8, 3, 3\) for 16 channels"),
    (tensor("1.weight", lambda t: t[0]), "step 1 has a weight"),
    (tensor("1.weight", lambda t: t[:0]), "step 1 has a weight"),
    (tensor("1.offset", lambda t: t[:3]), r"1.offset is torch.int32 \(3,\), expected torch.int32 \(16,\)"),
    (tensor("1.offset", lambda t: t.float()), "1.offset is torch.float32"),
    (tensor("1.offset", lambda t: torch.full_like(t, 2**31 - 1)), "step 1 needs more than 32 bits"),
    (tensor("1.multiplier", lambda t: t * 1000), "step 1 needs more than 32 bits"),
    (tensor("1.shift", lambda t: t - 100), "a shift of step 1 is not within 0 to 31"),
    (tensor("2.factor", lambda t: t + 2**24), "step 2 needs more than 32 bits"),
    (tensor("input.scale", lambda t: -t), "the scale of its input is no positive number"),
    (tensor("input.zero", lambda t: t / 0), "the scale of its input is no positive number"),
    (lambda h, t: (step(3, sources=[1])(h, t), tensor("3.zero", lambda z: z + 1)(h, t)), "two layers pad value 1"),
    (lambda h, t: t.pop("1.zero"), "it lacks '1.zero'"),
    (lambda h, t: t.update(more=torch.zeros(1)), "tensor more belongs to no step"),
    (lambda h, t: h.update(about=[1]), "is no sound program"),
]


@pytest.mark.parametrize(("edit", "words"), UNSOUND)
def test_what_is_not_sound_is_named(path, edit, words):
    changed(path, edit)
    with pytest.raises(UserError, match=words) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_files_that_are_none(path, tmp_path):
    for content in (b"", b"\0" * 100, path.read_bytes()[:-1], b"\xff" * 8 + path.read_bytes()):
        (tmp_path / "bad.tadder").write_bytes(content)
        with pytest.raises(UserError, match="cannot read"):
            read(tmp_path / "bad.tadder")
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path / "none.tadder")
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"it is no \.tadder file"):
        read(path)


def test_a_disk_that_refuses(program, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        program.save(tmp_path / "no" / "folder.tadder")


@pytest.mark.parametrize("seed", range(5))
def test_fuzz_of_the_head_only_user_errors_come_out(path, seed):
    """Numbers of the head are exchanged at random: the file is refused, or a program that runs."""
    generator = random.Random(seed)
    values = [-1, 0, 1, 2, 3, 17, 255, 1 << 14, 1 << 40, 0.5, None, "conv", "binary", [], {}, [0], [1, 1], True]

    def edit(head, tensors):
        for _ in range(generator.randint(1, 3)):
            place = generator.choice([head, head["input"], *head["steps"]])
            place[generator.choice([*place])] = generator.choice(values)

    original = path.read_bytes()
    sound = 0
    for _ in range(40):
        path.write_bytes(original)
        try:
            changed(path, edit)
        except (TypeError, AttributeError):  # the edit met its own
            continue
        try:
            program, _ = read(path)
        except UserError:
            continue
        sound += 1
        assert program(torch.zeros(1, *program.shape)).isfinite().all()
    assert sound < 40
