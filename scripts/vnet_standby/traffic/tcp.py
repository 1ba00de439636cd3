# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP stream to the guest: a program that sends and notes what the guest has acknowledged, and what that tells.

    python -m vnet_standby.traffic.tcp --output DIR --rate MIB/S

It ends like the other traffic programs (see `Stop`), and writes tcp.csv then: a line a sample,
"host_ns,acked_bytes,retransmitted".
"""

import argparse
import contextlib
import csv
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.probe import GUEST_ADDRESS
from vnet_standby.traffic.stop import Stop
from vnet_standby.traffic.verdict import Throughput

GUEST_TCP_PORT: Final = 47002
RECORD: Final = "tcp.csv"

_SAMPLE_S = 0.01
_CONNECT_S = 10
_RETRY_S = 0.1
_BUFFER = bytes(1 << 16)
_BACKLOG_BYTES = 1 << 19
"""What may wait in this machine: with more, a pause of the guest would look like one of the network later."""
# linux/tcp.h, struct tcp_info: 8 bytes, 24 words of which the last is tcpi_total_retrans, two rates, tcpi_bytes_acked,
# and 88 bytes further tcpi_dsack_dups
_INFO = struct.Struct("=100xI16xQ88xI")
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h

_SETTLED_S = 1.0
"""At first TCP probes for what the path can take."""
_AFTERMATH_S = 5.0
"""How long after RESUME, at most, is "after the migration": the failback is in it."""


class Sample(NamedTuple):
    """What the peer knows of its stream at a time."""

    host_ns: int
    acked_bytes: int
    retransmitted: int
    """Segments that were sent again so far."""
    doubled: int
    """Segments of which the guest has said so far that it had got them before (RFC 2883)."""


def stream(connection: socket.socket, stop: Stop) -> list[Sample]:
    """Send until told to stop; return the samples."""
    samples: list[Sample] = []
    due = time.monotonic()
    while True:
        writable = [connection] if time.monotonic() < due else []
        wait = max(0.0, due - time.monotonic())
        readable, ready, _ = select.select(stop.fds, writable, (), wait)
        if stop.requested(readable):
            return samples
        if ready:
            with contextlib.suppress(BlockingIOError):
                connection.send(_BUFFER)
        if time.monotonic() >= due:
            samples.append(sample(connection))
            due = max(due + _SAMPLE_S, time.monotonic())


def sample(connection: socket.socket) -> Sample:
    """Return what the kernel knows of the stream now."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    retransmitted, acked, doubled = _INFO.unpack(info)
    return Sample(time.time_ns(), acked, retransmitted, doubled)


def connect(address: tuple[str, int], rate_mib_s: float) -> socket.socket:
    """Connect to the guest, which may still be about to listen."""
    deadline = time.monotonic() + _CONNECT_S
    while True:
        try:
            connection = socket.create_connection(address, timeout=_CONNECT_S)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise VnetStandbyError(
                    f"the guest does not take a TCP connection within {_CONNECT_S} s"
                ) from None
            time.sleep(_RETRY_S)  # nothing tells when it listens
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, round(rate_mib_s * (1 << 20)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BACKLOG_BYTES)
    return connection


def write(run: Path, samples: Sequence[Sample]) -> None:
    """Write the record."""
    with (run / RECORD).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Sample._fields)
        writer.writerows(samples)


def read(run: Path) -> list[Sample] | None:
    """Read the record of a run; None if it had no such stream."""
    path = run / RECORD
    if not path.exists():
        return None
    with path.open(newline="") as file:
        try:
            return [
                Sample(*(int(row[field]) for field in Sample._fields))
                for row in csv.DictReader(file)
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise VnetStandbyError(f"{path} is malformed: {error}; measure again") from error


def throughput(samples: Sequence[Sample], migrate_ns: int, resume_ns: int) -> Throughput | None:
    """Judge a stream by when the migration was asked for and when the guest resumed.

    None if there is too little of it in one of the three stretches.
    """
    if not samples:
        return None
    begin_ns = samples[0].host_ns + round(_SETTLED_S * 1e9)
    end_ns = resume_ns + round(_AFTERMATH_S * 1e9)
    before = _between(samples, begin_ns, migrate_ns)
    through = _between(samples, migrate_ns, resume_ns)
    after = _between(samples, resume_ns, end_ns)
    if min(map(len, (before, through, after))) < 2:
        return None
    migration = [*through, *after]
    return Throughput(
        before_mib_s=_mib_s(before),
        through_mib_s=_mib_s(through),
        after_mib_s=_mib_s(after),
        longest_stall_ms=_longest_stall_ms(migration),
        retransmitted=migration[-1].retransmitted - migration[0].retransmitted,
        doubled=migration[-1].doubled - migration[0].doubled,
    )


def _between(samples: Sequence[Sample], start_ns: int, end_ns: int) -> list[Sample]:
    return [sample for sample in samples if start_ns <= sample.host_ns <= end_ns]


def _mib_s(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    acked = last.acked_bytes - first.acked_bytes
    return acked / (1 << 20) / ((last.host_ns - first.host_ns) / 1e9)


def _longest_stall_ms(samples: Sequence[Sample]) -> float:
    since, longest = samples[0].host_ns, 0
    for before, now in pairwise(samples):
        longest = max(longest, now.host_ns - since)
        if now.acked_bytes > before.acked_bytes:
            since = now.host_ns
    return longest / 1e6


def main(arguments: list[str] | None = None) -> int:
    """Run as a program; the exit status is 0 if the record was written."""
    parser = argparse.ArgumentParser(prog="tcp", description="Send a TCP stream to the guest.")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="an existing folder"
    )
    parser.add_argument("--rate", type=float, required=True, metavar="MIB/S", help="at most")
    options = parser.parse_args(arguments)
    stop = Stop()
    try:
        with connect((GUEST_ADDRESS, GUEST_TCP_PORT), options.rate) as connection:
            print("ready", flush=True)
            write(options.output, stream(connection, stop))
    except (VnetStandbyError, OSError) as error:
        print(f"tcp: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
