# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench's result as JSON, made from what its runs left, as often as wanted.

`schema`
    1; it grows with a change that older readers would misread.
`command`, `begun`, `ground`, `settings`
    how it was made: the command, when, machine and versions, and what holds for all cells.
`complete`
    whether all runs have ended.
`noise_floor_ms`
    median, min and max over all runs; `loaded` says in sentences what makes the figures doubtful, empty if nothing.
`measures`
    by key: `title` and `unit` of each figure, and which is `better`, less or more.
`cells`
    in the order of the matrix. `name`; what the cell is (`kind`, `qemu`, `hotplug`, `traffic`, `topology`, `ram_mib`,
    `pairs`, `tcp`); `runs`, each with `folder` (its raw records, beside this file), `status` (measured, failed),
    `reason`, `command`, `began`, `elapsed_s`, `others_cpus`, `accelerator`, `warnings` (of the judge); and `figures`,
    by measure: either `median`, `min`, `max` and `values`, each with the `folder` that it was read from, or
    `not_measured`, the reason.
`costs`
    guest instructions a packet: `folder`, `qemu`, and `kinds`: by kind of guest, figures as above.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from vnet_standby.bench.matrix import Cell, Kind
from vnet_standby.bench.measures import (
    COST_MEASURES,
    MEASURES,
    Figure,
    Measure,
    Missing,
    cost_figures,
    figures,
    read_result,
)
from vnet_standby.bench.plan import COST_FILE, COST_FOLDER, Plan, cost_qemu, jobs, run_folder
from vnet_standby.bench.run import Record, read_record
from vnet_standby.errors import VnetStandbyError
from vnet_standby.report.write import read_run

SCHEMA = 1
FILE = "bench-result.json"

BUSY_SHARE = 0.1
"""Others that take more of the machine than this are in the way of two QEMUs and a guest."""
NOISY_INTERVALS = 4
"""A noise floor above so many probe intervals hides what a switch costs at its best."""

_NOT_YET = "it has not run yet"


def collect(plan: Plan, out: Path) -> dict[str, Any]:
    """Read what all runs of a bench have left until now."""
    cells = [_cell(plan, cell, out) for cell in plan.cells]
    return {
        "schema": SCHEMA,
        "command": plan.command,
        "begun": plan.begun,
        "complete": all(read_record(out / job.folder) for job in jobs(plan, out)),
        "ground": dict(plan.ground),
        "settings": {
            "repeats": plan.repeats,
            "rate_hz": plan.rate_hz,
            "bandwidth_mib_s": plan.bandwidth_mib_s,
        },
        "noise_floor_ms": noise_floor(cells),
        "loaded": list(_loaded(plan, cells, out)),
        "measures": {
            key: asdict(measure) for key, measure in {**MEASURES, **COST_MEASURES}.items()
        },
        "cells": cells,
        "costs": _costs(plan, out),
    }


