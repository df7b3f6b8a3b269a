"""Test that the registered operators refuse tensors beyond whose end they would read.

Exported programs call them without the checks of torchadder.functional.
"""

import pytest
import torch

import torchadder  # noqa: F401  registers the operators

registered = torch.ops.torchadder

REFUSED = [  # input, weight, bias
    ("weight of another dtype", torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 3, 3, dtype=torch.float64), None),
    ("weight of too few channels", torch.zeros(1, 2, 3, 3), torch.zeros(4, 1, 3, 3), None),
    ("weight on another device", torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 3, 3, device="meta"), None),
    ("bias of another dtype", torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 3, 3), torch.zeros(4).to(torch.int8)),
    ("short bias", torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 3, 3), torch.zeros(3)),
    ("bias on another device", torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 3, 3), torch.zeros(4, device="meta")),
]


@pytest.mark.parametrize(("x", "weight", "bias"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_operator_refuses_tensors_that_do_not_fit(x, weight, bias):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        registered.adder_conv(x, weight, bias, (1, 1), (0, 0), (1, 1), 1, False)


REFUSED_GRADIENTS = [
    ("dtype", torch.zeros(1, 4, 3, 3, dtype=torch.bfloat16)),
    ("images", torch.zeros(0, 4, 3, 3)),
    ("channels", torch.zeros(1, 3, 3, 3)),
    ("size", torch.zeros(1, 4, 2, 3)),
    ("device", torch.zeros(1, 4, 3, 3, device="meta")),
]


@pytest.mark.parametrize("grad", [r[1] for r in REFUSED_GRADIENTS], ids=[r[0] for r in REFUSED_GRADIENTS])
def test_operator_refuses_a_gradient_that_does_not_fit(grad):
    x, weight = torch.zeros(1, 2, 5, 5), torch.zeros(4, 2, 3, 3)
    shape = (1, 1), (0, 0), (1, 1), 1
    for rule in ("hardtanh", "sign", "full"):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            registered.adder_conv_grad_input(grad, x, weight, *shape, rule)
    for rule in ("sign", "full"):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            registered.adder_conv_grad_weight(grad, x, weight, *shape, rule)
