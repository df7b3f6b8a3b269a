"""Test the registry and the networks: exact shapes, names, parameters, operations, and errors."""

import json

import pytest
import torch
from torch import nn

from torchadder.counts import summary
from torchadder.errors import UserError
from torchadder.models import create_model, list_models
from torchadder.models.registry import OPS, register
from torchadder.nn import Adder, AdderConv2d, Binary, GradientRule

NETWORKS = [  # name, parameters, layers of the operator, ordinary layers, products of the CNN, of the ordinary layers
    ("lenet5bn", 61_942, 5, 0, 416_520, 0),
    ("lenetpp", 799_436, 8, 0, 105_680_916, 0),
    ("lenetpp_3d", 801_496, 8, 0, 105_682_974, 0),
    ("pico", 18_560, 4, 0, 101_872, 0),
    ("pico_wide", 45_932, 4, 0, 504_832, 0),
    ("vgg_small", 4_660_116, 5, 2, 607_600_640, 3_620_864),
    ("ds_cnn", 23_192, 8, 2, 2_656_768, 320_768),
    ("mobilenetv1_025", 213_588, 26, 2, 7_489_664, 498_176),
    ("resnet8", 78_052, 8, 2, 12_501_632, 443_008),
    ("resnet20", 272_484, 20, 2, 40_813_184, 443_008),
    ("resnet32", 466_916, 32, 2, 69_124_736, 443_008),
    ("resnet18", 11_691_512, 19, 2, 1_814_073_344, 118_525_952),
    ("resnet50", 25_559_032, 52, 2, 4_089_184_256, 120_061_952),
]

SIGN = GradientRule("sign", "sign")

REFUSED = [  # arguments -> the words that the message must contain
    ({"name": "lenet6"}, "model=lenet6 is unknown: expected one of ds_cnn, lenet5bn"),
    ({"name": "lenet5bn", "op": "xor"}, "xor is unknown: expected one of adder, conv, binary"),
    ({"name": "lenet5bn", "num_classes": "10"}, "num_classes='10' is no integer: expected at least 1"),
    ({"name": "lenet5bn", "in_chans": 3.0}, "in_chans=3.0 is no integer: expected at least 1"),
    ({"name": "lenet5bn", "num_classes": 0}, "num_classes=0 is out of range: expected at least 1"),
    ({"name": "resnet20", "in_chans": -3}, "in_chans=-3 is out of range: expected at least 1"),
    ({"name": "resnet20", "op": "conv", "grad": SIGN}, "op=conv has no gradient rule"),
    ({"name": "resnet20", "op": "binary", "grad": SIGN}, "op=binary has no gradient rule"),
    ({"name": "resnet20", "op": "conv", "recenter": True}, "op=conv has no adder layers"),
    ({"name": "resnet20", "op": "binary", "recenter": True}, "op=binary has no adder layers"),
    ({"name": "resnet20", "grad": {"weight": "half"}}, "'half'"),
    ({"name": "resnet20", "grad": {"bias": "full"}}, "bias"),
]


SECTORS = ("lenetpp", "lenetpp_3d")  # no normalisation follows their ordinary classifier


def on_meta(name: str, op: str = "adder", **arguments):
    """Build a network without memory for its weights."""
    with torch.device("meta"):
        return create_model(name, op=op, **arguments)


def small_images(n: int, in_chans: int):
    """Return images for any network: the ResNets for ImageNet run on any size."""
    return torch.randn(n, in_chans, 32, 32)


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


OUTERMOST = {  # products of the first and the last layer, where only the binary network keeps them
    "lenet5bn": 28 * 28 * 6 * 25 + 84 * 10,
    "lenetpp": 32 * 32 * 32 * 25 + 2 * 10,
    "lenetpp_3d": 32 * 32 * 32 * 25 + 3 * 10,
    "pico": 13 * 13 * 10 * 16 + 96 * 10,
    "pico_wide": 15 * 15 * 24 * 16 + 112 * 10,
}


def test_the_table_has_every_model():
    assert sorted(row[0] for row in NETWORKS) == list_models()


@pytest.mark.parametrize(("name", "parameters", "own", "ordinary", "products", "kept"), NETWORKS)
def test_networks_of_all_operators_differ_only_in_the_layer(name, parameters, own, ordinary, products, kept):
    adder, conv, binary = (on_meta(name, op) for op in OPS)
    assert sum(isinstance(m, Adder) for m in adder.modules()) == own
    assert len(layers(adder)) == len(layers(conv)) == len(layers(binary)) == own + ordinary
    assert not any(isinstance(m, (Adder, Binary)) for m in conv.modules())
    shapes = {key: value.shape for key, value in adder.state_dict().items()}
    if name in SECTORS:
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("bn8.")}
    for model in (conv, binary):
        assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert sum(p.numel() for p in adder.parameters()) == parameters


