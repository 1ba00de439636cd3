# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges a run from its raw records alone, so that an old run can be judged again."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic import gaps, tcp
from vnet_standby.traffic.clock import GuestClock
from vnet_standby.traffic.fates import Coroner
from vnet_standby.traffic.passage import Stream, follow
from vnet_standby.traffic.primaries import Primaries
from vnet_standby.traffic.records import LAB, PEER, Records, read_run
from vnet_standby.traffic.timeline import Attempt, Timeline
from vnet_standby.traffic.uplinks import resolve
from vnet_standby.traffic.verdict import (
    DIRECTIONS,
    Direction,
    Migration,
    Point,
    Switch,
    Throughput,
    Verdict,
)

MIN_QUIET: Final = 20
"""Fewer arrivals before the first migration than this say nothing about the noise."""
DRIFT_WARNING_NS: Final = 1_000_000
HOST_CLOCK_WARNING_MS: Final = 10.0
"""An emulated host's clock known less well than this blurs what its events delimit: a blackout takes tens of ms."""


def judge(run: Path) -> Verdict:
    """Judge the run whose records are in the folder `run`.

    Raises VnetStandbyError if records are missing, malformed, or can't carry a judgement; what merely weakens it is in
    the verdict's warnings.
    """
    records = resolve(read_run(run))
    _check(records)
    start_ns, end_ns = _limits(records)
    timeline = Timeline(records.events, records.settings, end_ns)
    clock, streams = follow(records, timeline)
    interval_ns = records.settings.interval_ns
    quiet = gaps.noise(streams.values(), interval_ns, timeline.quiet_until_ns)
    with_primary = "primary" in records.settings.ports.values()
    primaries = Primaries(
        records.events, timeline, timeline.stretches[0].host if with_primary else None
    )
    coroner = Coroner(timeline, primaries, records.settings, streams, records.taps)
    losses = [loss for stream in streams.values() for loss in coroner.loss_runs(stream)]
    return Verdict(
        start=start_ns / 1e9,
        end=end_ns / 1e9,
        counts={direction: streams[direction].counts for direction in DIRECTIONS},
        switches=tuple(
            _switches(streams, timeline, interval_ns, quiet.worst_ms * 1e6 + interval_ns)
        ),
        losses=tuple(sorted(losses, key=lambda loss: loss.start)),
        migrations=tuple(_migration(attempt) for attempt in timeline.attempts),
        time_on_standby_s=max(
            gaps.time_on_standby_ns(stream, dict(records.settings.ports))
            for stream in streams.values()
        )
        / 1e9,
        noise_floor_ms=quiet.worst_ms,
        points=tuple(_points(streams)),
        noise_p99_ms=quiet.p99_ms,
        clock_error_ms=None if clock.error_ns is None else clock.error_ns / 1e6,
        warnings=tuple(_warnings(records, timeline, clock, streams, quiet)),
        tcp=_throughput(run, timeline),
        ports=dict(records.settings.ports),
    )


def _throughput(run: Path, timeline: Timeline) -> Throughput | None:
    samples = tcp.read(run)
    if samples is None or not timeline.attempts:
        return None
    attempt = timeline.attempts[0]
    resume_ns = attempt.resume_ns
    return None if resume_ns is None else tcp.throughput(samples, attempt.start_ns, resume_ns)


def _check(records: Records) -> None:
    """Refuse records that would show losses where there was no measurement."""
    if records.dropped[PEER]:
        raise VnetStandbyError(
            f"capture.json: the kernel dropped {records.dropped[PEER]} frames of {PEER} before they were recorded, so "
            "they would count as lost; measure again with less load or a lower rate"
        )
    traffic = records.settings.traffic
    if traffic != "from-guest" and not any(
        sighting.to_guest and sighting.interface == PEER for sighting in records.sightings
    ):
        raise VnetStandbyError(
            "capture.pcapng: no probe was sent to the guest; did the sender run?"
        )
    if traffic != "to-guest" and not records.sent:
        raise VnetStandbyError("guest-sent.csv: the guest sent no probe; did its agent run?")
    numbers = [sent.seq for sent in records.sent]
    if len(set(numbers)) < len(numbers):
        raise VnetStandbyError(
            "guest-sent.csv: a number was used twice; a run has one stream a direction"
        )


