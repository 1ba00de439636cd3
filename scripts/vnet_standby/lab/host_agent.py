# SPDX-License-Identifier: GPL-2.0-or-later
"""The host agent in the lab: the one that operators run, as a process in the lab's network namespace."""

import asyncio
import contextlib
import json
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.events import Event, EventLog
from vnet_standby.lab.waiting import ProcessExitedError, unless_ended

_READY_S = 30
_END_S = 30


@contextlib.asynccontextmanager
async def host_agent(monitors: Path, events: EventLog, log: Path) -> AsyncIterator[Process]:
    """An agent for the VMs whose monitors are in a folder; what it journals becomes events of the run.

    What it has to say besides is appended to `log`. Raises `VnetStandbyError` if it does not start, or does not end.
    """
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            # no agent outlives a lab that was killed and could not clean up
            "setpriv", "--pdeathsig", "TERM",
            sys.executable, "-m", "vnet_standby.host", "agent", "--folder", monitors,
            stdin=DEVNULL, stdout=PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
    assert process.stdout is not None
    journal = JournalReader(process.stdout, events)
    try:
        await _wait_ready(process, journal, log)
        yield process
        if process.returncode is None:
            await record_memory(Path(f"/proc/{process.pid}/status").read_text(), events)
    finally:
        await _end(process)
        await journal.end()


class JournalReader:
    """Makes events of the run from what an agent journals, until the journal ends."""

    def __init__(
        self,
        journal: asyncio.StreamReader,
        events: EventLog,
        lab_time: Callable[[float], float] = lambda t: t,
    ) -> None:
        """`lab_time` turns a time of the agent's clock, in seconds, into one of ours."""
        self.ready = asyncio.Event()
        self.pid = 0
        """The agent's process on its host, once it is ready."""
        self._events = events
        self._lab_time = lab_time
        self._reading = asyncio.create_task(self._read(journal))

    async def _read(self, journal: asyncio.StreamReader) -> None:
        async for line in journal:
            event = journalled(line.decode())
            await self._events.add(event.who, event.event, event.data, self._lab_time(event.t))
            if event.event == "ready":
                self.pid = int(str(event.data["pid"]))
                self.ready.set()

    async def end(self) -> None:
        """Wait until the journal has ended, as it does with its agent."""
        await self._reading

    async def cancel(self) -> None:
        """Give the journal up, whose agent is gone without a word."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


async def _wait_ready(process: Process, journal: JournalReader, log: Path) -> None:
    try:
        await unless_ended(journal.ready.wait(), process.wait(), _READY_S)
    except ProcessExitedError as end:
        said = log.read_text(errors="replace").strip() or "it said nothing"
        raise VnetStandbyError(
            f"the host agent does not start (exit status {end.status}): {said}"
        ) from None
    except TimeoutError:
        raise VnetStandbyError(
            f"the host agent is not ready within {_READY_S} s; see {log}"
        ) from None


def journalled(line: str) -> Event:
    """Read a line of the agent's journal; its time is as the agent's host has it."""
    return Event(**json.loads(line))


async def record_memory(status: str, events: EventLog) -> None:
    """Make an event of what an agent's proc_pid_status(5) says of its memory, if it says something."""
    peak = peak_kib(status)
    if peak is not None:
        await events.add("lab", "agent-memory", {"peak_kib": peak})


def peak_kib(status: str) -> int | None:
    """Return the most memory that a process ever had resident (proc_pid_status(5): VmHWM); a zombie says none."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else None


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise VnetStandbyError(
            f"the host agent did not end within {_END_S} s; it was killed"
        ) from None
