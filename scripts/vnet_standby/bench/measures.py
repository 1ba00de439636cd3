# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run is asked for: each measure with its unit, read from the run's own result and events.

Nothing is measured here: `vnet-standby demo` has judged the run. A figure that the run does not yield is `Missing`, and
says why.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vnet_standby.bench.matrix import Cell
from vnet_standby.errors import VnetStandbyError
from vnet_standby.report.story import SPOKEN
from vnet_standby.report.write import read_events, read_run
from vnet_standby.traffic.verdict import DIRECTIONS, Direction, SwitchKind

Unit = Literal["probes", "segments", "times", "ms", "s", "MiB", "MiB/s", "instructions"]
SWITCHES: tuple[SwitchKind, ...] = get_args(SwitchKind)


@dataclass(frozen=True)
class Measure:
    """Something that is measured."""

    title: str
    unit: Unit
    better: Literal["less", "more"] = "less"


@dataclass(frozen=True)
class Missing:
    """A figure that was not measured."""

    reason: str


Figure = float | Missing
Result = Mapping[str, Any]
Events = Sequence[Mapping[str, Any]]


def _measures() -> Iterable[tuple[str, Measure]]:
    for direction in DIRECTIONS:
        way = SPOKEN[direction]
        for count in ("lost", "duplicated", "reordered"):
            yield f"{count}_{direction}", Measure(f"{count} {way}", "probes")
        for switch in SWITCHES:
            yield f"lost_{switch}_{direction}", Measure(f"lost {way} in the {switch}", "probes")
        yield f"gap_{direction}_ms", Measure(f"longest gap {way}", "ms")
        for switch in SWITCHES:
            yield f"gap_{switch}_{direction}_ms", Measure(f"gap {way} of the {switch}", "ms")
    yield "stop_to_resume_ms", Measure("STOP to RESUME, from outside", "ms")
    yield "downtime_ms", Measure("downtime as QEMU reports it", "ms")
    yield "off_fast_path_s", Measure("time off the fast path", "s")
    yield "eject_ms", Measure("eject: unplug asked for until it is out", "ms")
    yield "replug_ms", Measure("replug: RESUME until the primary has carrier", "ms")
    yield "migration_s", Measure("the migration as a whole", "s")
    yield "tcp_before_mib_s", Measure("TCP to guest before the migration", "MiB/s", "more")
    yield "tcp_through_mib_s", Measure("TCP to guest through the migration", "MiB/s", "more")
    yield "tcp_after_mib_s", Measure("TCP to guest right after the migration", "MiB/s", "more")
    yield "tcp_stall_ms", Measure("longest stall of TCP", "ms")
    yield "tcp_retransmitted", Measure("TCP sent again", "segments")
    yield "agent_peak_mib", Measure("peak memory of the host agent", "MiB")
    yield "agent_late", Measure("QEMU did not wait any longer for the host agent", "times")
    yield "noise_floor_ms", Measure("noise floor", "ms")


MEASURES: dict[str, Measure] = dict(_measures())

COST_MEASURES: dict[str, Measure] = {
    f"{way}_{base}": Measure(f"instructions to {way} a packet{text}", "instructions")
    for way in ("send", "receive")
    for base, text in (("total", ""), ("over_bare", ", over the bare primary"))
}

NO_PRIMARY = Missing("it has no primary")
SILENT = Missing("no traffic that way during the migration")
NO_TCP = Missing("no TCP stream in this cell")
NO_AGENT = Missing("no host agent runs there")


