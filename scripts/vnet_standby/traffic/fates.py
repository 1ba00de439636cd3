# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a lost probe was seen last, and why it got no further, as far as the records tell.

The sentences say what the records show. What follows from how a guest is known to behave, but not from this run's
records, is introduced by "probably".
"""

import errno
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from vnet_standby.traffic.passage import Passage, Stream
from vnet_standby.traffic.primaries import Primaries, State
from vnet_standby.traffic.records import PEER, Settings, TapFrames, host_of
from vnet_standby.traffic.timeline import Timeline
from vnet_standby.traffic.uplinks import PRIMARY, STANDBY, UPLINK
from vnet_standby.traffic.verdict import Direction, LossRun, SwitchKind

LAST_WORDS_NS: Final = 20_000_000
"""How long before a stop a probe is sent that the guest or its NIC may not get to handle before the stop."""
UNHEARD_NS: Final = 3_000_000_000
"""For how long Linux asks for a neighbour that it has doubts of, before it gives its address up: three times, a second
apart (ucast_probes and retrans_time, net/ipv4/arp.c)."""
TINY: Final = 2
"""So few delivered probes, or lost ones with another fate, do not split a run of losses."""
_THERE: Final = {
    State.PLUGGED: "the primary was plugged in but not known to be up in the guest",
    State.REGISTERED: "the guest had the primary registered but without carrier",
    State.UP: "the guest had the primary up",
    State.ASKED: "the primary was asked to go and the guest had not let go of it yet",
}
"""What to say of a primary that is there in some way."""


@dataclass(frozen=True)
class Fate:
    """The last place that saw a probe, and the cause in one sentence."""

    last_seen: str
    cause: str


class Coroner:
    """Finds the fate of lost probes of one run."""

    def __init__(
        self,
        timeline: Timeline,
        primaries: Primaries,
        settings: Settings,
        streams: Mapping[Direction, Stream],
        taps: Mapping[str, TapFrames],
    ) -> None:
        """`taps` is what the standbys' taps in emulated hosts carried, by host."""
        self._taps = taps
        self._nested = settings.topology == "nested"
        self._bridge = "the bridge between the hosts" if self._nested else "the bridge"
        self._timeline = timeline
        self._primaries = primaries
        self._settings = settings
        self._deliveries: Mapping[str, list[int]] = _deliveries(streams.values())
        self._heard = streams["to_guest"].arrivals_ns

    def loss_runs(self, stream: Stream) -> list[LossRun]:
        """Group a direction's lost probes; a run ends where the fate or the switch changes."""
        runs: list[_Run] = []
        for place, probe in enumerate(stream.probes):
            if probe.lost:
                window = self._timeline.window_at(probe.sent_ns)
                kind = window.kind if window else None
                _append(
                    runs,
                    _Run(
                        self._fate(stream.direction, probe),
                        id(window) if window else None,
                        kind,
                        [place],
                    ),
                )
        return [
            LossRun(
                direction=stream.direction,
                start=stream.probes[run.places[0]].sent_ns / 1e9,
                end=stream.probes[run.places[-1]].sent_ns / 1e9,
                count=len(run.places),
                last_seen=run.fate.last_seen,
                cause=run.fate.cause,
                switch=run.switch,
            )
            for run in runs
        ]

    def _fate(self, direction: Direction, probe: Passage) -> Fate:
        return self._to_guest(probe) if direction == "to_guest" else self._from_guest(probe)

    def _to_guest(self, probe: Passage) -> Fate:
        if not probe.seen:
            return Fate(
                PEER,
                f"{self._bridge} gave it to no port: its entry for the guest's MAC led nowhere",
            )
        ports = list(probe.seen)
        stretch = self._timeline.stretch_at(probe.sent_ns)
        if stretch is None:
            return self._while_stopped(probe, ports[-1])
        here = [port for port in ports if host_of(port) == stretch.host]
        if not here:
            return self._elsewhere(probe, ports[-1])
        ports_of = self._settings.ports
        port = min(here, key=lambda name: ("standby", "primary", "uplink").index(ports_of[name]))
        late = self._last_words(probe, port, stretch.end_ns)
        match ports_of[port]:
            case "standby":
                cause = self._on_standby(probe, port)
            case "primary":
                cause = self._on_primary(probe, port)
            case "uplink":
                return Fate(
                    port, f"{self._given(port)}: the guest has no VF of host {stretch.host}"
                )
        return Fate(port, cause or late or self._unknown(port))

    def _given(self, port: str) -> str:
        """Say that a port got a probe and, where that is inferred, from what."""
        if not self._shares_uplink(port):
            return f"given to {port}"
        return (
            f"given to {port} (it entered host {host_of(port)} by the uplink, "
            "and the standby's tap did not carry it)"
        )

    def _shares_uplink(self, port: str) -> bool:
        """Whether probes are taken for the port's because their uplink, but not the standby's tap, carried them."""
        host = host_of(port)
        return self._nested and port in {f"{host}-{PRIMARY}", f"{host}-{UPLINK}"}

    def _while_stopped(self, probe: Passage, port: str) -> Fate:
        after = self._timeline.next_stretch(probe.sent_ns)
        if after and host_of(port) == after.host:
            return Fate(
                port,
                f"{self._given(port)} while the guest was stopped, and not read after it resumed there",
            )
        return Fate(
            port,
            f"{self._given(port)} while the guest was stopped, and it did not run there again",
        )

    def _elsewhere(self, probe: Passage, port: str) -> Fate:
        host = host_of(port)
        if self._timeline.ran_before(host, probe.sent_ns):
            return Fate(
                port,
                f"{self._given(port)} after the guest had left host {host}: {self._bridge} still pointed there",
            )
        return Fate(port, f"{self._given(port)} before the guest ran on host {host}")

    def _on_standby(self, probe: Passage, port: str) -> str | None:
        """Why a probe given to the standby was not received, None if the primary has nothing to do with it."""
        state, since = self._primaries.at(host_of(port), probe.sent_ns)
        if state not in _THERE:
            return None
        idle = not self._carried(self._primary_of(host_of(port)), since, probe.sent_ns)
        drops = "; net_failover drops there while a primary is registered"
        return (
            f"{self._given(port)} while {_THERE[state]}"
            + " and nothing had come by it yet" * (idle and state is State.UP)
            + drops * (self._settings.guest == "net-failover")
        )

    def _on_primary(self, probe: Passage, port: str) -> str | None:
        """Why a probe given to the primary was not received, None if that can't be said."""
        state, _since = self._primaries.at(host_of(port), probe.sent_ns)
        given = self._given(port)
        filtered = self._shares_uplink(port)
        if state is State.GONE:
            why = "probably the PF's filter" if filtered else self._bridge
            return f"{given} after the guest had let go of that NIC: {why} still pointed there"
        if state is State.ABSENT:
            early = ": probably the PF's filter pointed there already" * filtered
            return f"{given} before that NIC was plugged in{early}"
        story = self._change(host_of(port), probe.sent_ns)
        return f"{given} while {story}" if story else None

    def _change(self, host: str, time_ns: int) -> str | None:
        """How the host's primary was coming or going at that time, None if it was at work or away."""
        state, since = self._primaries.at(host, time_ns)
        if state is State.ASKED:
            return _THERE[state]
        if state not in _THERE or self._carried(self._primary_of(host), since, time_ns):
            return None
        return _THERE[state] + " and nothing had come by it yet" * (state is State.UP)

    def _from_guest(self, probe: Passage) -> Fate:
        if probe.errno:
            name = errno.errorcode.get(probe.errno, f"error {probe.errno}")
            return Fate("nowhere", f"the guest's kernel refused to send it: {name}")
        if probe.seen:
            port = list(probe.seen)[-1]
            return Fate(port, f"came in by {port}, but {self._bridge} did not give it to the peer")
        for host, tap in self._taps.items():
            if (False, probe.seq) in tap:
                return Fate(
                    f"{host}-{STANDBY}",
                    f"came in by the standby's tap in host {host}, but did not leave that host by its uplink",
                )
        where = "it came in by no port" + " and by no standby's tap" * self._nested
        return Fate("guest", f"the guest's kernel took it, but {where}; {self._unseen(probe)}")

    def _unseen(self, probe: Passage) -> str:
        """What is known of the time at which the guest sent a probe that no port saw."""
        stretch = self._timeline.last_stretch(probe.sent_ns)
        story = self._change(stretch.host, probe.sent_ns)
        if story:
            return f"{story} then"
        if stretch.end_ns - probe.sent_ns < LAST_WORDS_NS:
            return f"sent within {LAST_WORDS_NS // 1_000_000} ms of the guest's stop"
        if self._unheard(probe.sent_ns):
            return "probably its kernel knew the peer's address no more, as nothing had reached it for long"
        return "the records don't tell why"

    def _unheard(self, time_ns: int) -> bool:
        """Whether the peer has sent for so long in vain that the guest may have given its address up."""
        place = bisect_left(self._heard, time_ns)
        return place > 0 and time_ns - self._heard[place - 1] > UNHEARD_NS

    def _primary_of(self, host: str) -> str | None:
        ports = self._settings.ports
        return next(
            (port for port in ports if ports[port] == "primary" and host_of(port) == host), None
        )

    def _carried(self, port: str | None, since_ns: int, time_ns: int) -> bool:
        """Whether a probe that went by the port reached its receiver between those times."""
        times = self._deliveries.get(port or "", [])
        place = bisect_left(times, since_ns)
        return place < len(times) and times[place] < time_ns

    def _last_words(self, probe: Passage, port: str, stop_ns: int) -> str | None:
        if stop_ns - probe.sent_ns >= LAST_WORDS_NS:
            return None
        return (
            f"{self._given(port)} within {LAST_WORDS_NS // 1_000_000} ms of the guest's stop; "
            "probably not read in time"
        )

    def _unknown(self, port: str) -> str:
        lost = ": lost at the VF" * self._shares_uplink(port)
        return f"{self._given(port)}, but not received{lost}; the records don't tell why"


