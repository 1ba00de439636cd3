# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench is going to run, kept in its folder: whoever resumes it runs the same, on the same ground."""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vnet_standby.bench.matrix import Cell, Kind
from vnet_standby.build.cache import write_atomically
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.scenario import TopologyName

FILE = "plan.json"

_LIMIT_S: dict[TopologyName, int] = {"flat": 900, "nested": 1800}
"""Every wait of a run has a bound of its own; this one is for what nobody thought of."""
_COST_LIMIT_S = 1800


@dataclass(frozen=True)
class Plan:
    """A bench."""

    cells: Sequence[Cell]
    repeats: int
    rate_hz: int
    bandwidth_mib_s: int
    cost_kinds: Sequence[Kind]
    """The kinds of guests whose instructions a packet are counted."""
    qemus: Mapping[str, str]
    """The binary behind each QEMU's name."""
    kernel: str | None
    """The guest's kernel, as for `guest_image`."""
    command: str
    """The command that began it, as the user could give it again."""
    begun: str
    ground: Mapping[str, str]
    """Machine and versions: what has to stay the same for the runs to be one result."""


@dataclass(frozen=True)
class Job:
    """One command of this package, with a folder for what it leaves."""

    folder: str
    """Below the bench's folder."""
    title: str
    arguments: Sequence[str]
    yields: str
    """The file in the folder that the command writes last."""
    limit_s: int


def jobs(plan: Plan, out: Path) -> Iterator[Job]:
    """Return all runs: each cell once before any of them a second time, so that what changes on the machine hits all.

    What a packet costs is counted first: it is exact, and takes little time.
    """
    if plan.cost_kinds:
        yield _cost(plan, out)
    for repeat in range(1, plan.repeats + 1):
        for cell in plan.cells:
            if not cell.impossible:
                yield _migration(plan, cell, repeat, out)


def run_folder(cell: Cell, repeat: int) -> str:
    """Where a cell's run is, below the bench's folder."""
    return f"runs/{cell.name}/{repeat}"


COST_FOLDER = "cost"
COST_FILE = "cost.json"


def cost_qemu(plan: Plan) -> str:
    """The QEMU that instructions are counted on; which one it is matters little to what the guest executes."""
    return "patched" if "patched" in plan.qemus else next(iter(plan.qemus))


def _cost(plan: Plan, out: Path) -> Job:
    return Job(
        folder=COST_FOLDER,
        title=f"instructions a packet: {', '.join(plan.cost_kinds)}",
        arguments=[
            "cost", "--qemu", plan.qemus[cost_qemu(plan)], "--guest", *plan.cost_kinds,
            "--json", str(out / COST_FOLDER / COST_FILE), *_kernel(plan),
        ],
        yields=COST_FILE,
        limit_s=_COST_LIMIT_S,
    )  # fmt: skip


def _migration(plan: Plan, cell: Cell, repeat: int, out: Path) -> Job:
    folder = run_folder(cell, repeat)
    return Job(
        folder=folder,
        title=f"{cell.name}, repeat {repeat}",
        arguments=[
            "demo", *cell.demo(), "--qemu", plan.qemus[cell.qemu], "--rate", str(plan.rate_hz),
            "--bandwidth", str(plan.bandwidth_mib_s), "--report", str(out / folder), *_kernel(plan),
        ],
        yields="result.json",
        limit_s=_LIMIT_S[cell.topology],
    )  # fmt: skip


def _kernel(plan: Plan) -> list[str]:
    return ["--kernel", plan.kernel] if plan.kernel else []


def save(plan: Plan, out: Path) -> None:
    """Write the plan into the bench's folder, which must not hold one yet."""
    if (out / FILE).exists():
        raise VnetStandbyError(
            f"{out} holds a bench already; go on with it (--resume {out}), or give another --out"
        )
    _write(plan, out)


def repeat(plan: Plan, repeats: int, out: Path) -> Plan:
    """Let the bench in a folder have so many runs of each cell from now on; return its new plan."""
    command = f"{plan.command} --repeats {repeats}"  # of an option that is given twice, the last one counts
    changed = replace(plan, repeats=repeats, command=command)
    _write(changed, out)
    return changed


def _write(plan: Plan, out: Path) -> None:
    write_atomically(out / FILE, json.dumps(asdict(plan), indent=1) + "\n")


def load(out: Path) -> Plan:
    """Read the plan in a bench's folder."""
    path = out / FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return Plan(**{**content, "cells": [Cell(**cell) for cell in content["cells"]]})
    except FileNotFoundError:
        raise VnetStandbyError(f"{out} holds no bench: {FILE} is missing") from None
    except (ValueError, TypeError, KeyError) as error:
        raise VnetStandbyError(f"{path} is no plan of a bench: {error}; begin a new one") from error


def require_same_ground(plan: Plan, ground: Mapping[str, str], out: Path) -> None:
    """Refuse to go on where something else would be measured than before."""
    changed = [
        f"{name} was {plan.ground.get(name, 'not there')}, is {ground.get(name, 'not there')}"
        for name in {**plan.ground, **ground}
        if plan.ground.get(name) != ground.get(name)
    ]
    if changed:
        raise VnetStandbyError(
            f"the bench in {out} can't go on, its results would not compare ({'; '.join(changed)}); begin a new one"
        )


def machine() -> dict[str, str]:
    """What this machine is."""
    memory_kib = int(_found(r"^MemTotal: *(\d+) kB$", Path("/proc/meminfo")))
    return {
        "processor": _found(r"^model name\s*: (.*)$", Path("/proc/cpuinfo")),
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_kib // 1024} MiB",
        "host kernel": platform.release(),
        "python": platform.python_version(),
    }


def _found(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    return found[1].strip() if found else "0"
