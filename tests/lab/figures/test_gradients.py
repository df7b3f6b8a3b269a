"""Test gradient norms: they are those of the first iterations of the run, and nothing is written into its folder."""

import pytest
import torch

from torchadder.data import load_dataset, open_batches
from torchadder.lab.figures import FigureInputs, gradients
from torchadder.lab.runs import TrainedRun
from torchadder.models import create_model
from torchadder.train.loop import forward_backward, rate_at
from torchadder.train.optimizer import attach_adder_lr, build_optimizer, clip_gradients

RUNS = [{}, {"op": "conv", "accumulate": 2, "clip_grad": 0.1}, {"lr_scheme": "ilr", "weight_grad": "sign"}]


def reference_norms(recipe, iterations):
    """Compute the norms with a training loop written out here."""
    dataset = load_dataset(recipe.dataset)
    batches = open_batches(dataset.train, recipe.batch_size, train=True, seed=recipe.seed)
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model, op=recipe.op, grad=recipe.gradient_rule)
    optimizer = build_optimizer(model, recipe)
    attach_adder_lr(optimizer, recipe)
    names = ("conv1", "conv2", "conv3", "fc1", "fc2")
    norms = {name: [] for name in names}
    while True:
        model.train()
        for images, labels in batches:
            step = len(norms["conv1"])
            if step == iterations:
                return norms
            for group in optimizer.param_groups:
                group["lr"] = rate_at(recipe, step, len(batches))
            forward_backward(model, images, labels, recipe)
            for name in names:
                norms[name].append(model.get_submodule(name).weight.grad.norm().item())
            clip_gradients(model, recipe)
            optimizer.step()
            optimizer.zero_grad()
        model.eval()


@pytest.mark.parametrize("changes", RUNS)
def test_norms_against_a_reference_loop(trained, changes):
    folder = trained(**changes)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run = TrainedRun.read(folder)
    progress = []
    norms = gradients.replay(run, 5, None, lambda *done: progress.append(done))
    assert norms == reference_norms(run.recipe, 5)  # crosses the end of an epoch of 3 steps
    assert progress == [(done, 5) for done in range(6)]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_short_run_has_fewer_iterations(trained):
    (panel,) = gradients.measure(FigureInputs([TrainedRun.read(trained(epochs=1))], iterations=100))["panels"]
    assert {len(layer["norms"]) for layer in panel["layers"]} == {3}


def test_published_norms_appear_beside_lenet5(trained):
    runs = [TrainedRun.read(trained(op, op=op, epochs=1)) for op in ("adder", "conv", "binary")]
    panels = gradients.measure(FigureInputs(runs, iterations=1))["panels"]
    published = [[layer["paper"] for layer in panel["layers"]] for panel in panels]
    assert published == [[0.0009, 0.0012, 0.0146, None, None], [0.2261, 0.2990, 0.4646, None, None], [None] * 5]
    assert gradients.describe({"panels": panels}).startswith(
        "conv2, conv3, fc1 of AdderNet"
    )  # binary layers of the BNN
    line = gradients.describe({"panels": panels[:2]})
    assert "(paper 0.0009 / 0.0012 / 0.0146)" in line
    assert "(paper 0.2261 / 0.2990 / 0.4646)" in line


VERDICTS = [  # first norms of the AdderNet, of the CNN, words of the conclusion
    ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0], "As in the paper: an AdderNet's are smaller than a CNN's in each"),
    ([1.0, 5.0, 3.0], [4.0, 4.0, 4.0], "Not as in the paper: an AdderNet's are smaller than a CNN's in 2 of these 3"),
]


@pytest.mark.parametrize(("adder", "conv", "words"), VERDICTS)
def test_the_conclusion_follows_from_the_numbers(adder, conv, words):
    panels = [
        {
            **{"title": op, "op": op},
            "layers": [
                {"name": f"conv{i}", "kind": op, "paper": None, "norms": [norm, 9.0]} for i, norm in enumerate(norms)
            ],
        }
        for op, norms in (("adder", adder), ("conv", conv))
    ]
    assert words in gradients.describe({"panels": panels})
    assert "paper" not in gradients.describe({"panels": panels[:1]})
