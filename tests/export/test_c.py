"""Test exported C on this machine: each of its inner loops computes exactly the program, and its header is true."""

import copy
import ctypes
import functools
import hashlib
import os
import re
import shutil

import numpy as np
import pytest
import torch
from tests.export.conftest import COMPILERS, LOOPS, STRICT, Compiled, inputs, run
from tests.quant.random_programs import Maker

import torchadder
from torchadder.engine import Engine
from torchadder.export import export_c
from torchadder.export.c.sources import logits as expected_logits
from torchadder.models import create_model
from torchadder.quant import quantize
from torchadder.quant.program import Program
from torchadder.quant.steps import MaxPool

needs_compiler = pytest.mark.skipif(not COMPILERS, reason="needs a C compiler")


@functools.cache
def network(model="lenet5bn", op="adder", bits=8):
    """Return the program of a network whose weights are random and whose normalisations know their statistics."""
    torch.manual_seed(0)
    built = create_model(model, op=op)
    images = torch.rand(8, *built.input_size)
    for norm in built.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.momentum = None
    built(images)
    return quantize(built.eval(), [images], bits=bits)


def narrowed(program, qmax):
    """Return a program whose values and adder weights are at most ``qmax``."""
    program.qmax = qmax
    for step in program.steps:
        if hasattr(getattr(step, "epilogue", None), "qmax"):
            step.epilogue.qmax = qmax
        if hasattr(step, "table"):
            step.table %= qmax + 1
        if getattr(step, "kind", None) == "adder":
            step.weight %= qmax + 1
            step.zero_point %= qmax + 1
    return program


def check_equal(program, draft, compiled, count):
    """Compare with the program exactly, and with the engine within the rounding of its float32 logits."""
    q = inputs(program, count)
    logits, classes = compiled(q)
    assert count < 50 or len({*classes}) > 1
    assert (logits == expected_logits(draft, q)).all()
    assert (classes == logits.argmax(1)).all()
    engine, last = Engine(program, threads=1)(q, quantized=True).double().numpy(), program.steps[-1].epilogue
    products = draft.network.accumulators(q).double() * last.scale.double()
    rounding = 3 * draft.scale + 2**-22 * float((products.abs() + last.bias.abs()).max())
    assert np.abs(logits * draft.scale - engine).max() <= rounding
    assert (engine.max(1) - engine[range(count), classes] <= 2 * rounding).all()


@needs_compiler
@pytest.mark.parametrize("seed", range(12))
def test_random_programs(exported, seed):
    """All kinds of steps, odd sizes, strides, paddings and shortcuts, with values of 8, 4 and 7 bits."""
    program = Maker(seed).program()
    if seed % 3:
        program = narrowed(program, (15, 127)[seed % 3 - 1])
    folder, draft = exported(program)
    for flags in LOOPS.values():
        check_equal(program, draft, Compiled(folder, draft, flags), 5)


@needs_compiler
@pytest.mark.parametrize(
    ("op", "pool", "qmax", "steps"),
    [
        ("adder", MaxPool([1], 2, 2, 0), 255, {"run_pooled_layer"}),
        ("adder", MaxPool([1], 3, 3, 0), 127, {"run_pooled_layer"}),
        ("adder", MaxPool([1], 2, 2, 0), 15, {"run_pooled_layer"}),
        ("conv", MaxPool([1], 3, 3, 0), 255, {"run_pooled_layer"}),
        ("binary", MaxPool([1], 2, 2, 0), 255, {"run_pooled_layer"}),
        ("adder", MaxPool([1], 2, 1, 0), 255, {"run_layer", "max_pool"}),
        ("adder", MaxPool([1], 2, 2, 1), 255, {"run_layer", "max_pool"}),
        ("adder", MaxPool([0], 2, 2, 0), 255, {"run_layer", "max_pool"}),
        ("conv", MaxPool([1], (1, 2), (1, 2), 0), 255, {"run_pooled_layer"}),
    ],
)
def test_a_layer_and_its_pooling_are_one_step(exported, op, pool, qmax, steps):
    maker = Maker(10, sizes=(11, 11), plain=True)
    layer = maker.layer(op)
    assert len({*layer.epilogue.multiplier.sign().tolist()} - {0}) == 2  # some channels rise, others fall
    maker.shapes.append((maker.shapes[pool.sources[0]][0], *pool(torch.zeros(1, 1, *maker.shapes[1][1:])).shape[2:]))
    program = Program(maker.shapes[0], torch.ones(8), torch.zeros(8), [layer, pool, maker.layer("conv", last=True)])
    folder, draft = exported(narrowed(program, qmax) if qmax < 255 else program)
    assert {*re.findall(r"^  (run_\w*layer|max_pool)\(", (folder / "net.c").read_text(), re.M)} == steps
    for flags in LOOPS.values():
        check_equal(program, draft, Compiled(folder, draft, flags), 20)


