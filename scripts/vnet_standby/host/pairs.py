# SPDX-License-Identifier: GPL-2.0-or-later
"""The standby and primary NICs of a running VM, as QEMU tells over QMP; works with stock QEMU since 7.2."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.mac import is_for
from vnet_standby.host.qmp import Monitor, connected

# where QEMU keeps what -device and device_add made: with an id, and without
_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
_CHILD = re.compile(r"child<(.+)>")

# HMP `info network`: " \ net0: index=0,type=tap,ifname=tap0,script=no" below the NIC that net0 is the peer of
_NETDEV = re.compile(
    r"^(?: \\ )?(?P<id>[^:\s]+): index=\d+,type=(?P<type>[^,]+)(?P<rest>.*)$", re.M
)
_IFNAME = re.compile(r",ifname=([^,\s]+)")

_FEATURE = "VIRTIO_NET_F_STANDBY"


@dataclass(frozen=True)
class Nic:
    """A NIC of the VM; texts are empty where there is no such thing."""

    id: str
    """As given to -device; the QOM path for a NIC without."""
    type: str
    mac: str
    """As QEMU knows it: a device passed through brings its own, which is known where it is a VF with one set."""
    netdev: str
    backend: str
    """The netdev's type: tap, vhost-user, user ..."""
    ifname: str
    """The host's interface behind the netdev; empty too for a tap that QEMU was given open."""
    host_address: str
    """The host's PCI address, for vfio-pci."""


@dataclass(frozen=True)
class Pair:
    """A standby and its primary."""

    standby: Nic
    made_by: Literal["failover", "standby"]
    """Which property of virtio-net is on: failover (QEMU owns the primary) or standby (management does)."""
    negotiated: bool | None
    """Whether the guest's driver accepted the feature; None if QEMU is too old to tell."""
    primary: Nic | None
    """None while it isn't plugged: QEMU hides it (until the guest has accepted the feature), or there is none; stock
    QEMU does not tell which. One that the guest ejected for a migration still shows as plugged."""


async def pairs(monitor: str, vf_macs: Mapping[str, str] | None = None) -> list[Pair]:
    """Return the pairs of a VM.

    `monitor` is the path of its QMP socket, or HOST:PORT. `vf_macs` are the MACs of the host's VFs by PCI address:
    where management owns the primary, QEMU knows of no pair, and one passed through is found by them. Raises
    `VnetStandbyError` if there is no VM, or no pair in it.
    """
    async with connected(monitor) as vm:
        found = await pairs_of(vm, vf_macs or {})
    if not found:
        raise VnetStandbyError(
            f"the VM at {monitor} has no pair: none of its virtio-net devices has failover=on or standby=on"
        )
    return found


async def pairs_of(vm: Monitor, vf_macs: Mapping[str, str]) -> list[Pair]:
    """Return the pairs of a VM, which may have none; see `pairs`."""
    nics = await _nics(vm, vf_macs)
    standbys = {path: nic for path, nic in nics.items() if nic.type.startswith("virtio-net-")}
    others = {path: nic for path, nic in nics.items() if path not in standbys}
    # each is asked once: a VM with many pairs has twice as many NICs, and this comes while it boots or resumes
    primaries = {await vm.text(path, "failover_pair_id"): nic for path, nic in others.items()}
    return [
        pair
        for path, nic in standbys.items()
        if (pair := await _pair(vm, path, nic, primaries.get(nic.id), nics))
    ]


async def _nics(vm: Monitor, vf_macs: Mapping[str, str]) -> dict[str, Nic]:
    """The NICs, and what is passed through, by QOM path."""
    network = await vm.ask("human-monitor-command", **{"command-line": "info network"})
    backends = _backends(network or "")
    return {
        f"{container}/{child['name']}": nic
        for container in _CONTAINERS
        for child in await vm.ask("qom-list", path=container) or ()
        if _type(child) and (nic := await _nic(vm, container, child, backends, vf_macs))
    }


async def _nic(
    vm: Monitor,
    container: str,
    child: Mapping[str, str],
    backends: Mapping[str, tuple[str, str]],
    vf_macs: Mapping[str, str],
) -> Nic | None:
    """A device as a NIC; None if it is none."""
    path = f"{container}/{child['name']}"
    is_vfio = _type(child).startswith("vfio-pci")
    mac = "" if is_vfio else (await vm.text(path, "mac")).lower()
    if not mac and not is_vfio:
        return None
    netdev = await vm.text(path, "netdev")
    kind, ifname = backends.get(netdev, ("", ""))
    host_address = await vm.text(path, "host") if is_vfio else ""
    return Nic(
        id=child["name"] if container == _CONTAINERS[0] else path,
        type=_type(child),
        mac=mac or vf_macs.get(host_address, ""),
        netdev=netdev,
        backend=kind,
        ifname=ifname,
        host_address=host_address,
    )


def _type(child: Mapping[str, str]) -> str:
    """The type of a device in a list of QOM properties; empty for what is no device."""
    match = _CHILD.fullmatch(child["type"])
    return match[1] if match else ""


def _backends(info_network: str) -> dict[str, tuple[str, str]]:
    """Type and host interface of each netdev, from HMP's `info network` (QMP has no query for them)."""
    found = {}
    for match in _NETDEV.finditer(info_network.replace("\r", "")):
        ifname = _IFNAME.search(match["rest"])
        found[match["id"]] = (match["type"], ifname[1] if ifname else "")
    return found


async def _pair(
    vm: Monitor, path: str, nic: Nic, primary: Nic | None, nics: Mapping[str, Nic]
) -> Pair | None:
    """The pair of a virtio-net device, if it has one; `primary` names it as its standby."""
    if await vm.get(path, "failover"):
        return Pair(nic, "failover", await _negotiated(vm, path), primary)
    if await vm.get(path, "standby"):
        return Pair(nic, "standby", await _negotiated(vm, path), _paired_by_mac(nic, nics))
    return None


def _paired_by_mac(standby: Nic, nics: Mapping[str, Nic]) -> Nic | None:
    others = (nic for nic in nics.values() if nic != standby and is_for(nic.mac, standby.mac))
    return next(others, None)


async def _negotiated(vm: Monitor, path: str) -> bool | None:
    status = await vm.ask("x-query-virtio-status", path=f"{path}/virtio-backend")
    if status is None:
        return None
    return any(text.startswith(_FEATURE) for text in status["guest-features"]["dev-features"])
