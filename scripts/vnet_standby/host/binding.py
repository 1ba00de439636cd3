# SPDX-License-Identifier: GPL-2.0-or-later
"""Handing a PCI function from its host driver to vfio-pci and back, by driver_override."""

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Change
from vnet_standby.host.host import Host
from vnet_standby.host.pci import PciFunction, is_vfio

VFIO_PCI = "vfio-pci"

# They leave DMA to the user (driver_managed_dma in drivers/pci/pci-stub.c and drivers/pci/pcie/portdrv.c).
_HARMLESS_IN_GROUP = ("", "pci-stub", "pcieport")


def require_vfio(host: Host, function: PciFunction) -> None:
    """Raise `VnetStandbyError` unless the function can be handed to a VM by vfio-pci."""
    if not function.iommu_group:
        raise VnetStandbyError(
            f"{function.address} is in no IOMMU group: the IOMMU is off; switch it on in the firmware and boot with "
            "intel_iommu=on (AMD: on by default)"
        )
    if not host.pci.has_driver(VFIO_PCI):
        raise VnetStandbyError("the driver vfio-pci is not there; modprobe vfio-pci")
    others = [
        f"{address} ({driver})"
        for address, driver in host.pci.group_members(function.iommu_group)
        if address != function.address and not is_vfio(driver) and driver not in _HARMLESS_IN_GROUP
    ]
    if others:
        raise VnetStandbyError(
            f"IOMMU group {function.iommu_group} of {function.address} is not viable: {', '.join(others)} would have "
            "to be bound to vfio-pci, too; choose a NIC with a group of its own"
        )


def to_vfio(host: Host, function: PciFunction) -> list[Change]:
    """Return what has to be done until vfio-pci drives the function."""
    if function.is_on_vfio:
        return []
    changes = [_override(host, function, VFIO_PCI), _take_by_vfio(host, function)]
    return [_unbind(host, function), *changes] if function.driver else changes


def from_vfio(host: Host, function: PciFunction) -> list[Change]:
    """Return what has to be done until no VFIO driver has the function, nor a claim to it."""
    changes = [_unbind(host, function)] if function.is_on_vfio else []
    return [*changes, _override(host, function, "")] if function.override else changes


def to_host(host: Host, function: PciFunction) -> Change:
    """Let the function's host driver take it, if it is loaded."""
    return Change(
        f"let the host's driver take {function.address}",
        do=lambda: host.pci.probe(function.address),
        undo=lambda: _unbind_if_bound(host, function.address),
    )


def _override(host: Host, function: PciFunction, driver: str) -> Change:
    return Change(
        f"reserve {function.address} for {driver}"
        if driver
        else f"free {function.address} for all drivers",
        do=lambda: host.pci.override(function.address, driver),
        undo=lambda: host.pci.override(function.address, function.override),
    )


def _unbind(host: Host, function: PciFunction) -> Change:
    links = host.network.links().values()
    up = [link.name for link in links if link.name in function.netdevs and link.up]

    def rebind() -> None:
        host.pci.bind(function.address, function.driver)
        for name in up:
            host.network.set_up(name)

    return Change(
        f"unbind {function.address} from {function.driver}",
        do=lambda: host.pci.unbind(function.address),
        undo=rebind,
    )


def _take_by_vfio(host: Host, function: PciFunction) -> Change:
    def take() -> None:
        if not is_vfio(host.pci.probe(function.address)):
            raise VnetStandbyError(f"vfio-pci did not take {function.address}; `dmesg` says why")

    return Change(
        f"bind {function.address} to vfio-pci",
        do=take,
        undo=lambda: host.pci.unbind(function.address),
    )


def _unbind_if_bound(host: Host, address: str) -> None:
    if host.pci.function(address).driver:
        host.pci.unbind(address)
