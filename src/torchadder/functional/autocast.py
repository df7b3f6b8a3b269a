"""Handle autocast for layers that compute in float32."""

import torch
from torch import Tensor


def is_on(x: Tensor) -> bool:
    """Return True where autocast is on for the device of x. Raises TypeError where x is no dense tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input is of type {type(x).__name__}: expected a tensor")
    if x.layout is not torch.strided or x.is_nested:
        raise TypeError(f"input is {'nested' if x.is_nested else x.layout}: expected a dense tensor")
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def widened(tensor: Tensor | None) -> Tensor | None:
    """Return a 16-bit tensor in float32, any other as it is."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor
