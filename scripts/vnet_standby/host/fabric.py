# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointing a host's fabric for one MAC at the VF or at the tap.

Three things decide where this host delivers a frame: the VF's filter in the PF's embedded switch (frames from the wire,
and from other VFs), the PF's own further addresses (frames from other VFs), and the bridge's table (everything that the
bridge has). To the standby they move in that order of "make before break": first the bridge learns of the tap, then the
VF's filter goes to an alias; from then on unmatched frames come to the PF, which a bridge keeps promiscuous, and so to
the tap. To the primary it is the other way round. Nothing is lost on the way, because the guest takes unicast on both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Change, Transaction
from vnet_standby.host.drivers import DRIVERS, PfDriver, pf_driver
from vnet_standby.host.host import Host, VfPlace
from vnet_standby.host.mac import alias, is_for
from vnet_standby.host.network import FdbEntry, Link, steered

Datapath = Literal["primary", "standby"]

_NO_VF_NOTE = "no VF of this host has the MAC, so only the bridge is pointed; others learn from what the guest sends"


@dataclass(frozen=True)
class Fabric:
    """What a host delivers frames for one MAC by."""

    mac: str
    bridge: Link
    tap: Link
    """The standby's port of the bridge."""
    uplink: Link
    """The port of the bridge that leads to the primary."""
    vlans: tuple[int | None, ...]
    """The VLANs that the tap is in; (None,) where the bridge knows no VLANs."""
    vf: VfPlace | None
    """None where the primary is no VF of this host: a whole NIC, a representor's VF, or none."""
    driver: PfDriver | None


def find_fabric(
    host: Host, mac: str, tap_name: str, vf_name: str = "", uplink_name: str = ""
) -> Fabric:
    """Find out what has to be pointed for a MAC, and whether this package can.

    The VF is found by its MAC if it isn't named, and the uplink is the port by which its PF is in the bridge, else the
    only port that is hardware. Raises `VnetStandbyError` if the tap is in no Linux bridge, the PF's driver is unknown,
    or somebody else has the MAC.
    """
    tap = host.network.link(tap_name)
    bridge = _bridge(host, tap)
    vf = _named_vf(host, vf_name, mac) if vf_name else _vf_with(host, mac, bridge)
    uplink = _uplink(host, bridge, tap, vf, uplink_name)
    vlans: tuple[int | None, ...] = host.network.vlans(tap) if bridge.vlan_filtering else (None,)
    driver = pf_driver(vf.pf_function.driver) if vf else None
    fabric = Fabric(mac, bridge, tap, uplink, vlans, vf, driver)
    _require_mac_free(host, fabric)
    return fabric


def steer(host: Host, change: Transaction, fabric: Fabric, to: Datapath) -> None:
    """Point the host at the VF (primary) or at the tap (standby); what is so already is not done again."""
    if to == "standby":
        _to_standby(host, change, fabric)
    else:
        _to_primary(host, change, fabric)
    if fabric.vf is None:
        change.note(_NO_VF_NOTE)
    elif fabric.driver and fabric.driver.limit:
        change.note(fabric.driver.limit)


def forget(host: Host, change: Transaction, mac: str) -> None:
    """Remove the bridges' entries and the PFs' further addresses that `steer` set for a MAC.

    A VF's filter stays where it is: moving it would move the frames. `release` clears it.
    """
    set_here = [e for e in host.network.bridge_entries(mac) if e.kind == "static" and e.sticky]
    without_vlan = {entry.port for entry in set_here if entry.vlan is None}
    for entry in set_here:
        # br_fdb.c, br_fdb_add() and br_fdb_delete(): without a VLAN they mean all those of the port, too
        if entry.vlan is None or entry.port not in without_vlan:
            change.apply(_delete_entry(host, entry))
    for function in host.pci.network_functions():
        driver = DRIVERS.get(function.driver)
        if function.total_vfs and function.netdev and driver and driver.own_filters:
            change.apply(*_own_filter(host, host.pf_link(function), mac, wanted=False))


