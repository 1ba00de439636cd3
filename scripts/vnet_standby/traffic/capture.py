# SPDX-License-Identifier: GPL-2.0-or-later
"""Records every probe that the host's kernel sees on some interfaces, with kernel time stamps and direction.

    python -m vnet_standby.traffic.capture --output DIR --interface peer --interface a-standby ...

Prints "ready" once all interfaces are watched. Runs until SIGTERM, SIGINT or the end of standard input, then writes
DIR/capture.pcapng (ordered by time; direction in the packet flags, from the host's view) and DIR/capture.json (per
interface: frames kept, frames that the kernel dropped for want of buffer, times that the interface went down).
"""

import argparse
import ctypes
import errno
import json
import select
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from scapy.utils import RawPcapNgWriter

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.probe import GUEST_PORT, PEER_PORT
from vnet_standby.traffic.stop import Stop

# from <asm-generic/socket.h>, <linux/if_packet.h>, <linux/if_ether.h>; Python's socket module lacks them
SO_ATTACH_FILTER: Final = 26
SO_RCVBUFFORCE: Final = 33
SO_TIMESTAMPNS: Final = 35
SOL_PACKET: Final = 263
PACKET_STATISTICS: Final = 6
ETH_P_ALL: Final = 0x0003

INBOUND: Final = 1
OUTBOUND: Final = 2
"""Directions as in the flags word of pcapng's Enhanced Packet Block."""

BUFFER: Final = 32 << 20
"""Bytes that the kernel may queue for one interface: seconds of traffic, should this process not get a CPU."""
LARGEST_FRAME: Final = 2048
BATCH: Final = 512
"""Frames read from one interface before the others have their turn."""
LINKTYPE_ETHERNET: Final = 1

_TIMESPEC = struct.Struct("@ll")
_RECORD = struct.Struct("=QBBH")
"""A spooled frame's head: time (ns), number of the interface, direction, length."""


def _instruction(code: int, jt: int, jf: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)  # struct sock_filter


# Classic BPF for "ip and udp and not a later fragment and dst port 47000 or 47001"; jumps count instructions to skip.
FILTER: Final = b"".join(
    (
        _instruction(0x28, 0, 0, 12),  # ldh [12]             ethertype
        _instruction(0x15, 0, 9, 0x0800),  # jeq IPv4             else reject
        _instruction(0x30, 0, 0, 23),  # ldb [23]             protocol
        _instruction(0x15, 0, 7, 17),  # jeq UDP              else reject
        _instruction(0x28, 0, 0, 20),  # ldh [20]             fragment field
        _instruction(0x45, 5, 0, 0x1FFF),  # jset offset          then reject
        _instruction(0xB1, 0, 0, 14),  # ldxb 4*([14]&0xf)    x = length of the IPv4 header
        _instruction(0x48, 0, 0, 16),  # ldh [x + 16]         destination port
        _instruction(0x15, 1, 0, PEER_PORT),  # jeq peer             then accept
        _instruction(0x15, 0, 1, GUEST_PORT),  # jeq guest            else reject
        _instruction(0x06, 0, 0, LARGEST_FRAME),  # ret                  accept
        _instruction(0x06, 0, 0, 0),  # ret 0                reject
    )
)


class SniffedFrame(bytes):
    """A frame with the attributes that scapy's pcapng writer looks for."""

    sniffed_on: str
    direction: int

    def __new__(cls, frame: bytes | bytearray, sniffed_on: str, direction: int) -> Self:
        """Take the frame's bytes, the interface's name, and INBOUND or OUTBOUND."""
        new = super().__new__(cls, frame)
        new.sniffed_on, new.direction = sniffed_on, direction
        return new


