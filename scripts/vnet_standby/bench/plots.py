# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench's plots: gaps by cause, the cells' time lines under each other, and where the single runs lie."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from vnet_standby.bench.measures import SWITCHES
from vnet_standby.bench.words import Cell, cell_name, number
from vnet_standby.report import svg
from vnet_standby.report.plots import WIDTH
from vnet_standby.report.story import SPOKEN
from vnet_standby.traffic.verdict import DIRECTIONS, Direction

_LEFT, _RIGHT = 340.0, 1090.0
_ROW, _BAR = 22.0, 12.0
_TOP, _BOTTOM = 8.0, 36.0
_CUT_ABOVE = 4
"""A bar that is so many times as long as the usual one is cut: it would leave nothing of the others to see."""
_NOTE = 150.0  # room for the figures beside a bar

_LANE, _CELL = 12.0, 40.0


def gaps(parent: ET.Element, cells: Sequence[Cell], direction: Direction) -> None:
    """Draw each cell's longest gaps, a bar of three causes: medians of the runs."""
    shares = [(cell, _shares(cell, direction)) for cell in cells]
    bars = [(cell, found) for cell, found in shares if found]
    if not bars:
        svg.node(parent, "p", "Not measured.")
        return
    totals = [sum(found.values()) for _, found in bars]
    limit = min(max(totals), _CUT_ABOVE * median(totals)) or 1.0
    x = svg.Linear(0.0, limit, _LEFT, _RIGHT - _NOTE)
    height = _TOP + _ROW * len(bars) + _BOTTOM
    title = f"Longest gaps {SPOKEN[direction]} by cause"
    spoken = "; ".join(f"{cell_name(cell)} {_added(found)}" for cell, found in bars)
    plot = svg.canvas(parent, WIDTH, height, title, spoken)
    _axis(plot, x, height - _BOTTOM, "ms, beyond the probe interval")
    for row, (cell, found) in enumerate(bars):
        _bar(plot, x, _TOP + row * _ROW, cell, found)


def _shares(cell: Cell, direction: Direction) -> dict[str, float]:
    figures = {kind: cell["figures"][f"gap_{kind}_{direction}_ms"] for kind in SWITCHES}
    return {kind: float(f["median"]) for kind, f in figures.items() if "median" in f}


def _bar(
    plot: ET.Element, x: svg.Linear, top: float, cell: Cell, found: Mapping[str, float]
) -> None:
    svg.label(plot, _LEFT - 8, top + _BAR - 1, cell_name(cell), "lane end")
    start = 0.0
    for kind, length in found.items():
        mark = svg.bar(plot, (x(start), x(start + length)), (top, top + _BAR), kind)
        svg.hint(mark, f"{cell_name(cell)}: {kind} {number(length, 'ms')} ms")
        start += length
    if start > x.high:
        cut = f"M{svg.px(x.stop - 14)} {svg.px(top + _BAR + 2)}l6 -{svg.px(_BAR + 4)}"
        svg.node(plot, "path", d=cut, class_="cut")
    svg.label(plot, min(x(start), x.stop) + 6, top + _BAR - 1, _added(found), "tick")


def _added(found: Mapping[str, float]) -> str:
    return " + ".join(number(length, "ms") for length in found.values()) + " ms"


def _axis(plot: ET.Element, x: svg.Linear, bottom: float, name: str) -> None:
    for tick in x.ticks(9):
        svg.line(plot, (x(tick), x(tick)), (_TOP - 4, bottom), "grid")
        svg.label(plot, x(tick), bottom + 14, f"{tick:g}", "tick middle")
    svg.label(plot, (x.start + x.stop) / 2, bottom + 30, name, "tick middle")


@dataclass(frozen=True)
class TimeLine:
    """One run of a cell: which datapath carried what, and what was lost; times in s since its `migrate`."""

    cell: Cell
    report: str
    """The run's own page."""
    paths: Mapping[Direction, Sequence[tuple[str, float, float]]]
    """What carried the probes (primary, standby, other), from when to when."""
    lost: Mapping[Direction, Sequence[tuple[float, float, int]]]
    stopped: Sequence[tuple[float, float]]
    """From STOP to RESUME."""


def time_line(
    cell: Cell, report: str, result: Mapping[str, Any], events: Iterable[Mapping[str, Any]]
) -> TimeLine:
    """Read a run's time line from its result and events."""
    zero = next(float(event["t"]) for event in events if event["event"] == "migrate")
    return TimeLine(
        cell,
        report,
        paths={
            direction: [(p["role"], p["start"] - zero, p["end"] - zero) for p in segments]
            for direction, segments in result["paths"].items()
        },
        lost={
            direction: [
                (loss["start"] - zero, loss["end"] - zero, loss["count"])
                for loss in result["losses"]
                if loss["direction"] == direction
            ]
            for direction in DIRECTIONS
        },
        stopped=[
            (s["start"] - zero, s["end"] - zero)
            for s in result["switches"]
            if s["kind"] == "blackout"
        ],
    )


