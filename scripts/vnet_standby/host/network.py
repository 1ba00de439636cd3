# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's netdevs, VF settings and bridge tables: what this package says and hears over rtnetlink."""

import errno
import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from vnet_standby.errors import VnetStandbyError

EntryKind = Literal["local", "static", "dynamic"]
Datapath = Literal["primary", "standby"]

# linux/neighbour.h; the same numbers are in pyroute2, whose import takes a second on a slow host
_NUD_REACHABLE = 0x02
_NUD_NOARP = 0x40
_NUD_PERMANENT = 0x80
_NTF_SELF = 0x02
_NTF_MASTER = 0x04
_NTF_STICKY = 0x40
_STATES: dict[EntryKind, int] = {
    "local": _NUD_PERMANENT,
    "static": _NUD_NOARP,
    "dynamic": _NUD_REACHABLE,
}

_IFF_UP = 0x1
_RTEXT_FILTER_VF = 1  # linux/rtnetlink.h
_BRIDGE_VLAN_UNTAGGED = 0x04  # linux/if_bridge.h

PRIVILEGE = "needs CAP_NET_ADMIN and CAP_NET_RAW; run it as root"


@dataclass(frozen=True)
class Link:
    """A netdev of this network namespace."""

    index: int
    name: str
    mac: str
    kind: str
    """bridge, tun, veth, macvtap, openvswitch ...; empty for hardware."""
    up: bool
    carrier: bool
    promiscuous: bool
    """Accepts any unicast, as a port of a bridge usually does."""
    master: int
    """The index of the bridge, bond ... it is in; 0 for none."""
    vlan_filtering: bool
    """Whether it is a VLAN-aware bridge."""


@dataclass(frozen=True)
class VfSettings:
    """What a PF knows and enforces of one of its VFs; None where its driver does not say."""

    index: int
    mac: str
    trust: bool | None
    spoof_check: bool | None


@dataclass(frozen=True)
class FdbEntry:
    """Where a bridge sends frames for a MAC."""

    mac: str
    port: int
    """Index of the netdev."""
    vlan: int | None
    kind: EntryKind
    """local: the port's own address; static: stays until it is deleted; dynamic: learnt, ages."""
    sticky: bool
    """Stays where it is even if the MAC is seen elsewhere; a static entry alone does not."""


