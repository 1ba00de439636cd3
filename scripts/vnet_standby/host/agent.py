# SPDX-License-Identifier: GPL-2.0-or-later
"""The host agent: attaches to the VMs of this host and moves the fabric as they say."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.control import become_the_agent, serve_status
from vnet_standby.host.folder import Folder
from vnet_standby.host.guard import Guard
from vnet_standby.host.host import Host, this_host
from vnet_standby.host.journal import Journal
from vnet_standby.host.qmp import GoneError, Monitor, UnreachableError, connected
from vnet_standby.host.session import Session

T = TypeVar("T")
P = ParamSpec("P")

_LISTENING_S = 5.0
"""How long after it has made its socket a QEMU may take to listen there."""
_RETRY_S = 0.05


def run_agent(
    monitors: Sequence[str],
    folder: Path | None,
    ports: Mapping[str, str],
    uplinks: Sequence[str],
    journal: Journal,
) -> None:
    """Be this host's agent until SIGTERM or SIGINT, or until all VMs have ended that were given.

    `ports` are netdevs by "DEVICE" or "VM/DEVICE", `uplinks` the bridges' ports that lead to other hosts (empty: found
    out). Raises `VnetStandbyError` if it can't begin; then nothing was changed.
    """
    with this_host() as host:
        host.network.require_privilege()
    with become_the_agent() as lock:
        guard = Guard(journal)
        try:
            agent = Agent(guard, ports, tuple(uplinks), journal)
            asyncio.run(agent.run(monitors, folder, lock))
        finally:
            guard.finish()
    journal("stopped")


class Agent:
    """The sessions of this host's VMs, and what they share (see `session.Workshop`)."""

    def __init__(
        self, guard: Guard, ports: Mapping[str, str], uplinks: tuple[str, ...], journal: Journal
    ) -> None:
        self.journal = journal
        self.uplinks = uplinks
        self._guard = guard
        self._ports = ports
        self._sessions: dict[str, Session] = {}
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._open_host = contextlib.ExitStack()
        self._host: Host | None = None
        self._turns: dict[Path, asyncio.Lock] = {}
        self._stopping = asyncio.Event()

    async def run(self, monitors: Sequence[str], folder: Path | None, lock: socket.socket) -> None:
        """Attach, follow the events; at the end leave QEMU and the host in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        open_host = partial(self._open_host.enter_context, this_host())
        self._host = await loop.run_in_executor(self._thread, open_host)
        server = await serve_status(lock.dup(), self._status)
        try:
            await self._serve(monitors, folder)
        finally:
            server.close()
            await loop.run_in_executor(self._thread, self._open_host.close)
            self._thread.shutdown()

    # what the sessions share

    async def on_host(
        self, work: Callable[Concatenate[Host, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do something that blocks, one at a time."""
        assert self._host is not None, "run() comes first"
        job = partial(work, self._host, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def port(self, vm: str, device: str) -> str:
        """The netdev that the operator has named for a device; empty if none."""
        return self._ports.get(f"{vm}/{device}") or self._ports.get(device, "")

    def wards_changed(self) -> None:
        """Tell the guard what is to be put in order if the agent dies."""
        wards = [ward for session in self._sessions.values() for ward in session.wards]
        try:
            self._guard.set(wards)
        except (
            VnetStandbyError
        ) as error:  # no reason to stop moving; whoever reads the log may restart the agent
            self.journal("unguarded", reason=str(error))

    # the sessions

    async def _serve(self, monitors: Sequence[str], folder: Path | None) -> None:
        attached = [asyncio.Event() for _ in monitors]
        tasks = [
            asyncio.create_task(self._manage(monitor, event))
            for monitor, event in zip(monitors, attached, strict=True)
        ]
        if folder:
            attached.append(asyncio.Event())
            tasks.append(asyncio.create_task(self._watch(Folder(folder), attached[-1])))
        for task in tasks:
            task.add_done_callback(self._stop_if_failed)
        ready = asyncio.create_task(self._tell_ready(attached))
        done = await asyncio.gather(*tasks, return_exceptions=True)
        ready.cancel()
        if failures := [error for error in done if isinstance(error, BaseException)]:
            raise failures[0]

    async def _tell_ready(self, attached: Sequence[asyncio.Event]) -> None:
        for event in attached:
            await event.wait()
        self.journal("ready", pid=os.getpid(), vms=sorted(self._sessions))

    async def _watch(self, folder: Folder, attached: asyncio.Event) -> None:
        """Manage the VMs whose sockets are in a folder, as they come and go."""
        seen: dict[Path, int] = {}
        managing: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            sockets = folder.sockets()
            events = []
            for path in sorted(path for path in sockets if seen.get(path) != sockets[path]):
                events.append(asyncio.Event())
                task = asyncio.create_task(self._manage_found(path, events[-1]))
                task.add_done_callback(self._stop_if_failed)
                managing.add(task)
            seen = sockets
            for event in events:
                await event.wait()
            attached.set()
            await self._unless_stopping(folder.change())
        folder.close()
        await asyncio.gather(*managing)

    async def _manage_found(self, path: Path, attached: asyncio.Event) -> None:
        deadline = time.monotonic() + _LISTENING_S
        while True:
            try:
                # what the VM before it has left behind is cleared away first: it may have had the same tap
                async with self._turns.setdefault(path, asyncio.Lock()):
                    await self._manage(str(path), attached)
                return
            except UnreachableError as error:
                if not self._stopping.is_set() and time.monotonic() < deadline:
                    await asyncio.sleep(_RETRY_S)  # nothing tells when somebody listens
                    continue
                reason = str(error)
            except VnetStandbyError as error:
                reason = str(error)
            self.journal("not-attached", monitor=str(path), reason=reason)
            attached.set()
            return

    async def _manage(self, monitor: str, attached: asyncio.Event) -> None:
        """Manage a VM until it ends; raises `VnetStandbyError` if there is none."""
        async with connected(monitor) as qmp:
            name = self._name(monitor)
            session = self._sessions[name] = Session(name, qmp, self)
            self.journal("attached", vm=name, monitor=monitor)
            try:
                await self._converse(session, qmp, attached)
            finally:
                del self._sessions[name]

    async def _converse(self, session: Session, qmp: Monitor, attached: asyncio.Event) -> None:
        with contextlib.suppress(GoneError):  # then the events end at once
            await session.attach()
        attached.set()
        stop = asyncio.create_task(self._stopping.wait())
        stop.add_done_callback(lambda _: qmp.end_events())
        try:
            await session.follow_events()
        finally:
            stop.cancel()
        if self._stopping.is_set():
            with contextlib.suppress(GoneError):  # then there is nobody to be told
                await session.disarm()
        else:
            await session.ended()

    def _name(self, monitor: str) -> str:
        """What to call the VM: the socket's name, or its address; a number behind it if that is taken."""
        name = Path(monitor).stem if Path(monitor).exists() else monitor
        names = chain([name], (f"{name}#{number}" for number in count(2)))
        return next(free for free in names if free not in self._sessions)

    # ending

    def _stop(self) -> None:
        self._stopping.set()

    def _stop_if_failed(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception():
            self._stop()

    async def _unless_stopping(self, waiting: Coroutine[None, None, None]) -> None:
        tasks = {asyncio.create_task(waiting), asyncio.create_task(self._wait_stopping())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _wait_stopping(self) -> None:
        await self._stopping.wait()

    def _status(self) -> dict[str, object]:
        sessions = self._sessions.values()
        return {
            "pid": os.getpid(),
            "vms": sorted(self._sessions),
            "pairs": [row for session in sessions for row in session.status()],
        }
