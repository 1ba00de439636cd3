# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU process: started, talked to over QMP and the guest agent, and surely ended."""

import asyncio
import contextlib
import re
import shlex
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab import command as qemu_command
from vnet_standby.lab.agent import PORT_NAME, Agent
from vnet_standby.lab.events import Event, EventLog
from vnet_standby.lab.waiting import ProcessExitedError, unless_ended

T = TypeVar("T")

_QMP_TIMEOUT_S = 30
_QUIT_TIMEOUT_S = 5
_CONSOLE_LINES = 30

# What the kernel says first when it finds something wrong with itself. Behind another colon it is about the processor
# (Spectre V2 : WARNING: ...).
_REPORT = re.compile(
    r"(?<!: )WARNING: |BUG: |INFO: |Oops|Call Trace|UBSAN: |possible .* lock|corruption|ref_tracker: "
    r"|waiting for \S+ to become free"
)


class QemuProcess(Protocol):
    """The process that runs a VM, on this machine or on an emulated host."""

    @property
    def returncode(self) -> int | None:
        """Its exit status; None as long as it runs."""

    async def wait(self) -> int:
        """Wait for its end and return the exit status."""

    async def kill(self) -> None:
        """End it as a crash would, without waiting for it."""


@dataclass(frozen=True)
class Launched:
    """A QEMU that was started, and our ends of its monitor and its guest agent's port."""

    process: QemuProcess
    command: str
    qmp: socket.socket
    agent: socket.socket


Launch = Callable[["Vm", Sequence[str]], Awaitable[Launched]]
"""Starts a QEMU with these arguments, and a monitor and the agent's port beside them."""


