# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench's result as Markdown, and the way into a README: between comments that mark a topology's place."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vnet_standby.bench.growth import AXES, Axis, curves
from vnet_standby.bench.results import noise_floor
from vnet_standby.bench.words import (
    UNMEASURED,
    Cell,
    Result,
    ground,
    kind_name,
    number,
    reasons,
    setting,
    spread,
)
from vnet_standby.build.cache import write_atomically
from vnet_standby.errors import VnetStandbyError

BEGIN = "<!-- bench {}: begin -->"
END = "<!-- bench {}: end -->"
"""Around a topology's tables in a README."""

_COSTS_WITH = "flat"
"""What a packet costs in the guest is counted once, without hosts around it."""


@dataclass(frozen=True)
class _Column:
    title: str
    keys: Sequence[str]
    """One measure, or two that share the column."""


_AGENT_LATE = _Column("agent too late", ("agent_late",))
_AGENT_MEMORY = _Column("host agent, MiB", ("agent_peak_mib",))
_STEPS = (
    _Column("STOP to RESUME, ms", ("stop_to_resume_ms",)),
    _Column("as QEMU reports it, ms", ("downtime_ms",)),
    _Column("off the fast path, s", ("off_fast_path_s",)),
    _Column("eject, ms", ("eject_ms",)),
    _Column("replug, ms", ("replug_ms",)),
)
_LOSS = (
    _Column("failover", ("lost_failover_to_guest",)),
    _Column("blackout", ("lost_blackout_to_guest",)),
    _Column("failback", ("lost_failback_to_guest",)),
    _Column("**lost to guest**", ("lost_to_guest",)),
    _Column("lost from guest", ("lost_from_guest",)),
    _Column("duplicated to / from", ("duplicated_to_guest", "duplicated_from_guest")),
    _Column("reordered to / from", ("reordered_to_guest", "reordered_from_guest")),
    _AGENT_LATE,
    _Column("noise floor, ms", ("noise_floor_ms",)),
)
_TIME = (
    _Column("longest gap to guest, ms", ("gap_to_guest_ms",)),
    _Column("from guest, ms", ("gap_from_guest_ms",)),
    *_STEPS,
    _Column(
        "TCP before / through / after, MiB/s",
        ("tcp_before_mib_s", "tcp_through_mib_s", "tcp_after_mib_s"),
    ),
    _Column("TCP sent again", ("tcp_retransmitted",)),
    _AGENT_MEMORY,
)
_GROWTH = (
    _Column("lost to guest", ("lost_to_guest",)),
    _Column("lost from guest", ("lost_from_guest",)),
    *_STEPS,
    _AGENT_MEMORY,
    _AGENT_LATE,
)


