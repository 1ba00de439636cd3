# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench's result as one HTML page, whose figures lead to the reports of the runs that they are from."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vnet_standby.bench import growth, plots
from vnet_standby.bench.measures import COST_MEASURES, SWITCHES, read_result
from vnet_standby.bench.words import (
    UNMEASURED,
    Cell,
    Result,
    cell_name,
    ground,
    kind_name,
    number,
    reasons,
)
from vnet_standby.report.document import (
    Link,
    add_legend,
    add_section,
    add_table,
    add_warnings,
    opened,
    written,
)
from vnet_standby.report.story import SPOKEN
from vnet_standby.report.svg import node
from vnet_standby.report.write import read_events
from vnet_standby.traffic.verdict import DIRECTIONS

_PATHS = (
    ("primary", "by the primary"),
    ("standby", "by the standby"),
    ("lost", "lost, when sent"),
    ("stopped", "STOP to RESUME"),
)
_SCATTER = {
    "gap_to_guest_ms": True,
    "lost_to_guest": False,
    "gap_from_guest_ms": True,
    "stop_to_resume_ms": True,
    "off_fast_path_s": False,
}
"""The measures whose single runs are drawn, and whether the noise floor says something about them."""

_GROWTH = ("stop_to_resume_ms", "off_fast_path_s", "eject_ms", "lost_to_guest", "agent_peak_mib")
"""The measures that are drawn against a VM's size."""

_TABLES = {
    "Probes": tuple(
        f"{count}_{direction}"
        for direction in DIRECTIONS
        for count in ("lost", *(f"lost_{kind}" for kind in SWITCHES), "duplicated", "reordered")
    ),
    "Gaps": tuple(
        f"{gap}_{direction}_ms"
        for direction in DIRECTIONS
        for gap in ("gap", *(f"gap_{kind}" for kind in SWITCHES))
    ),
    "Times and sizes": (
        "stop_to_resume_ms",
        "downtime_ms",
        "off_fast_path_s",
        "eject_ms",
        "replug_ms",
        "migration_s",
        "tcp_before_mib_s",
        "tcp_through_mib_s",
        "tcp_after_mib_s",
        "tcp_stall_ms",
        "tcp_retransmitted",
        "agent_peak_mib",
        "agent_late",
        "noise_floor_ms",
    ),
}
"""Every measure, in tables that a screen can hold."""


def page(result: Result, out: Path) -> str:
    """Return the page; `out` is the bench's folder, where the runs' records are."""
    root, main = opened("kinds of guests side by side")
    node(main, "h1", "Kinds of guests side by side")
    made, *rest = ground(result)
    node(main, "p", made, class_="ground")
    _warnings(main, result)
    _gaps(main, result)
    _time_lines(main, result, out)
    _scatter(main, result)
    _growth(main, result)
    for heading, keys in _TABLES.items():
        _figures(main, result, heading, keys)
    _costs(main, result)
    _unmeasured(main, result)
    _runs(main, result)
    ended = add_section(main, "How it was made")
    for sentence in rest:
        node(ended, "p", sentence)
    return written(root)


def _warnings(main: ET.Element, result: Result) -> None:
    told = [] if result["complete"] else ["not all runs have ended yet"]
    told += [f"loaded machine: {sentence}" for sentence in result["loaded"]]
    if told:
        add_warnings(main, "What makes the figures doubtful", told)


def _gaps(main: ET.Element, result: Result) -> None:
    section = add_section(main, "The longest gaps, by cause")
    add_legend(section, ((kind, kind) for kind in SWITCHES))
    text = (
        "The longest silence of the receiver in each switch, beyond the probe interval; medians of the runs. A bar "
        "with a stroke is cut."
    )
    node(section, "p", text, class_="note")
    for direction in DIRECTIONS:
        node(section, "h3", SPOKEN[direction].capitalize())
        plots.gaps(node(section, "figure"), result["cells"], direction)


def _time_lines(main: ET.Element, result: Result, out: Path) -> None:
    section = add_section(main, "Time lines")
    add_legend(section, _PATHS)
    text = (
        "Of each cell the run whose longest gap to the guest is the median's. Upper lane: probes to the guest, lower "
        "lane: from the guest."
    )
    node(section, "p", text, class_="note")
    lines = [
        plots.time_line(cell, _report(folder), read_result(out / folder), read_events(out / folder))
        for cell in result["cells"]
        if (folder := _typical(cell))
    ]
    if lines:
        plots.time_lines(node(section, "figure"), lines)


def _typical(cell: Cell) -> str | None:
    """The folder of the run that is in the middle of its cell's."""
    for key in ("gap_to_guest_ms", "gap_from_guest_ms"):
        figure = cell["figures"][key]
        if "values" in figure:
            return str(_nearest(figure, figure["median"])["folder"])
    return None


