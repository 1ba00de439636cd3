# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent does to its host for one pair; each of these blocks, and changes all or nothing.

The order is always: the new path first, the old path's end marker behind it, then QEMU is told (by the caller).
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Change, Transaction, undo_all
from vnet_standby.host.fabric import Fabric, hand_over, outward, steer, where
from vnet_standby.host.frames import Outlet, announcement, end_marker
from vnet_standby.host.host import Host
from vnet_standby.host.network import Datapath, Link

QUEUE_LENGTH = 16384
"""Frames that wait in the tap of a VM that is being migrated here: 100,000 a second for a blackout of 160 ms."""


@dataclass(frozen=True)
class Moved:
    """A fabric has moved. Times are CLOCK_REALTIME in seconds."""

    began: float
    moved: float
    changed: Sequence[str]
    marked: float | None
    """When the end marker was sent; None if there is none."""
    unmarked: str = ""
    """Why there is no end marker, though there should be one."""


@dataclass(frozen=True)
class Taken:
    """A MAC was taken over from another host, or from another port of the bridge."""

    fabric: Fabric
    began: float
    moved: float
    done: tuple[Change, ...]
    announced_on: tuple[str, ...]


def follow(host: Host, fabric: Fabric, to: Datapath, *, mark: bool) -> Moved:
    """Point the fabric at the new datapath, then send the end marker on the old one.

    What the switches outside still send by this host's uplink when the guest is already on a NIC of its own, or again
    when it has just left that, is for the tap in either case: the bridge goes on pointing there.
    """
    began = time.time()
    outlet, unmarked = _old_path(fabric, to) if mark else (None, "")
    try:
        with Transaction() as change:
            steer(host, change, fabric, "standby" if fabric.outside else to)
        moved = time.time()
        if to == "standby" and fabric.outside:
            announce(host, fabric, (fabric.outside.name,))
        if outlet is None:
            return Moved(began, moved, change.changed, None, unmarked)
        # A frame that looked up the bridge's table before it changed is behind the marker only if its processor was
        # held up since, between two lines of br_forward.c; waiting for that (a grace period, 8 ms and more) would make
        # the driver hold more frames than it may, at rates where such a frame is likely.
        try:
            outlet[0].send(end_marker(outlet[1], _other(to)))
        except VnetStandbyError as error:
            return Moved(began, moved, change.changed, None, str(error))
        return Moved(began, moved, change.changed, time.time())
    finally:
        if outlet:
            outlet[0].close()


def take(host: Host, fabric: Fabric, uplinks: tuple[str, ...]) -> Taken:
    """Point this host at the standby of a VM that has come, or comes back, and the outer switches at this host."""
    began = time.time()
    with Transaction() as change:
        steer(host, change, fabric, "standby")
    moved = time.time()
    return Taken(fabric, began, moved, change.done, announce(host, fabric, uplinks))


def give_back(host: Host, taken: Taken) -> list[str]:
    """Undo `take`; return what could not be undone. If somebody else has the MAC by now it stays there."""
    host.network.reread()
    if where(host, taken.fabric) == "primary":
        return []
    entries = {entry.port for entry in host.network.bridge_entries(taken.fabric.mac)}
    mine = taken.fabric.tap.index
    return undo_all(taken.done) if mine in entries or not entries else []


def announce(host: Host, fabric: Fabric, uplinks: tuple[str, ...]) -> tuple[str, ...]:
    """Tell the switches beyond this host that the MAC is here; return by which ports."""
    ports = outward(host, fabric, uplinks)
    for port in ports:
        outlet = Outlet(port)
        try:
            for frame in _announcements(host, fabric, port):
                outlet.send(frame)
        finally:
            outlet.close()
    return tuple(port.name for port in ports)


def leave(host: Host, fabric: Fabric, uplinks: tuple[str, ...], *, to_wire: bool) -> list[str]:
    """Give the MAC up because its VM has gone: to the wire while the source still runs, else altogether."""
    host.network.reread()
    ports = outward(host, fabric, uplinks)
    with Transaction() as change:
        hand_over(host, change, fabric, ports[0] if to_wire and len(ports) == 1 else None)
    return change.changed


def lengthen_queue(host: Host, tap: Link) -> int:
    """Let more frames wait in a tap; return how many could before."""
    before = host.network.queue_length(tap)
    if before < QUEUE_LENGTH:
        host.network.set_queue_length(tap, QUEUE_LENGTH)
    return before


def restore_queue(host: Host, tap_name: str, frames: int) -> None:
    """Undo `lengthen_queue`; the tap may be gone."""
    host.network.reread()
    for tap in host.network.links().values():
        if tap.name == tap_name:
            host.network.set_queue_length(tap, frames)


def _old_path(fabric: Fabric, to: Datapath) -> tuple[tuple[Outlet, str] | None, str]:
    """A way for the end marker, open before the fabric moves, and to whom it goes; or why there is none."""
    last = fabric.last_on(_other(to))
    if last is None:
        return None, f"no way to put a frame behind the last one on the {_other(to)}"
    try:
        return (Outlet(last[0]), last[1]), ""
    except VnetStandbyError as error:
        return None, str(error)


def _announcements(host: Host, fabric: Fabric, port: Link) -> Iterable[bytes]:
    if fabric.vlans == (None,):
        return [announcement(fabric.mac)]
    there, untagged = set(host.network.vlans(port)), host.network.untagged(port)
    vlans = [vlan for vlan in fabric.vlans if vlan in there]
    return [announcement(fabric.mac, None if vlan in untagged else vlan) for vlan in vlans]


def _other(datapath: Datapath) -> Datapath:
    return "primary" if datapath == "standby" else "standby"