@dataclass
class _Run:
    """A run in the making: places in the stream."""

    fate: Fate
    window: int | None
    switch: SwitchKind | None
    places: list[int]

    def continues(self, other: "_Run") -> bool:
        """Whether this run follows the other closely in the same window."""
        return self.window == other.window and self.places[0] - other.places[-1] <= TINY + 1


def _append(runs: list[_Run], new: _Run) -> None:
    """Add one lost probe to the last run or begin another; a tiny run between two of equal fate joins them."""
    last = runs[-1] if runs else None
    if last is None or not new.continues(last):
        runs.append(new)
    elif new.fate == last.fate:
        last.places += new.places
    elif (
        len(runs) > 1
        and runs[-2].fate == new.fate
        and len(last.places) <= TINY
        and last.continues(runs[-2])
    ):
        runs[-2].places += last.places + new.places
        runs.pop()
    else:
        runs.append(new)


def _deliveries(streams: Iterable[Stream]) -> dict[str, list[int]]:
    """Per port the times at which probes that went by it were delivered."""
    times: defaultdict[str, list[int]] = defaultdict(list)
    for stream in streams:
        for probe in stream.delivered:
            if probe.via and probe.arrived_ns is not None:
                times[probe.via].append(probe.arrived_ns)
    return {port: sorted(values) for port, values in times.items()}
