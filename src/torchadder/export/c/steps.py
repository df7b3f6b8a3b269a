"""Translate the steps of a network into C: constant tables, a description that the kernels read, and a call."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor

from torchadder.export.c.arena import Buffer, assign_offsets
from torchadder.export.c.network import Network, Step
from torchadder.export.c.weights import pack
from torchadder.quant.program import Logits, Requantization, largest_accumulator

LOGIT_BITS = 30  # of the largest logit
BYTES = {"uint8_t": 1, "int32_t": 4, "uint32_t": 4}


class Draft:
    """Collect the C text of a network, step by step.

    Attributes:
        tables, calls: the text of the constants and of the body of run.
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
        self._values = [Buffer(math.prod(shape), i - 1, i - 1) for i, shape in enumerate(network.shapes)]
        for step in network.steps:
            for source in step.sources:
                self._values[source].last_use = step.number
        self._patch_words: dict[int, int] = {}
        self.adder_max = 0
        texts = [TRANSLATED[step.op](self, step) for step in network.steps]
        self.has_pixels = (pixels := network.pixel_table()) is not None
        if pixels is not None:
            self.table("uint8_t", "quantized_pixel", pixels)
        self.patch_words = max(self._patch_words.values())
        self._patches = {
            number: Buffer(4 * (self.patch_words + words), number, number)
            for number, words in self._patch_words.items()
        }
        # The input is the caller's, and so are the logits.
        self.arena = assign_offsets([*self._values[1:-1], *self._patches.values()])
        self.calls = [text() for text in texts]

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

    def patches(self, step: Step, words: int) -> None:
        """Reserve memory for two patches of ``words`` for the time of a step."""
        self._patch_words[step.number] = words

    def scratch(self, step: Step) -> str:
        return f"arena->words + {self._patches[step.number].offset // 4}"

    def value(self, index: int) -> str:
        """Return the address of a value in C."""
        return f"memory + {self._values[index].offset}" if index else "input"


def initializer(fields: dict[str, object]) -> str:
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def layer(draft: Draft, step: Step) -> Callable[[], str]:
    """Translate a layer of any kind; the last one gives logits."""
    module, epilogue, name = step.module, step.epilogue, f"step_{step.number}"
    needs_zero_point = step.op == "binary" or any(module.padding)
    largest = max(step.largest, int(module.weight.max()))
    four_bits = step.op == "adder" and largest < 16
    kernel = "adder4" if four_bits else step.op
    if kernel == "adder":
        draft.adder_max = max(draft.adder_max, largest)
    packed = pack(step.op, module.weight, four_bits)
    words = 1 + 2 * packed.steps  # as much as any of the kernels needs
    (channels, height, width), (filters, rows, columns) = step.shape_in, step.shape_out
    taps = module.weight.shape[2:]
    fields: dict[str, object] = {
        "zero_point": draft.table("uint8_t", f"{name}_zero_point", module.zero_point) if needs_zero_point else "NULL",
        "weight": draft.table("uint32_t", f"{name}_weight", packed.words),
    }
    if isinstance(epilogue, Requantization):
        fields["epilogue"] = draft.requantization(step, epilogue)
    draft.describe(
        "layer",
        step,
        {"height": height, "width": width, "channels": channels},
        {"out_height": rows, "out_width": columns, "filters": filters},
        {"kernel_height": taps[0], "kernel_width": taps[1]},
        {"stride_y": module.stride[0], "stride_x": module.stride[1]},
        {"padding_y": module.padding[0], "padding_x": module.padding[1]},
        {"values": packed.values, "steps": packed.steps, "block_words": packed.block_words},
        fields,
        {"patch": f"{kernel}_patch", "tile": f"{kernel}_tile"},
    )
    draft.use(kernel)
    pixels = rows * columns
    draft.operations[step.op] += pixels * module.weight.numel()
    source, *shortcuts = step.sources
    comment = f"/* {_sizes(step)}: {step.op}, {taps[0]} x {taps[1]} */"
    if isinstance(epilogue, Logits):
        draft.patches(step, words)
        draft.use("run_last_layer")
        fields = {
            "multiplier": draft.table("int32_t", "logit_multiplier", draft.multiplier),
            "offset": draft.table("int32_t", "logit_offset", draft.offset),
            "shift": draft.shift,
        }
        draft.tables.append(f"static const logit_epilogue logits_of_sums = {initializer(fields)};\n")
        return lambda: (
            f"  {comment}\n"
            f"  return run_last_layer(&{name}, &logits_of_sums, {draft.value(source)}, {draft.scratch(step)}, logits);"
        )
    draft.patches(step, words)
    draft.use("run_layer")
    return lambda: (
        f"  {comment}\n"
        f"  run_layer(&{name}, {draft.value(source)}, {draft.value(shortcuts[0]) if shortcuts else 'NULL'}, "
        f"{draft.value(step.number + 1)}, {draft.scratch(step)});"
    )


def max_pool(draft: Draft, step: Step) -> Callable[[], str]:
    (channels, height, width), (_, rows, columns), module = step.shape_in, step.shape_out, step.module
    name = draft.describe(
        "max_pooling",
        step,
        {"height": height, "width": width, "channels": channels},
        {"out_height": rows, "out_width": columns},
        {"kernel": module.kernel, "stride": module.stride, "padding": module.padding},
    )
    draft.use("max_pool")
    return _pooling(draft, step, name)


def average_pool(draft: Draft, step: Step) -> Callable[[], str]:
    (channels, _, width), (_, rows, columns), module = step.shape_in, step.shape_out, step.module
    name = draft.describe(
        "average_pooling",
        step,
        {"width": width, "channels": channels, "out_height": rows, "out_width": columns},
        {"kernel_height": module.kernel[0], "kernel_width": module.kernel[1]},
        {"stride_y": module.stride[0], "stride_x": module.stride[1]},
        {"epilogue": draft.requantization(step, module.epilogue)},
    )
    draft.use("average_pool")
    return _pooling(draft, step, name)


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
        f"  /* {_sizes(step)}: table */\n"
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
    "max_pool": max_pool,
    "average_pool": average_pool,
    "table": table,
    "concat": concat,
}


def _pooling(draft: Draft, step: Step, name: str) -> Callable[[], str]:
    return lambda: (
        f"  /* {_sizes(step)} */\n  {step.op}(&{name}, {draft.value(step.sources[0])}, {draft.value(step.number + 1)});"
    )


def _sizes(step: Step) -> str:
    before, after = (" x ".join(map(str, shape)) for shape in (step.shape_in, step.shape_out))
    return f"{before} -> {after}"


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
