# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run's events say: where the guest ran when, which switches there were."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vnet_standby.traffic.clock import Stretch
from vnet_standby.traffic.records import LAB, Event, Settings, host_of
from vnet_standby.traffic.verdict import SwitchKind

NEVER: Final = 1 << 62
"""A time after every run (ns)."""

WITHOUT_PRIMARY: Final = "virtio"
"""The guest kind that is the control: it has no pair, so nothing fails over."""
ABORTED: Final = frozenset({"cancelling", "cancelled", "failed"})


@dataclass(frozen=True)
class Window:
    """One switch: its time on the host's clock, [start, end) in ns."""

    kind: SwitchKind
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Attempt:
    """One migration, from the lab's request to the next one or the end of the run (ns)."""

    source: str
    destination: str
    start_ns: int
    end_ns: int
    stop_ns: int | None
    """When the source stopped the guest."""
    resume_ns: int | None
    """When the guest ran again, on whichever host."""
    abort_ns: int | None
    """When the migration was first known to be cancelled or to have failed."""
    status: str
    """The last status that the source's QEMU reported."""
    result: Mapping[str, Any]
    """What query-migrate said on the source at the end; empty if the lab recorded none."""


class Timeline:
    """The events of a run, made askable. Hosts are named as in the events."""

    def __init__(self, events: Sequence[Event], settings: Settings, end_ns: int) -> None:
        """Read the events of a run that ends at `end_ns`."""
        migrates = [event for event in events if (event.who, event.name) == (LAB, "migrate")]
        first = migrates[0].data["from"] if migrates else min(map(host_of, settings.ports))
        ends = [event.time_ns for event in migrates[1:]] + [end_ns] * bool(migrates)
        hosts = {host_of(port) for port in settings.ports}
        hosts |= {event.data[end] for event in migrates for end in ("from", "to")}
        # an emulated host is a VM itself, whose QEMU has events, too
        self.stretches = tuple(_stretches((e for e in events if e.who in hosts), first))
        self.attempts = tuple(
            _attempt(event, end, events) for event, end in zip(migrates, ends, strict=True)
        )
        self.windows = tuple(
            window
            for attempt in self.attempts
            for window in _windows(attempt)
            if window.end_ns > window.start_ns
            and (settings.guest != WITHOUT_PRIMARY or window.kind == "blackout")
        )
        self._starts = [stretch.start_ns for stretch in self.stretches]

    @property
    def quiet_until_ns(self) -> int:
        """When the first migration was asked for, `NEVER` if none was."""
        return self.attempts[0].start_ns if self.attempts else NEVER

    def stretch_at(self, time_ns: int) -> Stretch | None:
        """The stretch in which the guest ran at that time, None if it was stopped."""
        last = self.last_stretch(time_ns)
        return last if time_ns < last.end_ns else None

    def last_stretch(self, time_ns: int) -> Stretch:
        """The stretch that began last before that time; the first one began before all records."""
        return self.stretches[bisect_right(self._starts, time_ns) - 1]

    def next_stretch(self, time_ns: int) -> Stretch | None:
        """The first stretch that begins after that time."""
        place = bisect_right(self._starts, time_ns)
        return self.stretches[place] if place < len(self.stretches) else None

    def ran_before(self, host: str, time_ns: int) -> bool:
        """Whether the guest had run on that host and left it."""
        return any(stretch.host == host and stretch.end_ns <= time_ns for stretch in self.stretches)

    def window_at(self, time_ns: int) -> Window | None:
        """The switch in whose window that time lies."""
        return next((w for w in self.windows if w.start_ns <= time_ns < w.end_ns), None)


def _stretches(events: Iterable[Event], host: str) -> Iterator[Stretch]:
    """Follow the guest by STOP and RESUME; it runs on `host` when the records begin."""
    start, running = 0, True
    for event in events:
        if event.name == "STOP" and running and event.who == host:
            yield Stretch(host, start, event.time_ns)
            running = False
        elif event.name == "RESUME" and not (running and event.who == host):
            if running:  # the other host ended without a word
                yield Stretch(host, start, event.time_ns)
            host, start, running = event.who, event.time_ns, True
    if running:
        yield Stretch(host, start, NEVER)


def _attempt(migrate: Event, end_ns: int, events: Sequence[Event]) -> Attempt:
    source, destination = migrate.data["from"], migrate.data["to"]
    during = [event for event in events if migrate.time_ns <= event.time_ns < end_ns]
    stop_ns = _first(during, lambda event: (event.who, event.name) == (source, "STOP"))
    resume_ns = _first(
        during,
        lambda event: (
            event.name == "RESUME"
            and event.who in ({source, destination} if stop_ns is not None else {destination})
            and event.time_ns >= (stop_ns or 0)
        ),
    )
    abort_ns = _first(
        during,
        lambda event: (
            (event.who, event.name) == (LAB, "cancel")
            or (event.who == source and migration_status(event) in ABORTED)
        ),
    )
    statuses = [
        migration_status(event)
        for event in during
        if event.who == source and migration_status(event)
    ]
    results = [event.data for event in during if (event.who, event.name) == (LAB, "migrated")]
    result = results[-1] if results else {}
    reported = result.get("status")
    status = reported if isinstance(reported, str) else statuses[-1] if statuses else "unknown"
    return Attempt(
        source,
        destination,
        migrate.time_ns,
        end_ns,
        stop_ns,
        resume_ns,
        abort_ns,
        status,
        result,
    )


def _windows(attempt: Attempt) -> Iterator[Window]:
    """Failover until the guest stops or the migration is given up, blackout while it is stopped, then failback."""
    if attempt.stop_ns is not None:
        resume_ns = attempt.end_ns if attempt.resume_ns is None else attempt.resume_ns
        yield Window("failover", attempt.start_ns, attempt.stop_ns)
        yield Window("blackout", attempt.stop_ns, resume_ns)
        yield Window("failback", resume_ns, attempt.end_ns)
        return
    turns = [time for time in (attempt.resume_ns, attempt.abort_ns) if time is not None]
    turn = min(turns, default=attempt.end_ns)
    yield Window("failover", attempt.start_ns, turn)
    yield Window("failback", turn, attempt.end_ns)


def _first(events: Iterable[Event], wanted: Callable[[Event], bool]) -> int | None:
    return next((event.time_ns for event in events if wanted(event)), None)


def migration_status(event: Event) -> str:
    """The status of a MIGRATION event, empty for others."""
    return str(event.data.get("status", "")) if event.name == "MIGRATION" else ""
