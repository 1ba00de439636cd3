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

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Change, Transaction
from vnet_standby.host.drivers import DRIVERS, PfDriver, pf_driver
from vnet_standby.host.host import Host, VfPlace
from vnet_standby.host.mac import alias, is_for
from vnet_standby.host.network import Datapath, FdbEntry, Link, VfSettings, learnt, steered

_OUTWARD = {"", "bond", "team", "vlan", "vxlan", "geneve", "gre", "gretap"}
"""Kinds of netdevs that are no guest's: "" is hardware."""

_NO_VF_NOTE = "no VF of this host has the MAC, so only the bridge is pointed; others learn from what the guest sends"


@dataclass(frozen=True)
class Fabric:
    """What a host delivers frames for one MAC by."""

    mac: str
    bridge: Link
    tap: Link
    """The standby's port of the bridge."""
    uplink: Link | None
    """The port of the bridge that leads to the primary; None if it isn't known where that is."""
    vlans: tuple[int | None, ...]
    """The VLANs that the tap is in; (None,) where the bridge knows no VLANs."""
    vf: VfPlace | None
    """None where the primary is no VF of this host: a whole NIC, a representor's VF, or none."""
    driver: PfDriver | None
    emulated: bool = False
    """QEMU emulates the primary, too: `uplink` is its tap."""

    @property
    def ports(self) -> set[int]:
        """The bridge's ports that are the pair's, by index."""
        return {self.tap.index} | ({self.uplink.index} if self.uplink else set())

    @property
    def outside(self) -> Link | None:
        """The port that leads to the switches beyond this host, if those decide what comes to the primary.

        That is so where it is a NIC of its own.
        """
        return None if self.vf or self.emulated else self.uplink

    def last_on(self, left: Datapath) -> tuple[Link, str] | None:
        """By which netdev, and to which MAC, a frame goes that is the last one on a path that was left.

        None if the host has no way to put one there, behind the frames before it.
        """
        if left == "standby":
            return self.tap, self.mac
        if self.emulated and self.uplink:
            return self.uplink, self.mac
        if self.vf and self.driver and self.driver.flips:
            # by then the VF's filter has moved; the PF's frames for the alias go round in the embedded switch
            return self.vf.pf, alias(self.mac)
        return None


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


def find_pair_fabric(
    host: Host, mac: str, tap_name: str, primary_tap: str = "", address: str = ""
) -> Fabric:
    """Find out what has to be pointed for a VM's pair; the VM may be the source or destination of a migration.

    The primary is an emulated NIC behind a tap, the host's PCI function with this address, or not known yet: then it is
    the VF with the MAC, if there is one. Another port of the bridge may have the MAC: that is the other side's. Raises
    `VnetStandbyError` if this can't be pointed here.
    """
    tap = host.network.link(tap_name)
    bridge = _bridge(host, tap)
    vf = _vf_with(host, mac, bridge) if not primary_tap else None
    uplink: Link | None = None
    if primary_tap:
        uplink = host.network.link(primary_tap)
        if _bridge(host, uplink) != bridge:
            raise VnetStandbyError(
                f"not supported: {primary_tap}, the primary's tap, is not in {bridge.name} as {tap_name} is"
            )
    elif address and host.pci.find(address).pf:
        vf = _named_vf(host, address, mac)
        uplink = _uplink(host, bridge, tap, vf, "")
    elif vf:
        uplink = _uplink(host, bridge, tap, vf, "")
    elif address:
        uplink = _uplink(host, bridge, tap, None, "")
    vlans: tuple[int | None, ...] = host.network.vlans(tap) if bridge.vlan_filtering else (None,)
    driver = pf_driver(vf.pf_function.driver) if vf else None
    fabric = Fabric(mac, bridge, tap, uplink, vlans, vf, driver, emulated=bool(primary_tap))
    _require_mac_not_local(host, fabric)
    return fabric


def where(host: Host, fabric: Fabric) -> Datapath | None:
    """Where the host delivers frames for the MAC.

    None if it is neither or both (a bridge that has not learnt it), or if the host is not who decides.
    """
    if fabric.outside:
        return None
    if fabric.vf and fabric.driver and fabric.driver.flips:
        return "primary" if _settings_now(host, fabric.vf).mac == fabric.mac else "standby"
    ports = {entry.port for entry in _entries(host, fabric)}
    if ports == {fabric.tap.index}:
        return "standby"
    return "primary" if fabric.uplink and ports == {fabric.uplink.index} else None


def outward(host: Host, fabric: Fabric, names: tuple[str, ...] = ()) -> list[Link]:
    """The bridge's ports that lead to other hosts: those named, else its NICs, bonds, VLANs and tunnels."""
    links = host.network.links().values()
    ports = [link for link in links if link.master == fabric.bridge.index]
    if names:
        return [port for port in ports if port.name in names]
    return [port for port in ports if port.kind in _OUTWARD]


def park(host: Host, change: Transaction, fabric: Fabric) -> None:
    """Keep the VF away from frames for the MAC, before the VM is here."""
    if fabric.vf and fabric.driver and fabric.driver.flips:
        change.apply(*_flip(host, fabric.vf, alias(fabric.mac)))