@needs_compiler
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("op", "bits"), [("adder", 8), ("adder", 7), ("adder", 4), ("conv", 8), ("binary", 8)])
def test_networks(exported, op, bits, compiler):
    program = network(op=op, bits=bits)
    folder, draft = exported(program)
    for flags in LOOPS.values():
        check_equal(program, draft, Compiled(folder, draft, flags, compiler), 50)


@needs_compiler
@pytest.mark.parametrize("layer", [torch.nn.Conv2d, torchadder.AdderConv2d])
@pytest.mark.parametrize("pad", [(4, 4, 2, 2), (1, 2, 0, 1)])
def test_padding_of_any_width_and_side(exported, layer, pad):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(5, momentum=None)
    head = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 3)
    model = torch.nn.Sequential(torch.nn.ZeroPad2d(pad), layer(2, 5, (1, 2)), norm, torch.nn.ReLU(), *head)
    images = torch.rand(8, 2, 3, 3)
    model(images)
    program = quantize(model.eval(), [images])
    folder, draft = exported(program)
    check_equal(program, draft, Compiled(folder, draft, ["-fsanitize=undefined", "-fno-sanitize-recover=all"]), 20)


@needs_compiler
@pytest.mark.parametrize(
    ("model", "op"), [("resnet8", "adder"), ("ds_cnn", "adder"), ("ds_cnn", "binary"), ("mobilenetv1_025", "conv")]
)
def test_networks_for_microcontrollers(exported, model, op):
    program = network(model, op)
    folder, draft = exported(program)
    check_equal(program, draft, Compiled(folder, draft), 3)


def test_a_sum_takes_the_memory_of_its_shortcut(exported):
    _, draft = exported(network("resnet8"))
    assert draft.arena < 3 * 16 * 32 * 32  # source and shortcut, which the result replaces, and patches


@needs_compiler
@pytest.mark.parametrize("flags", LOOPS.values(), ids=LOOPS)
def test_sanitizers_find_nothing(exported, flags):
    for seed in range(4):
        program = Maker(seed).program()
        folder, _ = exported(program if seed % 2 else narrowed(program, 127))
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
        program = folder / "net_test"
        sources = (folder / "net.c", folder / "net_test.c")
        run("cc", *STRICT, *flags, *sanitizers, "-DNET_TEST_MAIN", *sources, "-o", program)
        run(program)
        program.unlink()


@needs_compiler
def test_its_own_test_finds_a_wrong_weight(exported):
    folder, _ = exported(network())
    text = (folder / "net.c").read_text()
    first = re.compile("0x[0-9A-F]{7}").search(text, text.index("step_6_weight") + 500)
    (folder / "net.c").write_text(text[: first.start()] + "0x1234567" + text[first.end() :])
    run("cc", "-DNET_TEST_MAIN", folder / "net.c", folder / "net_test.c", "-o", folder / "net_test")
    with pytest.raises(AssertionError):
        run(folder / "net_test")


