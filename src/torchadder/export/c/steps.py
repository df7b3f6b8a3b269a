"""Translate the steps of a network into C: constant tables, a description that the kernels read, and a call."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from torchadder.export.c.arena import Buffer, assign_offsets
from torchadder.export.c.network import Network, Shape, Step
from torchadder.export.c.weights import pack
from torchadder.quant.program import Logits, Requantization, largest_accumulator

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
        self._values = [Buffer(math.prod(shape), i - 1, i - 1) for i, shape in enumerate(network.shapes)]
        for step in network.steps:
            for source in step.sources:
                self._values[source].last_use = step.number
        self.poolings = poolings_of_layers(network.steps)
        for number, pooling in self.poolings.items():
            self._values[number + 1].size = 0
            self._values[pooling.number + 1].first_use = number
        self._scratch_words: dict[int, tuple[int, int]] = {}
        self.adder_max = 0
        done = {pooling.number for pooling in self.poolings.values()}
        texts = [TRANSLATED[step.op](self, step) for step in network.steps if step.number not in done]
        self.has_pixels = (pixels := network.pixel_table()) is not None
        if pixels is not None:
            self.table("uint8_t", "quantized_pixel", pixels)
        self.patch_words = max(words for words, _ in self._scratch_words.values())
        self._scratch = {
            number: Buffer(4 * (self.patch_words + words + others), number, number)
            for number, (words, others) in self._scratch_words.items()
        }
        # The input is the caller's, and so are the logits.
        self.arena = assign_offsets([*self._values[1:-1], *self._scratch.values()])
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

    def reserve(self, step: Step, patch: int, others: int = 0) -> None:
        """Reserve memory for two patches and for other words for the time of a step."""
        self._scratch_words[step.number] = patch, others

    def scratch(self, step: Step) -> str:
        return f"arena->words + {self._scratch[step.number].offset // 4}"

    def value(self, index: int) -> str:
        """Return the address of a value in C."""
        return f"memory + {self._values[index].offset}" if index else "input"


def initializer(fields: dict[str, object]) -> str:
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def poolings_of_layers(steps: Sequence[Step]) -> dict[int, Step]:
    """Return the poolings of windows that do not overlap whose source is a layer without shortcut and nothing else."""
    users = Counter(source for step in steps for source in step.sources)
    found = {}
    for step in steps:
        maker, module = steps[step.sources[0] - 1], step.module
        if step.op != "max_pool" or module.kernel != module.stride or module.padding or not step.sources[0]:
            continue
        if maker.op in LAYERS and len(maker.sources) == 1 and users[step.sources[0]] == 1:
            found[maker.number] = step
    return found


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
    pooling = draft.poolings.get(step.number)
    result = pooling or step
    pool = pooling.module.kernel if pooling else 1
    (channels, height, width), (filters, rows, columns) = step.shape_in, result.shape_out
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
        *([{"pool_height": pool, "pool_width": pool}] if pooling else []),
        {"values": packed.values, "steps": packed.steps, "block_words": packed.block_words},
        fields,
        {"patch": f"{kernel}_patch", "tile": f"{kernel}_tile"},
    )
    draft.use(kernel)
    draft.operations[step.op] += rows * columns * pool * pool * module.weight.numel()
    source, *shortcuts = step.sources
    pooled = f", largest of {pool} x {pool}" if pooling else ""
    comment = f"/* {_sizes(step.shape_in, result.shape_out)}: {step.op}, {taps[0]} x {taps[1]}{pooled} */"
    if isinstance(epilogue, Logits):
        draft.reserve(step, words)
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
    if pooling:
        draft.reserve(step, words, filters)
        draft.use("run_pooled_layer")
        values = source, result.number + 1
        return lambda: (
            f"  {comment}\n  run_pooled_layer(&{name}, {', '.join(map(draft.value, values))}, {draft.scratch(step)});"
        )
    draft.reserve(step, words)
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
    "max_pool": max_pool,
    "average_pool": average_pool,
    "table": table,
    "concat": concat,
}


def _pooling(draft: Draft, step: Step, name: str) -> Callable[[], str]:
    values = step.sources[0], step.number + 1
    return lambda: (
        f"  /* {_sizes(step.shape_in, step.shape_out)} */\n  {step.op}(&{name}, {', '.join(map(draft.value, values))});"
    )


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
