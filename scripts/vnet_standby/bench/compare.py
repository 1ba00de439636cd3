# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds two results against each other, and says which figures differ by more than chance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vnet_standby.bench.words import Result, cell_name, kind_name, spread
from vnet_standby.report.text import table

RULE = """\
Of each cell and measure both results have a range, from the least to the most that their runs say. Two figures differ
beyond noise if the ranges are apart by more than the noise floor: the largest one of all runs of the cell in both
results, in milliseconds for times, and in probe intervals for probes. Memory, TCP, instructions and how often an
agent was late have none: apart is apart. The more repeats, the more a range says; with one it is a point.\
"""

Outcome = Literal["better", "worse", "within noise", "not measured"]

_UNNOISY = {"MiB", "MiB/s", "instructions", "segments", "times"}


@dataclass(frozen=True)
class Difference:
    """One measure of one cell in both results."""

    cell: str
    measure: str
    unit: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    outcome: Outcome
    """B, as seen from A."""


def differences(a: Result, b: Result) -> Iterator[Difference]:
    """Compare the cells, and the costs, that both results have."""
    there = {cell["name"]: cell for cell in b["cells"]}
    interval_ms = 1e3 / min(result["settings"]["rate_hz"] for result in (a, b))
    for cell in a["cells"]:
        if other := there.get(cell["name"]):
            noise_ms = max(_noise_ms(cell), _noise_ms(other))
            yield from _compared(
                cell_name(cell), a, cell["figures"], other["figures"], noise_ms, interval_ms
            )
    for kind, figures in a["costs"]["kinds"].items():
        if other := b["costs"]["kinds"].get(kind):
            yield from _compared(kind_name(kind), a, figures, other, 0.0, interval_ms)


def _noise_ms(cell: Mapping[str, Any]) -> float:
    return float(cell["figures"]["noise_floor_ms"].get("max", 0.0))


def _compared(
    name: str,
    result: Result,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    noise_ms: float,
    interval_ms: float,
) -> Iterator[Difference]:
    for key in a.keys() & b.keys() - {"noise_floor_ms"}:
        measure = result["measures"][key]
        noise = _noise_in(measure["unit"], noise_ms, interval_ms)
        yield Difference(
            name,
            measure["title"],
            measure["unit"],
            a[key],
            b[key],
            outcome(a[key], b[key], noise, measure["better"]),
        )


def _noise_in(unit: str, noise_ms: float, interval_ms: float) -> float:
    scale = {"ms": 1.0, "s": 1e-3, "probes": 1 / interval_ms}
    return 0.0 if unit in _UNNOISY else noise_ms * scale[unit]


def outcome(
    a: Mapping[str, Any], b: Mapping[str, Any], noise: float, better: str = "less"
) -> Outcome:
    """Say how B differs from A, by the rule."""
    if "not_measured" in a or "not_measured" in b:
        return "not measured"
    if b["min"] - a["max"] > noise:
        return "worse" if better == "less" else "better"
    if a["min"] - b["max"] > noise:
        return "better" if better == "less" else "worse"
    return "within noise"


def comparison(a: Result, b: Result) -> str:
    """Return what differs beyond noise as a table, and the count of what does not."""
    found = list(differences(a, b))
    beyond = [d for d in found if d.outcome in {"better", "worse"}]
    lines = [*_ground(a, b), ""]
    if beyond:
        rows = [
            (d.cell, f"{d.measure}, {d.unit}", d.outcome, spread(d.a, d.unit), spread(d.b, d.unit))
            for d in beyond
        ]
        lines += table(("cell", "measure", "B is", "A", "B"), rows, words=3)
    else:
        lines.append("nothing differs beyond noise")
    counts = {o: sum(d.outcome == o for d in found) for o in ("within noise", "not measured")}
    lines += ["", *(f"{count} figures: {name}" for name, count in counts.items())]
    return "\n".join([*lines, *_only(a, b, "A"), *_only(b, a, "B")])


def _ground(a: Result, b: Result) -> Iterator[str]:
    for name, result in (("A", a), ("B", b)):
        yield f"{name}: {result['command']}, begun {result['begun']}"
        yield from (f"   loaded machine: {sentence}" for sentence in result["loaded"])
    for name in {**a["ground"], **b["ground"]}:
        was, is_ = (result["ground"].get(name, "not there") for result in (a, b))
        if was != is_:
            yield f"differs: {name}: {was} | {is_}"
    if a["settings"] != b["settings"]:
        yield f"differs: settings: {a['settings']} | {b['settings']}"


def _only(a: Result, b: Result, name: str) -> Iterator[str]:
    there = {cell["name"] for cell in b["cells"]}
    for cell in a["cells"]:
        if cell["name"] not in there:
            yield f"only in {name}: {cell_name(cell)}"
