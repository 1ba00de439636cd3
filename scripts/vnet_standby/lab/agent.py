# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's side of the guest agent's line protocol (guest/image/agent.c documents it)."""

import asyncio
import itertools
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vnet_standby.errors import VnetStandbyError

PORT_NAME = "org.vnet-standby.agent"

_LINE_LIMIT = 1 << 20  # bytes; a longer line is none of the agent's

Notify = Callable[[str, dict[str, object]], Awaitable[None]]


@dataclass(frozen=True)
class Link:
    """A netdev as the guest's kernel describes it; empty texts where it has no such thing."""

    name: str
    mac: str
    carrier: bool
    driver: str
    master: str
    mtu: int
    addresses: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> "Link":
        """Read one line of `links` (NAME key=value...)."""
        name, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        return cls(
            name=name,
            mac=values["mac"],
            carrier=values["carrier"] == "1",
            driver=values["driver"],
            master=values["master"],
            mtu=int(values["mtu"]),
            addresses=tuple(filter(None, values["addresses"].split(","))),
        )


class Agent:
    """A conversation with the agent of one guest, over the socket behind its virtio-serial port."""

    def __init__(self, name: str, notify: Notify) -> None:
        """`notify` gets the name and data of each link change in the guest."""
        self.clock_samples: list[tuple[int, int]] = []
        """(host_ns, guest_ns): the guest's clock, and the host's when the line arrived."""
        self._name = name
        self._notify = notify
        self._tags = itertools.count(1)
        self._replies: dict[str, tuple[asyncio.Future[list[str]], list[str]]] = {}
        self._links: dict[str, str] = {}
        self._alive = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, end: socket.socket) -> None:
        """Start reading from the host's end of the port."""
        reader, self._writer = await asyncio.open_connection(sock=end, limit=_LINE_LIMIT)
        self._reading = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        """Stop; whoever still waits for an answer gets an error."""
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer:
            self._writer.close()

    async def wait_alive(self) -> None:
        """Return once the agent has said anything: the guest runs and its init is done."""
        await self._alive.wait()

    def forget_alive(self) -> None:
        """From now on `wait_alive` waits for a new sign of life."""
        self._alive.clear()

    async def ask(self, command: str, timeout_s: float = 30) -> list[str]:
        """Send a command, return the data lines of its answer.

        Raises `VnetStandbyError` if the agent answers with an error or not within `timeout_s`.
        """
        if self._writer is None:
            raise VnetStandbyError(f"guest on {self._name}: the agent's port is not open")
        tag = str(next(self._tags))
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._replies[tag] = (answer, [])
        try:
            self._writer.write(f"{tag} {command}\n".encode())
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise VnetStandbyError(
                f"guest on {self._name}: no answer to {command!r} within {timeout_s:g} s; "
                "see the guest's console log"
            ) from None
        finally:
            del self._replies[tag]

    async def links(self) -> dict[str, Link]:
        """The guest's netdevs by name."""
        lines = await self.ask("links")
        links = [
            Link.parse(line) for line in lines if " mac= " not in line
        ]  # not one that just goes
        return {link.name: link for link in links}

    async def counters(self, netdev: str) -> dict[str, int]:
        """A netdev's own counters, as ethtool -S shows them."""
        lines = [line.rpartition(" ") for line in await self.ask(f"counters {netdev}")]
        return {name: int(value) for name, _, value in lines}

    async def clock(self) -> tuple[int, int, int]:
        """The guest's clock, and ours before it was asked and after it had answered; all CLOCK_REALTIME, in ns."""
        asked = time.time_ns()
        told = await self.ask("clock")
        return asked, int(told[0]), time.time_ns()

    async def run(self, command: str, timeout_s: float = 30) -> str:
        """Run a shell command in the guest, return what it prints; an error if it fails."""
        return "\n".join(await self.ask(f"run {command}", timeout_s))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                arrived_ns = time.time_ns()
                await self._take(line.decode(errors="replace").rstrip("\n"), arrived_ns)
        finally:
            for answer, _ in self._replies.values():
                if not answer.done():
                    answer.set_exception(
                        VnetStandbyError(f"guest on {self._name}: its port closed")
                    )

    async def _take(self, line: str, arrived_ns: int) -> None:
        tag, _, rest = line.partition(" ")
        kind, _, data = rest.partition(" ")
        self._alive.set()
        if tag == "!" and kind == "clock":
            self.clock_samples.append((arrived_ns, int(data)))
        elif tag == "!":
            await self._take_change(kind, data)
        elif tag in self._replies:
            self._answer(*self._replies[tag], kind, data)

    async def _take_change(self, kind: str, data: str) -> None:
        name, *pairs = data.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        vanished = (
            kind == "link" and not values["operstate"]
        )  # gone before the agent looked; "gone" follows
        # The kernel announces more than changes; a repetition would only hide them.
        if not vanished and self._links.get(name) != kind + data:
            self._links[name] = kind + data
            await self._notify(kind, {"name": name, **values})

    def _answer(
        self, answer: asyncio.Future[list[str]], lines: list[str], kind: str, data: str
    ) -> None:
        if kind == "=":
            lines.append(data)
        elif answer.done():
            return
        elif kind == "ok":
            answer.set_result(lines)
        else:
            told = "; ".join(lines[-3:])
            answer.set_exception(
                VnetStandbyError(f"guest on {self._name}: {data}" + (f": {told}" if told else ""))
            )
