"""Define the operators of domain ``torchadder`` in ONNX files, each as a function of standard operators.

    AdderConv     Y = B - sum |X - W| over each window          strides, pads, dilations, group, recenter
    AdderLinear   Y[n, o] = B[o] - sum |X[n] - W[o]|            recenter
    BinaryConv    Y = B + mean |W| * Conv(sign X, sign W)       strides, pads, dilations, group
    BinaryLinear  Y[n, o] = B[o] + mean |W[o]| * sum sign X[n] * sign W[o]

X is (N, C, *size) with one to three axes, or (N, K); W is (C_out, C / group, *kernel), or (C_out, K); B is (C_out,).
All are float32, or all float64. Attributes are those of ONNX's Conv; recenter=1 adds sum |W| of each filter. A runtime
that has a kernel for such a node takes that, every other one runs the function.

For each tap of the kernel and each filter, AdderConv computes one difference as large as the image: that is the memory
it needs, beside the padded image and the window at that tap. A MatMul with ones adds up the channels, because ONNX
Runtime computes that faster than any reduction. docs/decisions.md has the candidates that were measured.
"""

from __future__ import annotations

from typing import Any

DOMAIN, VERSION = "torchadder", 1
OPSET, IR_VERSION = 18, 10  # of ONNX; 18 is the first whose Pad takes axes

# The text format of ONNX (onnx.parser). Shapes: N images, G groups, O filters and C channels of a group, T taps,
# L positions of the output.
FUNCTIONS = {
    "AdderConv": """
AdderConv <strides, pads, dilations, group, recenter> (X, W, B) => (Y) {
    stride = Constant <value_ints: ints = @strides> ()
    pad = Constant <value_ints: ints = @pads> ()
    dilation = Constant <value_ints: ints = @dilations> ()
    group_number = Constant <value_int: int = @group> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    ones_1 = Constant <value_ints: ints = [1]> ()
    axis_2 = Constant <value_ints: ints = [2]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    N = Shape <start: int = 0, end: int = 1> (X)
    G = Reshape (group_number, ones_1)
    C = Shape <start: int = 1, end: int = 2> (W)
    filters = Shape <start: int = 0, end: int = 1> (W)
    O = Div (filters, G)

    kernel = Shape <start: int = 2> (W)
    dims = Size (kernel)
    dims_and_two = Add (dims, two)
    axes = Range (two, dims_and_two, one)
    padded = Pad (X, pad, , axes)
    size = Shape <start: int = 2> (padded)
    last_tap = Sub (kernel, one)
    reach = Mul (last_tap, dilation)
    span = Sub (size, reach)
    last_position = Sub (span, one)
    last_output = Div (last_position, stride)
    output_size = Add (last_output, one)
    L = ReduceProd (output_size)

    every_tap = Expand (one, kernel)
    taps_by_axis = NonZero (every_tap)
    taps = Transpose <perm: ints = [1, 0]> (taps_by_axis)
    starts = Mul (taps, dilation)
    ends = Add (starts, span)

    W_shape = Concat <axis: int = 0> (G, O, C, rest)
    W_by_group = Reshape (W, W_shape)
    W_by_tap = Transpose <perm: ints = [3, 1, 0, 2]> (W_by_group)
    W_TOGC1 = Unsqueeze (W_by_tap, rest)
    window_shape = Concat <axis: int = 0> (N, G, C, rest)
    ones_shape = Concat <axis: int = 0> (ones_1, C)
    one_float = Constant <value_float: float = 1.0> ()
    one_like = CastLike (one_float, X)
    ones = Expand (one_like, ones_shape)
    sums_shape = Concat <axis: int = 0> (O, N, G, L)
    zero_float = Constant <value_float: float = 0.0> ()
    zero_like = CastLike (zero_float, X)
    no_sums = Expand (zero_like, sums_shape)
    sums = Scan <num_scan_inputs: int = 3, body: graph = tap (
        sums_before, start, end, W_OGC1
    ) => (sums_after) {
        window = Slice (padded, start, end, axes, stride)
        window_NGCL = Reshape (window, window_shape)
        sums_of_tap = Scan <num_scan_inputs: int = 1, body: graph = filter (
            W_GC1
        ) => (sum) {
            difference = Sub (window_NGCL, W_GC1)
            distance = Abs (difference)
            sum_NG1L = MatMul (ones, distance)
            sum = Squeeze (sum_NG1L, axis_2)
        }> (W_OGC1)
        sums_after = Add (sums_before, sums_of_tap)
    }> (no_sums, starts, ends, W_TOGC1)
    sums_NGOL = Transpose <perm: ints = [1, 2, 0, 3]> (sums)
    Y_shape = Concat <axis: int = 0> (N, filters, output_size)
    distances = Reshape (sums_NGOL, Y_shape)
    RECENTER
    dims_1 = Reshape (dims, ones_1)
    ones_by_axis = Expand (one, dims_1)
    B_shape = Concat <axis: int = 0> (rest, ones_by_axis)
    B_by_channel = Reshape (B_recentered, B_shape)
    Y = Sub (B_by_channel, distances)
}""",
    "AdderLinear": """
AdderLinear <recenter> (X, W, B) => (Y) {
    rest = Constant <value_ints: ints = [-1]> ()
    ones_1 = Constant <value_ints: ints = [1]> ()
    K = Shape <start: int = 1> (W)
    one_float = Constant <value_float: float = 1.0> ()
    one_like = CastLike (one_float, X)
    ones = Expand (one_like, K)
    distances = Scan <num_scan_inputs: int = 1, body: graph = row (x) => (sums) {
        difference = Sub (x, W)
        distance = Abs (difference)
        sums = MatMul (distance, ones)
    }> (X)
    RECENTER
    Y = Sub (B_recentered, distances)
}""",
    "BinaryConv": """
BinaryConv <strides, pads, dilations, group> (X, W, B) => (Y) {
    SIGNS
    Y_signs = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations, group: int = @group> (
        X_sign, W_sign)
    one = Constant <value_int: int = 1> ()
    ones_1 = Constant <value_ints: ints = [1]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    kernel = Shape <start: int = 2> (W)
    dims = Shape (kernel)
    ones_by_axis = Expand (one, dims)
    shape = Concat <axis: int = 0> (rest, ones_by_axis)
    scale_by_channel = Reshape (scale, shape)
    B_by_channel = Reshape (B, shape)
    Y_scaled = Mul (Y_signs, scale_by_channel)
    Y = Add (Y_scaled, B_by_channel)
}""",
    "BinaryLinear": """
BinaryLinear (X, W, B) => (Y) {
    SIGNS
    W_transposed = Transpose (W_sign)
    Y_signs = MatMul (X_sign, W_transposed)
    Y_scaled = Mul (Y_signs, scale)
    Y = Add (Y_scaled, B)
}""",
}