class Tap:
    """One watched interface."""

    def __init__(self, name: str) -> None:
        """Watch the interface `name` from now on."""
        self.name = name
        self.kept = 0
        self.went_down = 0
        # protocol 0: nothing is queued until bind(), when filter and time stamps are in place
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._set_up()
        except OSError as error:
            self.socket.close()
            raise VnetStandbyError(
                f"can't capture on interface {name}: {error.strerror}; create it before the capture starts"
            ) from error

    def _set_up(self) -> None:
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        except PermissionError:  # in a user namespace the limit net.core.rmem_max stands
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        program = ctypes.create_string_buffer(FILTER, len(FILTER))
        count = len(FILTER) // 8
        self.socket.setsockopt(
            socket.SOL_SOCKET,
            SO_ATTACH_FILTER,
            struct.pack("@HP", count, ctypes.addressof(program)),
        )
        self.socket.bind((self.name, ETH_P_ALL))

    def read(self, number: int, spool: bytearray) -> bool:
        """Move up to `BATCH` frames to the spool, as interface `number`; whether there may be more."""
        for _ in range(BATCH):
            try:
                frame, ancillary, _flags, address = self.socket.recvmsg(LARGEST_FRAME, 64)
            except BlockingIOError:
                return False
            except OSError as error:
                # reported once when the interface goes down or away; the socket works again when it comes up
                if error.errno not in {errno.ENETDOWN, errno.ENXIO}:
                    raise
                self.went_down += 1
                continue
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
            direction = OUTBOUND if address[2] == socket.PACKET_OUTGOING else INBOUND
            spool += _RECORD.pack(
                seconds * 1_000_000_000 + nanoseconds, number, direction, len(frame)
            )
            spool += frame
            self.kept += 1
        return True

    def dropped(self) -> int:
        """Frames that the kernel dropped because the buffer was full; asking resets the kernel's counter."""
        _packets, drops = struct.unpack(
            "=II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        )
        return int(drops)


def record(taps: list[Tap], stop: Stop) -> bytearray:
    """Spool frames until told to stop, and then what the kernel still has."""
    spool = bytearray()
    numbers = {tap.socket.fileno(): number for number, tap in enumerate(taps)}
    watched = (*stop.fds, *numbers)
    while True:
        readable, _, _ = select.select(watched, (), ())
        for fd in readable:
            if fd in numbers:
                taps[numbers[fd]].read(numbers[fd], spool)
        if stop.requested(readable):
            break
    for number, tap in enumerate(taps):
        while tap.read(number, spool):
            pass
    return spool


def frames(spool: bytearray, names: Sequence[str]) -> Iterator[tuple[int, SniffedFrame]]:
    """Yield time (ns) and frame in order of time; `names` are the interfaces by their numbers."""
    index = []
    offset = 0
    while offset < len(spool):
        time_ns, _number, _direction, length = _RECORD.unpack_from(spool, offset)
        index.append((time_ns, offset))
        offset += _RECORD.size + length
    for time_ns, at in sorted(index):
        _, number, direction, length = _RECORD.unpack_from(spool, at)
        start = at + _RECORD.size
        yield time_ns, SniffedFrame(spool[start : start + length], names[number], direction)


def write_pcapng(path: Path, timed_frames: Iterable[tuple[int, SniffedFrame]]) -> None:
    """Write frames with their times (ns; kept to the microsecond) as pcapng."""
    with RawPcapNgWriter(str(path)) as writer:
        writer.linktype = LINKTYPE_ETHERNET
        writer.write_header(None)
        for time_ns, frame in timed_frames:
            writer.write_packet(frame, sec=time_ns / 1e9)


def write(directory: Path, taps: list[Tap], spool: bytearray) -> None:
    """Write the spooled frames and the counters to `directory`."""
    write_pcapng(directory / "capture.pcapng", frames(spool, [tap.name for tap in taps]))
    counts = {
        tap.name: {"kept": tap.kept, "dropped": tap.dropped(), "went_down": tap.went_down}
        for tap in taps
    }
    (directory / "capture.json").write_text(json.dumps(counts, indent=2) + "\n")


def run(directory: Path, interfaces: list[str]) -> None:
    """Capture until told to stop; raises VnetStandbyError if an interface can't be watched."""
    stop = Stop()
    taps: list[Tap] = []
    try:
        for name in interfaces:
            taps.append(Tap(name))
        print("ready", flush=True)
        spool = record(taps, stop)
        write(directory, taps, spool)
    finally:
        for tap in taps:
            tap.socket.close()


def main(arguments: list[str] | None = None) -> int:
    """Run as a program; the exit status is 0 if both files were written."""
    parser = argparse.ArgumentParser(
        prog="capture", description="Record the probes seen on some interfaces."
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="an existing folder"
    )
    parser.add_argument(
        "--interface", action="append", required=True, help="may be given several times"
    )
    options = parser.parse_args(arguments)
    if not options.output.is_dir():
        print(f"capture: no such folder: {options.output}; create it first", file=sys.stderr)
        return 1
    try:
        run(options.output, options.interface)
    except VnetStandbyError as error:
        print(f"capture: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"capture: can't record to {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
