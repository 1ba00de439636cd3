# SPDX-License-Identifier: GPL-2.0-or-later
"""Follows each probe from its sender by the ports of the hosts to its receiver."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vnet_standby.traffic.clock import GuestClock, Pair
from vnet_standby.traffic.records import PEER, Records, host_of
from vnet_standby.traffic.timeline import Timeline
from vnet_standby.traffic.verdict import Counts, Direction


@dataclass(slots=True)
class Passage:
    """One probe's way; times are the host's, in ns."""

    seq: int
    sent_ns: int
    errno: int = 0
    """Why the guest's kernel refused to send it, 0 if it did not."""
    seen: dict[str, int] = field(default_factory=dict)
    """The ports that it went by and when, in order of time."""
    arrived_ns: int | None = None
    """When it first reached its receiver, None if it is lost."""
    via: str | None = None
    """The port that its first copy was delivered by, as far as the records tell."""

    @property
    def lost(self) -> bool:
        """Whether it never reached its receiver."""
        return self.arrived_ns is None


@dataclass(frozen=True)
class Stream:
    """All probes of one direction, in order of sending."""

    direction: Direction
    probes: Sequence[Passage]
    sent_ns: Sequence[int]
    """The probes' times of sending."""
    arrivals_ns: Sequence[int]
    """The times of arrival of the first copies, in order of time."""
    delivered: Sequence[Passage]
    """The probes whose delivering port is known, by the time at which they went by it."""
    counts: Counts
    unknown: int
    """Arrivals of probes that were never seen sent."""

    def sent_between(self, start_ns: int, end_ns: int) -> Sequence[Passage]:
        """The probes sent in [start, end)."""
        return self.probes[bisect_left(self.sent_ns, start_ns) : bisect_left(self.sent_ns, end_ns)]


def follow(records: Records, timeline: Timeline) -> tuple[GuestClock, dict[Direction, Stream]]:
    """Join the records of the guest, the ports and the peer; lay the guest's times on the host's clock."""
    to_guest, from_guest = _Ways(), _Ways()
    ports = records.settings.ports
    for sighting in records.sightings:
        ways = to_guest if sighting.to_guest else from_guest
        if sighting.interface == PEER:
            if sighting.outbound == sighting.to_guest:
                ways.peer.append((sighting.seq, sighting.time_ns))
        elif sighting.interface in ports and sighting.outbound == sighting.to_guest:
            ways.ports.setdefault(sighting.seq, {}).setdefault(sighting.interface, sighting.time_ns)

    sent_by_peer = _earliest(to_guest.peer)
    reached_peer = _earliest(from_guest.peer)
    clock = GuestClock(
        timeline.stretches,
        later=[
            *(Pair(*sample) for sample in records.clock),
            *(
                Pair(reached_peer[sent.seq], sent.guest_ns)
                for sent in records.sent
                if sent.seq in reached_peer
            ),
        ],
        earlier=[
            Pair(sent_by_peer[got.seq], got.guest_ns)
            for got in records.received
            if got.seq in sent_by_peer
        ],
    )
    return clock, {
        "to_guest": _to_guest(records, timeline, clock, to_guest, sent_by_peer),
        "from_guest": _from_guest(records, clock, from_guest, reached_peer),
    }


@dataclass
class _Ways:
    """Where the host's kernel saw one direction's probes."""

    peer: list[tuple[int, int]] = field(default_factory=list)
    """Number and time at the peer's interface, in order of time."""
    ports: dict[int, dict[str, int]] = field(default_factory=dict)


def _earliest(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    first: dict[int, int] = {}
    for seq, time_ns in pairs:
        first.setdefault(seq, time_ns)
    return first


def _to_guest(
    records: Records, timeline: Timeline, clock: GuestClock, ways: _Ways, sent: dict[int, int]
) -> Stream:
    probes = {
        seq: Passage(seq, time_ns, seen=ways.ports.get(seq, {})) for seq, time_ns in sent.items()
    }
    for got in records.received:
        probe = probes.get(got.seq)
        if probe and probe.arrived_ns is None:
            probe.arrived_ns = clock.host_ns(got.guest_ns, not_before=probe.sent_ns)

    def candidates(probe: Passage) -> list[str]:
        assert probe.arrived_ns is not None
        stretch = timeline.stretch_at(probe.arrived_ns)
        here = [port for port in probe.seen if stretch and host_of(port) == stretch.host]
        return here or list(probe.seen)

    return _stream("to_guest", probes, [got.seq for got in records.received], candidates)


def _from_guest(
    records: Records, clock: GuestClock, ways: _Ways, reached: dict[int, int]
) -> Stream:
    probes = {}
    for sent in records.sent:
        seen = ways.ports.get(sent.seq, {})
        not_after = min(seen.values(), default=None)
        sent_ns = clock.host_ns(sent.guest_ns, not_after=not_after)
        probes[sent.seq] = Passage(
            sent.seq, sent_ns, errno=sent.errno, seen=seen, arrived_ns=reached.get(sent.seq)
        )
    return _stream(
        "from_guest", probes, [seq for seq, _ in ways.peer], lambda probe: list(probe.seen)
    )


def _stream(
    direction: Direction,
    by_seq: dict[int, Passage],
    arrivals: Sequence[int],
    candidates: Callable[[Passage], list[str]],
) -> Stream:
    probes = sorted(by_seq.values(), key=lambda probe: (probe.sent_ns, probe.seq))
    path: str | None = None
    for probe in probes:
        if not probe.lost and probe.seen:
            possible = candidates(probe)
            # a flooded frame goes by several ports; the path in use is likelier than a change
            probe.via = path = path if path in possible else possible[0]
    delivered = [probe for probe in probes if probe.via]
    delivered.sort(key=via_ns)
    known = [seq for seq in arrivals if seq in by_seq]
    return Stream(
        direction=direction,
        probes=probes,
        sent_ns=[probe.sent_ns for probe in probes],
        arrivals_ns=sorted(probe.arrived_ns for probe in probes if probe.arrived_ns is not None),
        delivered=delivered,
        counts=_count(len(probes), known),
        unknown=len(arrivals) - len(known),
    )


def via_ns(probe: Passage) -> int:
    """When a delivered probe went by the port that it was delivered by."""
    assert probe.via is not None
    return probe.seen[probe.via]


def _count(sent: int, arrivals: Iterable[int]) -> Counts:
    """Count as RFC 4737 does: a probe is reordered if one with a higher number was there before its first copy."""
    seen: set[int] = set()
    highest = -1
    duplicated = reordered = 0
    for seq in arrivals:
        if seq in seen:
            duplicated += 1
            continue
        seen.add(seq)
        reordered += seq < highest
        highest = max(highest, seq)
    return Counts(sent, len(seen), sent - len(seen), duplicated, reordered)
