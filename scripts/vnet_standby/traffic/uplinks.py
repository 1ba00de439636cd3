# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells apart the two datapaths that share the uplink of an emulated host.

Nested hosts are captured outside, at the wires of their PFs, where the standby's frames (PF, bridge, tap) and the VF's
look the same. What each host's tap carried tells them apart: a frame at the port HOST-uplink that the tap has, too,
went by HOST-standby. Any other is taken for one of the VF, HOST-primary: nothing inside the host records those. On a
host where the VM can't have a VF it went nowhere, and keeps the uplink's name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from vnet_standby.traffic.records import (
    Records,
    Role,
    Settings,
    Sighting,
    TapFrames,
    host_of,
)
from vnet_standby.traffic.timeline import WITHOUT_PRIMARY

STANDBY: Final = "standby"
PRIMARY: Final = "primary"
UPLINK: Final = "uplink"
_DESTINATION: Final = "b"
"""The host that the run's `destination_primary` is about."""


@dataclass(frozen=True)
class _Ways:
    """The names of the two ways that share an uplink."""

    standby: str
    other: str
    tap: TapFrames


def resolve(records: Records) -> Records:
    """Return records whose ports are the datapaths; those of a flat run are so already."""
    settings = records.settings
    ways = {
        port: _ways(port, settings, records.taps[host_of(port)])
        for port, role in settings.ports.items()
        if role == UPLINK
    }
    ports = dict(_ports(settings, ways))
    return replace(
        records,
        settings=replace(settings, ports=ports),
        sightings=tuple(_resolved(sighting, ways) for sighting in records.sightings),
    )


def _ways(port: str, settings: Settings, tap: TapFrames) -> _Ways:
    host = host_of(port)
    other = f"{host}-{PRIMARY}" if _may_have_vf(host, settings) else port
    return _Ways(f"{host}-{STANDBY}", other, tap)


def _may_have_vf(host: str, settings: Settings) -> bool:
    whole_nic = any(
        role == PRIMARY and host_of(port) == host for port, role in settings.ports.items()
    )
    nothing = host == _DESTINATION and settings.destination_primary == "none"
    return settings.guest != WITHOUT_PRIMARY and not whole_nic and not nothing


def _ports(settings: Settings, ways: dict[str, _Ways]) -> Iterator[tuple[str, Role]]:
    for port, role in settings.ports.items():
        if port in ways:
            yield ways[port].standby, STANDBY
            yield ways[port].other, UPLINK if ways[port].other == port else PRIMARY
        else:
            yield port, role


def _resolved(sighting: Sighting, ways: dict[str, _Ways]) -> Sighting:
    way = ways.get(sighting.interface)
    if way is None:
        return sighting
    on_tap = (sighting.to_guest, sighting.seq) in way.tap
    return sighting._replace(interface=way.standby if on_tap else way.other)
