# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run is about: the kind of guest, its NICs, the traffic and the migration's limits."""

from dataclasses import dataclass
from typing import Literal, get_args

GuestKind = Literal["vnet-standby", "net-failover", "bond", "virtio"]
Hotplug = Literal["acpi", "pcie"]
PrimaryModel = Literal["e1000e", "e1000"]
TrafficKind = Literal["both", "to-guest", "from-guest"]
Owner = Literal["qemu", "management"]
Driver = Literal["standby", "primary"]

GUEST_KINDS: tuple[GuestKind, ...] = get_args(GuestKind)
HOTPLUGS: tuple[Hotplug, ...] = get_args(Hotplug)
PRIMARY_MODELS: tuple[PrimaryModel, ...] = get_args(PrimaryModel)
TRAFFIC_KINDS: tuple[TrafficKind, ...] = get_args(TrafficKind)

MAC = "52:54:00:76:6e:01"


@dataclass(frozen=True)
class Scenario:
    """One set-up to be measured or tested."""

    guest: GuestKind = "net-failover"
    """vnet-standby: QEMU or management pairs the NICs, this project's driver unites them. net-failover: Linux's
    net_failover does. bond: the guest's administrator did, with active-backup bonding. virtio: plain virtio-net, no
    primary; the control."""
    hotplug: Hotplug = "acpi"
    primary: PrimaryModel = "e1000e"
    traffic: TrafficKind = "both"
    """to-guest: the guest falls silent before the migration, so that nothing of its own re-teaches the bridge."""
    rate_hz: int = 200
    """Probes a second in each direction."""
    ram_mib: int = 512
    bandwidth_mib_s: int = 6
    """The migration's limit; it sets how long the RAM phase lasts."""
    owner: Owner = "qemu"
    """Who unplugs and plugs a paired guest's primary: QEMU (failover=on) or management (standby=on, which needs
    a QEMU with the series)."""
    standby: bool = True
    """False leaves the standby out: a control that has to lose its traffic."""
    destination_primary_mac: str = MAC
    """Another MAC than the pair's is a control, too: the guest must not enslave that primary."""
    first_driver: Driver = "standby"
    """Which NIC's driver the guest loads first."""
    spare_port: bool = False
    """An empty root port, for a device that the lab plugs by `Lab.plug_twin`."""

    @property
    def has_primary(self) -> bool:
        """Whether the VM has a primary at all."""
        return self.guest != "virtio"

    @property
    def paired(self) -> bool:
        """Whether virtio-net offers VIRTIO_NET_F_STANDBY, so that the guest pairs its NICs by itself."""
        return self.guest in {"vnet-standby", "net-failover"}

    @property
    def managed(self) -> bool:
        """Whether management, not QEMU, unplugs and plugs the primary."""
        return self.guest == "bond" or (self.paired and self.owner == "management")