@pytest.mark.parametrize(("name", "parameters", "own", "ordinary", "products", "kept"), NETWORKS)
def test_operations_at_the_size_of_the_paper(name, parameters, own, ordinary, products, kept):
    adder, cnn, bnn = (summary(on_meta(name, op)) for op in OPS)
    assert (cnn.mul, cnn.add, cnn.xnor) == (products, products, 0)
    assert (adder.mul, adder.add, adder.xnor) == (kept, 2 * (products - kept) + kept, 0)
    kept = OUTERMOST.get(name, kept)
    assert (bnn.mul, bnn.add, bnn.xnor) == (kept, products, products - kept)


@pytest.mark.parametrize("name", list_models())
def test_defaults_are_the_task_of_the_paper(name):
    tasks = {
        **dict.fromkeys(("resnet18", "resnet50"), (1000, (3, 224, 224))),
        **dict.fromkeys(("lenet5bn", "lenetpp", "lenetpp_3d", "pico_wide"), (10, (1, 32, 32))),  # MNIST
        "pico": (10, (1, 28, 28)),
        "ds_cnn": (12, (1, 49, 10)),  # Speech Commands
        "mobilenetv1_025": (2, (3, 96, 96)),  # Visual Wake Words
    }
    num_classes, size = tasks.get(name, (10, (3, 32, 32)))
    model = on_meta(name)
    assert (model.config["num_classes"], model.input_size) == (num_classes, size)
    assert model(torch.zeros(2, *size, device="meta")).shape == (2, num_classes)


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("op", OPS)
def test_logits_and_gradients_of_other_tasks(name, op, one_thread):
    torch.manual_seed(0)
    model = create_model(name, op=op, num_classes=7, in_chans=2)
    logits = model(small_images(3, 2))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_a_normalisation_ends_the_network(name, one_thread):
    model = create_model(name, op="adder" if name in SECTORS else "conv", num_classes=10).train()
    logits = model(small_images(8, model.config["in_chans"]))
    torch.testing.assert_close(logits.mean(0), torch.zeros(10), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", list_models())
def test_no_layer_has_a_bias_but_the_classifier_of_the_official_resnet50(name):
    biased = [key for key, m in on_meta(name).named_modules() if getattr(m, "bias", None) is not None]
    biased = [key for key in biased if "bn" not in key and "downsample.1" not in key]
    assert biased == (["fc"] if name in ("resnet18", "resnet50") else [])


@pytest.mark.parametrize("name", list_models())
def test_binary_layers_see_both_signs(name, one_thread):
    torch.manual_seed(0)
    model = create_model(name, op="binary").eval()
    seen = []
    for layer in model.modules():
        if isinstance(layer, Binary):
            layer.register_forward_pre_hook(lambda layer, args: seen.append((args[0].min(), args[0].max())))
    model(small_images(2, model.config["in_chans"]))
    assert len(seen) > 1
    assert all(low < 0 < high for low, high in seen)


BLOCK = "AdderConv2d BatchNorm2d ReLU "
SEQUENCES = {
    "lenet5bn": (
        f"{BLOCK}MaxPool2d {BLOCK}MaxPool2d {BLOCK}Flatten AdderLinear BatchNorm1d ReLU AdderLinear BatchNorm1d"
    ),
    "vgg_small": (
        f"Conv2d BatchNorm2d ReLU {BLOCK}MaxPool2d {BLOCK}{BLOCK}MaxPool2d {BLOCK}{BLOCK}MaxPool2d "
        "Flatten Linear BatchNorm1d"
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequential_networks_are_those_of_the_paper(name):
    assert " ".join(type(m).__name__ for m in on_meta(name)) == SEQUENCES[name]


@pytest.mark.parametrize(("name", "dimensions"), [("lenetpp", 2), ("lenetpp_3d", 3)])
def test_lenetpp_classifies_by_few_features(one_thread, name, dimensions):
    torch.manual_seed(0)
    model = create_model(name).eval()
    x = torch.randn(5, 1, 32, 32)
    features = model.features(x)
    assert features.shape == (5, dimensions)
    torch.testing.assert_close(model(x), model.bn8(model.fc(features)))
    cnn = create_model(name, "conv").eval()
    torch.testing.assert_close(cnn(x), cnn.features(x) @ cnn.fc.weight.T)


def test_binary_networks_for_mnist_keep_ordinary_outermost_layers():
    for name in ("lenet5bn", "lenetpp", "lenetpp_3d", "pico", "pico_wide"):
        first, *inner, last = layers(on_meta(name, "binary"))
        assert (type(first), type(last)) == (nn.Conv2d, nn.Linear)
        assert all(isinstance(layer, Binary) for layer in inner)


def test_resnet20_has_the_names_of_the_official_checkpoint():
    model = create_model("resnet20")
    names = {name for name, module in model.named_modules() if isinstance(module, AdderConv2d)}
    blocks = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3) for block in (0, 1, 2) for i in (1, 2)]
    assert names == {*blocks, "layer2.0.downsample.0", "layer3.0.downsample.0"}
    state = model.state_dict()
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert state["fc.weight"].shape == (10, 64, 1, 1)
    assert state["bn2.weight"].shape == (10,)


def test_resnet50_has_the_names_and_strides_of_the_official_code():
    model = on_meta("resnet50")
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"conv1.weight", "fc.weight", "fc.bias", *(f"{bn}.{leaf}" for bn in ("bn1", "bn2") for leaf in norm)}
    for stage, depth in enumerate((3, 4, 6, 3), 1):
        keys.add(f"layer{stage}.0.downsample.0.weight")
        keys |= {f"layer{stage}.0.downsample.1.{leaf}" for leaf in norm}
        for block in range(depth):
            keys |= {f"layer{stage}.{block}.conv{i}.weight" for i in (1, 2, 3)}
            keys |= {f"layer{stage}.{block}.bn{i}.{leaf}" for i in (1, 2, 3) for leaf in norm}
    state = model.state_dict()
    assert set(state) == keys
    assert state["fc.weight"].shape == (1000, 2048, 1, 1)
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    strided = {name for name, m in model.named_modules() if isinstance(m, AdderConv2d) and m.stride == (2, 2)}
    assert strided == {f"layer{stage}.0.{which}" for stage in (2, 3, 4) for which in ("conv2", "downsample.0")}


