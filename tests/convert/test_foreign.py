"""Convert networks of the transformers library, with random weights."""

import copy
import warnings

import pytest
import torch
from torch import nn

from torchadder import AdaptiveLR, convert
from torchadder.nn import Adder

pytestmark = pytest.mark.usefixtures("one_thread")
transformers = pytest.importorskip("transformers")

RESNET = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_labels=3)
CONVNEXT = dict(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, num_labels=3)
NETWORKS = {  # architecture, configuration, how many layers: converted, left without a normalisation
    "resnet, basic": ("ResNet", dict(RESNET, layer_type="basic"), 7, 0),
    "resnet, bottleneck": ("ResNet", dict(RESNET, layer_type="bottleneck"), 10, 0),
    # each block of ConvNeXt has a normalisation behind the first of its three layers only
    "convnext": ("ConvNext", CONVNEXT, 10, 7),
}


IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 3
EXAMPLE = {"pixel_values": IMAGES[:1]}


def network(architecture, options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**options)
    return getattr(transformers, f"{architecture}ForImageClassification")(config)


@pytest.mark.filterwarnings("ignore:.*adder weights have a root mean square")  # they keep the CNN's numbers
@pytest.mark.parametrize(("architecture", "options", "count", "bare"), NETWORKS.values(), ids=NETWORKS.keys())
def test_it_is_converted_trains_and_comes_back(architecture, options, count, bare):
    model = network(architecture, options).eval()
    with torch.no_grad():
        expected = model(IMAGES).logits
    state = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(model, example_input=EXAMPLE)
    assert [str(w.message).partition(":")[0] for w in caught] == [
        f"no normalisation follows {n} of the adder layers" for n in (bare,) if n
    ]
    assert sum(isinstance(layer, Adder) for layer in model.modules()) == count
    assert [row.note for row in model.conversion.rows] == ["runs first", *[""] * count, "runs last"]

    restored = convert(copy.deepcopy(model), "conv")
    with torch.no_grad():
        assert torch.equal(restored(IMAGES).logits, expected)
    assert all(torch.equal(value, state[name]) for name, value in restored.state_dict().items())

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    AdaptiveLR(optimizer, eta=0.1)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(IMAGES).logits, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_without_an_example_the_order_of_definition_serves():
    by_definition = convert(network("ResNet", RESNET)).conversion
    by_example = convert(network("ResNet", RESNET), example_input=EXAMPLE).conversion
    assert (by_definition.flow, by_example.flow) == ("defined", "recorded")
    assert by_definition.rows == by_example.rows
