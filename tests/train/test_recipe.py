"""Recipes: the paper's values, what is refused and in which words, and JSON there and back."""

import dataclasses
import math

import pytest

from torchadder.errors import UserError
from torchadder.functional import GradientRule
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


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_named_model_dataset(name):
    assert name == f"{RECIPES[name].model}-{RECIPES[name].dataset}"


REFUSED = [  # change -> the words that the message must contain
    ({"recenter": True, "op": "conv"}, "--recenter is for adder layers, and --op conv has none"),
    ({"precision": "fp16"}, "--precision fp16 is out of range: expected fp32 or bf16"),
    ({"op": "xor"}, "--op xor is out of range: expected adder, conv or binary"),
    ({"op": ""}, "--op  is out of range"),
    ({"epochs": 0}, "--epochs 0 is out of range: expected at least 1"),
    ({"epochs": -3}, "--epochs -3"),
    ({"batch_size": 1}, "--batch-size 1 is out of range: expected at least 2"),
    ({"lr": 0.0}, "--lr 0.0 is out of range: expected above 0"),
    ({"lr": math.nan}, "--lr nan"),
    ({"lr": math.inf}, "--lr inf"),
    ({"momentum": 1.5}, "--momentum 1.5 is out of range: expected 0 to 1"),
    ({"momentum": 0.0}, "--momentum 0 has no Nesterov form"),
    ({"weight_decay": -1e-4}, "--weight-decay -0.0001 is out of range: expected at least 0"),
    ({"lr_scheme": "adaptive"}, "--lr-scheme adaptive is out of range: expected alr, ilr or plain"),
    ({"eta": 0.0}, "--eta 0.0 is out of range: expected above 0"),
    ({"ilr_factor": -1.0}, "--ilr-factor -1.0"),
    ({"weight_grad": "hardtanh"}, "--weight-grad hardtanh is out of range: expected full or sign"),
    ({"input_grad": "none"}, "--input-grad none is out of range: expected hardtanh, sign or full"),
    ({"seed": -1}, "--seed -1 is out of range: expected at least 0"),
    ({"seed": 2**63}, "--seed 9223372036854775808"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_out_of_range(change, words):
    with pytest.raises(UserError, match=words):
        get_recipe("lenet5bn-mnist", change)


def test_unknown_recipe_names_the_known():
    with pytest.raises(UserError, match=r"unknown recipe 'lenet-mnist'; known: .*lenet5bn-mnist"):
        get_recipe("lenet-mnist")


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
    import json

    text = json.dumps({**json.loads(get_recipe("lenet5bn-mnist").to_json()), **change})
    with pytest.raises(UserError):
        Recipe.from_json(text)


def test_default_in_words(monkeypatch, tiny_recipe):
    monkeypatch.delitem(RECIPES, tiny_recipe.name)
    named = {option.name: option for option in options()}
    defaults = [default_value(named[name]) for name in ("epochs", "eta", "lr_scheme", "nesterov", "channels_last")]
    assert defaults == ["50", "0.1", "alr", "on", "off"]
    monkeypatch.setitem(RECIPES, "other", dataclasses.replace(RECIPES["lenet5bn-mnist"], eta=0.2))
    assert default_value(named["eta"]) == "by recipe"