def time_lines(parent: ET.Element, lines: Sequence[TimeLine]) -> None:
    """Draw time lines under each other, on one axis that begins at `migrate`."""
    ends = [end for line in lines for path in line.paths.values() for _, _, end in path]
    x = svg.Linear(-2.0, max(ends, default=1.0), _LEFT, _RIGHT)
    height = _TOP + _CELL * len(lines) + _BOTTOM
    plot = svg.canvas(
        parent, WIDTH, height, "Time lines", "; ".join(cell_name(line.cell) for line in lines)
    )
    _axis(plot, x, height - _BOTTOM, "seconds since migrate")
    for row, line in enumerate(lines):
        _time_line(plot, x, _TOP + row * _CELL, line)


def _time_line(plot: ET.Element, x: svg.Linear, top: float, line: TimeLine) -> None:
    link = svg.node(plot, "a", href=line.report)
    svg.label(link, _LEFT - 8, top + 17, cell_name(line.cell), "lane end")
    for start, end in line.stopped:
        mark = svg.bar(plot, (x(start), x(end)), (top - 2, top + 2 * _LANE + 5), "stopped")
        svg.hint(mark, f"STOP to RESUME, {1e3 * (end - start):.0f} ms")
    for lane, direction in enumerate(DIRECTIONS):
        y = top + lane * (_LANE + 3)
        for role, start, end in line.paths.get(direction, ()):
            if end > x.low:
                mark = svg.bar(plot, (x(start), x(end)), (y, y + _LANE - 5), role)
                svg.hint(mark, f"{SPOKEN[direction]} by the {role}, {start:+.2f} to {end:+.2f} s")
        for start, end, count in line.lost[direction]:
            mark = svg.bar(plot, (x(start), x(end)), (y + _LANE - 5, y + _LANE), "lost")
            svg.hint(mark, f"{count:,} lost {SPOKEN[direction]}, {start:+.2f} to {end:+.2f} s")


def runs(parent: ET.Element, result: Mapping[str, Any], key: str, *, noise: bool = False) -> None:
    """Draw where the single runs of each cell lie in one measure; `noise` shades what the noise floor covers."""
    measure = result["measures"][key]
    found = [(c, c["figures"][key]) for c in result["cells"] if "values" in c["figures"][key]]
    svg.node(parent, "h3", f"{measure['title']} ({measure['unit']})")
    if not found:
        svg.node(parent, "p", "Not measured.")
        return
    scale = _Scale(max(figure["max"] for _, figure in found))
    height = _TOP + _ROW * len(found) + _BOTTOM
    plot = svg.canvas(
        parent, WIDTH, height, measure["title"], "The table holds the figures of all runs"
    )
    scale.axis(plot, height - _BOTTOM, measure["unit"])
    for row, (cell, figure) in enumerate(found):
        y = _TOP + row * _ROW + _BAR / 2
        svg.label(plot, _LEFT - 8, y + 4, cell_name(cell), "lane end")
        floor = cell["figures"]["noise_floor_ms"].get("max", 0.0)
        if noise:
            mark = svg.bar(plot, (_LEFT, scale(floor)), (y - 8, y + 8), "gap")
            svg.hint(mark, f"noise floor {number(floor, 'ms')} ms")
        svg.line(plot, (scale(figure["min"]), scale(figure["max"])), (y, y), "base")
        middle = scale(figure["median"])
        svg.line(plot, (middle, middle), (y - 7, y + 7), "base")
        for value in figure["values"]:
            link = svg.node(plot, "a", href=f"{value['folder']}/report.html")
            dot = svg.node(link, "circle", cx=scale(value["value"]), cy=y, r=3.5, class_="primary")
            svg.hint(dot, f"{number(value['value'], measure['unit'])} {measure['unit']}")


class _Scale:
    """Logarithmic, but with a place for 0: what it spaces evenly is log(1 + value)."""

    def __init__(self, high: float) -> None:
        self._high = high
        self._scale = svg.Linear(0.0, math.log10(1 + high) or 1.0, _LEFT, _RIGHT)

    def __call__(self, value: float) -> float:
        return self._scale(math.log10(1 + value))

    def axis(self, plot: ET.Element, bottom: float, unit: str) -> None:
        """Draw ticks at 0 and the powers of ten."""
        powers = [10.0**n for n in range(int(math.log10(max(self._high, 1))) + 1)]
        for tick in (0.0, *powers):
            svg.line(plot, (self(tick), self(tick)), (_TOP - 4, bottom), "grid")
            svg.label(plot, self(tick), bottom + 14, f"{tick:,g}", "tick middle")
        svg.label(plot, (_LEFT + _RIGHT) / 2, bottom + 30, unit, "tick middle")
