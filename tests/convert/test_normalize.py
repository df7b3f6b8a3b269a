"""Test normalize=True: a batch normalisation after each adder layer that has none, and nowhere else."""

import pytest
import torch
from torch import nn

from torchadder import convert, quantize

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """The block of MLPerf Tiny's ResNet-8, whose shortcut has no normalisation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(4, 6, 1, 2)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + self.shortcut(x))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def twice():
    layer = nn.Conv2d(4, 4, 1, dtype=torch.float64).eval()
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())


MODELS = {  # network, which layers are converted (None: the default): where a normalisation is added
    "1-d": (nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU()), "all", {"0.1": nn.BatchNorm1d}),
    "2-d": (network(), None, {"2.shortcut.1": nn.BatchNorm2d}),
    "3-d": (nn.Sequential(nn.Conv3d(2, 3, 1), nn.ReLU()), "all", {"0.1": nn.BatchNorm3d}),
    "linear": (nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "all", {"0.1": nn.BatchNorm1d}),
    "shared": (twice(), "all", {"0.1": nn.BatchNorm2d, "2.1": nn.BatchNorm2d}),
    "has one": (nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), "all", {}),
    "not chosen": (network(), "2.conv", {}),
}


@pytest.mark.parametrize(("model", "chosen", "added"), MODELS.values(), ids=MODELS.keys())
def test_added_where_none_follows(model, chosen, added):
    before = set(model.modules())
    convert(model, normalize=True, filter_fn=chosen and (lambda name, layer: chosen in ("all", name)))
    norms = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if "Norm" in type(module).__name__ and module not in before
    }
    assert {name: type(norm) for name, norm in norms.items()} == added
    for name, norm in norms.items():
        layer = model.get_submodule(name[:-1] + "0")
        assert layer in before
        assert (norm.num_features, norm.training) == (len(layer.weight), layer.training)
        assert norm.weight.dtype is layer.weight.dtype


def test_a_network_with_a_bare_shortcut_trains_and_becomes_a_program():
    model = network()
    layer, keys = model[2].shortcut, model.state_dict().keys()
    convert(model, normalize=True)
    assert model[2].shortcut[0] is layer
    assert keys - model.state_dict().keys() == {"2.shortcut.weight", "2.shortcut.bias"}
    assert "2.shortcut  Conv2d  AdderConv2d: BatchNorm2d added" in str(model.conversion)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert quantize(model, [images])(images).shape == (4, 3)
    expected = repr(model)
    assert repr(convert(model, normalize=True)) == expected  # now it has one


def test_layers_that_were_converted_before_get_one_too():
    model = network()
    with pytest.warns(UserWarning, match=r"1 of the adder layers: 2.shortcut; .* with normalize=True"):
        convert(model)
    convert(model, normalize=True)
    assert type(model[2].shortcut[1]) is nn.BatchNorm2d
