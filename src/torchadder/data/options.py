"""What follows the name of a data set of one's own: NAME,size=224,normalize=cifar."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torchadder.data.cifar import MEAN as CIFAR_MEAN
from torchadder.data.cifar import STD as CIFAR_STD
from torchadder.data.registry import Normalization
from torchadder.errors import UserError

SIZE = 224
MAX_SIZE = 4096
NORMALIZATIONS = {
    "imagenet": Normalization.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": Normalization.of(CIFAR_MEAN, CIFAR_STD),
}


def parse(kind: str, argument: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What stands before the first comma, and the options after it; commas inside braces separate nothing.

    ``kind``: what stands before the argument, for messages. Raises UserError for an option that is not ``known``.
    """
    name, *options = re.split(r",(?![^{}]*\})", argument)
    values: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in known or not value or key in values:
            expected = ", ".join(f"{key}=..." for key in known)
            raise UserError(f"{kind}:{argument}: {option!r} is unknown or there twice, expected {expected} or nothing")
        values[key] = value
    return name, values


def size_of(options: Mapping[str, str]) -> int:
    """size=: height and width of the images that the network sees."""
    return whole_number(options, "size", low=1, high=MAX_SIZE) or SIZE


def normalization_of(options: Mapping[str, str]) -> Normalization:
    """normalize=: the published statistics by which images that stream are normalised."""
    name = options.get("normalize", "imagenet")
    if name not in NORMALIZATIONS:
        raise UserError(f"normalize={name} is unknown: expected {' or '.join(NORMALIZATIONS)}")
    return NORMALIZATIONS[name]


def whole_number(options: Mapping[str, str], key: str, *, low: int, high: int) -> int | None:
    """The number of an option, or None where it is not given."""
    text = options.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UserError(f"{key}={text} is out of range: expected {low} to {high}")
    return int(text)
