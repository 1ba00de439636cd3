# SPDX-License-Identifier: GPL-2.0-or-later
"""A network namespace with a bridge and taps, VMs that only speak QMP, and an agent that manages them."""

import asyncio
import contextlib
import fcntl
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

MAC = "52:54:00:76:6e:01"
GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}}, "capabilities": []}}
LIMIT_S = 10

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


def ip(arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments.split()], check=True)


class Tap:
    """A tap in the bridge, open as QEMU has it."""

    def __init__(self, name: str, bridge: str = "br0") -> None:
        self.name = name
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(self._fd, _TUNSETIFF, request)
        ip(f"link set dev {name} up" + (f" master {bridge}" if bridge else ""))

    def frames(self, kind: int) -> list[bytes]:
        """The frames of an EtherType that have come since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(os.read(self._fd, 2048))
        return [frame for frame in found if frame[12:14] == kind.to_bytes(2, "big")]

    def send(self, frame: bytes) -> None:
        """Let the guest send a frame."""
        os.write(self._fd, frame)

    def close(self) -> None:
        """Let the tap vanish."""
        os.close(self._fd)


def make_bridge(settings: str = "") -> None:
    """A bridge without ports."""
    ip("link set dev lo up")
    ip(f"link add name br0 type bridge forward_delay 0 {settings}")
    ip("link set dev br0 up")


def pointed() -> dict[str, str]:
    """The ports that the bridge has for the MAC, and how: static sticky, or empty for one that it has learnt."""
    said = subprocess.run(
        ["bridge", "-j", "fdb", "show", "br", "br0"], capture_output=True, text=True, check=True
    )
    entries = [entry for entry in json.loads(said.stdout) if entry["mac"] == MAC]
    return {
        entry["ifname"]: " ".join([entry.get("state", ""), *entry.get("flags", ())]).strip()
        for entry in entries
    }


class FakeVm:
    """The QMP of a VM with a pair; `told` is what it was told to do."""

    def __init__(self, folder: Path, name: str, status: str = "running") -> None:
        self.path = folder / f"{name}.sock"
        self.status = status
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.protocol: dict[str, Any] | None = {
            "negotiated": status == "running", "standby-wanted": False, "datapath": "standby",
            "fabric": "standby", "managed": False, "marks": False,
        }  # fmt: skip
        self.primary = True
        self.refuses: set[str] = set()
        self.gate: dict[str, Any] = {}
        self.netdevs = {
            "net-standby": f"tap,ifname={name}-standby",
            "net-primary": f"tap,ifname={name}-primary",
        }
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._said = asyncio.Condition()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """End as a crash does."""
        assert self._server is not None
        self._server.close()
        if self._writer:
            self._writer.transport.abort()
        self.path.unlink()

    async def emit(self, event: str, *, age_s: float = 0, **data: object) -> None:
        """Send an event, which may be old."""
        then = time.time() - age_s
        stamp = {"seconds": int(then), "microseconds": int(then % 1 * 1e6)}
        await self._send({"event": event, "data": data, "timestamp": stamp})

    async def switch(self, to: str, cause: str = "driver") -> None:
        """Let the driver change its datapath."""
        assert self.protocol is not None
        self.protocol["datapath"] = to
        await self.emit(
            "VIRTIO_NET_STANDBY_DATAPATH",
            device="standby0", path="/machine/peripheral/standby0/virtio-backend",
            datapath=to, forced=False, cause=cause,
        )  # fmt: skip

    async def expect(self, command: str, **arguments: object) -> None:
        """Wait until it is told to do this, after what was waited for before."""

        def position() -> int | None:
            for number, (name, given) in enumerate(self.told):
                if name == command and all(given.get(k) == v for k, v in arguments.items()):
                    return number
            return None

        try:
            async with asyncio.timeout(LIMIT_S), self._said:
                await self._said.wait_for(lambda: position() is not None)
        except TimeoutError:
            raise AssertionError(f"never told {command} {arguments}, but {self.told}") from None
        number = position()
        assert number is not None
        del self.told[: number + 1]

    async def _send(self, message: object) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\r\n")
        await self._writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        await self._send(GREETING)
        text, decoder = "", json.JSONDecoder()
        while received := await reader.read(65536):
            text += received.decode()
            with contextlib.suppress(json.JSONDecodeError):  # more is to come
                while text:
                    request, end = decoder.raw_decode(text)
                    text = text[end:].lstrip()
                    await self._answer(request)

    async def _answer(self, request: dict[str, Any]) -> None:
        name, arguments = request["execute"], request.get("arguments", {})
        result = None if name in self.refuses else self._result(name, arguments)
        error = {
            "class": "CommandNotFound" if name in self.refuses else "GenericError",
            "desc": "no",
        }
        reply = {"error": error} if result is None else {"return": result}
        await self._send(reply | {key: request[key] for key in ("id",) if key in request})
        if name.startswith("x-virtio-net-standby-"):
            async with self._said:
                self.told.append((name.removeprefix("x-virtio-net-standby-"), arguments))
                self._said.notify_all()

    def _result(self, name: str, arguments: dict[str, Any]) -> object:
        if name == "x-query-virtio-status":
            return None
        if name == "qom-list":
            return self._devices(arguments["path"])
        if name == "qom-get":
            return self._property(arguments["path"].rpartition("/")[2], arguments["property"])
        protocol = {"protocol": self.protocol} if self.protocol else {}
        path = "/machine/peripheral/standby0/virtio-backend"
        lines = (f"{name}: index=0,type={text}\r\n" for name, text in self.netdevs.items())
        results: dict[str, object] = {
            "query-status": {"status": self.status, "running": self.status == "running"},
            "query-virtio-net-standby": [
                {"device": "standby0", "path": path, "mac": MAC, **protocol}
            ],
            "human-monitor-command": "".join(lines),
            "x-query-virtio-net-standby-gate": self.gate,
        }
        return results.get(name, {})

    def _devices(self, path: str) -> list[dict[str, str]]:
        if path != "/machine/peripheral":
            return []
        names = {"standby0": "virtio-net-pci"} | ({"primary0": "e1000e"} if self.primary else {})
        return [{"name": name, "type": f"child<{type_}>"} for name, type_ in names.items()]

    def _property(self, device: str, name: str) -> object:
        kind = device.removesuffix("0")
        values: dict[str, object] = {"mac": MAC, "netdev": f"net-{kind}"}
        values |= {"failover": True} if kind == "standby" else {"failover_pair_id": "standby0"}
        return values.get(name)


class RunningAgent:
    """The agent as a process; `records` is its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.records: list[dict[str, Any]] = []

    async def expect(self, event: str, **data: object) -> dict[str, Any]:
        """Read the log up to this record and return its data."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while line := await self.process.stdout.readline():
                record = json.loads(line)
                self.records.append(record)
                found: dict[str, Any] = record["data"]
                if record["event"] == event and all(found.get(k) == v for k, v in data.items()):
                    return found
        raise AssertionError(f"the log ends without {event} {data}: {self.records}")

    def events(self) -> list[str]:
        """The names of the records read so far; forgets them."""
        names = [record["event"] for record in self.records]
        self.records.clear()
        return names

    async def end(self) -> int:
        """Wait for its end and return its status; the rest of the log is read."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            said = await self.process.stdout.read()
            self.records += [json.loads(line) for line in said.splitlines()]
            return await self.process.wait()


@contextlib.asynccontextmanager
async def agent(*arguments: str) -> AsyncIterator[RunningAgent]:
    """An agent for as long as the context lasts."""
    command = [sys.executable, "-m", "vnet_standby.host", "agent", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield RunningAgent(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that nothing tells of."""
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)
