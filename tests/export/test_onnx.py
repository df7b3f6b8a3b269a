"""Test exported ONNX files: ONNX Runtime computes what a network does, and exactly what an engine does."""

import random
from importlib.resources import files

import pytest
import torch
from tests.quant.random_programs import Maker
from torch import nn
from torch.optim.swa_utils import update_bn

from torchadder.data import load_dataset
from torchadder.data.mnist import MNIST, find_files
from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.export import export_onnx
from torchadder.export.onnx import functions
from torchadder.export.page import DIGITS
from torchadder.models import create_model
from torchadder.nn import AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # torch's own
]


def run(model, images):
    """Return what ONNX Runtime computes from images; ``model`` is a file or the content of one."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def difference(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def of_one_node(name, images, weight, bias, attributes):
    """Return the content of a file with one node, whose weights are constants."""
    helper = onnx.helper
    node = helper.make_node(name, ["images", "weight", "bias"], ["y"], domain=functions.DOMAIN, **attributes)
    dtype = helper.np_dtype_to_tensor_dtype(images.numpy().dtype)
    values = [helper.make_tensor_value_info(value, dtype, [None] * images.dim()) for value in ("images", "y")]
    tensors = [onnx.numpy_helper.from_array(t.numpy(), n) for n, t in (("weight", weight), ("bias", bias))]
    graph = helper.make_graph([node], "layer", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid(functions.DOMAIN, functions.VERSION)]
    built = [functions.function(name)]
    model = helper.make_model(graph, functions=built, opset_imports=opsets, ir_version=functions.IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.mark.parametrize("seed", range(16))
def test_functions_of_random_geometry(seed):
    pick, dtype = random.Random(seed), torch.float64 if seed % 4 == 3 else torch.float32
    torch.manual_seed(seed)
    dims = seed % 4 if seed < 8 else 2
    ranges = (1, 3), (1, 3), (0, 2), (1, 2)
    kernel, stride, padding, dilation = ([pick.randint(*ends) for _ in range(dims)] for ends in ranges)
    groups, channels = pick.choice([1, 2, 5]) if dims else 1, pick.randint(1, 4)
    weight = torch.randn(groups * pick.randint(1, 5), channels, *kernel, dtype=dtype)
    size = [pick.choice([5, 7, 11]) for _ in kernel]
    images = torch.randn(pick.choice([1, 3]), groups * channels, *size, dtype=dtype)
    bias, recenter = torch.randn(len(weight), dtype=dtype), seed % 2
    geometry = {"strides": stride, "pads": padding * 2, "dilations": dilation, "group": groups} if dims else {}
    kind = "Conv" if dims else "Linear"
    found = run(of_one_node(f"Adder{kind}", images, weight, bias, {**geometry, "recenter": recenter}), images)
    options = stride, padding, dilation, groups
    expected = torch.ops.torchadder.adder_conv(images, weight, bias, *options, bool(recenter))
    assert difference(found, expected) < 3e-6
    if dtype is torch.float32:  # ONNX Runtime has no Conv of float64
        found = run(of_one_node(f"Binary{kind}", images, weight, bias, geometry), images)
        assert difference(found, torch.ops.torchadder.binary_conv(images, weight, bias, *options)) < 3e-6


class Branches(nn.Module):
    """Run layers of every kind, in one to three dimensions, on images (N, 4, H, W) of any size."""

    def __init__(self):
        super().__init__()
        self.conv1 = AdderConv1d(4, 6, 3, stride=2, bias=False)
        self.conv2 = nn.Sequential(
            AdderConv2d(4, 6, 3, padding="same", groups=2, recenter=True),
            nn.BatchNorm2d(6),
            AdderConv2d(6, 6, 3, dilation=2, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(6),
            BinaryConv2d(6, 6, 3, padding=1, stride=2),
        )
        self.conv3 = AdderConv3d(4, 6, (1, 3, 2), padding=(0, 1, 0))
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Sequential(AdderLinear(6, 5), nn.BatchNorm1d(5), BinaryLinear(5, 3))

    def forward(self, x):
        rows, planes = self.conv1(x.mean(3)).mean(2), self.conv3(x[:, :, None]).mean((2, 3, 4))
        return self.last(self.dropout(self.norm(rows + planes + self.conv2(x).mean((2, 3)))))


def test_a_network_of_all_layers(tmp_path):
    torch.manual_seed(0)
    model = Branches()
    update_bn([torch.randn(64, 4, 9, 7)], model)
    path = tmp_path / "net.onnx"
    assert model.training
    export_onnx(model, torch.randn(1, 4, 9, 7), path)
    assert model.training
    assert model.last[1].training
    model.eval()
    for size in ((1, 4, 9, 7), (5, 4, 9, 7), (3, 4, 11, 13)):
        images = torch.randn(size)
        with torch.no_grad():
            assert difference(run(str(path), images), model(images)) < 1e-4
    written = onnx.load(path)
    nodes = [node.op_type for node in written.graph.node if node.domain == "torchadder"]
    assert sorted(nodes) == ["AdderConv"] * 4 + ["AdderLinear", "BinaryConv", "BinaryLinear"]
    assert {f.name for f in written.functions} == {*nodes}
    assert {opset.domain: opset.version for opset in written.opset_import} == {"": 18, "torchadder": 1}
    axes = written.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param for axis in axes] == ["batch", "", "height", "width"]


def test_sizes_are_free_where_the_model_takes_others(tmp_path):
    """LeNet-5-BN flattens what is left of an image into a layer: 64 x 64 pixels would become 81 answers."""
    for model, size, axes in (
        (create_model("lenet5bn"), 32, [1, 32, 32]),
        (create_model("resnet8"), 32, [3, "height", "width"]),
        (nn.Sequential(AdderConv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 4)), 8, [2, 8]),
    ):
        images = torch.randn(3, axes[0], *[size] * (len(axes) - 1))
        export_onnx(model.eval(), images, tmp_path / "net.onnx")
        shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim
        assert [axis.dim_param or axis.dim_value for axis in shape] == ["batch", *axes]


def test_metadata_of_a_program_say_how_images_are_prepared(tmp_path):
    export_onnx(DIGITS, None, tmp_path / "net.onnx")
    found = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert found == {name: str(value) for name, value in Engine(DIGITS).about.items()}
    assert {"mean", "std"} <= set(found)


@pytest.mark.parametrize("seed", range(24))
def test_programs_are_exact(seed, tmp_path):
    program = Maker(seed).program()
    images = 3 * torch.randn(3, *program.shape)
    images[0, 0, 0, 0], images[1] = torch.nan, torch.inf
    export_onnx(program, None, tmp_path / "net.onnx")
    assert torch.equal(run(str(tmp_path / "net.onnx"), images), program(images))


def test_a_trained_program_on_mnist(tmp_path):
    if find_files(MNIST, None) is None:
        pytest.skip("needs the files of MNIST in TORCHADDER_DATA or the cache")
    source = files("torchadder") / "pretrained" / "pico.tadder"
    export_onnx(str(source), None, tmp_path / "net.onnx")
    engine = Engine(source.read_bytes())
    images = engine.preprocessing.normalization(load_dataset("mnist28").test.images[:1000])
    assert torch.equal(run(str(tmp_path / "net.onnx"), images), engine(images))


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (nn.Conv2d(3, 4, 3), None, "example=None: expected a batch of images as Conv2d takes them"),
        (nn.Conv2d(3, 4, 3), IMAGES[:, :2], "example=torch.float32 (2, 2, 8, 8): Conv2d does not run on it"),
        (nn.Conv2d(3, 4, 3), IMAGES[:0], "example=(0, 3, 8, 8): expected a tensor with at least one image"),
        (nn.Conv2d(3, 4, 3), [1], "example=int: expected a tensor"),
        (AdderConv2d(3, 4, 3).half(), IMAGES, "AdderConv2d has torch.float16: expected float32"),
        (Eigenvalues(), IMAGES, "Eigenvalues has no ONNX form: nothing in ONNX computes aten::linalg_eig, replace it"),
        (Branching(), IMAGES, "Branching has no ONNX form: its forward takes a number from the values of an image"),
        ("nowhere.tadder", None, "cannot read nowhere.tadder"),
    ],
)
def test_refused(model, example, words, tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(UserError) as caught:
        export_onnx(model, example, path)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("net.txt", "expected a name that ends in .onnx"), ("none/net.onnx", "is no folder; create it first")],
)
def test_refused_paths(name, words, tmp_path):
    with pytest.raises(UserError, match=words):
        export_onnx(nn.Conv2d(3, 4, 3), IMAGES, tmp_path / name)


def test_a_missing_package(tmp_path, monkeypatch):
    monkeypatch.setattr("torchadder.export.onnx.PACKAGES", ("onnx", "nonesuch"))
    with pytest.raises(UserError, match=r"install nonesuch: pip install 'torchadder\[onnx\]'"):
        export_onnx(nn.Conv2d(3, 4, 3), IMAGES, tmp_path / "net.onnx")


def test_a_full_disk_leaves_the_old_file(tmp_path, fill_disk):
    (path := tmp_path / "net.onnx").write_bytes(b"old")
    fill_disk("net.onnx")
    with pytest.raises(UserError, match=r"net.onnx: cannot be written"):
        export_onnx(Maker(0).program(), None, path)
    assert path.read_bytes() == b"old"
