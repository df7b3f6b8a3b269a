"""Assemble the files of an export: the templates of this package, with the numbers and the name of a network."""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template

import numpy as np
import torch

from torchadder.export.c.network import Network
from torchadder.export.c.steps import Draft
from torchadder.version import __version__

TEMPLATES = ("net.h", "net_test.c", "CMakeLists.txt", "library.json", "library.properties", "README.md")
VECTORS = 6  # tested inputs
WHAT = {"adder": "|x - w|", "conv": "x * w", "binary": "XNOR"}
INCLUDE = re.compile(r'^#include "(\w+)\.c"\n\n?', re.MULTILINE)


def sources(draft: Draft, name: str) -> dict[str, str]:
    """Return the text of each file by its name."""
    values = _values(draft, name)
    texts = {"net.c": _source(draft, values["title"])}
    for file in TEMPLATES:
        text = _template(file).replace("/* $pixel_helper */\n\n", "$pixel_helper")
        texts[file] = Template(text).substitute(values)
    return {file.replace("net", name): _named(text, name) for file, text in texts.items()}


def _source(draft: Draft, title: str) -> str:
    """Return the text of net.c: the kernels, the tables, and the function that runs the steps."""
    fragments: dict[str, str] = {}
    for fragment in draft.fragments:
        _include(fragment, fragments)
    needs_memory = any("memory" in call for call in draft.calls)
    memory = "  uint8_t *const memory = (uint8_t *)arena->words;\n" if needs_memory else ""
    return "\n".join(
        [
            f'/* {title}: see net.h. Written by torchadder {__version__}. */\n#include "net.h"\n',
            f"#define PATCH_WORDS {draft.patch_words} /* from the first patch of a pair to the second */\n",
            *([LARGEST.format(draft.adder_max)] if draft.adder_max else []),
            *fragments.values(),
            "/* The network: tables and a description of each step. */\n",
            *draft.tables,
            (PIXELS if draft.has_pixels else "") + RUN,
            memory + "\n".join(draft.calls),
            "}\n",
        ]
    )


def _include(fragment: str, found: dict[str, str]) -> None:
    """Add the text of a template file after those of the files that it includes, each once."""
    if fragment not in found:
        text = _template(f"{fragment}.c")
        for needed in INCLUDE.findall(text):
            _include(needed, found)
        found[fragment] = INCLUDE.sub("", text)


LARGEST = "#define ADDER_MAX {} /* the largest value or weight of an adder layer */\n"

PIXELS = """\
void net_input_from_pixels(const uint8_t pixels[NET_INPUT_SIZE], uint8_t input[NET_INPUT_SIZE]) {
  for (int32_t i = 0; i < NET_INPUT_HEIGHT * NET_INPUT_WIDTH; ++i)
    for (int32_t c = 0; c < NET_INPUT_CHANNELS; ++c) *input++ = quantized_pixel[256 * c + *pixels++];
}

"""

RUN = """\
int32_t net_run(net_arena *arena, const uint8_t input[NET_INPUT_SIZE], int32_t logits[NET_CLASSES]) {"""

PIXEL_HELPER = """\
/* Makes the input of pixels 0..255 in the same order, exactly as torchadder does; `input` may be `pixels`. The network
 * was trained on x = (pixel / 255 - mean) / std with mean $mean and std $std. */
void net_input_from_pixels(const uint8_t pixels[NET_INPUT_SIZE], uint8_t input[NET_INPUT_SIZE]);

"""


def _values(draft: Draft, name: str) -> dict[str, str]:
    """Return what the templates say about the network."""
    network = draft.network
    program, about = network.program, network.about
    channels, height, width = program.shape
    words = [str(about[key])[:60] for key in ("model", "op", "dataset") if key in about]
    title = f"A quantized network: {', '.join(words)}" if words else "A quantized network"
    helper = ""
    if draft.has_pixels:
        helper = Template(PIXEL_HELPER).substitute(mean=about["mean"], std=about["std"])
    counts = ", ".join(f"{count:,} {WHAT[kind]}" for kind, count in draft.operations.items())
    return {
        "name": name,
        "title": re.sub(r"[^\w ,:.+-]", "?", title, flags=re.ASCII),
        "version": __version__,
        "sha256": network.sha256,
        "flash": str(draft.flash),
        "arena": str(draft.arena),
        "operations": counts,
        "operation_count": str(sum(draft.operations.values())),
        "formula": _formula(network),
        "height": str(height),
        "width": str(width),
        "channels": str(channels),
        "input_max": str(program.qmax),
        "classes": str(program.classes),
        "logit_scale": f"{draft.scale:.9g}f",
        "pixel_helper": helper,
        "vectors": str(VECTORS),
        "expected": _expected(draft),
    }


def _formula(network: Network) -> str:
    """Return how a real number becomes a quantized value, a line for each channel."""
    program = network.program
    channels = zip(program.scale.tolist(), program.zero_point.tolist(), strict=True)
    lines = [f" *     q = round(x / {scale:.9g} + {zero:.9g})" for scale, zero in channels]
    if len(lines) > 1:
        lines = [f"{line}   in channel {channel}" for channel, line in enumerate(lines)]
    return "\n".join([*lines, f" *\n * clamped to 0..{program.qmax}."])


def _expected(draft: Draft) -> str:
    """Return the logits of the test's inputs."""
    rows = logits(draft, vectors(draft.network)).tolist()
    return "".join("\n    {" + ", ".join(map(str, row)) + "}," for row in rows) + "\n"


def vectors(network: Network) -> torch.Tensor:
    """Return the inputs that make_input in net_test.c makes, uint8 (VECTORS, C, H, W)."""
    (channels, height, width), qmax = network.program.shape, network.program.qmax
    state = np.arange(VECTORS, dtype=np.uint32)
    found = np.empty((height * width * channels, VECTORS), np.uint8)
    for i in range(len(found)):
        state = state * np.uint32(1664525) + np.uint32(1013904223)
        found[i] = (state >> 24) * np.uint32(qmax + 1) >> 8
    found[:, 0], found[:, 1] = 0, qmax
    return torch.from_numpy(found.T.reshape(VECTORS, height, width, channels).transpose(0, 3, 1, 2).copy())


def logits(draft: Draft, q: torch.Tensor) -> np.ndarray:
    """Return what net_run writes, int32 (N, classes), for quantized values ``q``, uint8 (N, C, H, W)."""
    accumulators = draft.network.accumulators(q).numpy().astype(np.int64)
    return ((accumulators * draft.multiplier >> draft.shift) + draft.offset).astype(np.int32)


def _named(text: str, name: str) -> str:
    """Return a text with the name of the network in place of `net`."""
    text = re.sub(r"\bNET_(?=[A-Z])", f"{name.upper()}_", text)
    return re.sub(r"\bnet(?=\b|_[a-z])", name, text)


def _template(file: str) -> str:
    return (files(__package__) / "template" / file).read_text(encoding="utf-8")
