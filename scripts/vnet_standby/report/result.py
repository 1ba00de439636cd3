# SPDX-License-Identifier: GPL-2.0-or-later
"""A run's result as JSON, for other programs.

The keys up to `events` are fixed; what follows them may grow:

`lost`, `duplicated`, `reordered`, `sent`
    probes per direction; a direction that was not measured has sent 0.
`switches`
    in order of time; `start` and `end` are the switch's window. `lost`: probes of both directions
    sent in it. `gap_ms`: the longer one of the two
    directions' `silence_ms`: how long the receiver that waited longest heard nothing, beyond the
    probe interval. Of the three estimates it is the one that every switch has, and that sees delay
    as well as loss. `directions` holds each direction's own figures (see traffic.verdict.Gap); one
    that was silent of its own accord is missing.
`migration`
    the last one that completed, else the last one tried; null figures if there was none.
`migrations`
    all of them, in order.
`topology`
    "flat", or "nested" where the hosts are emulated machines. A nested run has `clocks`, too: by host,
    `error_ms`, how far its events' times may be off.
`paths`
    per direction, in order of time, by which `port` delivered probes went, and what that carries (`role`): `start` and
    `end` are the first and the last arrival.
`tcp`
    what the TCP stream to the guest achieved (see traffic.verdict.Throughput), null if the run had none.
`losses`
    runs of lost probes in order of time; `start` and `end` are host times (s) like in `events`.

All `_ms` are milliseconds, all `_s` and times seconds, rounded to the microsecond. A figure that
the records do not yield is null.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vnet_standby.report.story import Story, settled, warnings
from vnet_standby.traffic.verdict import (
    DIRECTIONS,
    Counts,
    Gap,
    LossRun,
    Switch,
    Throughput,
    Verdict,
)

EVENTS = "events.jsonl"


def result(verdict: Verdict, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a run: `run` is the content of its run.json."""
    migration = settled(verdict)
    return {
        "lost": _per_direction(verdict, "lost"),
        "duplicated": _per_direction(verdict, "duplicated"),
        "reordered": _per_direction(verdict, "reordered"),
        "sent": _per_direction(verdict, "sent"),
        "switches": [_switch(switch) for switch in verdict.switches],
        "time_on_standby_s": _seconds(verdict.time_on_standby_s),
        "migration": {
            "total_s": _seconds(migration.total_s) if migration else None,
            "downtime_ms": _ms(migration.downtime_ms) if migration else None,
        },
        "noise_floor_ms": _ms(verdict.noise_floor_ms),
        "versions": dict(run.get("versions", {})),
        "events": EVENTS,
        "noise_p99_ms": _ms(verdict.noise_p99_ms),
        "clock_error_ms": _ms(verdict.clock_error_ms),
        "migrations": [
            {"status": m.status, "total_s": _seconds(m.total_s), "downtime_ms": _ms(m.downtime_ms)}
            for m in verdict.migrations
        ],
        "paths": _paths(verdict, run),
        "tcp": _tcp(verdict.tcp),
        "losses": [_loss(loss) for loss in sorted(verdict.losses, key=_order)],
        "warnings": warnings(verdict),
        **_topology(run),
    }


def result_json(verdict: Verdict, run: Mapping[str, Any]) -> str:
    """Return `result` as text: the same run yields the same bytes."""
    return json.dumps(result(verdict, run), indent=2, allow_nan=False) + "\n"


def _topology(run: Mapping[str, Any]) -> dict[str, Any]:
    topology = run.get("topology", "flat")
    if topology == "flat":
        return {"topology": topology}
    clocks = {
        host: {"error_ms": _ms(clock["error_ms"])} for host, clock in run.get("clocks", {}).items()
    }
    return {"topology": topology, "clocks": clocks}


def _per_direction(verdict: Verdict, figure: str) -> dict[str, int]:
    nothing = Counts(sent=0, received=0, lost=0, duplicated=0, reordered=0)
    return {d: getattr(verdict.counts.get(d, nothing), figure) for d in DIRECTIONS}


def _switch(switch: Switch) -> dict[str, Any]:
    gaps = switch.gaps.values()
    return {
        "kind": switch.kind,
        "gap_ms": _ms(max((gap.silence_ms for gap in gaps), default=None)),
        "lost": sum(gap.lost for gap in gaps),
        "start": _seconds(switch.start),
        "end": _seconds(switch.end),
        "directions": {d: _gap(switch.gaps[d]) for d in DIRECTIONS if d in switch.gaps},
    }


def _gap(gap: Gap) -> dict[str, Any]:
    return {
        "lost": gap.lost,
        "lost_ms": _ms(gap.lost_ms),
        "silence_ms": _ms(gap.silence_ms),
        "path_ms": _ms(gap.path_ms),
        "agree": gap.agree,
        "lost_in_gap": gap.lost_in_gap,
        "held": gap.held,
    }


def _paths(verdict: Verdict, run: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    story = Story(verdict, (), run)
    return {
        direction: [
            {
                "port": segment.port,
                "role": story.role(segment.port),
                "start": _seconds(segment.first),
                "end": _seconds(segment.last),
                "probes": segment.probes,
            }
            for segment in segments
        ]
        for direction, segments in story.segments.items()
    }


def _tcp(tcp: Throughput | None) -> dict[str, float | None] | None:
    return None if tcp is None else {name: _ms(value) for name, value in asdict(tcp).items()}


def _loss(loss: LossRun) -> dict[str, Any]:
    return {
        "direction": loss.direction,
        "start": _seconds(loss.start),
        "end": _seconds(loss.end),
        "count": loss.count,
        "last_seen": loss.last_seen,
        "cause": loss.cause,
        "switch": loss.switch,
    }


def _order(loss: LossRun) -> tuple[float, str]:
    return loss.start, loss.direction


def _seconds(value: float | None) -> float | None:
    return _rounded(value, 6)


def _ms(value: float | None) -> float | None:
    return _rounded(value, 3)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