@needs_compiler
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
@pytest.mark.parametrize(("op", "bits"), [("adder", 8), ("adder", 7), ("adder", 4), ("binary", 8)])
@pytest.mark.parametrize("loops", ["portable", "scalar"])
def test_inner_loops_do_not_multiply(exported, op, bits, loops):
    folder, _ = exported(network(op=op, bits=bits))
    run("cc", "-O2", "-fno-inline", *LOOPS[loops], "-c", folder / "net.c", "-o", folder / "net.o")
    listing = run("objdump", "-d", "--no-show-raw-insn", folder / "net.o")
    functions = dict(re.findall(r"^[0-9a-f]+ <(\w+)>:\n((?:.+\n)+)", listing, re.M))
    multiply = re.compile(r"\t\w*mul\w*\b")
    tile = {"adder": "adder_tile", "binary": "binary_tile"}[op] if bits > 4 else "adder4_tile"
    helpers = "positive_differences|add_differences|sum_of_|bytes_sum|distance|bits_of_bytes|add_bytes"
    inner = [name for name in functions if name == tile or re.match(helpers, name)]
    assert len(inner) >= 2
    assert not any(multiply.search(functions[name]) for name in inner)
    assert multiply.search(functions["multiply"])  # the epilogue does


@needs_compiler
def test_the_header_counts_memory_and_operations(exported, tmp_path):
    program = network(bits=4)
    program.save(tmp_path / "net.tadder", mean=[0.1307], std=[0.3081])
    folder, draft = exported(tmp_path / "net.tadder")
    header = (folder / "net.h").read_text()
    numbers = dict(re.findall(r"#define NET_(\w+) (\S+)", header))
    run("cc", "-O1", "-c", folder / "net.c", "-o", folder / "net.o")
    tables = re.findall(r"^static const u?int\d+_t (\w+)\[", (folder / "net.c").read_text(), re.M)
    symbols = re.findall(r"^\w+ (\w+) r (\w+)$", run("nm", "-S", folder / "net.o"), re.M)
    sizes = {name: int(size, 16) for size, name in symbols}
    assert int(numbers["FLASH_BYTES"]) == draft.flash == sum(sizes[name] for name in tables)
    assert int(numbers["ARENA_BYTES"]) == draft.arena
    assert int(numbers["OPERATIONS"]) == 416_520  # as torchadder summary lenet5bn counts
    assert hashlib.sha256((tmp_path / "net.tadder").read_bytes()).hexdigest() in header
    assert draft.flash < network().steps[4].weight.numel() * 0.75 + 20_000  # two weights of 4 bits share a byte


@needs_compiler
def test_pixels_become_the_input_as_in_the_engine(exported, tmp_path):
    program = network()
    program.save(tmp_path / "net.tadder", mean=[0.1307], std=[0.3081])
    folder, draft = exported(tmp_path / "net.tadder")
    compiled = Compiled(folder, draft)
    pixels = torch.arange(1024, dtype=torch.int32).byte().view(1, 1, 32, 32)
    q = np.zeros(1024, np.uint8)
    compiled.library.net_input_from_pixels(*(a.ctypes.data_as(ctypes.c_void_p) for a in (pixels.numpy(), q)))
    logits, _ = compiled(torch.from_numpy(q).view(1, 1, 32, 32))
    engine = Engine(tmp_path / "net.tadder")(pixels).numpy()
    assert np.abs(logits * draft.scale - engine).max() < 1e-5 * np.abs(engine).max()


@needs_compiler
def test_two_networks_of_any_name_in_one_program(tmp_path):
    for name, folder in (("other_net2", "digits.tmp"), ("digits", "digits")):
        export_c(network(), tmp_path / folder, name=name)
    (tmp_path / "main.cpp").write_text(
        '#include "digits/digits.h"\n#include "digits.tmp/other_net2.h"\n'
        "static digits_arena a; static other_net2_arena b;\n"
        "int main() { return digits_test(&a) + other_net2_test(&b) + (DIGITS_CLASSES != OTHER_NET2_CLASSES); }\n"
    )
    for source in tmp_path.glob("*/*.c"):
        run("cc", *STRICT, "-c", source, "-o", tmp_path / f"{source.stem}.o")
    run("c++", tmp_path / "main.cpp", *tmp_path.glob("*.o"), "-o", tmp_path / "main")
    run(tmp_path / "main")


