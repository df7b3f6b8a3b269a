"""Define the binary layers: torch.nn's layers with signs in place of inputs and weights.

"XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", Rastegari et al., ECCV 2016, arXiv
1603.05279.
"""

from torch import Tensor, nn

from torchadder import functional as F
from torchadder.ops.geometry import pad_by_mode


class Binary:
    """Mark a binary layer. A subclass adds the layer of torch.nn whose arguments it takes.

        Y = alpha * conv(sign(X), sign(W)) + bias        alpha[o] = mean |W[o]|

    The weight is an ordinary float parameter with torch's initial values; the forward pass uses its signs and the mean
    of its magnitudes. Put a normalisation before the layer, and no ReLU between the two: the sign is the nonlinearity,
    and after a ReLU every sign is +1.
    """


class BinaryConv2d(Binary, nn.Conv2d):
    """Convolve signs in 2-d, scaled by filter; the arguments are those of torch.nn.Conv2d.

        Y[n, o, i, j] = bias[o] + alpha[o] * sum_{c, a, b} sign(X[n, c, i*s + a, j*s + b]) * sign(W[o, c, a, b])

    Shapes: input (N, C_in, H, W) or (C_in, H, W) -> (N, C_out, H_out, W_out) as nn.Conv2d, any floating dtype. sign(0)
    is +1. A padded position contributes 0; the other padding modes pad the input before its sign is taken. Gradients
    are those of torchadder.functional.binary. Raises ValueError where nn.Conv2d does.
    """

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = pad_by_mode(input, self.kernel_size, padding, self.dilation, self.padding_mode)
            padding = (0, 0)
        return F.binary_conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)  # type: ignore[arg-type]


class BinaryLinear(Binary, nn.Linear):
    """Compute a fully connected layer of signs; the arguments are those of torch.nn.Linear.

        Y[..., o] = bias[o] + alpha[o] * sum_k sign(X[..., k]) * sign(W[o, k])

    Shapes: input (..., in_features) -> (..., out_features), any floating dtype. The rest is as in BinaryConv2d.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.binary_linear(input, self.weight, self.bias)
