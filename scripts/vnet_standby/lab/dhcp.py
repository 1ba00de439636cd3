# SPDX-License-Identifier: GPL-2.0-or-later
"""A DHCP server on the peer's side of the lab: dnsmasq, which tells clients apart as RFC 2131 wants it.

That matters here: the NICs of a pair have the same MAC, so a server that goes by MACs would give all of them the same
address and hide that more than one has asked.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.network import PEER
from vnet_standby.lab.waiting import ProcessExitedError, unless_ended
from vnet_standby.traffic.probe import GUEST_ADDRESS

LAST_ADDRESS = "192.0.2.20"
"""The first client gets the guest's usual address, each further one the next, up to this."""

_LEASE = "1h"
_READY_S = 15
_STOP_S = 5


@dataclass(frozen=True)
class Lease:
    """An address that the server gave away."""

    mac: str
    address: str
    client: str
    """What the client identified itself with (RFC 2132, option 61)."""


def parse_leases(text: str) -> list[Lease]:
    """Read dnsmasq's file of leases: expiry, MAC, address, name and client identifier."""
    fields = [line.split() for line in text.splitlines()]
    return [Lease(mac=row[1], address=row[2], client=row[4]) for row in fields if len(row) == 5]


class DhcpServer:
    """A running server. Made by `dhcp_server`."""

    def __init__(self, leases: Path) -> None:
        """`leases` is the file that it keeps."""
        self._leases = leases

    def leases(self) -> list[Lease]:
        """Every address that is given away now."""
        return parse_leases(self._leases.read_text()) if self._leases.exists() else []


@contextlib.asynccontextmanager
async def dhcp_server(run: Path) -> AsyncIterator[DhcpServer]:
    """A DHCP server in the current network namespace, whose peer has to exist; its log and leases are in `run`.

    Raises `VnetStandbyError` if it does not come up.
    """
    leases, log = run / "dhcp-leases", run / "dhcp.log"
    leases.unlink(missing_ok=True)  # an earlier server's clients are none of this one's
    # The parent-death signal: no server outlives a lab that was killed and could not clean up.
    process = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", "dnsmasq", *_arguments(leases),
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    started = asyncio.Event()
    logging = asyncio.create_task(_keep_log(process.stderr, log, started))
    try:
        await _wait_started(process, started, log)
        yield DhcpServer(leases)
    finally:
        await _end(process)
        await logging


def _arguments(leases: Path) -> list[str]:
    return [
        "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=", "--group=",
        "--port=0",  # no DNS
        f"--interface={PEER}", "--bind-interfaces",
        f"--dhcp-range={GUEST_ADDRESS},{LAST_ADDRESS},{_LEASE}", f"--dhcp-leasefile={leases}",
        "--dhcp-sequential-ip", "--dhcp-authoritative",
        "--no-ping",  # it would cost a client seconds, and nobody else has an address here
        "--log-dhcp", "--log-facility=-",
    ]  # fmt: skip


async def _keep_log(output: asyncio.StreamReader, log: Path, started: asyncio.Event) -> None:
    with log.open("wb", buffering=0) as sink:
        while line := await output.readline():
            sink.write(line)
            if b"started" in line:
                started.set()


async def _wait_started(
    process: asyncio.subprocess.Process, started: asyncio.Event, log: Path
) -> None:
    try:
        await unless_ended(started.wait(), process.wait(), _READY_S)
    except ProcessExitedError as end:
        raise VnetStandbyError(
            f"the DHCP server exits with status {end.status}; see {log}"
        ) from None
    except TimeoutError:
        raise VnetStandbyError(
            f"the DHCP server is not ready within {_READY_S} s; see {log}"
        ) from None


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