def test_files_for_build_systems(exported):
    folder, _ = exported(network())
    names = {"CMakeLists.txt", "README.md", "library.json", "library.properties", "net.c", "net.h", "net_test.c"}
    assert {path.name for path in folder.iterdir()} == names
    if shutil.which("cmake"):
        build = folder.parent / "build"
        run("cmake", "-S", folder, "-B", build)
        run("cmake", "--build", build)
        run("ctest", cwd=build)


@needs_compiler
def test_what_was_built_of_an_earlier_export_stays(exported):
    """Run the command of the exported README.md in the folder, and export again."""
    folder, _ = exported(network())
    (command,) = re.findall(r"^```sh\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S)
    assert run("sh", "-c", command, cwd=folder) == "equal\n"
    (folder / "build").mkdir()
    (folder / "build" / "CMakeCache.txt").touch()
    before, built = (folder / "net.c").read_text(), (folder / "net_test").read_bytes()
    exported(network(bits=4))
    assert (folder / "net.c").read_text() != before
    assert (folder / "net_test").read_bytes() == built
    assert [path.name for path in (folder / "build").iterdir()] == ["CMakeCache.txt"]
    (folder / "net_tests").touch()
    with pytest.raises(ValueError, match=r"holds other files \(net_tests\); choose another folder"):
        exported(network())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "9net"}, "name='9net': expected letters, digits and _"),
        ({"name": "float"}, "name='float': expected"),
        ({"name": "a-b"}, "name='a-b'"),
        ({"name": ""}, "name=''"),
        ({"name": "string"}, "no standard header"),
        ({"max_flash": 60000}, "max_flash=60000: the network needs 65,"),
        ({"max_ram": 1000}, "max_ram=1000: the network needs "),
        ({"max_ram": 1}, " bytes of arena; take smaller images, or a smaller network"),
        ({"directory": "full"}, "holds other files (other.c); choose another folder"),
        ({"directory": "full/other.c"}, "is a file; choose another folder"),
        ({"directory": "a\0b"}, "expected a path without NUL"),
        ({"directory": "n" * 5000}, "cannot be written (File name too long)"),
    ],
)
def test_refused(tmp_path, options, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.c").write_text("")
    directory = tmp_path / options.pop("directory", "net")
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        export_c(network(), directory, **options)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "other.c"]


@pytest.mark.parametrize(("op", "bits", "advice"), [("adder", 8, "4 bits, or "), ("adder", 4, ""), ("conv", 8, "")])
def test_tables_that_are_too_large_name_a_remedy(tmp_path, op, bits, advice):
    with pytest.raises(ValueError, match=f"bytes of constant tables; take {advice}a smaller network$"):
        export_c(network(op=op, bits=bits), tmp_path / "net", max_flash=1)


@pytest.mark.parametrize("case", ["operator", "attribute", "tensor", "infinite"])
def test_steps_without_a_form_in_c(tmp_path, monkeypatch, case):
    program = copy.deepcopy(network())
    if case == "operator":
        monkeypatch.delitem(torchadder.export.c.network.ATTRIBUTES, "max_pool")
        words = "step 1, max_pool: it has no form in C"
    elif case == "attribute":
        monkeypatch.setitem(torchadder.export.c.network.ATTRIBUTES, "adder", {"stride"})
        words = r"step 0, adder with padding=\[0, 0\]: it has no form in C"
    elif case == "tensor":
        monkeypatch.setattr(torchadder.export.c.network, "TENSORS", {"weight", "zero_point"})
        words = "step 0, adder with multiplier, offset, shift: it has no form in C"
    else:
        program.steps[-1].epilogue.bias[0] = float("inf")
        words = "gives no finite logits"
    with pytest.raises(ValueError, match=words):
        export_c(program, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_an_earlier_export_is_replaced_whole(exported, monkeypatch):
    folder, _ = exported(network())
    old = {path.name: path.read_text() for path in folder.iterdir()}

    def fails(*paths):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"):
        exported(network(bits=4))
    assert {path.name: path.read_text() for path in folder.iterdir()} == old
    assert [path.name for path in folder.parent.iterdir()] == ["net"]
    monkeypatch.undo()
    exported(network(bits=4))
    assert (folder / "net.c").read_text() != old["net.c"]
