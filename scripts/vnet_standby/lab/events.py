# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened in a run and when: the lab's own steps, QEMU's events and the guest's link changes."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl.

    `t` is CLOCK_REALTIME in seconds. `who` is a host's name for events of its QEMU, "guest" for the guest's link
    changes (timed on arrival at the lab) or "lab" for the lab's own steps.
    """

    t: float
    who: str
    event: str
    data: Mapping[str, object] = field(default_factory=dict)


class EventLog:
    """All events of a run, in order of arrival, and a way to wait for one."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._arrived = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._events)

    async def add(
        self, who: str, event: str, data: Mapping[str, object], t: float | None = None
    ) -> None:
        """Record an event; `t` is when it happened (s), now if not given."""
        async with self._arrived:
            self._events.append(Event(time.time() if t is None else t, who, event, data))
            self._arrived.notify_all()

    async def wait(self, wanted: Callable[[Event], bool], since: int = 0) -> Event:
        """The first event from number `since` on that is wanted; waits for it without a bound of its own."""
        position = since
        async with self._arrived:
            while True:
                for event in self._events[position:]:
                    if wanted(event):
                        return event
                position = len(self._events)
                await self._arrived.wait()

    def seen(self, wanted: Callable[[Event], bool], since: int = 0) -> list[Event]:
        """The wanted ones among the events recorded so far, from number `since` on."""
        return [event for event in self._events[since:] if wanted(event)]

    def write(self, path: Path) -> None:
        """Write all events, ordered by time, one JSON object a line."""
        lines = (json.dumps(asdict(event)) for event in sorted(self._events, key=lambda e: e.t))
        path.write_text("".join(f"{line}\n" for line in lines))