def figures(run: Path, cell: Cell) -> dict[str, Figure]:
    """Read a finished run's figures, one for each of `MEASURES`."""
    result, events = read_result(run), read_events(run)
    found: dict[str, Figure] = {}
    for direction in DIRECTIONS:
        found |= _counts(result, cell, direction)
        found |= _gaps(result, cell, direction)
    found["stop_to_resume_ms"] = _length_ms(result, "blackout")
    found["downtime_ms"] = _known(result["migration"]["downtime_ms"], "QEMU reports none")
    found["off_fast_path_s"] = _off_fast_path_s(result) if cell.has_primary else NO_PRIMARY
    found["eject_ms"] = _eject_ms(events) if cell.has_primary else NO_PRIMARY
    found["replug_ms"] = _replug_ms(events, read_run(run)) if cell.has_primary else NO_PRIMARY
    found["migration_s"] = _known(result["migration"]["total_s"], "no migration completed")
    found |= _tcp(result, cell)
    found["agent_peak_mib"] = _agent_mib(events)
    found["agent_late"] = _agent_late(events)
    found["noise_floor_ms"] = _known(result["noise_floor_ms"], "no quiet stretch")
    return found


def read_result(run: Path) -> dict[str, Any]:
    """Read the result that the demo has left in a run's folder."""
    try:
        return dict(json.loads((run / "result.json").read_text()))
    except (OSError, ValueError) as error:
        raise VnetStandbyError(
            f"can't read the result in {run}: {error}; remove the folder and resume the bench"
        ) from error


def _counts(result: Result, cell: Cell, direction: Direction) -> dict[str, Figure]:
    names = ("lost", "duplicated", "reordered")
    if _silent(cell, direction):
        return {f"{name}_{direction}": SILENT for name in names}
    return {f"{name}_{direction}": float(result[name][direction]) for name in names}


def _silent(cell: Cell, direction: Direction) -> bool:
    """Whether a direction has no probes in the migration; a guest that falls silent sent some before."""
    return cell.traffic not in {"both", direction.replace("_", "-")}


def _gaps(result: Result, cell: Cell, direction: Direction) -> dict[str, Figure]:
    """How long each switch interrupted a direction, and what it cost; of several switches of a kind, the worst."""
    found: dict[str, Figure] = {}
    gaps: dict[SwitchKind, list[Mapping[str, Any]]] = {kind: [] for kind in SWITCHES}
    for switch in result["switches"]:
        if direction in switch["directions"] and not _silent(cell, direction):
            gaps[switch["kind"]].append(switch["directions"][direction])
    for kind, seen in gaps.items():
        missing = _why_no_gap(cell, direction, kind)
        lost, gap = f"lost_{kind}_{direction}", f"gap_{kind}_{direction}_ms"
        found[lost] = float(sum(g["lost"] for g in seen)) if seen else missing
        found[gap] = max(float(g["silence_ms"]) for g in seen) if seen else missing
    longest = [float(gap["silence_ms"]) for seen in gaps.values() for gap in seen]
    found[f"gap_{direction}_ms"] = (
        max(longest) if longest else _why_no_gap(cell, direction, "blackout")
    )
    return found


def _why_no_gap(cell: Cell, direction: Direction, kind: SwitchKind) -> Missing:
    if _silent(cell, direction):
        return SILENT
    if not cell.has_primary and kind != "blackout":
        return NO_PRIMARY
    return Missing(f"the run has no {kind}")


def _length_ms(result: Result, kind: SwitchKind) -> Figure:
    lengths = [1e3 * (s["end"] - s["start"]) for s in result["switches"] if s["kind"] == kind]
    return max(lengths) if lengths else Missing(f"the run has no {kind}")


def _known(value: float | None, otherwise: str) -> Figure:
    return Missing(otherwise) if value is None else float(value)


def _off_fast_path_s(result: Result) -> Figure:
    """How long the primary did not carry the traffic, in the direction where that was longer.

    What was lost counts as well: time on the standby, as the run tells it, is only of what arrived.
    """
    times = [
        segments[-1]["end"]
        - segments[0]["start"]
        - sum(s["end"] - s["start"] for s in segments if s["role"] == "primary")
        for segments in result["paths"].values()
        if segments
    ]
    return max(times) if times else Missing("no probe arrived")