_RECENTER = """
    recenter_number = Constant <value_int: int = @recenter> ()
    recenter_like = CastLike (recenter_number, W)
    W_sizes = Abs (W)
    W_flat = Flatten <axis: int = 1> (W_sizes)
    W_axis = Constant <value_ints: ints = [1]> ()
    W_sums = ReduceSum <keepdims: int = 0> (W_flat, W_axis)
    constant = Mul (W_sums, recenter_like)
    B_recentered = Add (B, constant)"""

_SIGNS = """
    zero_float = Constant <value_float: float = 0.0> ()
    zero = CastLike (zero_float, X)
    plus_float = Constant <value_float: float = 1.0> ()
    plus = CastLike (plus_float, X)
    minus = Neg (plus)
    X_negative = Less (X, zero)
    X_sign = Where (X_negative, minus, plus)
    W_negative = Less (W, zero)
    W_sign = Where (W_negative, minus, plus)
    W_sizes = Abs (W)
    W_flat = Flatten <axis: int = 1> (W_sizes)
    W_axis = Constant <value_ints: ints = [1]> ()
    scale = ReduceMean <keepdims: int = 0> (W_flat, W_axis)"""

ATTRIBUTES = {
    "AdderConv": ("strides", "pads", "dilations", "group", "recenter"),
    "AdderLinear": ("recenter",),
    "BinaryConv": ("strides", "pads", "dilations", "group"),
    "BinaryLinear": (),
}


def function(name: str) -> Any:
    """Return the function of an operator as an onnx.FunctionProto."""
    from onnx import parser

    text = FUNCTIONS[name].replace("RECENTER", _RECENTER).replace("SIGNS", _SIGNS)
    return parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>{text}')


def schema(name: str) -> Any:
    """Return the inputs and attributes of an operator as an onnx.defs.OpSchema."""
    from onnx.defs import OpSchema

    kinds = {"group": OpSchema.AttrType.INT, "recenter": OpSchema.AttrType.INT}
    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[OpSchema.FormalParameter(formal, "T") for formal in "XWB"],
        outputs=[OpSchema.FormalParameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(double)"], "")],
        attributes=[
            OpSchema.Attribute(attribute, kinds.get(attribute, OpSchema.AttrType.INTS), "", required=True)
            for attribute in ATTRIBUTES[name]
        ],
    )
