# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the folder that measuring a run has written; says which file and line is wrong where one is.

All times are nanoseconds since the epoch, on the host's clock unless a name says `guest`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapNgReader

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.probe import NUMBERED, parse
from vnet_standby.traffic.verdict import DIRECTIONS

PEER: Final = "peer"
"""The capture's name for the peer's own interface; all others are ports of hosts."""
LAB: Final = "lab"
"""Who reports what the harness itself did."""
GUEST: Final = "guest"
"""Who reports link changes in the guest; all others that report events are the hosts' QEMUs."""

Topology = Literal["flat", "nested"]
Role = Literal["standby", "primary", "uplink"]
"""What a port carries: one of the datapaths or, of an emulated host, both of them."""
Traffic = Literal["both", "to-guest", "from-guest"]
TapFrames = frozenset[tuple[bool, int]]
"""Whether it goes to the guest, and its number: the probes that the standby's tap in an emulated host carried."""

_PCAPNG_OUTBOUND: Final = 2
_TAP_FIELDS: Final = ("seq", "direction", "host_ns")


@dataclass(frozen=True)
class Settings:
    """What judging needs to know of how a run was set up."""

    rate_hz: float
    traffic: Traffic
    guest: str
    ports: Mapping[str, Role]
    topology: Topology = "flat"
    destination_primary: str = "same"
    """The primary on host b: "same" as on host a, "none", or another model's name."""
    clock_errors_ms: Mapping[str, float] = field(default_factory=dict)
    """By how much an emulated host's events may be off the lab's clock."""

    @property
    def interval_ns(self) -> int:
        """The time between two probes."""
        return round(1e9 / self.rate_hz)


@dataclass(frozen=True)
class Event:
    """Something that a QEMU or the lab reported."""

    time_ns: int
    who: str
    name: str
    data: Mapping[str, Any]


class Sighting(NamedTuple):
    """One numbered probe, seen by the host's kernel on one interface."""

    time_ns: int
    interface: str
    outbound: bool
    to_guest: bool
    seq: int


class Received(NamedTuple):
    """One probe that the guest's socket received."""

    seq: int
    guest_ns: int


class Sent(NamedTuple):
    """One probe that the guest tried to send; `errno` is 0 if its kernel took it."""

    seq: int
    guest_ns: int
    errno: int


class ClockSample(NamedTuple):
    """The guest's clock as read in the guest, and when the host got to know."""

    host_ns: int
    guest_ns: int


@dataclass(frozen=True)
class Records:
    """A run's raw records."""

    settings: Settings
    events: tuple[Event, ...]
    sightings: tuple[Sighting, ...]
    dropped: Mapping[str, int]
    """Frames that the kernel dropped for want of buffer, per captured interface."""
    received: tuple[Received, ...]
    """In order of arrival."""
    sent: tuple[Sent, ...]
    clock: tuple[ClockSample, ...]
    taps: Mapping[str, TapFrames]
    """Per emulated host, what its standby's tap carried; empty if the hosts are not emulated."""