class Network:
    """A conversation with the kernel, made by `open_network` for one operation: netdevs are listed once."""

    def __init__(self, ip: Any) -> None:
        """`ip` is a pyroute2.IPRoute (which has no type information)."""
        self._ip = ip
        self._links: dict[int, Link] = {}

    def links(self) -> dict[int, Link]:
        """All netdevs by index."""
        if not self._links:  # there is always lo
            with _telling("listing netdevs"):
                self._links = {message["index"]: _link(message) for message in self._ip.get_links()}
        return self._links

    def reread(self) -> None:
        """List the netdevs anew: some have come or gone."""
        self._links = {}

    def link(self, name: str) -> Link:
        """The netdev with this name; raises `VnetStandbyError` if there is none."""
        for link in self.links().values():
            if link.name == name:
                return link
        raise VnetStandbyError(f"no netdev {name} here; `ip link` shows those there are")

    def addresses(self, link: Link) -> list[str]:
        """The IP addresses of a netdev that somebody gave it; IPv6 link-local ones come by themselves."""
        with _telling(f"listing the addresses of {link.name}"):
            found = [str(m.get_attr("IFA_ADDRESS")) for m in self._ip.get_addr(index=link.index)]
        return [address for address in found if not ipaddress.ip_address(address).is_link_local]

    def require_privilege(self) -> None:
        """Raise `VnetStandbyError` if this user may not change the network here; changes nothing."""
        with _telling("changing this host's network"):
            self._ip.link("set", index=1)  # lo, and nothing about it

    def queue_length(self, link: Link) -> int:
        """How many frames wait in a netdev before more are dropped; for a tap: those that QEMU has not read."""
        with _telling(f"reading the queue length of {link.name}"):
            (message,) = self._ip.get_links(link.index)
        return int(message.get_attr("IFLA_TXQLEN"))

    def set_queue_length(self, link: Link, frames: int) -> None:
        """Change it. Frames that wait are kept as far as there is room."""
        with _telling(f"setting the queue length of {link.name}"):
            self._ip.link("set", index=link.index, txqlen=frames)

    def set_up(self, name: str) -> None:
        """Bring a netdev up, which may be a new one."""
        self.reread()
        with _telling(f"bringing {name} up"):
            self._ip.link("set", index=self.link(name).index, state="up")

    def vfs(self, pf: Link) -> dict[int, VfSettings]:
        """The VFs of a PF by index."""
        with _telling(f"reading the VFs of {pf.name}"):
            (message,) = self._ip.get_links(pf.index, ext_mask=_RTEXT_FILTER_VF)
        listed = message.get_attr("IFLA_VFINFO_LIST")
        found = (_vf(info) for info in listed.get_attrs("IFLA_VF_INFO")) if listed else ()
        return {vf.index: vf for vf in found}

    def set_vf_mac(self, pf: Link, vf: int, mac: str) -> None:
        """Set a VF's administrative MAC: a filter in the PF's embedded switch, and what the VF starts with."""
        with _telling(f"setting the MAC of VF {vf} of {pf.name} to {mac}"):
            self._ip.link("set", index=pf.index, vf={"vf": vf, "mac": mac})

    def set_vf_trust(self, pf: Link, vf: int, trust: bool) -> None:
        """Allow a VF to change its MAC filters and receive mode, or forbid it."""
        with _telling(f"setting trust of VF {vf} of {pf.name}"):
            self._ip.link("set", index=pf.index, vf={"vf": vf, "trust": int(trust)})

    def bridge_entries(self, mac: str) -> list[FdbEntry]:
        """Where the bridges here send frames for a MAC."""
        return [_fdb_entry(m) for m in self._fdb(mac) if m.get_attr("NDA_MASTER")]

    def write_entry(self, entry: FdbEntry) -> None:
        """Write an entry into the bridge of its port; one for the same MAC and VLAN moves, in one step."""
        # br_fdb.c, fdb_add_entry(): with NLM_F_REPLACE an existing entry's port, kind and stickiness are overwritten
        with _telling(f"writing the bridge's entry for {entry.mac}"):
            self._ip.fdb(
                "set",
                **_key(entry),
                state=_STATES[entry.kind],
                flags=_NTF_MASTER | (_NTF_STICKY if entry.sticky else 0),
            )

    def delete_entry(self, entry: FdbEntry) -> None:
        """Delete an entry from the bridge of its port; it may be gone already."""
        with _telling(f"deleting the bridge's entry for {entry.mac}", ignore=errno.ENOENT):
            self._ip.fdb("del", **_key(entry), state=_NUD_NOARP, flags=_NTF_MASTER)

    def own_filters(self, mac: str) -> set[int]:
        """The indices of the netdevs that have a MAC as a further address (`bridge fdb`: self)."""
        return {m["ifindex"] for m in self._fdb(mac) if m["flags"] & _NTF_SELF}

    def add_own_filter(self, link: Link, mac: str) -> None:
        """Let a netdev's hardware receive frames for a MAC, even if it is not promiscuous."""
        with _telling(f"adding {mac} to {link.name}'s own addresses"):
            self._ip.fdb(
                "set", ifindex=link.index, lladdr=mac, state=_NUD_PERMANENT, flags=_NTF_SELF
            )

    def remove_own_filter(self, link: Link, mac: str) -> None:
        """Undo `add_own_filter`; it may be gone already."""
        with _telling(f"removing {mac} from {link.name}'s own addresses", ignore=errno.ENOENT):
            self._ip.fdb(
                "del", ifindex=link.index, lladdr=mac, state=_NUD_PERMANENT, flags=_NTF_SELF
            )

    def vlans(self, port: Link) -> tuple[int, ...]:
        """The VLANs that a port of a VLAN-aware bridge is in."""
        return tuple(sorted({vlan for vlan, _ in self._port_vlans(port)}))

    def untagged(self, port: Link) -> set[int]:
        """Those of them whose frames leave by the port without a tag."""
        return {vlan for vlan, flags in self._port_vlans(port) if flags & _BRIDGE_VLAN_UNTAGGED}

    def _port_vlans(self, port: Link) -> set[tuple[int, int]]:
        with _telling(f"reading the VLANs of {port.name}"):
            messages = list(self._ip.get_vlans(index=port.index))
        specs = [message.get_attr("IFLA_AF_SPEC") for message in messages]
        infos = [info for spec in specs if spec for info in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO")]
        return {(info["vid"], info["flags"]) for info in infos}

    def _fdb(self, mac: str) -> list[Any]:
        with _telling("reading the bridges' tables"):
            return list(self._ip.fdb("dump", lladdr=mac))


@contextmanager
def open_network() -> Iterator[Network]:
    """A conversation about this network namespace, for as long as the context lasts."""
    from pyroute2 import IPRoute  # noqa: PLC0415  # slow to load, and not every command needs it

    with _telling("opening rtnetlink"):
        ip = IPRoute()
    with ip:
        yield Network(ip)


@contextmanager
def _telling(what: str, ignore: int = 0) -> Iterator[None]:
    """Turn a refusal by the kernel into a message, or into success if it is this errno."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415  # as above

    try:
        yield
    except NetlinkError as error:
        if error.code == ignore:
            return
        reason = PRIVILEGE if error.code == errno.EPERM else _reason(error.code)
        raise VnetStandbyError(f"{what}: {reason}") from error


def _reason(code: int) -> str:
    if code == errno.EOPNOTSUPP:
        return "the driver or kernel can't do that (operation not supported)"
    return f"the kernel refuses: {os.strerror(code)}; `dmesg` may say more"


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        kind=kind,
        up=bool(message["flags"] & _IFF_UP),
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        promiscuous=bool(message.get_attr("IFLA_PROMISCUITY")),
        master=message.get_attr("IFLA_MASTER") or 0,
        vlan_filtering=kind == "bridge" and bool(data and data.get_attr("IFLA_BR_VLAN_FILTERING")),
    )


def _vf(info: Any) -> VfSettings:
    mac = info.get_attr("IFLA_VF_MAC")
    return VfSettings(
        index=mac["vf"],
        mac=mac["mac"],
        trust=_setting(info.get_attr("IFLA_VF_TRUST"), "trust"),
        spoof_check=_setting(info.get_attr("IFLA_VF_SPOOFCHK"), "spoofchk"),
    )


def _setting(attribute: Any, name: str) -> bool | None:
    # the kernel writes -1 for what a driver does not report (rtnetlink.c, rtnl_fill_vfinfo())
    return None if attribute is None or attribute[name] > 1 else bool(attribute[name])


def _fdb_entry(message: Any) -> FdbEntry:
    state = message["state"]
    kind: EntryKind = "dynamic"
    if state & _NUD_PERMANENT:
        kind = "local"
    elif state & _NUD_NOARP:
        kind = "static"
    return FdbEntry(
        mac=message.get_attr("NDA_LLADDR"),
        port=message["ifindex"],
        vlan=message.get_attr("NDA_VLAN"),
        kind=kind,
        sticky=bool(message["flags"] & _NTF_STICKY),
    )


def _key(entry: FdbEntry) -> dict[str, object]:
    vlan = {} if entry.vlan is None else {"vlan": entry.vlan}
    return {"ifindex": entry.port, "lladdr": entry.mac, **vlan}


def steered(mac: str, port: Link, vlan: int | None) -> FdbEntry:
    """The entry that keeps a MAC on a port whatever is seen elsewhere."""
    return FdbEntry(mac, port.index, vlan, kind="static", sticky=True)


def learnt(mac: str, port: Link, vlan: int | None) -> FdbEntry:
    """An entry as the bridge makes it itself; it moves when the MAC is seen elsewhere, and ages."""
    return FdbEntry(mac, port.index, vlan, kind="dynamic", sticky=False)
