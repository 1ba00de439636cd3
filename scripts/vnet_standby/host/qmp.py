# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM's QMP monitor, with this package's errors."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vnet_standby.errors import VnetStandbyError

if TYPE_CHECKING:
    from qemu.qmp import EventListener, QMPClient

_TIMEOUT_S = 10

# qemu.qmp logs each failed connection; this module's errors say it
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Event:
    """What QEMU said; `t` is when, in seconds of its CLOCK_REALTIME."""

    t: float
    name: str
    data: Mapping[str, Any]


class UnreachableError(VnetStandbyError):
    """There is no VM at the address, or it is talking with somebody else."""


class RefusedError(VnetStandbyError):
    """QEMU has answered a command with an error."""

    def __init__(self, message: str, *, unknown: bool) -> None:
        """`unknown`: this QEMU has no such command."""
        super().__init__(message)
        self.unknown = unknown


class GoneError(VnetStandbyError):
    """The VM has ended, or does not answer any more."""


class Monitor:
    """A conversation with a VM. Made by `connected`."""

    def __init__(self, client: "QMPClient", address: str, listener: "EventListener") -> None:
        self.address = address
        self._client = client
        self._listener = listener
        self._enough = asyncio.Event()

    async def execute(self, command: str, **arguments: object) -> Any:
        """A command's return value; raises `RefusedError` or `GoneError`."""
        from qemu.qmp import ExecuteError, QMPError  # noqa: PLC0415  # slow to load

        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._unless_over(self._client.execute(command, arguments or None))
        except ExecuteError as error:
            unknown = error.error_class == "CommandNotFound"
            raise RefusedError(
                f"the VM at {self.address} refuses {command}: {error}", unknown=unknown
            ) from error
        except TimeoutError:
            raise GoneError(
                f"the VM at {self.address} does not answer {command} within {_TIMEOUT_S} s"
            ) from None
        except QMPError as error:
            raise GoneError(f"the VM at {self.address} went away ({error})") from error

    async def _unless_over(self, asking: Coroutine[Any, Any, object]) -> Any:
        """Wait for a reply; qemu.qmp leaves one unanswered if the connection ends at the wrong moment."""
        reply = asyncio.create_task(asking)
        over = asyncio.create_task(self._client.runstate_changed())
        try:
            await asyncio.wait({reply, over}, return_when=asyncio.FIRST_COMPLETED)
            if reply.done():
                return reply.result()
            raise GoneError(f"the VM at {self.address} went away")
        finally:
            reply.cancel()
            over.cancel()

    async def ask(self, command: str, **arguments: object) -> Any:
        """A command's return value; None if QEMU refuses it."""
        try:
            return await self.execute(command, **arguments)
        except RefusedError:
            return None

    async def get(self, path: str, name: str) -> Any:
        """A QOM property; None if the object has none of this name."""
        return await self.ask("qom-get", path=path, property=name)

    async def text(self, path: str, name: str) -> str:
        """A QOM property as text; empty if there is none."""
        value = await self.get(path, name)
        return value if isinstance(value, str) else ""

    async def events(self) -> AsyncIterator[Event]:
        """What QEMU says, from the connecting on; ends with the connection or at `end_events`. To be called once."""
        from qemu.qmp import Runstate  # noqa: PLC0415  # slow to load

        over = [
            asyncio.create_task(self._client.runstate_changed()),
            asyncio.create_task(self._enough.wait()),
        ]
        try:
            while not self._enough.is_set():
                if self._client.runstate != Runstate.RUNNING and self._listener.empty():
                    return
                said = asyncio.create_task(self._listener.get())
                await asyncio.wait({said, *over}, return_when=asyncio.FIRST_COMPLETED)
                if said.done():
                    yield _event(said.result())
                said.cancel()
        finally:
            for task in over:
                task.cancel()

    @property
    def quiet(self) -> bool:
        """Whether all that QEMU has said so far was taken from `events`."""
        return self._listener.empty()

    def end_events(self) -> None:
        """Let `events` end."""
        self._enough.set()


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Monitor]:
    """Talk to a VM, whose QMP socket is at a path or HOST:PORT; raises `UnreachableError` if there is none."""
    from qemu.qmp import (  # noqa: PLC0415  # slow to load
        ConnectError,
        EventListener,
        QMPClient,
        QMPError,
    )

    client, listener = QMPClient("host"), EventListener()
    client.register_listener(listener)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await client.connect(_place(address))
    except TimeoutError:
        raise UnreachableError(
            f"no greeting from {address} within {_TIMEOUT_S} s: it is no QMP monitor, or another client (libvirt?) "
            "has it; a QMP monitor serves one at a time, give the VM another -qmp"
        ) from None
    except ConnectError as error:
        raise UnreachableError(_why_not(address, error.exc)) from error
    try:
        yield Monitor(client, address, listener)
    finally:
        with contextlib.suppress(QMPError, EOFError, OSError):  # gone meanwhile
            await client.disconnect()


def _event(message: Mapping[str, Any]) -> Event:
    stamp = message["timestamp"]
    return Event(
        stamp["seconds"] + stamp["microseconds"] / 1e6, message["event"], message.get("data", {})
    )


def _place(address: str) -> str | tuple[str, int]:
    path = Path(address)
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and not path.exists():
        return host, int(port)
    if not path.exists():
        raise UnreachableError(
            f"no such QMP socket: {address}; give the path behind QEMU's -qmp unix:, or HOST:PORT"
        )
    if not path.is_socket():
        raise UnreachableError(f"{address} is no socket; give the path behind QEMU's -qmp unix:")
    return address


def _why_not(address: str, error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {address}; is the VM running?"
    if isinstance(error, PermissionError):
        return f"{address} is not accessible to this user; run it as root or as QEMU's user"
    if isinstance(error, OSError):
        return f"{address} can't be reached: {error.strerror or error}"
    return f"{address} does not speak QMP; give the socket behind QEMU's -qmp"