def markdown(result: Result, folder: str) -> str:
    """Return the result's tables; `folder` is where the bench is, as seen from the file that they are put into.

    A cell that differs from another one only in being larger stands beside that one, in a table of what grows.
    """
    shown = [key for column in (*_LOSS, *_TIME) for key in column.keys]
    grown = [
        cell for axis in AXES for curve in curves(result["cells"], axis) for cell in curve.cells[1:]
    ]
    cells = [cell for cell in result["cells"] if cell not in grown]
    parts = [
        "Probes lost, duplicated and reordered: median of the runs (least to most).",
        "\n".join(_table(result, cells, _LOSS, folder)),
        "Times and sizes:",
        "\n".join(_table(result, cells, _TIME, folder)),
        *_growth_tables(result, folder),
        *_cost_table(result, folder),
        " ".join(ground(result)),
        "\n".join(_legend(reasons(cells, shown))),
        f"Every single value, with plots: [{Path(folder, 'bench.html')}]({Path(folder, 'bench.html')}). The links "
        "lead to raw records below the bench's folder, where the command has left it.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _growth_tables(result: Result, folder: str) -> Iterator[str]:
    for axis in AXES:
        cells = [cell for curve in curves(result["cells"], axis) for cell in curve.cells]
        if cells:
            yield f"{axis.heading}:"
            yield "\n".join(_table(result, cells, _GROWTH, folder, axis))


def _table(
    result: Result,
    cells: Iterable[Cell],
    columns: Sequence[_Column],
    folder: str,
    axis: Axis | None = None,
) -> Iterator[str]:
    """One row a cell; with an axis, in a column of its own, how much of that the cell has."""
    sizes = [axis.title] if axis else []
    yield _line(["guest", "QEMU", *sizes, *(column.title for column in columns)])
    yield _line(["---", "---", *("---:" for _ in (*sizes, *columns))])
    for cell in cells:
        told, size = (axis.usual(cell), [f"{cell[axis.setting]:,}"]) if axis else (cell, [])
        yield _line(
            [
                _link(told, Path(folder, "runs", cell["name"])),
                cell["qemu"],
                *size,
                *(_shown(cell, column, result) for column in columns),
            ]
        )


def _shown(cell: Cell, column: _Column, result: Result) -> str:
    measures, figures = result["measures"], cell["figures"]
    told = [spread(figures[key], measures[key]["unit"]) for key in column.keys]
    return " / ".join(told) if set(told) != {UNMEASURED} else UNMEASURED


def _link(cell: Cell, records: Path) -> str:
    name = ", ".join(filter(None, (kind_name(cell["kind"]), setting(cell))))
    return f"[{name}]({records})" if cell["runs"] else name


def _cost_table(result: Result, folder: str) -> Iterator[str]:
    costs = result["costs"]
    if not costs["kinds"]:
        return
    link = f"[guest instructions]({Path(folder, costs['folder'])})"
    lines = [
        _line(["guest", "to send", "over the bare primary", "to receive", "over the bare primary"]),
        _line(["---", "---:", "---:", "---:", "---:"]),
    ]
    keys = ("send_total", "send_over_bare", "receive_total", "receive_over_bare")
    missing: dict[str, list[str]] = {}
    for kind, figures in costs["kinds"].items():
        lines.append(_line([kind_name(kind), *(_cost(figures[key]) for key in keys)]))
        if reason := figures["send_total"].get("not_measured"):
            missing.setdefault(reason, []).append(kind_name(kind))
    yield f"What a UDP packet of 64 bytes costs, in {link} ({costs['qemu']} QEMU):"
    yield "\n".join(lines)
    yield "\n".join(_legend(missing))


def _cost(figure: Mapping[str, Any]) -> str:
    return number(figure["median"], "instructions") if "median" in figure else UNMEASURED


def _legend(missing: Mapping[str, Sequence[str]]) -> Iterable[str]:
    if missing:
        yield f"{UNMEASURED}: not measured, because"
        yield ""
    for reason, names in missing.items():
        yield f"- {_escaped(reason)}: {'; '.join(names)}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """What comes from outside must not make a table, a link or an element."""
    return "".join(f"\\{letter}" if letter in "|<>[]`*_\\" else letter for letter in text)


def put(result: Result, bench: Path, readme: Path) -> None:
    """Put the tables into a README, each topology's in place of what is between its two comments.

    A topology that the README has no place for is left out, unless that holds for all.
    """
    text = readme.read_text(encoding="utf-8")
    topologies = dict.fromkeys(cell["topology"] for cell in result["cells"])
    placed = [name for name in topologies if BEGIN.format(name) in text or END.format(name) in text]
    folder = os.path.relpath(bench.resolve(), readme.resolve().parent)
    for topology in placed or topologies:
        text = _replaced(text, topology, markdown(_part(result, topology), folder), readme)
    write_atomically(readme, text)


def _part(result: Result, topology: str) -> Result:
    cells = [cell for cell in result["cells"] if cell["topology"] == topology]
    costs = result["costs"]
    if topology != _COSTS_WITH:
        costs = {**costs, "kinds": {}}
    return {**result, "cells": cells, "costs": costs, "noise_floor_ms": noise_floor(cells)}


def _replaced(text: str, topology: str, tables: str, readme: Path) -> str:
    begin, end = BEGIN.format(topology), END.format(topology)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise VnetStandbyError(
            f"{readme} does not say where the table goes; put these two lines there, once: {begin} and {end}"
        )
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{tables}\n{end}{after}"
