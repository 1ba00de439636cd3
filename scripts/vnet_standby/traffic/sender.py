# SPDX-License-Identifier: GPL-2.0-or-later
"""The peer's side of the traffic: sends numbered probes to the guest at a steady rate.

    python -m vnet_standby.traffic.sender --interface peer --source-mac MAC --destination-mac MAC --rate 200

Runs until SIGTERM, SIGINT or the end of standard input, then prints one line of JSON: the probes sent, the slots
skipped, and how late the latest probe left (ms).

Each probe has a slot on a grid of absolute times, so the rate does not drift. After a stall the late probes follow
at twice the rate until the grid is caught up: a burst would look like a fabric that had held frames back, and leaving
them out would make holes under load. Only a stall beyond CATCH_UP_NS skips slots. Only what is sent is numbered, so a
skipped slot is no lost probe; the capture's time stamps say when each one really left.
"""

import argparse
import contextlib
import json
import os
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.probe import DEFAULT_SIZE, MAX_SIZE, MIN_SIZE, PEER_PORT, Template
from vnet_standby.traffic.stop import Stop

CATCH_UP_NS: Final = 100_000_000
"""How late a probe may leave and still be followed by all others."""


@dataclass
class Sent:
    """What a sender did."""

    sent: int = 0
    skipped: int = 0
    late_ms_max: float = 0.0


def hold_port() -> socket.socket:
    """Bind the UDP port that the guest sends to, or the kernel would answer each probe with an ICMP error.

    Nobody reads it; a full buffer is dropped without an answer.
    """
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    try:
        port.bind(("", PEER_PORT))
    except OSError as error:
        port.close()
        raise VnetStandbyError(
            f"can't bind UDP port {PEER_PORT}: {error.strerror}; is another sender running here?"
        ) from error
    return port


def open_link(interface: str) -> socket.socket:
    """Open a packet socket that sends on `interface`."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        link.bind((interface, 0))
    except OSError as error:
        link.close()
        raise VnetStandbyError(
            f"can't send on interface {interface}: {error.strerror}; name one of this network namespace"
        ) from error
    return link


def hurry() -> None:
    """Ask for real-time or at least better scheduling; without permission the sender works, with more jitter."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return
    with contextlib.suppress(PermissionError):
        os.nice(-5)


def stream(link: socket.socket, template: Template, rate: float, stop: Stop) -> Sent:
    """Send `rate` probes a second until told to stop."""
    result = Sent()
    interval = round(1e9 / rate)
    slot = earliest = time.monotonic_ns() + interval
    while True:
        pause = max(slot, earliest) - time.monotonic_ns()
        readable, _, _ = select.select(stop.fds, (), (), max(0, pause) / 1e9)
        if stop.requested(readable):
            return result
        now = time.monotonic_ns()
        if now < max(slot, earliest):
            continue
        link.send(template.patch(result.sent, time.time_ns()))
        result.sent += 1
        result.late_ms_max = max(result.late_ms_max, (now - slot) / 1e6)
        skip = max(0, now - slot - CATCH_UP_NS) // interval
        result.skipped += skip
        slot += (skip + 1) * interval
        earliest = now + interval // 2


def wait(stop: Stop) -> Sent:
    """Send nothing until told to stop: the guest's stream is measured alone."""
    while not stop.requested(select.select(stop.fds, (), ())[0]):
        pass
    return Sent()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="sender", description="Send numbered probes to the guest."
    )
    parser.add_argument(
        "--interface", required=True, help="the peer's interface in this network namespace"
    )
    parser.add_argument("--source-mac", required=True, help="the peer's MAC address")
    parser.add_argument("--destination-mac", required=True, help="the guest's MAC address")
    parser.add_argument(
        "--rate", type=float, required=True, help="probes a second; 0 only holds the UDP port"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=DEFAULT_SIZE,
        help=f"UDP payload in bytes, default {DEFAULT_SIZE}",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.rate <= 100_000:
        parser.error("--rate must be from 0 to 100000")
    if not MIN_SIZE <= options.size <= MAX_SIZE:
        parser.error(f"--size must be from {MIN_SIZE} to {MAX_SIZE}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run as a program; the exit status is 0 unless it couldn't send."""
    options = parse_arguments(arguments)
    stop = Stop()
    try:
        with hold_port(), open_link(options.interface) as link:
            if options.rate:
                template = Template(options.source_mac, options.destination_mac, options.size)
                hurry()
                result = stream(link, template, options.rate, stop)
            else:
                result = wait(stop)
    except VnetStandbyError as error:
        print(f"sender: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"sender: can't send on {options.interface}: {error.strerror}; is it up?",
            file=sys.stderr,
        )
        return 1
    print(json.dumps(asdict(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
