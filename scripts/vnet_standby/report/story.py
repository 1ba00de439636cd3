# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened in a run, in order: the common ground of the terminal timeline and the page.

All times that leave this module through `Entry`, `Span` and `Story.at` are seconds since the first
migrate command (since the first probe if there was none).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, Literal

from vnet_standby.report.text import printable
from vnet_standby.traffic.verdict import (
    DIRECTIONS,
    Direction,
    Gap,
    LossRun,
    Migration,
    Point,
    Switch,
    SwitchKind,
    Throughput,
    Verdict,
)

Event = Mapping[str, Any]
EntryKind = Literal["lab", "event", "path", "switch", "loss", "more"]

SPOKEN: dict[Direction, str] = {"to_guest": "to guest", "from_guest": "from guest"}

ALIKE_AT_MOST = 6
"""So many entries that say the same are shown one by one; of more, only the first few are."""
ALIKE_SHOWN = 3

_DATA_AT_MOST = 240
_MILESTONES = {"STOP", "RESUME", "MIGRATION"}
"""Events that a story can't do without, however often they come; what the lab does is another."""
_NEARBY_S = 1.0
_LINK = ("name", "driver", "master", "carrier", "operstate")
_SPANNING = {"migrate", "migrated", "MIGRATION"}
_ENDS = ("from", "to")
_FINAL_STATUS = {"completed", "failed", "cancelled"}


@dataclass(frozen=True)
class Entry:
    """One line of the timeline. Entries with the same `like` say the same about another moment."""

    time: float
    who: str
    what: str
    kind: EntryKind
    like: str
    probes: int = 0


