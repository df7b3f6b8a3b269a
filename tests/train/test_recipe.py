"""Test recipes: the paper's values, the errors for values out of range, and JSON."""

import dataclasses
import json
import math

import pytest

from torchadder.errors import UserError
from torchadder.functional import GradientRule
from torchadder.models import list_models
from torchadder.train import RECIPES, Recipe, get_recipe
from torchadder.train.recipe import GRADIENTS, allowed_values, default_value, differences, options


def test_the_mnist_recipe_is_the_papers():
    recipe = get_recipe("lenet5bn-mnist")
    assert (recipe.model, recipe.dataset, recipe.op) == ("lenet5bn", "mnist", "adder")
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (50, 256, 0.1)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.9, True, 5e-4)
    assert (recipe.lr_scheme, recipe.eta) == ("alr", 0.1)
    assert recipe.gradient_rule == GradientRule(weight="full", input="hardtanh")


@pytest.mark.parametrize("lr_scheme", ["alr", "ilr", "plain"])
@pytest.mark.parametrize("grad", GRADIENTS)
def test_every_scheme_of_the_ablation_is_a_recipe(lr_scheme, grad):
    recipe = get_recipe("lenet5bn-mnist", {"lr_scheme": lr_scheme, **GRADIENTS[grad]})
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_conv_has_no_gradient_rule():
    assert get_recipe("lenet5bn-mnist", {"op": "conv"}).gradient_rule is None


PAPER = {  # section 4, the pico networks and ResNet-8: recipe -> epochs, Nesterov, weight decay, augmentation, eta
    "lenet5bn-mnist": (50, True, 5e-4, False, 0.1),
    "lenetpp-mnist": (50, True, 5e-4, False, 0.1),
    "lenetpp_3d-mnist": (50, True, 5e-4, False, 0.1),
    "lenet5bn-fashion_mnist": (50, True, 5e-4, False, 0.1),
    "pico-mnist": (30, True, 5e-4, True, 0.1),
    "pico_wide-mnist": (30, True, 5e-4, True, 0.1),
    "vgg_small-cifar10": (400, False, 5e-4, True, 0.2),
    "vgg_small-cifar100": (400, False, 5e-4, True, 0.2),
    "resnet8-cifar10": (400, False, 5e-4, True, 0.2),
    "resnet20-cifar10": (400, False, 5e-4, True, 0.2),
    "resnet20-cifar100": (400, False, 5e-4, True, 0.2),
    "resnet32-cifar10": (400, False, 5e-4, True, 0.2),
    "resnet32-cifar100": (400, False, 5e-4, True, 0.2),
    "resnet18-imagenet": (150, True, 1e-4, True, 0.2),
    "resnet50-imagenet": (150, True, 1e-4, True, 0.2),
}


SHORT = ["resnet8-cifar10-short", "resnet20-cifar10-short"]


@pytest.mark.parametrize("name", SHORT)
def test_a_short_recipe_is_the_papers_with_fewer_epochs_and_smaller_batches(name):
    changed = differences(RECIPES[name], RECIPES[name.removesuffix("-short")])
    assert {field: ours for field, (ours, _) in changed.items()} == {
        **{"name": name, "epochs": 20, "batch_size": 64, "norm_batches": 50}
    }


def test_every_row_of_the_paper_has_a_recipe(tiny_recipe):
    assert set(RECIPES) - {tiny_recipe.name} - set(SHORT) == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_recipes_are_the_papers(name):
    recipe = RECIPES[name]
    assert name == f"{recipe.model}-{recipe.dataset.removesuffix('28')}"
    assert recipe.model in list_models()
    found = (recipe.epochs, recipe.nesterov, recipe.weight_decay, recipe.augment, recipe.eta)
    assert found == PAPER[name]
    assert (recipe.batch_size, recipe.lr, recipe.momentum, recipe.schedule) == (256, 0.1, 0.9, "cosine")
    assert (recipe.bits, recipe.finetune) == ((4, 3) if name.startswith("pico") else (8, 0))


