# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a switch interrupted a direction, estimated three ways that share little data.

A switch's gap is the silence of the receiver, in the switch's window, that cost the most probes, and the longest one
where none cost any: a window may last for seconds, and a busy machine makes silences, too. A silence that began before
the window or outlasts it counts only as far as it lies inside, as the losses do. Between two arrivals there is one
interval even if nothing is amiss; half of it is taken off for each end of a silence that is an arrival, none for an end
that is the window's.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from vnet_standby.traffic.passage import Passage, Stream, via_ns
from vnet_standby.traffic.records import Role
from vnet_standby.traffic.timeline import Window
from vnet_standby.traffic.verdict import Gap


@dataclass(frozen=True)
class Noise:
    """How regularly probes arrive while nothing happens: deviation from the interval (ms), over `count` arrivals."""

    worst_ms: float
    p99_ms: float
    count: int


@dataclass(frozen=True)
class _Span:
    """An interruption, or the part of it that lies in a window (ns)."""

    start_ns: int
    end_ns: int
    starts_inside: bool
    ends_inside: bool

    def beyond_ns(self, interval_ns: int) -> float:
        """Its length beyond what no interruption would have."""
        ends = self.starts_inside + self.ends_inside
        return max(0.0, self.end_ns - self.start_ns - ends * interval_ns / 2)


def noise(streams: Iterable[Stream], interval_ns: int, until_ns: int) -> Noise:
    """Measure the arrivals before `until_ns`; of several directions the larger values count."""
    worst, p99, count = 0.0, 0.0, 0
    for stream in streams:
        quiet = stream.arrivals_ns[: bisect_left(stream.arrivals_ns, until_ns)]
        deviations = sorted(
            abs(later - earlier - interval_ns) for earlier, later in pairwise(quiet)
        )
        if deviations:
            worst = max(worst, deviations[-1] / 1e6)
            p99 = max(p99, deviations[len(deviations) * 99 // 100] / 1e6)
            count += len(quiet)
    return Noise(worst, p99, count)


def latency_ns(stream: Stream, until_ns: int) -> int:
    """The usual time from sending to arrival, from the probes sent before `until_ns`, else from all."""
    times = [
        (probe.sent_ns, probe.arrived_ns - probe.sent_ns)
        for probe in stream.probes
        if probe.arrived_ns is not None
    ]
    quiet = [latency for sent_ns, latency in times if sent_ns < until_ns]
    return round(median(quiet or [latency for _, latency in times] or [0]))


def gap(
    stream: Stream, window: Window, interval_ns: int, latency: int, tolerance_ns: float
) -> Gap | None:
    """Judge one direction in one switch's window; None if the direction had no traffic then.

    `latency` is the usual one (ns); estimates may differ by `tolerance_ns`.
    """
    if not stream.probes:
        return None
    low = max(window.start_ns, stream.sent_ns[0])
    high = min(window.end_ns, stream.sent_ns[-1])
    if low >= high:
        return None
    silences = _clip(pairwise(_bounded(stream.arrivals_ns)), low, high)
    silence = _costliest(stream, silences, interval_ns, latency)
    path = _longest(_clip(_path_changes(stream.delivered), low, high), interval_ns)

    lost = sum(probe.lost for probe in stream.sent_between(low, window.end_ns))
    first, last = _expected(stream, silence, interval_ns, latency)
    lost_in_gap = _lost(stream, first, last)
    held = last - first - lost_in_gap
    silence_ns = silence.beyond_ns(interval_ns)
    path_ns = path.beyond_ns(interval_ns) if path else None

    estimates = [silence_ns]
    was_held = held * interval_ns > tolerance_ns
    sending = pairwise(stream.sent_ns[max(0, first - 1) : last + 1])
    sender_paused = any(after - before > interval_ns + tolerance_ns for before, after in sending)
    if not was_held and not sender_paused:
        estimates.append(lost_in_gap * interval_ns)
    # frames for the guest are held behind the port, where the path estimate doesn't see it
    hidden = was_held and stream.direction == "to_guest"
    if path and path_ns is not None and not hidden and _same(path, silence):
        estimates.append(path_ns)
    return Gap(
        lost=lost,
        lost_ms=lost_in_gap * interval_ns / 1e6,
        silence_ms=silence_ns / 1e6,
        path_ms=None if path_ns is None else path_ns / 1e6,
        agree=max(estimates) - min(estimates) <= tolerance_ns,
        lost_in_gap=lost_in_gap,
        held=held,
        start=silence.start_ns / 1e9,
        end=silence.end_ns / 1e9,
        sender_paused=sender_paused,
    )


def time_on_standby_ns(stream: Stream, roles: dict[str, Role]) -> int:
    """How long delivered probes went by standby ports: from the first one to the next one by another kind of port."""
    return sum(
        via_ns(later) - via_ns(earlier)
        for earlier, later in pairwise(stream.delivered)
        if earlier.via and roles[earlier.via] == "standby"
    )


def _bounded(arrivals_ns: Sequence[int]) -> Iterator[int]:
    """The arrivals with a border on either side, before and after all times."""
    yield -(1 << 62)
    yield from arrivals_ns
    yield 1 << 62


def _path_changes(delivered: Sequence[Passage]) -> Iterator[tuple[int, int]]:
    """When the last probe went by an old path and the first by the next one."""
    for earlier, later in pairwise(delivered):
        if earlier.via != later.via:
            yield via_ns(earlier), via_ns(later)


def _clip(intervals: Iterable[tuple[int, int]], low: int, high: int) -> Iterator[_Span]:
    for start, end in intervals:
        if start < high and end > low:
            yield _Span(max(start, low), min(end, high), start >= low, end <= high)


def _costliest(stream: Stream, spans: Iterable[_Span], interval_ns: int, latency: int) -> _Span:
    def cost(span: _Span) -> tuple[int, float]:
        lost = _lost(stream, *_expected(stream, span, interval_ns, latency))
        return lost, span.beyond_ns(interval_ns)

    return max(spans, key=cost)


def _lost(stream: Stream, first: int, last: int) -> int:
    return sum(probe.lost for probe in stream.probes[first:last])


def _longest(spans: Iterable[_Span], interval_ns: int) -> _Span | None:
    return max(spans, key=lambda span: span.beyond_ns(interval_ns), default=None)


def _expected(stream: Stream, silence: _Span, interval_ns: int, latency: int) -> tuple[int, int]:
    """The places [first, last) of the probes that should have arrived during the silence."""
    start, end = silence.start_ns, silence.end_ns
    if silence.starts_inside:
        start += interval_ns // 2 - latency
    if silence.ends_inside:
        end -= interval_ns // 2 + latency
    first, last = bisect_left(stream.sent_ns, start), bisect_left(stream.sent_ns, end)
    return first, max(first, last)


def _same(one: _Span, other: _Span) -> bool:
    """Whether two spans are the same interruption: they share more than half of the shorter one."""
    shared = min(one.end_ns, other.end_ns) - max(one.start_ns, other.start_ns)
    shorter = min(one.end_ns - one.start_ns, other.end_ns - other.start_ns)
    return shared > shorter / 2