@dataclass(frozen=True)
class Span:
    """A state that lasted from `start` to `end`."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Segment:
    """An uninterrupted series of arrivals over one port (times as in the records: host s)."""

    port: str
    first: float
    last: float
    probes: int


@dataclass(frozen=True)
class LossGroup:
    """Loss runs that differ in nothing but the moment and the figures in their cause."""

    direction: Direction
    switch: SwitchKind | None
    last_seen: str
    cause: str
    """The cause of the first run."""
    runs: int
    probes: int
    start: float
    end: float


@dataclass(frozen=True)
class Story:
    """A judged run with its events, and what follows from both."""

    verdict: Verdict
    events: Sequence[Event]
    run: Mapping[str, Any]

    @cached_property
    def zero(self) -> float:
        """Host time (s) that the report counts from."""
        migrates = [float(event["t"]) for event in self.events if event["event"] == "migrate"]
        return min(migrates, default=self.verdict.start)

    @cached_property
    def zero_name(self) -> str:
        """What happened at time zero."""
        migrated = any(event["event"] == "migrate" for event in self.events)
        return "the first migrate" if migrated else "the first probe"

    def at(self, host_time: float) -> float:
        """Return `host_time` (s) as seconds since time zero."""
        return host_time - self.zero

    @cached_property
    def span(self) -> tuple[float, float]:
        """First and last moment worth plotting, in host time (s): the probes and the migrations.

        Events reach further: to the VM's boot, and to its end.
        """
        told = [float(e["t"]) for e in self.events if e["event"] in _SPANNING]
        return min([self.verdict.start, *told]), max([self.verdict.end, *told])

    @cached_property
    def setting(self) -> list[str]:
        """What was run, as far as its record says, in phrases."""
        told = {
            "guest": "{} guest",
            "primary": "primary {}",
            "destination_primary": "{} on the destination",
            "hotplug": "{} hotplug",
            "rate_hz": "{} probes/s",
            "traffic": "traffic {}",
            "ram_mib": "{} MiB of RAM",
            "accelerator": "accelerator {}",
        }
        left_out = set() if "primary" in self.roles.values() else {"primary", "hotplug"}
        if not self.nested or self.run.get("destination_primary") in {"same", None} or left_out:
            left_out.add("destination_primary")
        phrases = [
            form.format(self.run[key])
            for key, form in told.items()
            if key in self.run and key not in left_out
        ]
        return ["nested hosts", *phrases] if self.nested else phrases

    @property
    def nested(self) -> bool:
        """Whether the hosts are emulated ones."""
        return self.run.get("topology") == "nested"

    @cached_property
    def host_clocks(self) -> dict[str, float]:
        """By how much each emulated host's clock may be off the lab's (ms)."""
        clocks: Mapping[str, Any] = self.run.get("clocks", {}) if self.nested else {}
        return {host: float(clock["error_ms"]) for host, clock in clocks.items()}

    @cached_property
    def roles(self) -> Mapping[str, str]:
        """What each port carries, as the judge or else the lab names them."""
        roles: Mapping[str, str] = self.verdict.ports or self.run.get("ports", {})
        return roles

    @cached_property
    def directions(self) -> tuple[Direction, ...]:
        """The directions that were measured."""
        counts = self.verdict.counts
        return tuple(d for d in DIRECTIONS if d in counts and counts[d].sent)

    @cached_property
    def sent(self) -> dict[Direction, list[Point]]:
        """Each direction's probes in the order in which they were sent."""
        probes: dict[Direction, list[Point]] = {d: [] for d in self.directions}
        for point in self.verdict.points:
            probes[point.direction].append(point)
        for points in probes.values():
            points.sort(key=_sent)
        return probes

    @cached_property
    def arrivals(self) -> dict[Direction, list[tuple[float, Point]]]:
        """Each direction's delivered probes with their time of arrival (host s), in that order."""
        return {
            direction: sorted(
                ((p.arrived, p) for p in points if p.arrived is not None), key=lambda pair: pair[0]
            )
            for direction, points in self.sent.items()
        }

    @cached_property
    def ports(self) -> tuple[str, ...]:
        """The ports of the run, by name."""
        if self.roles:
            return tuple(self.roles)
        return tuple(sorted({port for p in self.verdict.points for port in p.ports} - {"peer"}))

    def role(self, port: str) -> str:
        """Return "primary" or "standby" for a port of either, "other" for any other place."""
        role = self.roles.get(port, "other")
        return role if role in {"primary", "standby"} else "other"

    def shown(self, port: str) -> str:
        """Return a port's name as the report shows it: of a primary in an emulated host, with what it is."""
        if not self.nested or self.role(port) != "primary":
            return printable(port)
        return f"{printable(port)} ({'NIC' if port in self.run.get('ports', {}) else 'VF'})"

    @cached_property
    def segments(self) -> dict[Direction, list[Segment]]:
        """By which port each direction's delivered probes went, one after the other."""
        return {
            direction: list(_segments((time, point.via or "unknown") for time, point in arrivals))
            for direction, arrivals in self.arrivals.items()
        }

    def stands_out(self, gap: Gap) -> bool:
        """Whether a silence cost probes, or is more than noise, whose floor is from a much shorter stretch."""
        return gap.lost_in_gap > 0 or gap.silence_ms > 2 * self.verdict.noise_floor_ms

    def focus(self, switch: Switch) -> tuple[float, float]:
        """Return where in its window, often a long one, the switch took place (host s).

        That is the worse direction's silence if one stands out, else the longest change of path,
        else the window's start.
        """
        gaps = [gap for gap in switch.gaps.values() if self.stands_out(gap)]
        if gaps:
            worst = max(gaps, key=lambda gap: (gap.lost_in_gap, gap.silence_ms))
            return worst.start, worst.end
        changes = [change for d in switch.gaps for change in self._changes(d, switch)]
        return max(changes, key=_length, default=(switch.start, switch.start))

    def scene(self, switch: Switch) -> tuple[float, float]:
        """Return the focus, with the other direction's silence where that is close by (host s)."""
        start, end = self.focus(switch)
        gaps = [gap for gap in switch.gaps.values() if self.stands_out(gap)]
        near = [g for g in gaps if g.start < end + _NEARBY_S and g.end > start - _NEARBY_S]
        return min([start, *(gap.start for gap in near)]), max([end, *(gap.end for gap in near)])

    def _changes(self, direction: Direction, switch: Switch) -> Iterable[tuple[float, float]]:
        for old, new in pairwise(self.segments[direction]):
            if switch.start <= new.first < switch.end:
                yield old.last, new.first

    @cached_property
    def migration_states(self) -> dict[str, list[Span]]:
        """Per host, what its QEMU said of the migration. A final status has no length."""
        spans: dict[str, list[Span]] = {}
        for who in sorted({str(e["who"]) for e in self.events if e["event"] == "MIGRATION"}):
            told = [e for e in self.events if e["event"] == "MIGRATION" and e["who"] == who]
            spans[who] = list(self._states(told))
        return spans

    def _states(self, told: Sequence[Event]) -> Iterable[Span]:
        ends = [float(event["t"]) for event in told[1:]] + [self.span[1]]
        for event, end in zip(told, ends, strict=True):
            status, start = str(_data(event).get("status", "")), float(event["t"])
            stop = start if status in _FINAL_STATUS else end
            yield Span(self.at(start), self.at(stop), status)

    @cached_property
    def running(self) -> list[Span]:
        """On which host the VM ran, and when."""
        return [Span(self.at(start), self.at(end), host) for start, end, host in self._stretches]

    @cached_property
    def _stretches(self) -> list[tuple[float, float, str]]:
        """From when to when (host s) the VM ran on which host."""
        stretches: list[tuple[float, float, str]] = []
        host, since, runs = self._first_host, self.span[0], True
        for event in self.events:
            if event["who"] not in self._hosts:  # an emulated host's own QEMU
                continue
            who, time = str(event["who"]), float(event["t"])
            stops = event["event"] == "STOP" and who == host
            moves = event["event"] == "RESUME" and who != host
            if runs and (stops or moves):
                stretches.append((since, time, host))
                runs = False
            if event["event"] == "RESUME" and not runs:
                host, since, runs = who, time, True
        return [*stretches, (since, self.span[1], host)] if runs else stretches

    @cached_property
    def _hosts(self) -> set[str]:
        """The hosts that the VM can run on."""
        ends = {_data(e).get(end) for e in self.events if e["event"] == "migrate" for end in _ENDS}
        return {port.partition("-")[0] for port in self.ports} | {str(end) for end in ends}

    @cached_property
    def _first_host(self) -> str:
        sources = (_data(e).get("from") for e in self.events if e["event"] == "migrate")
        return str(next(sources, "a"))

    @cached_property
    def loss_groups(self) -> list[LossGroup]:
        """The loss runs, those that say the same taken together, in order of their first one."""
        groups: dict[str, list[LossRun]] = {}
        for loss in sorted(self.verdict.losses, key=lambda loss: loss.start):
            groups.setdefault(_loss_like(loss), []).append(loss)
        return [_group(losses) for losses in groups.values()]

    @cached_property
    def entries(self) -> list[Entry]:
        """Everything that happened, in order; what repeats itself is cut short."""
        every = [
            *self._event_entries(),
            *self._path_entries(),
            *self._switch_entries(),
            *self._loss_entries(),
        ]
        return _cut_short(sorted(every, key=lambda entry: entry.time))

    def _event_entries(self) -> Iterable[Entry]:
        for event in self.events:
            what = describe(event)
            who = printable(event["who"])
            milestone = who == "lab" or event["event"] in _MILESTONES
            like = f"{event['t']} {who} {what}" if milestone else _without_figures(f"{who} {what}")
            kind: EntryKind = "lab" if who == "lab" else "event"
            yield Entry(self.at(float(event["t"])), who, what, kind, like)

    def _path_entries(self) -> Iterable[Entry]:
        for direction, segments in self.segments.items():
            for old, new in pairwise(segments):
                what = f"path {self.shown(old.port)} -> {self.shown(new.port)}"
                late = f", {1000 * (new.first - old.last):.1f} ms after the last arrival"
                yield Entry(
                    self.at(new.first), SPOKEN[direction], what + late, "path", direction + what
                )

    def _switch_entries(self) -> Iterable[Entry]:
        for i, switch in enumerate(self.verdict.switches):
            at, what = self.at(self.focus(switch)[0]), summary(switch)
            yield Entry(at, "switch", what, "switch", f"switch {i}")

    def _loss_entries(self) -> Iterable[Entry]:
        for loss in self.verdict.losses:
            length = f" sent within {1000 * (loss.end - loss.start):.1f} ms"
            what = (
                f"lost {count(loss.count, 'probe')}{length if loss.count > 1 else ''}, "
                f"last seen at {self.shown(loss.last_seen)}: {printable(loss.cause)}"
            )
            yield Entry(
                self.at(loss.start),
                SPOKEN[loss.direction],
                what,
                "loss",
                _loss_like(loss),
                loss.count,
            )