def test_resnet50_starts_with_sane_numbers(one_thread):
    torch.manual_seed(0)
    model = create_model("resnet50")
    deviations = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(stage).register_forward_hook(lambda stage, args, y: deviations.append(y.std().item()))
    assert model(torch.randn(2, 3, 64, 64)).abs().max() < 10
    assert len(deviations) == 4
    assert all(0.1 < deviation < 10 for deviation in deviations)


def test_adder_weights_start_as_standard_normal():
    torch.manual_seed(0)
    weight = create_model("lenet5bn").get_submodule("conv3").weight
    assert abs(weight.mean()) < 0.02
    assert abs(weight.std() - 1) < 0.02


@pytest.mark.parametrize(
    ("op", "options"),
    [("adder", {}), ("adder", {"grad": SIGN, "recenter": True}), ("conv", {}), ("binary", {})],
)
def test_config_survives_json_and_rebuilds_the_model(op, options):
    model = create_model("lenet5bn", op=op, num_classes=4, in_chans=3, **options)
    again = create_model(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert again.input_size == (3, 32, 32)
    assert again.load_state_dict(model.state_dict())
    built = [(type(layer), getattr(layer, "grad", None), getattr(layer, "recenter", None)) for layer in layers(again)]
    assert built == [
        (type(layer), getattr(layer, "grad", None), getattr(layer, "recenter", None)) for layer in layers(model)
    ]


def test_config_names_the_defaults():
    assert create_model("lenet5bn").config == {
        "name": "lenet5bn",
        "op": "adder",
        "num_classes": 10,
        "in_chans": 1,
        "grad": {"weight": "full", "input": "hardtanh", "numbers": "float32"},
        "recenter": False,
    }
    for op in ("conv", "binary"):
        assert create_model("lenet5bn", op=op).config["grad"] is None
    config = create_model("lenet5bn").config
    del config["recenter"]  # Files that were written before recentering lack it.
    assert create_model(**config).config["recenter"] is False


def test_rule_and_recentering_reach_every_adder_layer():
    for name in list_models():
        adders = [m for m in on_meta(name, grad=SIGN, recenter=True).modules() if isinstance(m, Adder)]
        assert all(m.grad == SIGN and m.recenter for m in adders)
        assert not any(m.recenter for m in on_meta(name).modules() if isinstance(m, Adder))


def test_normalisation_absorbs_recentering(one_thread):
    torch.manual_seed(0)
    plain, recentered = create_model("lenet5bn"), create_model("lenet5bn", recenter=True)
    recentered.load_state_dict(plain.state_dict())
    x = torch.randn(16, 1, 32, 32)
    torch.testing.assert_close(recentered(x), plain(x), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused(arguments, words):
    with pytest.raises(UserError) as refusal:
        create_model(**arguments)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="lenet5bn"):
        register("lenet5bn", num_classes=10, in_chans=1, size=32)(lambda layers, classes, channels: None)