class Vm:
    """A running QEMU. Made by `running_vm`."""

    def __init__(
        self,
        name: str,
        events: EventLog,
        logs: Path,
        *,
        inside: str = "guest",
        lab_time: Callable[[float], float] = lambda t: t,
    ) -> None:
        """`name` is the host it stands for; `logs` gets console and error output.

        `inside` is whose events its link changes are. `lab_time` turns a time of the clock that QEMU runs by into ours.
        """
        self.name = name
        self._inside = inside
        self._lab_time = lab_time
        self.events = events
        self.console = logs / f"{name}-console.log"
        self.stderr = logs / f"{name}-qemu.log"
        self.command = ""
        self.agent = Agent(name, self._guest_event)
        self._qmp = QMPClient(name)
        self._process: QemuProcess | None = None
        self._recording: asyncio.Task[None] | None = None

    @property
    def process(self) -> QemuProcess:
        """The QEMU process."""
        assert self._process is not None, "the VM was not started"
        return self._process

    async def execute(self, command: str, **arguments: object) -> Any:
        """A QMP command's return value.

        Raises `VnetStandbyError` if QEMU refuses it, has gone, or does not answer.
        """
        try:
            async with asyncio.timeout(_QMP_TIMEOUT_S):
                return await self._qmp.execute(command, arguments or None)
        except ExecuteError as error:
            raise VnetStandbyError(f"QEMU on {self.name} refuses {command}: {error}") from error
        except TimeoutError:
            raise VnetStandbyError(
                f"QEMU on {self.name} does not answer {command} within {_QMP_TIMEOUT_S} s"
            ) from None
        except QMPError as error:
            raise VnetStandbyError(
                f"QEMU on {self.name} is gone at {command} ({self._last_words()})"
            ) from error

    async def bounded(self, waiting: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
        """Wait for something that this VM has to do.

        Raises `VnetStandbyError` when the time is over or QEMU has exited, naming what was waited for.
        """
        try:
            return await unless_ended(waiting, self.process.wait(), seconds)
        except ProcessExitedError as end:
            raise VnetStandbyError(
                f"{what}: QEMU on {self.name} exited with status {end.status} "
                f"({self._last_words()}){self.console_tail()}"
            ) from None
        except TimeoutError:
            raise VnetStandbyError(
                f"{what}: not within {seconds:g} s{self.console_tail()}"
            ) from None

    async def expect(self, name: str, seconds: float, since: int = 0, **data: object) -> Event:
        """Wait for this QEMU's event `name` with (at least) that data, recorded as number `since` or later."""

        def wanted(event: Event) -> bool:
            return (
                event.who == self.name
                and event.event == name
                and all(event.data.get(key) == value for key, value in data.items())
            )

        details = "".join(f" {key}={value}" for key, value in data.items())
        return await self.bounded(
            self.events.wait(wanted, since), seconds, f"waiting for {name}{details} on {self.name}"
        )

    async def unplug(self, device: str, seconds: float) -> None:
        """Ask the guest to give a device back and wait until it has."""
        since = len(self.events)
        await self.events.add("lab", "device_del", {"host": self.name, "device": device})
        await self.execute("device_del", id=device)
        await self.expect("DEVICE_DELETED", seconds, since, device=device)

    async def plug(self, device: Mapping[str, object]) -> None:
        """Hot-add a device."""
        await self.events.add("lab", "device_add", {"host": self.name, "device": device["id"]})
        await self.execute("device_add", **device)

    async def kill(self) -> None:
        """End QEMU as a crash would."""
        await self.events.add("lab", "kill", {"host": self.name})
        await self.process.kill()
        await self.process.wait()

    def console_tail(self) -> str:
        """The last lines of the guest's console, for a message; empty if there are none."""
        if not self.console.exists():
            return ""
        lines = self.console.read_text(errors="replace").splitlines()[-_CONSOLE_LINES:]
        if not lines:
            return f"; its console {self.console} is empty"
        return "; the last lines of its console:\n" + "\n".join(f"  | {line}" for line in lines)

    def kernel_reports(self) -> list[str]:
        """The lines of the guest's console in which its kernel says that something is wrong with itself."""
        if not self.console.exists():
            return []
        lines = self.console.read_text(errors="replace").splitlines()
        return [line for line in lines if _REPORT.search(line)]

    async def start(self, arguments: Sequence[str], launch: Launch) -> None:
        """Start QEMU and talk to it."""
        launched = await launch(self, arguments)
        self._process, self.command = launched.process, launched.command
        listener = EventListener()
        self._qmp.register_listener(listener)
        self._recording = asyncio.create_task(self._record_events(listener))
        try:
            await self.bounded(self._qmp.connect(launched.qmp), _QMP_TIMEOUT_S, "starting QEMU")
        except ConnectError as error:
            await self._wait_exit()
            raise VnetStandbyError(
                f"QEMU on {self.name} does not start: {self._last_words()}; its command line: {self.command}"
            ) from error
        await self.agent.open(launched.agent)

    async def stop(self) -> None:
        """End QEMU, politely first, and close everything."""
        if self._process is None:
            return
        with contextlib.suppress(VnetStandbyError):  # gone already: the wait below sees it
            await self.execute("quit")
        await self._wait_exit()
        with contextlib.suppress(
            QMPError, EOFError, OSError
        ):  # the way in which a connection to a dead QEMU ends
            await self._qmp.disconnect()
        if self._recording:
            self._recording.cancel()
            await asyncio.gather(self._recording, return_exceptions=True)
        await self.agent.close()

    async def _wait_exit(self) -> None:
        try:
            async with asyncio.timeout(_QUIT_TIMEOUT_S):
                await self.process.wait()
        except TimeoutError:
            await self.process.kill()
            await self.process.wait()

    def _last_words(self) -> str:
        if not self.stderr.exists():
            return "no message"
        lines = self.stderr.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"no message; see {self.stderr}"

    async def _record_events(self, listener: EventListener) -> None:
        async for message in listener:
            stamp = message["timestamp"]
            assert isinstance(stamp, dict)
            data = message.get("data", {})
            assert isinstance(data, dict)
            await self.events.add(
                self.name,
                str(message["event"]),
                data,
                self._lab_time(stamp["seconds"] + stamp["microseconds"] / 1e6),
            )

    async def _guest_event(self, event: str, data: dict[str, object]) -> None:
        await self.events.add(self._inside, event, data)


class LocalProcess:
    """A QEMU process of this machine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """`process` is the one that was started."""
        self._process = process

    @property
    def returncode(self) -> int | None:
        """Its exit status; None as long as it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end and return the exit status."""
        return await self._process.wait()

    async def kill(self) -> None:
        """End it as a crash would."""
        if self._process.returncode is None:
            self._process.kill()


def local(binary: Path) -> Launch:
    """A way to start a QEMU on this machine."""

    async def launch(vm: Vm, arguments: Sequence[str]) -> Launched:
        qmp_end, qmp_qemu = socket.socketpair()
        agent_end, agent_qemu = socket.socketpair()
        for end in (qmp_end, agent_end):
            end.setblocking(False)
        argv = [
            str(binary),
            "-serial", f"file:{vm.console}",
            *arguments,
            *qemu_command.monitor_arguments(f"fd={qmp_qemu.fileno()}"),
            *qemu_command.agent_arguments(f"fd={agent_qemu.fileno()}", PORT_NAME),
        ]  # fmt: skip
        with qmp_qemu, agent_qemu, vm.stderr.open("wb") as stderr:
            # The parent-death signal: no QEMU outlives a lab that was killed and could not clean up.
            process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", *argv,
                pass_fds=(qmp_qemu.fileno(), agent_qemu.fileno()),
                stdin=asyncio.subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        return Launched(LocalProcess(process), shlex.join(argv), qmp_end, agent_end)

    return launch


@contextlib.asynccontextmanager
async def running_vm(vm: Vm, arguments: Sequence[str], launch: Launch) -> AsyncIterator[Vm]:
    """A QEMU for as long as the context lasts."""
    try:
        await vm.start(arguments, launch)
        yield vm
    finally:
        await vm.stop()