def aligned(clocks: Mapping[str, float]) -> str:
    """Return how well the clocks of emulated hosts (see `Story.host_clocks`) are known, in a phrase."""
    return f"{', '.join(map(printable, clocks))} aligned within {max(clocks.values()):.2f} ms"


def achieved(tcp: Throughput) -> str:
    """Return what a TCP stream achieved, in a phrase."""
    return (
        f"{tcp.before_mib_s:.1f} MiB/s before, {tcp.through_mib_s:.1f} through, {tcp.after_mib_s:.1f} after; "
        f"longest stall {tcp.longest_stall_ms:.0f} ms, {count(tcp.retransmitted, 'retransmission')}, "
        f"{tcp.doubled} of what the guest had already"
    )


def settled(verdict: Verdict) -> Migration | None:
    """Return the migration that a run's figures speak of: the last completed one, else the last."""
    completed = [m for m in verdict.migrations if m.status == "completed"]
    return next(reversed(completed or verdict.migrations), None)


def warnings(verdict: Verdict) -> list[str]:
    """Return what the judge warns of, and the gaps whose three estimates contradict each other."""
    return [*verdict.warnings, *_disagreements(verdict)]


def summary(switch: Switch) -> str:
    """Return what a switch cost in each direction, in one line."""
    told = "; ".join(f"{SPOKEN[d]} {cost(gap)}" for d, gap in switch.gaps.items())
    return f"{switch.kind}: {told}"