def _eject_ms(events: Events) -> Figure:
    """From the request to unplug the primary until QEMU has it out.

    Where QEMU itself unplugs, the source says so by going on with the migration.
    """
    source, _ = _hosts(events)
    asked = _first(events, {"UNPLUG_PRIMARY", "device_del"})
    if asked is None:
        return Missing("no unplug was asked for")
    out = _first(events, {"DEVICE_DELETED"}, since=asked)
    if out is None:
        out = _first(events, {"MIGRATION"}, since=asked, who=source, status="active")
    return Missing("the primary was not out") if out is None else 1e3 * (out - asked)


def _replug_ms(events: Events, run: Mapping[str, Any]) -> Figure:
    """From RESUME on the destination until the guest says that the primary is united with the standby, with carrier."""
    _, destination = _hosts(events)
    resumed = _first(events, {"RESUME"}, who=destination)
    if resumed is None:
        return Missing("the guest did not resume on the destination")
    if run.get("destination_primary") == "none":
        return Missing("the destination has no primary")
    ready = (float(event["t"]) for event in events if _is_ready_primary(event))
    back = next((time for time in ready if time >= resumed), None)
    if back is None:
        return Missing("the guest did not get its primary back")
    return 1e3 * (back - resumed)


def _is_ready_primary(event: Mapping[str, Any]) -> bool:
    """Whether the guest tells of a slave that is not the standby and has carrier."""
    link = event["data"]
    return (
        event["event"] == "link"
        and bool(link.get("master"))
        and link["driver"] != "virtio_net"
        and link["carrier"] == "1"
    )


def _hosts(events: Events) -> tuple[str, str]:
    """From which host to which the run's migration went."""
    migrates = (event["data"] for event in events if event["event"] == "migrate")
    ends = next(migrates, {"from": "", "to": ""})
    return ends["from"], ends["to"]


def _first(
    events: Events, names: set[str], since: float = 0.0, who: str = "", status: str = ""
) -> float | None:
    """When one of these events first happened, at `since` or later; `who` and `status` narrow it where given."""
    times = (
        float(event["t"])
        for event in events
        if event["event"] in names
        and float(event["t"]) >= since
        and (not who or event["who"] == who)
        and (not status or event["data"].get("status") == status)
    )
    return next(times, None)


def _tcp(result: Result, cell: Cell) -> dict[str, Figure]:
    keys = {
        "tcp_before_mib_s": "before_mib_s",
        "tcp_through_mib_s": "through_mib_s",
        "tcp_after_mib_s": "after_mib_s",
        "tcp_stall_ms": "longest_stall_ms",
        "tcp_retransmitted": "retransmitted",
    }
    if result["tcp"] is None:
        missing = Missing("the TCP stream ended early") if cell.tcp else NO_TCP
        return dict.fromkeys(keys, missing)
    return {key: float(result["tcp"][name]) for key, name in keys.items()}


def _agent_mib(events: Events) -> Figure:
    peaks = [float(e["data"]["peak_kib"]) for e in events if e["event"] == "agent-memory"]
    return max(peaks) / 1024 if peaks else NO_AGENT


def _agent_late(events: Events) -> Figure:
    """How often QEMU went on without the fabric, or without an answer at its gate."""
    if not any(event["who"] == "agent" for event in events):
        return NO_AGENT
    return float(sum(_is_given_up(event) for event in events))


def _is_given_up(event: Mapping[str, Any]) -> bool:
    data = event["data"]
    told = event["event"], data.get("outcome"), data.get("state"), data.get("role")
    return told in {
        ("VIRTIO_NET_STANDBY_FABRIC", "timed-out", None, None),
        ("VIRTIO_NET_STANDBY_GATE", None, "withdrawn", "source"),
    }


def cost_figures(costs: Mapping[str, Any], kind: str) -> dict[str, Figure]:
    """Return the figures of a kind of guest, one for each of `COST_MEASURES`, from what `vnet-standby cost` wrote."""
    found: dict[str, Figure] = {}
    for way in ("send", "receive"):
        total = float(costs[kind][way]["instructions"])
        found[f"{way}_total"] = total
        found[f"{way}_over_bare"] = total - float(costs["bare"][way]["instructions"])
    return found
