# SPDX-License-Identifier: GPL-2.0-or-later
"""Measuring: the peer's stream, the capture on every port, and the guest's own records, as files of a run."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.agent import Agent
from vnet_standby.lab.network import PEER, PEER_MAC
from vnet_standby.traffic import probe
from vnet_standby.traffic.probe import GUEST_ADDRESS, PEER_ADDRESS
from vnet_standby.traffic.tcp import GUEST_TCP_PORT

_READY_S = 15
_STOP_S = 60  # the capture writes its file at the end
_ECHO_INTERVAL_S = 0.1
_DUMP_S = 120
_ICMPV6_ECHO_REQUEST, _ICMPV6_ECHO_REPLY = 128, 129


@contextlib.asynccontextmanager
async def helper(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A measuring process of `vnet_standby.traffic`; it ends when its standard input does.

    Raises `VnetStandbyError` with its last words if it fails.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"vnet_standby.traffic.{module}", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def finish(process: asyncio.subprocess.Process, what: str) -> str:
    """Ask a measuring process to end and return its last output line."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise VnetStandbyError(
            f"{what} does not end within {_STOP_S} s; the run has no records"
        ) from None
    if process.returncode:
        raise VnetStandbyError(f"{what} failed: {_last_line(errors)}")
    return _last_line(output)


async def wait_ready(process: asyncio.subprocess.Process, what: str) -> None:
    """Wait for the line "ready"."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_READY_S):
            line = await process.stdout.readline()
    except TimeoutError:
        raise VnetStandbyError(f"{what} is not ready within {_READY_S} s") from None
    if line.strip() != b"ready":
        assert process.stderr is not None
        raise VnetStandbyError(f"{what} failed: {_last_line(await process.stderr.read())}")


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


async def wait_reachable(seconds: float) -> bool:
    """Ask the guest for an echo until it answers; False if it has not within `seconds`."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setblocking(False)
        asker.bind((PEER_ADDRESS, 0))
        asker.connect((GUEST_ADDRESS, probe.GUEST_PORT))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for number in range(sys.maxsize):
                    if await _echo(loop, asker, number):
                        return True
    return False


async def _echo(loop: asyncio.AbstractEventLoop, asker: socket.socket, number: int) -> bool:
    request = bytes(probe.VnetProbe(kind=probe.ECHO_REQUEST, seq=number))
    try:
        async with asyncio.timeout(_ECHO_INTERVAL_S):
            await loop.sock_sendall(asker, request)
            await loop.sock_recv(asker, 2048)
            return True
    except TimeoutError:
        return False
    except OSError:  # an ICMP or ARP failure of an earlier request: not answered yet
        await asyncio.sleep(_ECHO_INTERVAL_S)
        return False


async def echoes_over_ipv6(mac: str, seconds: float = 15) -> bool:
    """Whether the NIC with this MAC answers the peer's ICMPv6 echo requests (RFC 4443) to its link-local address."""
    loop = asyncio.get_running_loop()
    target = (str(_link_local(mac)), 0, 0, socket.if_nametoindex(PEER))
    request = struct.pack("!BBHHH", _ICMPV6_ECHO_REQUEST, 0, 0, os.getpid() & 0xFFFF, 1)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as asker:
        asker.setblocking(False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await loop.sock_sendto(asker, request, target)
                    if await _icmpv6_reply(asker):
                        return True
    return False


async def _icmpv6_reply(asker: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(
            1
        ):  # RFC 4861: RETRANS_TIMER, between two neighbour solicitations
            while True:
                if (await loop.sock_recv(asker, 2048))[0] == _ICMPV6_ECHO_REPLY:
                    return True
    return False


def _link_local(mac: str) -> ipaddress.IPv6Address:
    """The link-local address that an interface makes from its MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def capture_arguments(run: Path, interfaces: Sequence[str]) -> list[str]:
    """Arguments of the capture process."""
    arguments = ["--output", str(run)]
    for interface in interfaces:
        arguments += ["--interface", interface]
    return arguments


def sender_arguments(guest_mac: str, rate_hz: int) -> list[str]:
    """Arguments of the peer's sender; with a rate of 0 it only takes in what the guest sends."""
    return [
        "--interface", PEER, "--source-mac", PEER_MAC, "--destination-mac", guest_mac,
        "--rate", str(rate_hz),
    ]  # fmt: skip


async def start_guest_stream(agent: Agent, rate_hz: int) -> None:
    """Let the guest send its numbered stream to the peer."""
    await agent.ask(f"stream {PEER_ADDRESS} {round(1e6 / rate_hz)}")


@contextlib.asynccontextmanager
async def tcp_stream(
    agent: Agent, run: Path, rate_mib_s: float
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A TCP stream to the guest beside the probes, at most so fast; `finish` ends it."""
    await agent.ask(f"spawn tcp nc -l -p {GUEST_TCP_PORT} >/dev/null")
    async with helper("tcp", "--output", str(run), "--rate", str(rate_mib_s)) as process:
        await wait_ready(process, "the TCP stream")
        yield process


async def silence_guest(agent: Agent) -> None:
    """Stop the guest's stream, and what its kernel would send some seconds later to confirm the peer's address."""
    await agent.ask("silence")
    await teach_peer(agent)


async def teach_peer(agent: Agent) -> None:
    """Give the guest the peer's address for good: its kernel neither asks for it nor gives it up."""
    await agent.run(f"arp -s {PEER_ADDRESS} {PEER_MAC}")


async def write_guest_records(agent: Agent, samples: Sequence[tuple[int, int]], run: Path) -> None:
    """Fetch what the guest received and sent, and write it with the clock samples."""
    received = await agent.ask("received", _DUMP_S)
    sent = await agent.ask("sent", _DUMP_S)
    _write_csv(run / "guest-received.csv", "seq,guest_ns", received)
    _write_csv(run / "guest-sent.csv", "seq,guest_ns,errno", sent)
    _write_csv(run / "guest-clock.csv", "host_ns,guest_ns", [f"{h} {g}" for h, g in samples])


def _write_csv(path: Path, header: str, lines: Sequence[str]) -> None:
    path.write_text("\n".join([header, *(line.replace(" ", ",") for line in lines)]) + "\n")