def _scatter(main: ET.Element, result: Result) -> None:
    section = add_section(main, "The single runs")
    add_legend(section, [("primary", "a run"), ("gap", "noise floor of the cell's runs")])
    for key, noise in _SCATTER.items():
        plots.runs(node(section, "figure"), result, key, noise=noise)


def _growth(main: ET.Element, result: Result) -> None:
    for axis in growth.AXES:
        found = growth.curves(result["cells"], axis)
        for topology in dict.fromkeys(curve.topology for curve in found):
            section = add_section(main, f"{axis.heading} ({topology})")
            text = "Medians of the runs, and from least to most; all else is the same along a line."
            node(section, "p", text, class_="note")
            alike = [curve for curve in found if curve.topology == topology]
            for key in _GROWTH:
                growth.draw(node(section, "figure"), alike, axis, result["measures"][key], key)


def _figures(main: ET.Element, result: Result, heading: str, keys: Sequence[str]) -> None:
    section = add_section(main, heading)
    section.set("class", "dense")
    text = "Median of the runs (least to most); each figure leads to the run that it is from."
    node(section, "p", text, class_="note")
    measures = result["measures"]
    head = ["cell", *(f"{measures[key]['title']}, {measures[key]['unit']}" for key in keys)]
    rows = [
        [
            cell_name(cell),
            *(_linked(cell["figures"][key], measures[key]["unit"]) for key in keys),
        ]
        for cell in result["cells"]
    ]
    add_table(section, head, rows, words={0})


def _linked(figure: Mapping[str, Any], unit: str) -> list[Link | str]:
    if "not_measured" in figure:
        return [UNMEASURED]
    middle = _value(figure, "median", unit)
    if figure["min"] == figure["max"]:
        return [middle]
    return [middle, " (", _value(figure, "min", unit), " to ", _value(figure, "max", unit), ")"]


def _value(figure: Mapping[str, Any], which: str, unit: str) -> Link:
    folder = str(_nearest(figure, figure[which])["folder"])
    return Link(number(figure[which], unit), _report(folder), folder)


def _nearest(figure: Mapping[str, Any], value: float) -> Mapping[str, Any]:
    values: Sequence[Mapping[str, Any]] = figure["values"]
    return min(values, key=lambda one: abs(float(one["value"]) - value))


def _report(folder: str) -> str:
    return f"{folder}/report.html"


def _costs(main: ET.Element, result: Result) -> None:
    costs = result["costs"]
    if not costs["kinds"]:
        return
    section = add_section(main, "What a packet costs in the guest")
    text = f"Instructions for a UDP datagram of 64 bytes by the primary, counted on the {costs['qemu']} QEMU."
    node(section, "p", text, class_="note")
    head = ["guest", *(measure.title for measure in COST_MEASURES.values())]
    rows = [
        [kind_name(kind), *(_cost(figures[key], costs["folder"]) for key in COST_MEASURES)]
        for kind, figures in costs["kinds"].items()
    ]
    add_table(section, head, rows, words={0})


def _cost(figure: Mapping[str, Any], folder: str) -> list[Link | str]:
    if "not_measured" in figure:
        return [f"not measured: {figure['not_measured']}"]
    return [Link(number(figure["median"], "instructions"), f"{folder}/cost.json", folder)]


def _unmeasured(main: ET.Element, result: Result) -> None:
    keys = [key for keys in _TABLES.values() for key in keys]
    found = reasons(result["cells"], keys)
    if found:
        section = add_section(main, "Not measured")
        rows = [(reason, "; ".join(names)) for reason, names in found.items()]
        add_table(section, ("because", "in"), rows, words={0, 1})


def _runs(main: ET.Element, result: Result) -> None:
    section = add_section(main, "All runs, and their raw records")
    section.set("class", "dense")
    head = ("run", "status", "took (s)", "others used (CPUs)", "warnings", "command")
    add_table(section, head, _run_rows(result), words={0, 1, 4, 5})


def _run_rows(result: Result) -> Iterator[Sequence[Any]]:
    for cell in result["cells"]:
        for run in cell["runs"]:
            measured = run["status"] == "measured"
            target = _report(run["folder"]) if measured else f"{run['folder']}/log.txt"
            status = "measured" if measured else f"not measured: {run['reason']}"
            yield (
                [Link(run["folder"], target)],
                status,
                f"{run['elapsed_s']:.1f}",
                f"{run['others_cpus']:.2f}",
                "; ".join(_short(run["warnings"])),
                run["command"],
            )


def _short(warnings: Sequence[str]) -> Iterable[str]:
    yield from warnings[:2]
    if len(warnings) > 2:
        yield f"and {len(warnings) - 2} more"
