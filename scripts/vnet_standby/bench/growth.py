# SPDX-License-Identifier: GPL-2.0-or-later
"""How a measure changes with a VM's size: lines of cells that differ only in memory, or in the number of pairs."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from vnet_standby.bench import matrix
from vnet_standby.bench.words import Cell, cell_name, number
from vnet_standby.lab.scenario import RAM_MIB
from vnet_standby.report import svg
from vnet_standby.report.plots import WIDTH

_SETTINGS = [field.name for field in fields(matrix.Cell)]
_LOOKS = ("primary", "standby", "failover", "failback", "other")

_LEFT, _RIGHT = 70.0, 800.0
_TOP, _BOTTOM, _HEIGHT = 12.0, 182.0, 220.0
_LINE = 15.0


@dataclass(frozen=True)
class Axis:
    """What grows."""

    setting: str
    """The setting of a cell that tells how much there is."""
    title: str
    heading: str

    def usual(self, cell: Cell) -> Cell:
        """Return the cell as if it were of the usual size: what else it is then."""
        usual = {"ram_mib": RAM_MIB[cell["topology"]], "pairs": 1}
        return {**cell, self.setting: usual[self.setting]}


AXES = (
    Axis("ram_mib", "guest memory, MiB", "As memory grows"),
    Axis("pairs", "pairs of a standby and a primary", "As pairs are added"),
)


@dataclass(frozen=True)
class Curve:
    """Cells that differ in one setting only, in its order."""

    name: str
    topology: str
    cells: Sequence[Cell]


def curves(cells: Sequence[Cell], axis: Axis) -> list[Curve]:
    """Return what can be told of an axis: every curve of at least two sizes."""
    alike: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        others = tuple(cell[setting] for setting in _SETTINGS if setting != axis.setting)
        alike.setdefault(others, []).append(cell)
    return [
        Curve(
            cell_name(axis.usual(found[0])),
            found[0]["topology"],
            sorted(found, key=lambda cell: int(cell[axis.setting])),
        )
        for found in alike.values()
        if len(found) > 1
    ]


@dataclass(frozen=True)
class _Point:
    size: int
    figure: Mapping[str, Any]


def draw(
    parent: ET.Element, found: Sequence[Curve], axis: Axis, measure: Mapping[str, Any], key: str
) -> None:
    """Draw a measure against an axis: medians, with the range of the runs; each leads to its cell's median run."""
    svg.node(parent, "h3", f"{measure['title']} ({measure['unit']})")
    lines = {curve.name: _points(curve, axis, key) for curve in found}
    points = [point for line in lines.values() for point in line]
    if not points:
        svg.node(parent, "p", "Not measured.")
        return
    sizes = sorted({cell[axis.setting] for curve in found for cell in curve.cells})
    x = svg.Linear(math.log2(sizes[0]), math.log2(sizes[-1]), _LEFT + 20, _RIGHT)
    y = svg.Linear(0.0, max(point.figure["max"] for point in points) or 1.0, _BOTTOM, _TOP)
    spoken = "; ".join(f"{name}: {_told(line, measure['unit'])}" for name, line in lines.items())
    plot = svg.canvas(parent, WIDTH, _HEIGHT, f"{measure['title']} against {axis.title}", spoken)
    _grid(plot, x, y, sizes, axis.title)
    labels = _apart([y(line[-1].figure["median"]) if line else _BOTTOM for line in lines.values()])
    for i, (name, line) in enumerate(lines.items()):
        _curve(plot, x, y, line, _LOOKS[i % len(_LOOKS)], f"{name}: ", measure["unit"])
        last = f"{number(line[-1].figure['median'], measure['unit'])}" if line else "not measured"
        svg.label(plot, _RIGHT + 14, labels[i] + 4, f"{last}: {name}", "lane")


def _points(curve: Curve, axis: Axis, key: str) -> list[_Point]:
    figures = [(cell[axis.setting], cell["figures"][key]) for cell in curve.cells]
    return [_Point(size, figure) for size, figure in figures if "median" in figure]


def _told(line: Sequence[_Point], unit: str) -> str:
    return (
        ", ".join(f"{number(p.figure['median'], unit)} at {p.size}" for p in line) or "not measured"
    )


def _grid(plot: ET.Element, x: svg.Linear, y: svg.Linear, sizes: Sequence[int], title: str) -> None:
    for tick in y.ticks(6):
        svg.line(plot, (_LEFT, _RIGHT), (y(tick), y(tick)), "grid")
        svg.label(plot, _LEFT - 8, y(tick) + 4, f"{tick:,g}", "tick end")
    for size in sizes:
        svg.label(plot, x(math.log2(size)), _BOTTOM + 16, f"{size:,}", "tick middle")
    svg.label(plot, (_LEFT + _RIGHT) / 2, _BOTTOM + 32, title, "tick middle")


def _curve(
    plot: ET.Element, x: svg.Linear, y: svg.Linear, line: Sequence[_Point], look: str,
    name: str, unit: str,
) -> None:  # fmt: skip
    places = [(x(math.log2(point.size)), y(point.figure["median"])) for point in line]
    for (x0, y0), (x1, y1) in pairwise(places):
        svg.line(plot, (x0, x1), (y0, y1), f"curve {look}")
    for point, (px, py) in zip(line, places, strict=True):
        figure = point.figure
        svg.line(plot, (px, px), (y(figure["min"]), y(figure["max"])), f"curve {look}")
        middle = min(figure["values"], key=lambda one: abs(one["value"] - figure["median"]))
        link = svg.node(plot, "a", href=f"{middle['folder']}/report.html")
        dot = svg.node(link, "circle", cx=px, cy=py, r=4.0, class_=look)
        svg.hint(dot, f"{name}{number(figure['median'], unit)} {unit} at {point.size:,}")


def _apart(wanted: Sequence[float]) -> list[float]:
    """Return where labels go, so near to where they are wanted as lines of text allow, from the lowest upwards."""
    placed = [0.0] * len(wanted)
    free = _BOTTOM
    for i in sorted(range(len(wanted)), key=lambda i: -wanted[i]):
        placed[i] = min(wanted[i], free)
        free = placed[i] - _LINE
    return placed
