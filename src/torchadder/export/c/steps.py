"""Translate the steps of a network into C: constant tables, a description that the kernels read, and a call."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from torchadder.export.c.arena import Buffer, assign_offsets
from torchadder.export.c.network import Network, Shape, Step
from torchadder.export.c.weights import pack, pack_depthwise
from torchadder.quant.steps import Logits, Requantization, largest_accumulator, mean_unit, pixels_of_windows

LOGIT_BITS = 30  # of the largest logit
LAYERS = ("adder", "conv", "binary")
BYTES = {"uint8_t": 1, "int32_t": 4, "uint32_t": 4}


class Draft:
    """Collect the C text of a network, step by step.

    Attributes:
        tables, calls: the text of the constants and of the body of run.
        poolings: the pooling that a layer computes with its own values, by the layer's number.
        fragments: the names of the template files with the functions that are called, in order.
        adder_max: the largest value or weight of the adder layers whose weights are bytes.
        patch_words: from the first patch of a pair to the second.
        flash, arena: bytes of the tables, and of the memory that a run needs.
        operations: element operations of one image by kind: "adder" counts |x - w|, "conv" products, "binary" XNORs.
        has_pixels: the tables say how pixels become the input.
        multiplier, offset, shift, scale: turn accumulators of the last layer into logits, and those into real numbers.
    """

    def __init__(self, network: Network):
        self.network = network
        self.tables: list[str] = []
        self.calls: list[str] = []
        self.fragments: list[str] = []
        self.flash = 0
        self.operations: Counter[str] = Counter()
        self.multiplier, self.offset, self.shift, self.scale = _logits(network.steps[-1])
        self.poolings = poolings_of_layers(network.steps)
        self._values = self._buffers()
        self._reserved: dict[int, tuple[tuple[str, int] | None, int]] = {}
        self.adder_max = 0
        done = {pooling.number for pooling in self.poolings.values()}
        texts = [TRANSLATED[step.op](self, step) for step in network.steps if step.number not in done]
        self.has_pixels = (pixels := network.pixel_table()) is not None
        if pixels is not None:
            self.table("uint8_t", "quantized_pixel", pixels)
        words = {number: self._patch_words(*patch) for number, (patch, _) in self._reserved.items() if patch}
        self.patch_words = max(words.values())
        self._scratch = {
            number: Buffer(4 * (others + (self.patch_words + words[number] if patch else 0)), number, number)
            for number, (patch, others) in self._reserved.items()
        }
        # The input is the caller's, and so are the logits.
        values = {id(buffer): buffer for buffer in self._values[1:-1]}
        self.arena = assign_offsets([*values.values(), *self._scratch.values()])
        self.calls = [text() for text in texts]

    def _buffers(self) -> list[Buffer]:
        """Return the buffer of each value. One that is written over another one, which ends there, has the same."""
        shapes, steps = self.network.shapes, self.network.steps
        last_use = {source: step.number for step in steps for source in step.sources}
        buffers = [Buffer(math.prod(shape), i - 1, last_use.get(i, i - 1)) for i, shape in enumerate(shapes)]
        for number, pooling in self.poolings.items():
            buffers[number + 1].size = 0
            buffers[pooling.number + 1].first_use = number
        for step in steps:
            value = step.number + 1
            replaced = step.sources[0] if step.op == "table" else step.sources[-1] if step.op in LAYERS else 0
            is_source = step.op in LAYERS and replaced == step.sources[0]
            if replaced and not is_source and last_use[replaced] == step.number and value in last_use:
                buffers[replaced].last_use = last_use[value]
                buffers[value] = buffers[replaced]
        return buffers

    def table(self, kind: str, name: str, values: Tensor | np.ndarray) -> str:
        """Add a constant array, and return its name."""
        array = np.asarray(values).reshape(-1)
        self.flash += array.size * BYTES[kind]
        self.tables.append(f"static const {kind} {name}[{array.size}] = {{\n{_numbers(array)}\n}};\n")
        return name

    def requantization(self, step: Step, r: Requantization) -> str:
        """Add the tables of an epilogue, and return the initializer of a ``requantization``."""
        name = f"step_{step.number}"
        fields = {
            "multiplier": self.table("int32_t", f"{name}_multiplier", r.multiplier),
            "offset": self.table("int32_t", f"{name}_offset", r.offset),
            "shift": self.table("uint8_t", f"{name}_shift", r.shift),
            "factor": "NULL" if r.factor is None else self.table("int32_t", f"{name}_factor", r.factor),
            "pre_shift": r.pre_shift,
            "qmax": r.qmax,
        }
        return initializer(fields)

    def describe(self, kind: str, step: Step, *parts: dict[str, object]) -> str:
        """Add a constant struct of type ``kind``, a part a line, and return its name."""
        name = f"step_{step.number}"
        lines = "".join(f"    {', '.join(f'.{key} = {value}' for key, value in part.items())},\n" for part in parts)
        self.tables.append(f"static const {kind} {name} = {{\n{lines}}};\n")
        return name

    def use(self, fragment: str) -> None:
        if fragment not in self.fragments:
            self.fragments.append(fragment)

    def reserve(self, step: Step, patch: tuple[str, int] | None, others: int) -> None:
        """Reserve words of memory for the time of a step: two patches of a kernel and its steps, and others."""
        self._reserved[step.number] = patch, others

    def _patch_words(self, kernel: str, steps: int) -> int:
        """Return the words of a patch, as many as any of the three loops of a kernel needs."""
        if kernel == "adder" and self.adder_max < 128:
            return 1 + steps
        return 2 * steps if kernel == "conv" else 1 + 2 * steps

    def scratch(self, step: Step) -> str:
        return f"arena->words + {self._scratch[step.number].offset // 4}"

    def value(self, index: int) -> str:
        """Return the address of a value in C."""
        return f"memory + {self._values[index].offset}" if index else "input"


def initializer(fields: dict[str, object]) -> str:
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def poolings_of_layers(steps: Sequence[Step]) -> dict[int, Step]:
    """Return the poolings of windows that do not overlap whose source is a layer without groups and shortcut only."""
    users = Counter(source for step in steps for source in step.sources)
    found = {}
    for step in steps:
        if step.op != "max_pool" or step.kernel != step.stride or any(step.padding) or not step.sources[0]:
            continue
        maker = steps[step.sources[0] - 1]
        is_plain = maker.op in LAYERS and len(maker.sources) == 1 and maker.module.groups == 1
        if is_plain and users[step.sources[0]] == 1:
            found[maker.number] = step
    return found


def layer(draft: Draft, step: Step) -> Callable[[], str]:
    """Translate a layer of any kind; the last one gives logits."""
    module, epilogue, name = step.module, step.epilogue, f"step_{step.number}"
    pooling = draft.poolings.get(step.number)
    result = pooling or step
    window = pooling.kernel if pooling else (1, 1)
    source, *shortcuts = step.sources
    (channels, _, width), (filters, rows, columns) = step.shape_in, result.shape_out
    dilation = module.dilation
    draft.operations[step.op] += rows * columns * math.prod(window) * module.weight.numel()
    is_adjacent = dilation[1] == 1 and module.groups == 1
    fields: dict[str, object] = {"zero_point": "NULL"}
    if step.op == "binary" or any(module.padding):
        fields["zero_point"] = draft.table("uint8_t", f"{name}_zero_point", module.zero_point)
    geometry: list[dict[str, object]] = [
        {"height": step.shape_in[1], "width": width, "channels": channels},
        {"out_height": rows, "out_width": columns, "filters": filters},
        {"group_channels": channels // module.groups, "group_filters": filters // module.groups},
        {"kernel_height": step.kernel[0], "kernel_width": step.kernel[1]},
        {"window_height": step.window[0], "window_width": step.window[1]},
        {"stride_y": step.stride[0], "stride_x": step.stride[1]},
        {"padding_y": step.padding[0], "padding_x": step.padding[1]},
        {"dilation_y": dilation[0], "dilation_x": dilation[1]},
        {"row_step": dilation[0] * width * channels, "tap_step": dilation[1] * channels},
        {"adjacent": step.kernel[1] * channels if is_adjacent else 0},
    ]
    if pooling:
        geometry.append({"pool_height": window[0], "pool_width": window[1]})

    if step.is_depthwise and isinstance(epilogue, Requantization):
        fields["weight"] = draft.table("uint32_t", f"{name}_weight", pack_depthwise(module.weight))
        fields["epilogue"] = draft.requantization(step, epilogue)
        draft.describe("layer", step, *geometry, fields, {"tap": f"{step.op}_tap"})
        draft.use(f"{step.op}_tap")
        draft.reserve(step, None, channels)
        function, scratch = "run_depthwise_layer", "(int32_t *)({})"
    else:
        largest = max(step.largest, int(module.weight.max()))
        four_bits = step.op == "adder" and largest < 16
        kind = "adder4" if four_bits else step.op
        if kind == "adder":
            draft.adder_max = max(draft.adder_max, largest)
        packed = pack(step.op, module.weight, module.groups, four_bits)
        fields["weight"] = draft.table("uint32_t", f"{name}_weight", packed.words)
        if isinstance(epilogue, Requantization):
            fields["epilogue"] = draft.requantization(step, epilogue)
        sizes: dict[str, object] = {"values": packed.values, "steps": packed.steps, "block_words": packed.block_words}
        draft.describe("layer", step, *geometry, sizes, fields, {"patch": f"{kind}_patch", "tile": f"{kind}_tile"})
        draft.use(kind)
        draft.reserve(step, (kind, packed.steps), filters if pooling else 0)
        function, scratch = "run_pooled_layer" if pooling else "run_layer", "{}"

    pooled = f", largest of {window[0]} x {window[1]}" if pooling else ""
    sizes_text = f"{_sizes(step.shape_in, result.shape_out)}: {step.op}, {step.kernel[0]} x {step.kernel[1]}{pooled}"
    if isinstance(epilogue, Logits):
        draft.use("run_last_layer")
        logits = {
            "multiplier": draft.table("int32_t", "logit_multiplier", draft.multiplier),
            "offset": draft.table("int32_t", "logit_offset", draft.offset),
            "shift": draft.shift,
        }
        draft.tables.append(f"static const logit_epilogue logits_of_sums = {initializer(logits)};\n")
        return lambda: (
            f"  /* {sizes_text} */\n"
            f"  return run_last_layer(&{name}, &logits_of_sums, {draft.value(source)}, {draft.scratch(step)}, logits);"
        )
    draft.use(function)

    def call() -> str:
        shortcut = [] if pooling else [draft.value(shortcuts[0]) if shortcuts else "NULL"]
        values = [draft.value(source), *shortcut, draft.value(result.number + 1), scratch.format(draft.scratch(step))]
        return f"  /* {sizes_text} */\n  {function}(&{name}, {', '.join(values)});"

    return call


def pool(draft: Draft, step: Step) -> Callable[[], str]:
    """Translate a pooling: the largest value or the mean of each window."""
    (channels, height, width), (_, rows, columns) = step.shape_in, step.shape_out
    parts: list[dict[str, object]] = [
        {"height": height, "width": width, "channels": channels},
        {"out_height": rows, "out_width": columns},
        {"kernel_height": step.kernel[0], "kernel_width": step.kernel[1]},
        {"stride_y": step.stride[0], "stride_x": step.stride[1]},
        {"padding_y": step.padding[0], "padding_x": step.padding[1]},
    ]
    if step.op == "average_pool":
        unit = mean_unit(pixels_of_windows((height, width), step.kernel, step.stride, step.padding))
        parts.append({"unit": unit, "epilogue": draft.requantization(step, step.module.epilogue)})
    name = draft.describe(f"{step.op}ing", step, *parts)
    draft.use(step.op)
    values = step.sources[0], step.number + 1
    return lambda: (
        f"  /* {_sizes(step.shape_in, step.shape_out)} */\n  {step.op}(&{name}, {', '.join(map(draft.value, values))});"
    )


def table(draft: Draft, step: Step) -> Callable[[], str]:
    values = step.module.table
    channels, height, width = step.shape_in
    name = draft.describe(
        "lookup",
        step,
        {"pixels": height * width, "channels": channels, "step": 256 if len(values) > 1 else 0},
        {"table": draft.table("uint8_t", f"step_{step.number}_table", values)},
    )
    draft.use("table")
    return lambda: (
        f"  /* {_sizes(step.shape_in, step.shape_out)}: table */\n"
        f"  look_up(&{name}, {draft.value(step.sources[0])}, {draft.value(step.number + 1)});"
    )


def concat(draft: Draft, step: Step) -> Callable[[], str]:
    channels, height, width = step.shape_out
    name = draft.describe(
        "concatenation",
        step,
        {"pixels": height * width, "channels": channels},
        {"epilogue": draft.requantization(step, step.module.epilogue)},
    )
    draft.use("concat")
    counts = [draft.network.shapes[source][0] for source in step.sources]

    def calls() -> str:
        lines = [f"  /* {' + '.join(map(str, counts))} channels */"]
        for i, source in enumerate(step.sources):
            to = draft.value(step.number + 1)
            lines.append(f"  concat(&{name}, {draft.value(source)}, {sum(counts[:i])}, {counts[i]}, {to});")
        return "\n".join(lines)

    return calls


# How each kind of step becomes C. A function adds tables and a description to the draft, and returns the text of the
# call, which is asked for when the arena is planned.
TRANSLATED: dict[str, Callable[[Draft, Step], Callable[[], str]]] = {
    "adder": layer,
    "conv": layer,
    "binary": layer,
    "max_pool": pool,
    "average_pool": pool,
    "table": table,
    "concat": concat,
}


def _sizes(*shapes: Shape) -> str:
    return " -> ".join(" x ".join(map(str, shape)) for shape in shapes)


def _numbers(array: np.ndarray) -> str:
    """Return the numbers of an array in lines: words in hexadecimal, others in decimal."""
    texts: Iterable[str] = map(str, array.tolist())
    if array.dtype.itemsize == 4 and array.dtype.kind == "u":
        texts = map("0x{:08X}".format, array.tolist())
    items = [*texts]
    each = max(1, 116 // (max(map(len, items)) + 2))
    return "\n".join("    " + ", ".join(items[i : i + each]) + "," for i in range(0, len(items), each))


def _logits(step: Step) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Return multiplier, offset and shift that make int32 logits of accumulators, and the scale of the logits.

    The largest logit that the layer can give has LOGIT_BITS bits, far more than the float32 logits of the Engine.
    """
    epilogue = step.module.epilogue
    scale, bias = epilogue.scale.double().numpy(), epilogue.bias.double().numpy()
    largest = largest_accumulator(step.op, step.module.weight)  # type: ignore[arg-type]  # a layer's op is its kind
    unit = float((np.abs(scale) * largest + np.abs(bias)).max()) / 2**LOGIT_BITS or 1.0
    ratio = float(np.abs(scale / unit).max())
    shift = min(62, max(0, 30 - math.frexp(ratio)[1])) if ratio else 0
    multiplier = np.round(scale / unit * 2.0**shift).astype(np.int64)
    return multiplier, np.round(bias / unit).astype(np.int64), shift, unit