def cost(gap: Gap) -> str:
    """Return what a switch cost in one direction."""
    inside = [f"{gap.lost_in_gap:,} lost in it"] if gap.lost_in_gap != gap.lost else []
    inside += [f"{gap.held:,} held back"] if gap.held else []
    told = f"{gap.lost:,} lost, {gap.silence_ms:.1f} ms silent"
    return f"{told} ({', '.join(inside)})" if inside else told


def count(number: int, noun: str) -> str:
    """Return "1 probe", "2 probes"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe(event: Event) -> str:
    """Return an event in one line: its name, or what the lab did, and its data."""
    name, data = printable(event["event"]), _data(event)
    match name:
        case "MIGRATION":
            return f"migration {printable(data.get('status', ''))}"
        case "migrate":
            return f"migrate {printable(data.get('from', '?'))} -> {printable(data.get('to', '?'))}"
        case "migrated":
            return _migrated(data)
        case "MIGRATION_PASS":
            return f"migration pass {printable(data.get('pass', '?'))}"
        case "link" | "gone":
            return _link(data)
    told = " ".join(f"{printable(key)}={_short(value)}" for key, value in data.items())
    return f"{name} {told}".rstrip() if len(told) <= _DATA_AT_MOST else f"{name} (data left out)"


def _migrated(data: Mapping[str, Any]) -> str:
    told = [f"migrated: {printable(data.get('status', 'status unknown'))}"]
    if "total-time" in data:
        told.append(f"total {data['total-time'] / 1000:.2f} s")
    if "downtime" in data:
        told.append(f"downtime {data['downtime']} ms")
    if "error-desc" in data:
        told.append(printable(data["error-desc"]))
    return ", ".join(told)


def _link(data: Mapping[str, Any]) -> str:
    """Tell a netdev of the guest with what matters of it; its addresses stay in the records."""
    told = {key: printable(data[key]) for key in _LINK if data.get(key)}
    name = told.pop("name", "?")
    return f"link {name}: " + (", ".join(f"{key} {value}" for key, value in told.items()) or "gone")


def _short(value: object) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value))


def _data(event: Event) -> Mapping[str, Any]:
    data: Mapping[str, Any] = event.get("data") or {}
    return data


def _sent(point: Point) -> float:
    return point.sent


def _length(span: tuple[float, float]) -> float:
    return span[1] - span[0]


def _segments(carried: Iterable[tuple[float, str]]) -> Iterable[Segment]:
    for port, arrivals in groupby(carried, key=lambda arrival: arrival[1]):
        times = [time for time, _ in arrivals]
        yield Segment(port, times[0], times[-1], len(times))


def _loss_like(loss: LossRun) -> str:
    """Return what tells one kind of loss from another: all but time and figures."""
    return f"{loss.direction} {loss.switch} {loss.last_seen} {_without_figures(loss.cause)}"


def _without_figures(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", text)


def _group(losses: Sequence[LossRun]) -> LossGroup:
    first = losses[0]
    return LossGroup(
        first.direction,
        first.switch,
        first.last_seen,
        first.cause,
        len(losses),
        sum(loss.count for loss in losses),
        first.start,
        max(loss.end for loss in losses),
    )


def _cut_short(entries: Sequence[Entry]) -> list[Entry]:
    total = Counter(entry.like for entry in entries)
    probes = Counter[str]()
    for entry in entries:
        probes[entry.like] += entry.probes
    last = {entry.like: entry.time for entry in entries}
    seen = Counter[str]()
    kept: list[Entry] = []
    for entry in entries:
        seen[entry.like] += 1
        if total[entry.like] <= ALIKE_AT_MOST or seen[entry.like] <= ALIKE_SHOWN:
            kept.append(entry)
            probes[entry.like] -= entry.probes
        elif seen[entry.like] == ALIKE_SHOWN + 1:
            more = f"... and {total[entry.like] - ALIKE_SHOWN} more like this"
            until = f" until {last[entry.like]:+.3f} s"
            lost = f", {count(probes[entry.like], 'probe')} in all" if probes[entry.like] else ""
            kept.append(Entry(entry.time, entry.who, more + until + lost, "more", entry.like))
    return kept


def _disagreements(verdict: Verdict) -> Iterable[str]:
    for number, switch in enumerate(verdict.switches, start=1):
        for direction, gap in switch.gaps.items():
            if not gap.agree:
                path = "" if gap.path_ms is None else f", path change {gap.path_ms:.1f} ms"
                yield (
                    f"switch {number} ({switch.kind}), {SPOKEN[direction]}: the estimates of the gap disagree "
                    f"(lost x interval {gap.lost_ms:.1f} ms, silence {gap.silence_ms:.1f} ms{path})"
                )
