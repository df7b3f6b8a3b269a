"""Test the tables as data: the paper's numbers, and recipes that exist."""

import pytest

from torchadder.data import load_dataset
from torchadder.errors import UserError
from torchadder.lab.reproduce import EXPERIMENTS
from torchadder.lab.reproduce.queue import run_name
from torchadder.models import list_models

PAPER = {  # as published: CNN, AdderNet, BNN of each network in turn
    "mnist": [99.40, 99.40, None],
    "fashion_mnist": [None, None, None],
    "ablation": [99.40, 98.99, 97.99, 97.72],
    "eta": [99.26, 99.30, 99.35, 99.40, 99.32],
    "cifar10_jpeg": [None, None, None],
    "cifar10": [93.80, 93.72, 89.80, 92.25, 91.84, 84.87, 93.29, 93.01, 86.74],
    "cifar100": [72.73, 72.64, 65.41, 68.14, 67.60, 54.14, 69.74, 69.02, 56.21],
    "imagenet": [69.8, 67.0, 51.2, 76.2, 74.9, 55.8],
}
EPOCHS = {"cifar10": 400, "cifar10_jpeg": 400, "cifar100": 400, "imagenet": 150}  # of the others 50


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_papers_numbers(name):
    assert {row.paper for row in EXPERIMENTS[name].rows} == {None} or name in PAPER
    if name in PAPER:
        assert [row.paper for row in EXPERIMENTS[name].rows] == PAPER[name]


def test_the_papers_top5():
    rows = EXPERIMENTS["imagenet"].rows
    assert [row.paper_top5 for row in rows] == [89.1, 87.6, 73.2, 92.9, 91.7, 78.4]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_rows_of_a_table_differ_and_have_as_many_epochs(name):
    experiment = EXPERIMENTS[name]
    recipes = [row.recipe_for() for row in experiment.rows]
    assert {recipe.epochs for recipe in recipes} == {experiment.epochs} == {EPOCHS.get(name, 50)}
    assert len({row.label for row in experiment.rows}) == len(set(recipes)) == len(recipes)
    assert {recipe.model for recipe in recipes} <= {*list_models()}


def test_runs_of_different_recipes_have_different_names_and_shared_ones_the_same():
    recipes = {row.recipe_for(seed) for table in EXPERIMENTS.values() for row in table.rows for seed in range(3)}
    names = {run_name(recipe) for recipe in recipes}
    assert len(names) == len(recipes) < sum(3 * len(table.rows) for table in EXPERIMENTS.values())
    assert not {name for name in names if "/" in name or ":" in name}


def test_the_ablation_has_the_four_schemes():
    recipes = [row.recipe_for(seed=2) for row in EXPERIMENTS["ablation"].rows]
    schemes = [(r.weight_grad, r.input_grad, r.lr_scheme, r.ilr_factor) for r in recipes]
    assert schemes == [
        ("full", "hardtanh", "alr", 100.0),
        ("full", "hardtanh", "ilr", 100.0),
        ("sign", "sign", "alr", 100.0),
        ("sign", "sign", "ilr", 100.0),
    ]
    assert recipes[0].eta == 0.1
    assert {recipe.seed for recipe in recipes} == {2}
    assert recipes[2] in [row.recipe_for(seed=2) for row in EXPERIMENTS["eta_sign"].rows]  # the eta is one of the sweep


def test_cifar10_jpeg_is_the_recipe_of_cifar10_on_a_folder_named_so(tmp_path):
    recipes = [row.recipe_for() for row in EXPERIMENTS["cifar10_jpeg"].rows]
    assert [recipe.op for recipe in recipes] == ["conv", "adder", "binary"]
    assert {(recipe.model, recipe.augment, recipe.batch_size) for recipe in recipes} == {("resnet20", True, 256)}
    (dataset,) = {recipe.dataset for recipe in recipes}
    with pytest.raises(UserError, match=f"no folder {tmp_path / 'cifar10-jpeg'}: put the images into train/CLASS/"):
        load_dataset(dataset, tmp_path)
