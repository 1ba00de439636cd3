# SPDX-License-Identifier: GPL-2.0-or-later
"""The few things that a plot is made of: elements, scales, ticks, and marks on a lane.

Elements are ElementTree's, so whatever text goes in is escaped when the page is written. Looks
(colours, line widths) belong to the page's style sheet; marks only carry a class.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vnet_standby.report.text import printable


@dataclass(frozen=True)
class Linear:
    """Maps values from `low` to `high` on pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`; what lies outside the scale ends at its border."""
        part = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + min(max(part, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, at_most: int) -> list[float]:
        """Return at most that many round values on the scale, in steps of 1, 2 or 5 times 10^n."""
        length = self.high - self.low
        if length <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(length / at_most))
        step = next(m * power for m in (1, 2, 5, 10, 20) if length / (m * power) <= at_most - 1)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 9) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Log:
    """Like `Linear`, for positive values, by their logarithm."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`; what lies outside the scale ends at its border."""
        scale = Linear(math.log10(self.low), math.log10(self.high), self.start, self.stop)
        return scale(math.log10(max(value, self.low)))

    def ticks(self) -> list[float]:
        """Return the powers of ten on the scale."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**n for n in range(first, last + 1)]


def canvas(parent: ET.Element, width: float, height: float, title: str, text: str) -> ET.Element:
    """Add an empty plot with the title and the text alternative that screen readers speak."""
    svg = node(parent, "svg", viewBox=f"0 0 {px(width)} {px(height)}", role="img")
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    svg.set("aria-label", printable(f"{title}. {text}"))
    return svg


def node(parent: ET.Element, tag: str, text: object = "", **attributes: object) -> ET.Element:
    """Add an element; `class_` stands for class, `_` in attribute names for `-`."""
    element = ET.SubElement(parent, tag)
    for name, value in attributes.items():
        key = name if name == "viewBox" else name.rstrip("_").replace("_", "-")
        element.set(key, px(value) if isinstance(value, float) else printable(value))
    if text != "":
        element.text = printable(text)
    return element


def px(value: float) -> str:
    """Return a coordinate with one digit after the point, if it needs that."""
    return f"{value:.1f}".removesuffix(".0")


def hint(element: ET.Element, text: str) -> None:
    """Give a mark the text that shows when the pointer rests on it."""
    node(element, "title", text)


def bar(
    parent: ET.Element, x: tuple[float, float], y: tuple[float, float], look: str
) -> ET.Element:
    """Add a rectangle from x[0] to x[1] and y[0] to y[1]; it is never too narrow to be seen."""
    width = max(x[1] - x[0], 1.5)
    return node(
        parent, "rect", x=float(x[0]), y=float(y[0]), width=width, height=y[1] - y[0], class_=look
    )


def line(
    parent: ET.Element, x: tuple[float, float], y: tuple[float, float], look: str
) -> ET.Element:
    """Add a line from (x[0], y[0]) to (x[1], y[1])."""
    return node(
        parent,
        "line",
        x1=float(x[0]),
        x2=float(x[1]),
        y1=float(y[0]),
        y2=float(y[1]),
        class_=look,
    )


def label(parent: ET.Element, x: float, y: float, text: str, look: str = "") -> ET.Element:
    """Add text whose base line starts at (x, y); the look may anchor it elsewhere."""
    return node(parent, "text", text, x=float(x), y=float(y), class_=look)


def skyline(
    parent: ET.Element, heights: Sequence[float], x: tuple[float, float], base: float, look: str
) -> None:
    """Add one filled outline of columns of equal width, from x[0] to x[1], that stand on `base`."""
    left, width = x[0], (x[1] - x[0]) / len(heights)
    steps: list[str] = []
    previous = 0.0
    for i, height in enumerate(heights):
        if height != previous:
            steps.append(f"H{px(left + i * width)}V{px(base - height)}")
            previous = height
    if steps:
        path = f"M{px(left)} {px(base)}{''.join(steps)}H{px(x[1])}V{px(base)}Z"
        node(parent, "path", d=path, class_=look)


def apart(spans: Iterable[tuple[float, float]], least: float = 1.0) -> list[tuple[int, int]]:
    """Group spans (in order of their start) that a plot can't show apart.

    Returns for each group the index of its first span and the index after its last one.
    """
    groups: list[tuple[int, int]] = []
    end = -math.inf
    for i, (start, stop) in enumerate(spans):
        if groups and start - end < least:
            groups[-1] = (groups[-1][0], i + 1)
            end = max(end, stop)
        else:
            groups.append((i, i + 1))
            end = stop
    return groups
