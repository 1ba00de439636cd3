# SPDX-License-Identifier: GPL-2.0-or-later
"""How a bench's result is told: cells, figures and how it was made, in words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vnet_standby.bench.matrix import OWN_QEMU
from vnet_standby.lab.scenario import RAM_MIB, TRAFFIC_KINDS

Cell = Mapping[str, Any]
Result = Mapping[str, Any]

UNMEASURED = "–"  # noqa: RUF001  # a dash is what tables have there

_KINDS = {"drop-in": "vnet-standby, drop-in", "patched": "vnet-standby, patched"}
_TRAFFIC = dict(zip(TRAFFIC_KINDS, ("", "only receives", "only sends"), strict=True))


def kind_name(kind: str) -> str:
    """What a kind of guest is called."""
    return _KINDS.get(kind, kind)


def setting(cell: Cell) -> str:
    """What is special about a cell, beside its guest and QEMU; empty if nothing is."""
    ram, topology = cell["ram_mib"], cell["topology"]
    told = (
        _TRAFFIC[cell["traffic"]],
        "native hotplug" if cell["hotplug"] == "pcie" else "",
        "nested" if topology == "nested" else "",
        f"{ram} MiB" if ram != RAM_MIB[topology] else "",
        f"{cell['pairs']} pairs" if cell["pairs"] != 1 else "",
        "with TCP" if cell["tcp"] else "",
    )
    return ", ".join(filter(None, told))


def cell_name(cell: Cell) -> str:
    """What a cell is, in words; of its QEMU only if that is another than the kind's own."""
    own = cell["qemu"] == OWN_QEMU[cell["kind"]]
    qemu = "" if own else f"{cell['qemu']} QEMU"
    return ", ".join(filter(None, (kind_name(cell["kind"]), qemu, setting(cell))))


def number(value: float, unit: str) -> str:
    """Return a figure with as many digits as it is good for."""
    digits = 0 if unit in {"probes", "times", "instructions"} or value >= 100 else 1
    return f"{value:,.{digits}f}"


def spread(figure: Mapping[str, Any], unit: str) -> str:
    """Return a figure's median, and its range where there is one."""
    if "not_measured" in figure:
        return UNMEASURED
    middle, low, high = (number(figure[key], unit) for key in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def reasons(cells: Sequence[Cell], keys: Iterable[str]) -> dict[str, list[str]]:
    """Why figures, of the measures with these keys, were not measured: by reason, the cells that it holds for.

    Where those are most of the cells, the others are named.
    """
    wanted, found = list(keys), dict[str, list[str]]()
    for cell in cells:
        missing = (cell["figures"][key].get("not_measured") for key in wanted)
        for reason in dict.fromkeys(filter(None, missing)):
            found.setdefault(reason, []).append(cell_name(cell))
    every = [cell_name(cell) for cell in cells]
    return {reason: _fewer(names, every) for reason, names in found.items()}


def _fewer(names: Sequence[str], every: Sequence[str]) -> list[str]:
    others = [name for name in every if name not in names]
    if len(every) == 1 or len(others) >= len(names):
        return list(names)
    if not others:
        return ["all"]
    return [f"all but {others[0]}", *others[1:]]


def ground(result: Result) -> list[str]:
    """How a result was made, in sentences."""
    settings, made = result["settings"], result["ground"]
    accelerators = {run["accelerator"] for cell in result["cells"] for run in cell["runs"]}
    on = ", ".join(f"{name} {value}" for name, value in made.items())
    floor = spread(result["noise_floor_ms"], "ms")
    return [
        f"Made by `{result['command']}`, begun {result['begun']}.",
        f"{settings['repeats']} runs a cell, {settings['rate_hz']} probes/s, migrated at "
        f"{settings['bandwidth_mib_s']} MiB/s; accelerator: {', '.join(sorted(filter(None, accelerators)))}.",
        f"Noise floor: {floor} ms.",
        f"Ground: {on}.",
        *([] if result["complete"] else ["The bench has not ended yet."]),
        *(f"Loaded machine: {sentence}." for sentence in result["loaded"]),
    ]
