"""Padding by name, as torch.nn.functional's convolutions take it."""

from torch import Tensor, nn


def by_name(
    x: Tensor, weight: Tensor, name: str, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Symmetric part as numbers, the odd rest as explicit zeros: a padded position is a zero either way.

    Raises ValueError for a name other than "same" and "valid", and for "same" with a stride.
    """
    none = (0,) * len(stride)
    if name == "valid":
        return x, none
    if name != "same":
        raise ValueError(f"padding is {name!r}: expected numbers, 'same' or 'valid'")
    if any(step != 1 for step in stride):
        raise ValueError(f"padding='same' is not defined for stride {stride}: give numbers")
    if not x.dim() == weight.dim() == len(stride) + 2:
        return x, none  # which the operator refuses
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(size % 2 for size in total):
        x = nn.functional.pad(x, [end for size in reversed(total) for end in (0, size % 2)])
    return x, tuple(size // 2 for size in total)