def noise_floor(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the median, min and max of all runs of these cells."""
    floors = _floors(cells)
    return dict(_summary(floors)) if floors else {"not_measured": _NOT_YET}


def _floors(cells: Iterable[Mapping[str, Any]]) -> list[float]:
    return [
        value["value"]
        for cell in cells
        for value in cell["figures"]["noise_floor_ms"].get("values", ())
    ]


def _cell(plan: Plan, cell: Cell, out: Path) -> dict[str, Any]:
    folders = [run_folder(cell, repeat) for repeat in range(1, plan.repeats + 1)]
    records = {folder: read_record(out / folder) for folder in folders}
    ended = {folder: record for folder, record in records.items() if record}
    measured = {
        folder: figures(out / folder, cell)
        for folder, record in ended.items()
        if record.status == "measured"
    }
    otherwise = cell.impossible or _why_none(ended.values())
    return {
        "name": cell.name,
        **asdict(cell),
        "runs": [_run(folder, record, out) for folder, record in ended.items()],
        "figures": _figures(MEASURES, measured, otherwise),
    }


def _why_none(ended: Iterable[Record]) -> str:
    reasons = [record.reason for record in ended if record.reason]
    return reasons[0] if reasons else _NOT_YET


def _run(folder: str, record: Record, out: Path) -> dict[str, Any]:
    warnings: Sequence[str] = ()
    accelerator = ""
    if record.status == "measured":
        warnings = read_result(out / folder)["warnings"]
        accelerator = read_run(out / folder)["accelerator"]
    return {
        "folder": folder,
        **asdict(record),
        "accelerator": accelerator,
        "warnings": warnings,
    }


def _figures(
    measures: Mapping[str, Measure], measured: Mapping[str, Mapping[str, Figure]], otherwise: str
) -> dict[str, Any]:
    """Put together what several runs (by folder) say of each measure; `otherwise` is the reason if there are none."""
    return {
        key: _together({folder: found[key] for folder, found in measured.items()}, otherwise)
        for key in measures
    }


def _together(by_run: Mapping[str, Figure], otherwise: str) -> dict[str, Any]:
    values = {run: figure for run, figure in by_run.items() if not isinstance(figure, Missing)}
    if not values:
        reasons = [figure.reason for figure in by_run.values() if isinstance(figure, Missing)]
        return {"not_measured": reasons[0] if reasons else otherwise}
    listed = [{"value": round(value, 3), "folder": run} for run, value in values.items()]
    return {**_summary(list(values.values())), "values": listed}


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def _loaded(plan: Plan, cells: Sequence[Mapping[str, Any]], out: Path) -> Iterable[str]:
    """Say which runs others on the machine, or a noise floor that is too high, make doubtful."""
    processors = int(plan.ground["processors"])
    shares = {
        run["folder"]: run["others_cpus"] / processors for cell in cells for run in cell["runs"]
    }
    busy = {folder: share for folder, share in shares.items() if share > BUSY_SHARE}
    if busy:
        yield (
            f"others used more than {BUSY_SHARE:.0%} of the machine during {len(busy)} of {len(shares)} runs, "
            f"up to {max(busy.values()):.0%}"
        )
    limit_ms = NOISY_INTERVALS * 1e3 / plan.rate_hz
    floors = _floors(cells)
    noisy = [floor for floor in floors if floor > limit_ms]
    if noisy:
        yield (
            f"the noise floor is above {limit_ms:g} ms ({NOISY_INTERVALS} probe intervals) in {len(noisy)} of "
            f"{len(floors)} runs, up to {max(noisy):.0f} ms"
        )


def _costs(plan: Plan, out: Path) -> dict[str, Any]:
    record = read_record(out / COST_FOLDER)
    costs: Mapping[str, Any] = {}
    if record and record.status == "measured":
        costs = json.loads((out / COST_FOLDER / COST_FILE).read_text())
    otherwise = (record.reason if record else "") or _NOT_YET
    return {
        "folder": COST_FOLDER,
        "qemu": cost_qemu(plan),
        "kinds": {kind: _cost(costs, kind, otherwise) for kind in plan.cost_kinds},
    }


def _cost(costs: Mapping[str, Any], kind: Kind, otherwise: str) -> dict[str, Any]:
    measured = {COST_FOLDER: cost_figures(costs, kind)} if costs else {}
    return _figures(COST_MEASURES, measured, otherwise)


def failures(result: Mapping[str, Any]) -> list[str]:
    """The runs of a result that failed, and why."""
    return [
        f"{run['folder']}: {run['reason']}"
        for cell in result["cells"]
        for run in cell["runs"]
        if run["status"] == "failed"
    ]


def read(place: Path) -> dict[str, Any]:
    """Read a result, given its file or the bench's folder."""
    path = place / FILE if place.is_dir() else place
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VnetStandbyError(f"{path} is no result of a bench: {error}") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise VnetStandbyError(f"{path} is no result of a bench with schema {SCHEMA}")
    return result