def _to_standby(host: Host, change: Transaction, fabric: Fabric) -> None:
    change.apply(*_bridge_to(host, fabric, fabric.tap))
    if not (fabric.vf and fabric.driver):
        return
    flip = _flip(host, fabric.vf, alias(fabric.mac)) if fabric.driver.flips else []
    own = (
        _own_filter(host, fabric.vf.pf, fabric.mac, wanted=True)
        if fabric.driver.own_filters
        else []
    )
    # PF and VF both having the MAC means every frame twice; a PF that isn't promiscuous not having it means none
    change.apply(*(flip + own if fabric.vf.pf.promiscuous else own + flip))


def _to_primary(host: Host, change: Transaction, fabric: Fabric) -> None:
    if fabric.vf and fabric.driver:
        if not fabric.vf.pf.up:
            raise VnetStandbyError(
                f"the PF {fabric.vf.pf.name} is down; ip link set {fabric.vf.pf.name} up"
            )
        flip = _flip(host, fabric.vf, fabric.mac) if fabric.driver.flips else []
        own = _own_filter(host, fabric.vf.pf, fabric.mac, wanted=False)
        own = own if fabric.driver.own_filters else []
        change.apply(*(own + flip if fabric.vf.pf.promiscuous else flip + own))
    change.apply(*_bridge_to(host, fabric, fabric.uplink))


def _flip(host: Host, vf: VfPlace, mac: str) -> list[Change]:
    old = vf.settings.mac
    if old == mac:
        return []
    return [
        Change(
            f"move the filter of {vf.name} from {old} to {mac}",
            do=lambda: host.network.set_vf_mac(vf.pf, vf.index, mac),
            undo=lambda: host.network.set_vf_mac(vf.pf, vf.index, old),
        )
    ]


def _own_filter(host: Host, pf: Link, mac: str, *, wanted: bool) -> list[Change]:
    def add() -> None:
        host.network.add_own_filter(pf, mac)

    def remove() -> None:
        host.network.remove_own_filter(pf, mac)

    if (pf.index in host.network.own_filters(mac)) == wanted:
        return []
    if wanted:
        return [Change(f"add {mac} to the addresses of {pf.name}", do=add, undo=remove)]
    return [Change(f"remove {mac} from the addresses of {pf.name}", do=remove, undo=add)]


def _bridge_to(host: Host, fabric: Fabric, port: Link) -> list[Change]:
    there = {entry.vlan: entry for entry in _entries(host, fabric)}
    names = {index: link.name for index, link in host.network.links().items()}
    changes = []
    for vlan in fabric.vlans:
        old, new = there.get(vlan), steered(fabric.mac, port, vlan)
        if old != new:
            was = f"was {old.kind} on {names.get(old.port, old.port)}" if old else "was not known"
            changes.append(
                Change(
                    f"point {fabric.bridge.name} at {port.name} for {fabric.mac}{_in_vlan(vlan)} ({was})",
                    do=_writing(host, new),
                    undo=_restoring(host, old, new) if old else _deleting(host, new),
                )
            )
    return changes


def _delete_entry(host: Host, entry: FdbEntry) -> Change:
    name = host.network.links()[entry.port].name
    return Change(
        f"remove the bridge's entry for {entry.mac}{_in_vlan(entry.vlan)} on {name}",
        do=_deleting(host, entry),
        undo=_writing(host, entry),
    )


def _writing(host: Host, entry: FdbEntry) -> Callable[[], None]:
    return lambda: host.network.write_entry(entry)


def _restoring(host: Host, old: FdbEntry, new: FdbEntry) -> Callable[[], None]:
    def restore() -> None:
        try:
            host.network.write_entry(old)
        except VnetStandbyError:
            if old.kind != "dynamic":
                raise
            # br_fdb.c, fdb_add_entry(): a port without carrier takes no such entry; the bridge will learn it anew
            host.network.delete_entry(new)

    return restore


def _deleting(host: Host, entry: FdbEntry) -> Callable[[], None]:
    return lambda: host.network.delete_entry(entry)


def _in_vlan(vlan: int | None) -> str:
    return f" in VLAN {vlan}" if vlan is not None else ""


def _entries(host: Host, fabric: Fabric) -> list[FdbEntry]:
    """What the bridge has for the MAC."""
    links = host.network.links()
    return [
        entry
        for entry in host.network.bridge_entries(fabric.mac)
        if entry.port == fabric.bridge.index or links[entry.port].master == fabric.bridge.index
    ]