def read_run(run: Path) -> Records:
    """Read the records of one run; raises VnetStandbyError naming the file and line that can't be used."""
    if not run.is_dir():
        raise VnetStandbyError(f"{run}: no such folder; give the folder that a run has left")
    settings = _settings(run / "run.json")
    kept, dropped = _counts(run / "capture.json", (PEER, *settings.ports))
    return Records(
        settings=settings,
        events=_events(run / "events.jsonl"),
        sightings=_sightings(run / "capture.pcapng", kept),
        dropped=dropped,
        received=tuple(
            Received(*row) for row in _rows(run / "guest-received.csv", Received._fields)
        ),
        sent=tuple(Sent(*row) for row in _rows(run / "guest-sent.csv", Sent._fields)),
        clock=tuple(
            ClockSample(*row) for row in _rows(run / "guest-clock.csv", ClockSample._fields)
        ),
        taps={host: _tap(run / f"{host}-tap.csv") for host in _emulated_hosts(settings)},
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise VnetStandbyError(
            f"{path}: {error.strerror}; the run's records are incomplete"
        ) from error
    except UnicodeDecodeError as error:
        raise VnetStandbyError(f"{path}: not UTF-8 text; the run's records are damaged") from error


def _object(path: Path, text: str, line: int = 1) -> dict[str, Any]:
    """Read one JSON object whose text begins at `line` of the file."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise VnetStandbyError(
            f"{path}:{line + error.lineno - 1}: not JSON: {error.msg}"
        ) from error
    if not isinstance(value, dict):
        raise VnetStandbyError(f"{path}:{line}: must be a JSON object")
    return value


def _settings(path: Path) -> Settings:
    value = _object(path, _text(path))
    rate = value.get("rate_hz")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise VnetStandbyError(f'{path}: "rate_hz" must be a number above 0')
    if value.get("traffic") not in get_args(Traffic):
        raise VnetStandbyError(f'{path}: "traffic" must be one of {", ".join(get_args(Traffic))}')
    guest = value.get("guest")
    if not isinstance(guest, str):
        raise VnetStandbyError(f'{path}: "guest" must be the kind of guest')
    topology = value.get("topology", "flat")
    if topology not in get_args(Topology):
        raise VnetStandbyError(f'{path}: "topology" must be one of {", ".join(get_args(Topology))}')
    roles = [role for role in get_args(Role) if role != "uplink" or topology == "nested"]
    ports = value.get("ports")
    if not isinstance(ports, dict) or not ports:
        raise VnetStandbyError(f'{path}: "ports" must map each port of the bridge to its role')
    for port, role in ports.items():
        if role not in roles:
            raise VnetStandbyError(f'{path}: port "{port}" must be one of {", ".join(roles)}')
    return Settings(
        rate_hz=float(rate),
        traffic=value["traffic"],
        guest=guest,
        ports=ports,
        topology=topology,
        destination_primary=str(value.get("destination_primary", "same")),
        clock_errors_ms=_clock_errors_ms(path, value.get("clocks", {})),
    )


def _clock_errors_ms(path: Path, clocks: Any) -> dict[str, float]:
    errors = {}
    for host, clock in clocks.items() if isinstance(clocks, dict) else [("", None)]:
        error = clock.get("error_ms") if isinstance(clock, dict) else None
        if isinstance(error, bool) or not isinstance(error, int | float) or not error >= 0:
            raise VnetStandbyError(
                f'{path}: "clocks" must give each host\'s "error_ms", a number of at least 0'
            )
        errors[host] = float(error)
    return errors


def _emulated_hosts(settings: Settings) -> list[str]:
    """The hosts of which only the uplink is captured."""
    return [host_of(port) for port, role in settings.ports.items() if role == "uplink"]


def host_of(port: str) -> str:
    """The host that a port belongs to: "a" of "a-primary"."""
    return port.partition("-")[0]


def _events(path: Path) -> tuple[Event, ...]:
    events = [
        _event(path, number, line)
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip()
    ]
    return tuple(sorted(events, key=lambda event: event.time_ns))


def _event(path: Path, number: int, line: str) -> Event:
    value = _object(path, line, number)
    time, who, name, data = (value.get(key) for key in ("t", "who", "event", "data"))
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise VnetStandbyError(f'{path}:{number}: "t" must be a time in seconds')
    if not isinstance(who, str) or not isinstance(name, str):
        raise VnetStandbyError(f'{path}:{number}: "who" and "event" must be texts')
    if not isinstance(data, dict):
        raise VnetStandbyError(f'{path}:{number}: "data" must be a JSON object')
    if (who, name) == (LAB, "migrate") and not all(
        isinstance(data.get(key), str) for key in ("from", "to")
    ):
        raise VnetStandbyError(f'{path}:{number}: "migrate" must say "from" and "to" which host')
    return Event(round(time * 1e9), who, name, data)


def _counts(path: Path, expected: tuple[str, ...]) -> tuple[Counter[str], dict[str, int]]:
    """Frames kept and frames dropped, per interface."""
    kept: Counter[str] = Counter()
    dropped = {}
    numbers: list[Any]
    for interface, counts in _object(path, _text(path)).items():
        numbers = (
            [counts.get(key) for key in ("kept", "dropped")] if isinstance(counts, dict) else []
        )
        if len(numbers) != 2 or not all(type(number) is int for number in numbers):
            raise VnetStandbyError(
                f'{path}: "{interface}" must have the numbers "kept" and "dropped"'
            )
        kept[interface], dropped[interface] = numbers
    missing = [interface for interface in expected if interface not in dropped]
    if missing:
        raise VnetStandbyError(
            f"{path}: {', '.join(missing)} not captured; the run can't be judged"
        )
    return kept, dropped


def _sightings(path: Path, kept: Counter[str]) -> tuple[Sighting, ...]:
    """The numbered probes in the capture, after checking that it is complete."""
    read: Counter[str] = Counter()
    sightings = []
    for time_ns, interface, outbound, frame in read_frames(path):
        read[interface] += 1
        probe = parse(frame)
        if probe and probe.kind == NUMBERED:
            sightings.append(Sighting(time_ns, interface, outbound, probe.to_guest, probe.seq))
    for interface, count in kept.items():
        if read[interface] != count:
            raise VnetStandbyError(
                f"{path}: {read[interface]} frames of {interface}, but capture.json says {count}; it is cut off"
            )
    return tuple(sightings)


def read_frames(path: Path) -> Iterator[tuple[int, str, bool, bytes]]:
    """Yield a capture's frames: time (ns), interface, whether outbound from the host's view, bytes."""
    try:
        with RawPcapNgReader(str(path)) as reader:
            meta: Any
            for frame, meta in reader:
                ticks = meta.tshigh << 32 | meta.tslow
                name = meta.ifname.decode() if meta.ifname else "(unnamed)"
                yield (
                    ticks * 1_000_000_000 // meta.tsresol,
                    name,
                    meta.direction == _PCAPNG_OUTBOUND,
                    frame,
                )
    except OSError as error:
        raise VnetStandbyError(
            f"{path}: {error.strerror}; the run's records are incomplete"
        ) from error
    except (Scapy_Exception, AttributeError, TypeError, UnicodeDecodeError) as error:
        # a damaged or older pcap file comes as the reader's own error or as a frame without metadata
        raise VnetStandbyError(f"{path}: not a pcapng capture of this program: {error}") from error


def _tap(path: Path) -> TapFrames:
    """The probes that a tap carried; when does not matter, and the time is by another clock."""
    frames = set()
    for number, (seq, direction, time) in _lines(path, _TAP_FIELDS):
        if direction not in DIRECTIONS or not (seq.isdecimal() and time.isdecimal()):
            raise VnetStandbyError(
                f"{path}:{number}: must be a number, {' or '.join(DIRECTIONS)}, and a time"
            )
        frames.add((direction == "to_guest", int(seq)))
    return frozenset(frames)


def _rows(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the rows of a CSV file of integers."""
    for number, cells in _lines(path, fields):
        try:
            yield tuple(map(int, cells))
        except ValueError as error:
            raise VnetStandbyError(f'{path}:{number}: not integers: "{",".join(cells)}"') from error


def _lines(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield the numbers and cells of a CSV file's lines."""
    text = _text(path)
    lines = text.split("\n")
    header = ",".join(fields)
    if lines[0] != header:
        raise VnetStandbyError(f'{path}:1: the header must be "{header}"')
    if lines.pop():
        raise VnetStandbyError(f"{path}:{len(lines) + 1}: the line is cut off")
    for number, line in enumerate(lines[1:], 2):
        cells = line.split(",")
        if len(cells) != len(fields):
            raise VnetStandbyError(f"{path}:{number}: must have {len(fields)} fields, {header}")
        yield number, cells
