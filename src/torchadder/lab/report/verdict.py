"""Say in a few sentences what came out of the runs on a page; they stand above all numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torchadder.lab.report.content import Content
from torchadder.train.loop import is_at_chance

ERRORS = 2  # standard errors below which two accuracies are not told apart


def verdict(contents: Sequence[Content]) -> list[str]:
    """Return the sentences: about the single run, or about how the runs compare, the most accurate first."""
    if len(contents) == 1:
        return _single(contents[0])
    ranked = sorted(contents, key=lambda content: -content.headline.accuracy)
    lines = [f"{ranked[0].title} classifies {ranked[0].headline.accuracy:.2f}% of the test images correctly."]
    lines += [_beside(ranked[0], content) for content in ranked[1:]]
    integers = [f"{content.title} {_integer(content)}" for content in ranked if content.programs]
    lines += [f"As integers, on one thread: {'; '.join(integers)}."] if integers else []
    return lines + [f"{content.title}: {line}" for content in ranked if (line := _problem(content))]


def _single(content: Content) -> list[str]:
    h, p = content.headline, content.paper
    epochs = f"{h.epochs} epoch{'s' if h.epochs > 1 else ''}" + ("" if h.epochs >= h.planned else f" of {h.planned}")
    lines = [f"{h.accuracy:.2f}% of the test images are classified correctly after {epochs}."]
    if p is not None and p.gap is not None:
        side = "above" if p.gap >= 0 else "below"
        lines.append(f"That is {abs(p.gap):.2f} points {side} the paper's {p.accuracy:.2f}%.")
    elif p is not None:
        lines.append(f"The paper has {p.accuracy:.2f}% after {p.epochs} epochs.")
    lines += [f"As integers, on one thread: {_integer(content)}."] if content.programs else []
    return lines + [line for line in [_problem(content)] if line]


def _beside(best: Content, other: Content) -> str:
    points = best.headline.accuracy - other.headline.accuracy
    if points < 0.005:
        return f"{other.title} is equal."
    return f"{other.title} is {points:.2f} points behind, at {other.headline.accuracy:.2f}%{_doubt(best, other)}."


def _integer(content: Content) -> str:
    """Return accuracy, latency and bits of the run's first integer program."""
    program = content.programs[0]
    accuracy = "" if program.accuracy is None else f"{program.accuracy:.2f}% and "
    bits = f" ({program.bits} bits)" if program.bits else ""
    return f"{accuracy}{program.milliseconds} ms an image{bits}"


def _doubt(one: Content, other: Content) -> str:
    """Return ", ..." where the test images are too few to tell two accuracies apart; else nothing."""
    if one.predictions is None:
        return ""
    images = one.predictions.images
    shares = [content.headline.accuracy / 100 for content in (one, other)]
    limit = ERRORS * math.sqrt(sum(share * (1 - share) / images for share in shares))
    if shares[0] - shares[1] > limit:
        return ""
    return f", which is no clear difference: {images:,} test images show one only from {100 * limit:.2f} points on"


def _problem(content: Content) -> str:
    """Return what looks wrong with a run; empty if nothing does."""
    if content.predictions is None:
        return ""
    if not is_at_chance(content.headline.accuracy, content.predictions.confusion.sum(1)):
        return ""
    training = content.run.metrics[-1]["train_accuracy"]
    return (
        f"the test accuracy is no better than one answer to every image, that on training images is {training:.1f}%; "
        "if the second is much higher, the statistics of batch normalisation may lag: train with norm_batches=50."
    )