def _bridge(host: Host, tap: Link) -> Link:
    if tap.kind in {"macvtap", "macvlan", "ipvlan", "ipvtap"}:
        raise VnetStandbyError(
            f"{tap.name} is a {tap.kind}, which is not supported: its PF decides alone; put a tap into a Linux bridge"
        )
    master = host.network.links().get(tap.master)
    if master is None:
        raise VnetStandbyError(
            f"{tap.name} is in no bridge, which is not supported; ip link set {tap.name} master BRIDGE"
        )
    if master.kind != "bridge":
        raise VnetStandbyError(
            f"{tap.name} is in {master.name}, {_article(master.kind)}, which is not supported; "
            "only Linux bridges are"
        )
    return master


def _article(kind: str) -> str:
    return "an Open vSwitch" if kind == "openvswitch" else f"a {kind or 'device of unknown kind'}"


def _named_vf(host: Host, name: str, mac: str) -> VfPlace | None:
    function = host.pci.find(name)
    if not function.pf:
        raise VnetStandbyError(
            f"{name} is no VF; leave --vf away for a primary that is a whole NIC: only the bridge is pointed then"
        )
    place = host.place(function)
    if not is_for(place.settings.mac, mac):
        raise VnetStandbyError(
            f"{place.name} has the MAC {place.settings.mac}, not {mac}; assign it first"
        )
    _sole([place, *_with_mac(host.places(place.pf_function), mac)], mac)
    return place


def _vf_with(host: Host, mac: str, bridge: Link) -> VfPlace | None:
    """Return the VF with this MAC, or its alias, whose PF is in the bridge."""
    pfs = [f for f in host.pci.network_functions() if f.vfs and f.netdev]
    near = [pf for pf in pfs if host.bridge_of(host.pf_link(pf))[0] == bridge]
    return _sole([place for pf in near for place in _with_mac(host.places(pf), mac)], mac)


def _with_mac(places: list[VfPlace], mac: str) -> list[VfPlace]:
    return [place for place in places if is_for(place.settings.mac, mac)]


def _sole(places: list[VfPlace], mac: str) -> VfPlace | None:
    found = {place.function.address: place for place in places}
    if len(found) > 1:
        names = " and ".join(f"{place.name} ({address})" for address, place in found.items())
        raise VnetStandbyError(f"{mac} is taken more than once, by {names}; release all but one")
    return next(iter(found.values()), None)


def _uplink(host: Host, bridge: Link, tap: Link, vf: VfPlace | None, name: str) -> Link:
    links = host.network.links()
    ports = [link for link in links.values() if link.master == bridge.index and link != tap]
    if name:
        named = [port for port in ports if port.name == name]
        if not named:
            raise VnetStandbyError(
                f"{name} is no other port of {bridge.name}; `bridge link` shows them"
            )
        return named[0]
    if vf:
        above, port = host.bridge_of(vf.pf)
        if above == bridge:
            return port
        raise VnetStandbyError(
            f"{vf.pf.name}, the PF of the VF, is not in {bridge.name} as {tap.name} is; put it there, "
            "or name the port that leads to it with --uplink"
        )
    hardware = {name for function in host.pci.network_functions() for name in function.netdevs}
    uplinks = [port for port in ports if port.name in hardware]
    if len(uplinks) != 1:
        found = ", ".join(port.name for port in uplinks) or "none"
        raise VnetStandbyError(
            f"which port of {bridge.name} leads to the primary? name it with --uplink (NICs there: {found})"
        )
    return uplinks[0]


def _require_mac_free(host: Host, fabric: Fabric) -> None:
    links = host.network.links()
    ours = {fabric.tap.index, fabric.uplink.index}
    for entry in _entries(host, fabric):
        name = links[entry.port].name
        if entry.kind == "local":
            raise VnetStandbyError(
                f"{fabric.mac} is taken: it is the own address of {name} in {fabric.bridge.name}"
            )
        if entry.kind == "static" and entry.port not in ours:
            raise VnetStandbyError(
                f"{fabric.mac} is taken: {fabric.bridge.name} has a static entry for it on {name}; "
                "if it is an old one, `steer MAC --off` removes it"
            )