def test_fields_that_an_older_run_lacks_are_what_it_did():
    old = {
        **{"name": "lenet5bn-mnist", "model": "lenet5bn", "dataset": "mnist", "op": "adder", "epochs": 50},
        **{"batch_size": 256, "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005},
        **{"lr_scheme": "alr", "eta": 0.1, "ilr_factor": 100.0, "weight_grad": "full", "input_grad": "hardtanh"},
        **{"recenter": False, "precision": "fp32", "seed": 0, "channels_last": False},
    }
    recipe = Recipe.from_json(json.dumps(old))
    assert recipe == get_recipe("lenet5bn-mnist")
    assert (recipe.optimizer, recipe.schedule, recipe.accumulate, recipe.augment) == ("sgd", "cosine", 1, False)
    assert (recipe.warmup_epochs, recipe.label_smoothing, recipe.ema, recipe.clip_grad) == (0, 0, 0, 0)
    assert recipe.norm_batches == 0


@pytest.mark.parametrize(
    ("change", "batches"),
    [
        ({}, 0),
        ({"dataset": "mnist"}, 0),
        ({"dataset": "imagefolder:shapes"}, 50),
        ({"dataset": "imagefolder:shapes", "norm_batches": 0}, 0),
    ],
)
def test_other_images_have_statistics_of_the_weights(change, batches):
    """The recipe of the paper keeps its running averages."""
    assert get_recipe("lenet5bn-mnist", change).norm_batches == batches


REFUSED = [  # change -> the words that the message must contain
    ({"recenter": True, "op": "conv"}, "recenter=True is for adder layers, and op=conv has none"),
    ({"precision": "fp16"}, "precision=fp16 is out of range: expected fp32 or bf16"),
    ({"op": "xor"}, "op=xor is out of range: expected adder, conv or binary"),
    ({"op": ""}, "op= is out of range"),
    ({"epochs": 0}, "epochs=0 is out of range: expected at least 1"),
    ({"epochs": -3}, "epochs=-3"),
    ({"batch_size": 1}, "batch_size=1 is out of range: expected at least 2"),
    ({"lr": 0.0}, "lr=0.0 is out of range: expected above 0"),
    ({"lr": math.nan}, "lr=nan"),
    ({"lr": math.inf}, "lr=inf"),
    ({"momentum": 1.5}, "momentum=1.5 is out of range: expected 0 to 1"),
    ({"momentum": 0.0}, "momentum=0 has no Nesterov form"),
    ({"weight_decay": -1e-4}, "weight_decay=-0.0001 is out of range: expected at least 0"),
    ({"lr_scheme": "adaptive"}, "lr_scheme=adaptive is out of range: expected alr, ilr or plain"),
    ({"eta": 0.0}, "eta=0.0 is out of range: expected above 0"),
    ({"ilr_factor": -1.0}, "ilr_factor=-1.0"),
    ({"weight_grad": "hardtanh"}, "weight_grad=hardtanh is out of range: expected full or sign"),
    ({"input_grad": "none"}, "input_grad=none is out of range: expected hardtanh, sign or full"),
    ({"optimizer": "adamw"}, "optimizer=adamw is out of range: expected sgd or adam"),
    ({"schedule": "linear"}, "schedule=linear is out of range: expected cosine, polynomial or step"),
    ({"schedule": "step"}, "schedule=step needs the epochs .*: pass milestones=30,60,90"),
    ({"milestones": "30, 60"}, "milestones=30, 60 is out of range: expected epochs such as 30,60,90"),
    ({"milestones": "0,60"}, "milestones=0,60 is out of range"),
    ({"milestones": "30,"}, "milestones=30, is out of range"),
    ({"milestones": "9" * 5000}, "is out of range: expected epochs"),
    ({"power": 0.0}, "power=0.0 is out of range: expected above 0"),
    ({"warmup_epochs": -1}, "warmup_epochs=-1 is out of range: expected at least 0"),
    ({"warmup_epochs": 3, "epochs": 3}, "warmup_epochs=3 is out of range: expected below epochs=3"),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0 is out of range: expected at least 0 and below 1"),
    ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
    ({"ema": 1.0}, "ema=1.0 is out of range: expected at least 0 and below 1"),
    ({"ema": math.nan}, "ema=nan"),
    ({"clip_grad": -1.0}, "clip_grad=-1.0 is out of range: expected at least 0"),
    ({"clip_grad": math.inf}, "clip_grad=inf"),
    ({"accumulate": 0}, "accumulate=0 is out of range: expected at least 1"),
    ({"accumulate": 5, "batch_size": 8}, "accumulate=5 leaves parts of one image: expected at most 4, half of"),
    ({"on_error": "ignore"}, "on_error=ignore is out of range: expected stop or skip"),
    ({"seed": -1}, "seed=-1 is out of range: expected at least 0"),
    ({"seed": 10**20}, "seed=1(0{20}) is out of range: expected at most 9223372036854775807"),
    ({"seed": 2**63}, "seed=9223372036854775808"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_out_of_range(change, words):
    with pytest.raises(UserError, match=words) as caught:
        get_recipe("lenet5bn-mnist", change)
    assert "\n" not in str(caught.value)


def test_every_option_has_a_help_and_its_default_is_allowed():
    for option in options():
        assert option.metadata["help"].endswith(".")
        if not isinstance(option.default, bool):
            assert allowed_values(option)
    Recipe("name", model="lenet5bn", dataset="mnist")


def test_differences_name_the_fields():
    ours = get_recipe("lenet5bn-mnist")
    theirs = dataclasses.replace(ours, epochs=3, eta=0.3)
    assert differences(ours, theirs) == {"epochs": (50, 3), "eta": (0.1, 0.3)}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', '{"name": "x", "future": 1}', "3"])
def test_json_that_is_no_recipe(text):
    with pytest.raises(UserError, match="no recipe of this version"):
        Recipe.from_json(text)


@pytest.mark.parametrize("change", [{"epochs": "3"}, {"epochs": [3]}, {"op": 3}, {"nesterov": "yes"}, {"lr": None}])
def test_json_with_a_wrong_type(change):
    text = json.dumps({**json.loads(get_recipe("lenet5bn-mnist").to_json()), **change})
    with pytest.raises(UserError):
        Recipe.from_json(text)


def test_default_in_words(monkeypatch):
    named = {option.name: option for option in options()}
    names = ("epochs", "batch_size", "lr_scheme", "recenter", "milestones", "nesterov")
    assert [default_value(named[name]) for name in names] == ["by recipe", "256", "alr", "off", "none", "by recipe"]
    monkeypatch.setattr("torchadder.train.recipe._LONG", {"only": RECIPES["lenet5bn-mnist"]})
    assert [default_value(named[name]) for name in names] == ["50", "256", "alr", "off", "none", "on"]


@pytest.mark.parametrize("change", [{"nesterov": True, "momentum": 0.0, "optimizer": "adam"}, {"accumulate": 128}])
def test_allowed_together(change):
    get_recipe("lenet5bn-mnist", change)
