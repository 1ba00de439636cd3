# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP stream to the guest: a program that sends and notes what the guest has acknowledged, and what that tells.

    python -m vnet_standby.traffic.tcp --output DIR --rate MIB/S

It ends like the other traffic programs (see `Stop`), and writes tcp.csv then: a line a sample, "host_ns,acked_bytes".
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
from typing import Final

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
# linux/tcp.h, struct tcp_info: 8 bytes and 24 words, two rates, then tcpi_bytes_acked
_ACKED_AT = 120
_INFO_SIZE = _ACKED_AT + 8
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h

_SETTLED_S = 1.0
"""At first TCP probes for what the path can take."""
_AFTERMATH_S = 5.0
"""How long after RESUME is still "through the migration": the failback is in it."""


def stream(connection: socket.socket, stop: Stop) -> list[tuple[int, int]]:
    """Send until told to stop; return the samples (ns of the host's clock, bytes acknowledged)."""
    samples: list[tuple[int, int]] = []
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
            samples.append((time.time_ns(), acked_bytes(connection)))
            due = max(due + _SAMPLE_S, time.monotonic())


def acked_bytes(connection: socket.socket) -> int:
    """Return how much of what was sent the other end has acknowledged."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    return int(struct.unpack_from("=Q", info, _ACKED_AT)[0])


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


def write(run: Path, samples: Sequence[tuple[int, int]]) -> None:
    """Write the record."""
    lines = [f"{time_ns},{acked}" for time_ns, acked in samples]
    (run / RECORD).write_text("\n".join(["host_ns,acked_bytes", *lines]) + "\n")


def read(run: Path) -> list[tuple[int, int]] | None:
    """Read the record of a run; None if it had no such stream."""
    path = run / RECORD
    if not path.exists():
        return None
    with path.open(newline="") as file:
        try:
            return [(int(row["host_ns"]), int(row["acked_bytes"])) for row in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError) as error:
            raise VnetStandbyError(f"{path} is malformed: {error}; measure again") from error


def throughput(
    samples: Sequence[tuple[int, int]], migrate_ns: int, resume_ns: int
) -> Throughput | None:
    """Judge a stream by when the migration was asked for and when the guest resumed.

    None if there is too little of it before or after that.
    """
    if not samples:
        return None
    begin_ns = samples[0][0] + round(_SETTLED_S * 1e9)
    end_ns = resume_ns + round(_AFTERMATH_S * 1e9)
    before = [sample for sample in samples if begin_ns <= sample[0] <= migrate_ns]
    through = [sample for sample in samples if migrate_ns <= sample[0] <= end_ns]
    if len(before) < 2 or len(through) < 2:
        return None
    return Throughput(_mib_s(before), _mib_s(through), _longest_stall_ms(through))


def _mib_s(samples: Sequence[tuple[int, int]]) -> float:
    (start_ns, first), (end_ns, last) = samples[0], samples[-1]
    return (last - first) / (1 << 20) / ((end_ns - start_ns) / 1e9)


def _longest_stall_ms(samples: Sequence[tuple[int, int]]) -> float:
    since, longest = samples[0][0], 0
    for (_, before), (now_ns, acked) in pairwise(samples):
        longest = max(longest, now_ns - since)
        if acked > before:
            since = now_ns
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
