"""The operation counts that the paper prints beside its accuracies (arXiv 1912.13200, section 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

_UNITS = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000}

# They round and partly include other layers: ResNet-20 has exactly 40.81M products; LeNet-5's 435K is what 416,520
# products and one operation for each bias, ReLU and pooled element of a plain LeNet-5 come to (435,850). The 7.7G
# is second-hand; it is twice the count before rounding.
_NETWORKS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, str]] = {
    # name: input, numbers of classes, #Mul and #Add of the CNN, #Add of the AdderNet
    "lenet5bn": ((1, 32, 32), (10,), "435K", "870K"),
    "vgg_small": ((3, 32, 32), (10, 100), "0.65G", "1.30G"),
    "resnet20": ((3, 32, 32), (10, 100), "41.17M", "82.34M"),
    "resnet32": ((3, 32, 32), (10, 100), "69.12M", "138.24M"),
    "resnet18": ((3, 224, 224), (1000,), "1.8G", "3.6G"),
    "resnet50": ((3, 224, 224), (1000,), "3.9G", "7.7G"),
}


class Published(NamedTuple):
    """#Mul, #Add and #XNOR as printed, "41.17M"."""

    mul: str
    add: str
    xnor: str

    def to_dict(self) -> dict[str, int]:
        return {name: _number(text) for name, text in self._asdict().items()}


def published(config: dict[str, Any], size: tuple[int, ...]) -> Published | None:
    """What the paper prints for a model of this ``config`` on inputs (C, H, W); None where it has no such row.

    There an AdderNet has no multiplication and a BNN as many XNORs as the CNN has products, as if the first and
    the last layer were not ordinary ones. MNIST has no BNN.
    """
    name, op = config["name"], config["op"]
    if name not in _NETWORKS or (name, op) == ("lenet5bn", "binary"):
        return None
    input_size, classes, products, additions = _NETWORKS[name]
    if size != input_size or config["num_classes"] not in classes:
        return None
    rows = {
        "conv": Published(products, products, "0"),
        "adder": Published("0", additions, "0"),
        "binary": Published("0", products, products),
    }
    return rows.get(op)


def _number(text: str) -> int:
    return round(float(text[:-1]) * _UNITS[text[-1]]) if text[-1] in _UNITS else int(text)