def loosen(host: Host, change: Transaction, fabric: Fabric, to: Link | None = None) -> None:
    """Let the bridge learn again where the MAC is, beginning with `to`, else with where it is now.

    That is for when nobody is there who would move it. A VF's filter is no table that learns: the VF gets its alias, so
    that the tap has all frames; the guest takes them on both. A VF that has the MAC, and whose PF checks what it sends,
    keeps it unless a `to` is given: the guest may be using it, and would not be able to send any more.
    """
    if fabric.vf and (to or not _may_be_used(host, fabric.vf, fabric.mac)):
        to = fabric.tap
        change.apply(*_embedded_to_standby(host, fabric))
    ports = {index: link for index, link in host.network.links().items() if index in fabric.ports}
    for entry in _entries(host, fabric):
        if entry.kind == "static" and entry.port in ports:
            change.apply(_loosened(host, entry, to or ports[entry.port]))


def hand_over(host: Host, change: Transaction, fabric: Fabric, to: Link | None) -> None:
    """Give the MAC up to another host that is behind the port `to`; without one nothing of it is left here."""
    change.apply(*_own_filters_to(host, fabric, wanted=False))
    for entry in _entries(host, fabric):
        if entry.kind == "static" and entry.port in fabric.ports:
            change.apply(_loosened(host, entry, to) if to else _delete_entry(host, entry))


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
    change.apply(*_bridge_to(host, fabric, fabric.tap), *_embedded_to_standby(host, fabric))


def _embedded_to_standby(host: Host, fabric: Fabric) -> list[Change]:
    if not (fabric.vf and fabric.driver):
        return []
    flip = _flip(host, fabric.vf, alias(fabric.mac)) if fabric.driver.flips else []
    own = _own_filters_to(host, fabric, wanted=True)
    # PF and VF both having the MAC means every frame twice; a PF that isn't promiscuous not having it means none
    return flip + own if fabric.vf.pf.promiscuous else own + flip


def _to_primary(host: Host, change: Transaction, fabric: Fabric) -> None:
    if fabric.uplink is None:
        raise VnetStandbyError(
            f"which port of {fabric.bridge.name} leads to the primary of {fabric.mac} is not known"
        )
    if fabric.vf and fabric.driver:
        if not fabric.vf.pf.up:
            raise VnetStandbyError(
                f"the PF {fabric.vf.pf.name} is down; ip link set {fabric.vf.pf.name} up"
            )
        flip = _flip(host, fabric.vf, fabric.mac) if fabric.driver.flips else []
        own = _own_filters_to(host, fabric, wanted=False)
        change.apply(*(own + flip if fabric.vf.pf.promiscuous else flip + own))
    change.apply(*_bridge_to(host, fabric, fabric.uplink))


def _own_filters_to(host: Host, fabric: Fabric, *, wanted: bool) -> list[Change]:
    if not (fabric.vf and fabric.driver and fabric.driver.own_filters):
        return []
    return _own_filter(host, fabric.vf.pf, fabric.mac, wanted=wanted)


def _may_be_used(host: Host, vf: VfPlace, mac: str) -> bool:
    settings = _settings_now(host, vf)
    return settings.mac == mac and settings.spoof_check is not False


def _settings_now(host: Host, vf: VfPlace) -> VfSettings:
    """Its settings now; those that it was found with may be old."""
    return host.network.vfs(vf.pf)[vf.index]


def _flip(host: Host, vf: VfPlace, mac: str) -> list[Change]:
    old = _settings_now(host, vf).mac
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


def _loosened(host: Host, entry: FdbEntry, port: Link) -> Change:
    def loosen_() -> None:
        try:
            host.network.write_entry(learnt(entry.mac, port, entry.vlan))
        except VnetStandbyError:
            # br_fdb.c, fdb_add_entry(): a port that does not forward takes no such entry; then frames are flooded
            host.network.delete_entry(entry)

    return Change(
        f"let the bridge learn {entry.mac}{_in_vlan(entry.vlan)} again, from {port.name}",
        do=loosen_,
        undo=_writing(host, entry),
    )


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
            f"not supported: {tap.name} is a {tap.kind}, its PF decides alone; put a tap into a Linux bridge"
        )
    master = host.network.links().get(tap.master)
    if master is None:
        raise VnetStandbyError(
            f"not supported: {tap.name} is in no bridge; ip link set {tap.name} master BRIDGE"
        )
    if master.kind != "bridge":
        raise VnetStandbyError(
            f"not supported: {tap.name} is in {master.name}, {_article(master.kind)}; only Linux bridges are"
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
    near = [pf for pf in host.pfs() if host.bridge_of(host.pf_link(pf))[0] == bridge]
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
    _require_mac_not_local(host, fabric)
    links = host.network.links()
    for entry in _entries(host, fabric):
        if entry.kind == "static" and entry.port not in fabric.ports:
            raise VnetStandbyError(
                f"{fabric.mac} is taken: {fabric.bridge.name} has a static entry for it on {links[entry.port].name}; "
                "if it is an old one, `steer MAC --off` removes it"
            )


def _require_mac_not_local(host: Host, fabric: Fabric) -> None:
    for entry in _entries(host, fabric):
        if entry.kind == "local":
            name = host.network.links()[entry.port].name
            raise VnetStandbyError(
                f"{fabric.mac} is taken: it is the own address of {name} in {fabric.bridge.name}"
            )
