# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of each host's primary in the course of a run, from the events of QEMU, the lab and the guest."""

from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum, auto
from itertools import pairwise

from vnet_standby.traffic.records import GUEST, LAB, Event
from vnet_standby.traffic.timeline import ABORTED, Timeline, migration_status


class State(Enum):
    """What is known of a primary."""

    ABSENT = auto()
    """Not plugged in."""
    PLUGGED = auto()
    """Plugged in by the host; not yet reported by the guest."""
    REGISTERED = auto()
    """A netdev in the guest, with a master, without carrier."""
    UP = auto()
    """The same with carrier."""
    ASKED = auto()
    """The guest was asked to give it back."""
    GONE = auto()
    """The guest has let go of it."""


class Primaries:
    """The state of each host's primary at any time."""

    def __init__(self, events: Sequence[Event], timeline: Timeline, first: str | None) -> None:
        """Follow the events; host `first` has its primary when the records begin (None: no host has one)."""
        self._history: dict[str, list[tuple[int, State]]] = {}
        self._devices: set[str] = set()
        """Names of the primaries' devices, as far as the events have told them."""
        self._netdev: str | None = None
        """The primary's name in the guest."""
        self._waiting: set[str] = set()
        """Hosts whose QEMU waits for the eject."""
        self._owned_by_qemu: set[str] = set()
        """Hosts whose QEMU unplugs the primary by itself."""
        if first is not None:
            self._set(first, 0, State.PLUGGED)
        moves = [pair for pair in pairwise(timeline.stretches) if pair[0].host != pair[1].host]
        for event in events:
            while moves and moves[0][1].start_ns < event.time_ns:
                before, after = moves.pop(0)
                # a later migration back finds a new QEMU there
                self._set(before.host, after.start_ns, State.ABSENT)
                self._owned_by_qemu.discard(before.host)
            if event.who == GUEST:
                self._follow_guest(event, timeline.last_stretch(event.time_ns).host)
            else:
                self._follow(event)
        for before, after in moves:
            self._set(before.host, after.start_ns, State.ABSENT)

    def at(self, host: str, time_ns: int) -> tuple[State, int]:
        """The state of the host's primary at that time, and since when (ns)."""
        history = self._history.get(host, [(0, State.ABSENT)])
        place = bisect_right(history, time_ns, key=lambda entry: entry[0]) - 1
        since, state = history[max(0, place)]
        return state, since

    def _follow(self, event: Event) -> None:
        data = event.data
        match event.name:
            case "UNPLUG_PRIMARY":
                self._devices.add(str(data.get("device-id")))
                self._owned_by_qemu.add(event.who)
                self._set(event.who, event.time_ns, State.ASKED)
            case "device_del" if event.who == LAB:
                self._devices.add(str(data.get("device")))
                self._set(str(data.get("host")), event.time_ns, State.ASKED)
            case "device_add" if event.who == LAB:
                self._set(str(data.get("host")), event.time_ns, State.PLUGGED)
            case "FAILOVER_NEGOTIATED":
                self._set(event.who, event.time_ns, State.PLUGGED)
            case "DEVICE_DELETED" if data.get("device") in self._devices:
                self._set(event.who, event.time_ns, State.GONE)
            case "MIGRATION":
                self._follow_migration(event, migration_status(event))

    def _follow_migration(self, event: Event, status: str) -> None:
        host = event.who
        if status == "wait-unplug":
            self._waiting.add(host)
        elif status in ABORTED:
            self._waiting.discard(host)
            if host in self._owned_by_qemu and status != "cancelling":
                self._set(host, event.time_ns, State.PLUGGED)  # QEMU plugs it in again
        elif host in self._waiting:
            # QEMU keeps a failover primary, so there is no DEVICE_DELETED: the end of the wait is the eject
            self._waiting.discard(host)
            self._set(host, event.time_ns, State.GONE)

    def _follow_guest(self, event: Event, host: str) -> None:
        """Take note of a netdev's change in the guest, which runs on `host`."""
        name, driver = event.data.get("name"), event.data.get("driver")
        state, _since = self.at(host, event.time_ns)
        if event.name == "gone" and name == self._netdev and state is not State.ABSENT:
            self._set(host, event.time_ns, State.GONE)
        elif event.name == "link" and driver not in {None, "", "virtio_net"}:
            self._netdev = name
            if event.data.get("master") and state not in {State.ASKED, State.GONE}:
                carrier = event.data.get("carrier") == "1"
                self._set(host, event.time_ns, State.UP if carrier else State.REGISTERED)

    def _set(self, host: str, time_ns: int, state: State) -> None:
        history = self._history.setdefault(host, [(0, State.ABSENT)])
        if history[-1][1] is not state:
            history.append((time_ns, state))