def _limits(records: Records) -> tuple[int, int]:
    """The run's start and end: when the lab started and stopped the traffic, else the first and last probe."""
    lab = {event.name: event.time_ns for event in records.events if event.who == LAB}
    times = [sighting.time_ns for sighting in records.sightings]
    start_ns = lab.get("traffic-start", min(times, default=None))
    end_ns = lab.get("traffic-stop", max(times, default=None))
    if start_ns is None or end_ns is None:
        raise VnetStandbyError(
            "capture.pcapng: no probes, and no traffic-start and traffic-stop in events.jsonl"
        )
    return start_ns, end_ns


def _switches(
    streams: Mapping[Direction, Stream], timeline: Timeline, interval_ns: int, tolerance_ns: float
) -> Iterator[Switch]:
    latencies = {
        direction: gaps.latency_ns(stream, timeline.quiet_until_ns)
        for direction, stream in streams.items()
    }
    for window in timeline.windows:
        found = {
            direction: gaps.gap(stream, window, interval_ns, latencies[direction], tolerance_ns)
            for direction, stream in streams.items()
        }
        yield Switch(
            kind=window.kind,
            start=window.start_ns / 1e9,
            end=window.end_ns / 1e9,
            gaps={direction: gap for direction, gap in found.items() if gap is not None},
        )


def _migration(attempt: Attempt) -> Migration:
    total_ms = attempt.result.get("total-time")
    downtime_ms = attempt.result.get("downtime")
    ended = next(
        time for time in (attempt.resume_ns, attempt.abort_ns, attempt.end_ns) if time is not None
    )
    stopped_ns = (
        attempt.resume_ns - attempt.stop_ns
        if attempt.resume_ns is not None and attempt.stop_ns is not None
        else 0
    )
    return Migration(
        total_s=(ended - attempt.start_ns) / 1e9 if total_ms is None else total_ms / 1e3,
        downtime_ms=stopped_ns / 1e6 if downtime_ms is None else downtime_ms,
        status=attempt.status,
    )


def _points(streams: Mapping[Direction, Stream]) -> Iterator[Point]:
    for direction, stream in streams.items():
        for probe in stream.probes:
            arrived = None if probe.arrived_ns is None else probe.arrived_ns / 1e9
            yield Point(
                direction, probe.seq, probe.sent_ns / 1e9, arrived, tuple(probe.seen), probe.via
            )


def _warnings(
    records: Records,
    timeline: Timeline,
    clock: GuestClock,
    streams: Mapping[Direction, Stream],
    quiet: gaps.Noise,
) -> Iterator[str]:
    """What weakens the judgement, one sentence each."""
    for interface, dropped in records.dropped.items():
        if dropped:
            yield f"the kernel dropped {dropped} frames of {interface} before they were recorded: paths may be wrong"
    if quiet.count < MIN_QUIET:
        yield "no quiet stretch before the first migration: the noise floor is unknown and taken as 0"
    for direction, stream in streams.items():
        early = [
            probe
            for probe in stream.probes
            if probe.sent_ns < timeline.quiet_until_ns and probe.lost
        ]
        if early:
            yield f"{len(early)} probes {_way(direction)} were lost outside any migration, before the first"
        if stream.unknown:
            yield f"{stream.unknown} arrivals {_way(direction)} of probes that were never seen sent: not counted"
        if stream.probes and not stream.counts.received:
            yield f"not one of {len(stream.probes)} probes {_way(direction)} arrived"
    for stretch in clock.unsampled:
        yield (
            f"no clock sample while the guest ran on {stretch.host} from {stretch.start_ns / 1e9:.3f}: its times "
            "there follow from the length of the stop"
        )
    for host in records.taps:
        error_ms = records.settings.clock_errors_ms.get(host)
        if error_ms is None:
            yield f"the clock of host {host} was not aligned with the lab's: its events may be at any time"
        elif error_ms > HOST_CLOCK_WARNING_MS:
            yield f"the clock of host {host} is aligned with the lab's within {error_ms:.1f} ms only: so are its events"
    if clock.drift_ns > DRIFT_WARNING_NS:
        yield f"the guest's clock drifts by {clock.drift_ns / 1e6:.1f} ms against the host's within one stretch"


def _way(direction: Direction) -> str:
    return direction.replace("_", " the ")
