# SPDX-License-Identifier: GPL-2.0-or-later
"""The NICs of a host: PFs with their VFs, and whole NICs."""

from dataclasses import dataclass

from vnet_standby.host.host import Host
from vnet_standby.host.network import Link, VfSettings
from vnet_standby.host.pci import PciFunction


@dataclass(frozen=True)
class VirtualFunction:
    """A VF; texts are empty and settings None where they are unknown or there are none."""

    index: int
    address: str
    driver: str
    iommu_group: str
    mac: str
    """Its filter in the PF's embedded switch; zeros if none is set."""
    trust: bool | None
    spoof_check: bool | None
    netdev: str
    used_by: str


@dataclass(frozen=True)
class Nic:
    """A PF or a NIC without SR-IOV; texts are empty where there is no such thing."""

    address: str
    driver: str
    iommu_group: str
    netdev: str
    mac: str
    up: bool
    carrier: bool
    bridge: str
    total_vfs: int
    """How many VFs it can have; 0 without SR-IOV."""
    vfs: tuple[VirtualFunction, ...]
    used_by: str


def inventory(host: Host) -> list[Nic]:
    """All PCI NICs of the host."""
    functions = host.pci.network_functions()
    by_address = {function.address: function for function in functions}
    return [_nic(host, function, by_address) for function in functions if not function.pf]


def vf_macs(host: Host) -> dict[str, str]:
    """The MAC of each VF of the host by its PCI address."""
    return {
        address: settings.mac
        for pf in host.pfs()
        for address, settings in zip(
            pf.vfs, host.network.vfs(host.pf_link(pf)).values(), strict=False
        )
    }


def _nic(host: Host, function: PciFunction, functions: dict[str, PciFunction]) -> Nic:
    link = host.network.link(function.netdev) if function.netdev else None
    bridge = host.bridge_of(link)[0] if link else None
    settings = host.network.vfs(link) if link and function.vfs else {}
    vfs = (functions[address] for address in function.vfs)
    return Nic(
        address=function.address,
        driver=function.driver,
        iommu_group=function.iommu_group,
        netdev=function.netdev,
        mac=_mac(link),
        up=bool(link and link.up),
        carrier=bool(link and link.carrier),
        bridge=bridge.name if bridge else "",
        total_vfs=function.total_vfs,
        vfs=tuple(_vf(host, index, vf, settings.get(index)) for index, vf in enumerate(vfs)),
        used_by=host.use_of(function),
    )


def _mac(link: Link | None) -> str:
    return link.mac if link else ""


def _vf(
    host: Host, index: int, function: PciFunction, settings: VfSettings | None
) -> VirtualFunction:
    return VirtualFunction(
        index=index,
        address=function.address,
        driver=function.driver,
        iommu_group=function.iommu_group,
        mac=settings.mac if settings else "",
        trust=settings.trust if settings else None,
        spoof_check=settings.spoof_check if settings else None,
        netdev=function.netdev,
        used_by=host.use_of(function),
    )
