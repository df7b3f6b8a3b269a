"""What autocast means for layers that compute in float32."""

import torch
from torch import Tensor

_on_any_device = torch._C._is_any_autocast_enabled


def is_on(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    if not _on_any_device():  # the usual case, and what every torch can trace
        return False
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def widened(tensor: Tensor | None) -> Tensor | None:
    """A 16-bit tensor in float32; any other as it is."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor
