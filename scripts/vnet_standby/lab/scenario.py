# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run is about: the kind of guest, its NICs, the traffic and the migration's limits."""

from dataclasses import dataclass
from typing import Literal, get_args

from vnet_standby.build.driver import Kind
from vnet_standby.errors import VnetStandbyError

Host = Literal["a", "b"]
GuestKind = Literal["vnet-standby", "net-failover", "bond", "virtio"]
Hotplug = Literal["acpi", "pcie"]
TopologyName = Literal["flat", "nested"]
PrimaryModel = Literal["e1000e", "e1000", "igb", "vf", "nic"]
DestinationPrimary = Literal["same", "none"] | PrimaryModel
TrafficKind = Literal["both", "to-guest", "from-guest"]
Owner = Literal["qemu", "management"]
Driver = Literal["standby", "primary"]

GUEST_KINDS: tuple[GuestKind, ...] = get_args(GuestKind)
HOTPLUGS: tuple[Hotplug, ...] = get_args(Hotplug)
TOPOLOGIES: tuple[TopologyName, ...] = get_args(TopologyName)
PRIMARY_MODELS: dict[TopologyName, tuple[PrimaryModel, ...]] = {
    "flat": ("e1000e", "e1000", "igb"),
    "nested": ("vf", "nic"),
}
"""The primaries of each topology, its default first: emulated NICs, or what an emulated host passes through: an igb
VF, or an e1000e as a whole."""

RAM_MIB: dict[TopologyName, int] = {"flat": 512, "nested": 256}
"""How much memory a VM has if nobody says anything else."""

_DRIVERS: dict[PrimaryModel, str] = {
    "e1000e": "e1000e",
    "e1000": "e1000",
    "igb": "igb",
    "vf": "igbvf",
    "nic": "e1000e",
}
TRAFFIC_KINDS: tuple[TrafficKind, ...] = get_args(TrafficKind)

MAC = "52:54:00:76:6e:01"


@dataclass(frozen=True)
class Scenario:
    """One set-up to be measured or tested.

    Raises `VnetStandbyError` for a primary that the topology doesn't have.
    """

    topology: TopologyName = "flat"
    guest: GuestKind = "net-failover"
    """vnet-standby: QEMU or management pairs the NICs, this project's driver unites them. net-failover: Linux's
    net_failover does. bond: the guest's administrator did, with active-backup bonding. virtio: plain virtio-net, no
    primary; the control."""
    hotplug: Hotplug = "acpi"
    primary: PrimaryModel = "e1000e"
    destination_primary: DestinationPrimary = "same"
    """The primary on host b: another model than on host a, the same, or none."""
    pairs: int = 1
    """How many pairs of a standby and a primary the VM has. The probes use the first, the others fail over beside it;
    flat topology only, and guests whose NICs QEMU pairs."""
    traffic: TrafficKind = "both"
    """to-guest: the guest falls silent before the migration, so that nothing of its own re-teaches the bridge."""
    rate_hz: int = 200
    """Probes a second in each direction."""
    tcp_mib_s: int = 0
    """A TCP stream to the guest beside the probes, at most so fast; 0: none. One without a limit would dirty the
    guest's memory faster than a limited migration copies it."""
    ram_mib: int = 512
    vcpus: int = 1
    """How many processors the VM has; an igb's driver makes a queue for each. Flat topology only."""
    bandwidth_mib_s: int = 6
    """The migration's limit; it sets how long the RAM phase lasts."""
    owner: Owner = "qemu"
    """Who unplugs and plugs a paired guest's primary: QEMU (failover=on) or management (standby=on, which needs
    a QEMU with the series)."""
    host_agent: bool = True
    """Whether an agent on each host moves the fabric when guest and QEMU say that the datapath moves. It needs a
    patched vnet-standby guest and a QEMU with the datapath protocol, and is left out without a word where those are
    missing."""
    vhost: bool = False
    """Whether the host's kernel (vhost-net) moves the standby's frames, as usual in production, or QEMU."""
    standby: bool = True
    """False leaves the standby out: a control that has to lose its traffic."""
    destination_primary_mac: str = MAC
    """Another MAC than the pair's is a control, too: the guest must not enslave that primary."""
    driver: Kind = "drop-in"
    """Which kind of its driver a vnet-standby guest loads: the drop-in beside the kernel's virtio_net, or the patched
    pair of modules."""
    first_driver: Driver = "standby"
    """Which NIC's driver the guest loads first."""
    spare_port: bool = False
    """An empty root port, for a device that the lab plugs by `Lab.plug_twin`."""

    resettable: bool = False
    """Whether `Lab.reset` can boot the VM anew, with other settings; flat topology only."""

    def __post_init__(self) -> None:
        """Check that the topology has the primaries, and so many pairs."""
        for model in (self.primary, self.destination_primary):
            if model not in {"same", "none", *PRIMARY_MODELS[self.topology]}:
                raise VnetStandbyError(
                    f"the {self.topology} topology has no primary {model}; "
                    f"it has {', '.join(PRIMARY_MODELS[self.topology])}"
                )
        if self.resettable and self.topology != "flat":
            raise VnetStandbyError("only a VM of the flat topology can be reset by the lab")
        if self.vcpus > 1 and self.topology != "flat":
            raise VnetStandbyError(
                "only a VM of the flat topology can have more than one processor"
            )
        if self.pairs > 1 and not self.can_have_pairs:
            raise VnetStandbyError(
                f"a {self.guest} guest in the {self.topology} topology can't have {self.pairs} pairs; several need "
                "the flat one and a guest that QEMU pairs: vnet-standby or net-failover"
            )

    def primary_on(self, host: Host) -> PrimaryModel | None:
        """The primary that the VM has on a host; None if it has none there."""
        if self.guest == "virtio":
            return None
        model = self.primary if host == "a" else self.destination_primary
        if model == "none":
            return None
        return self.primary if model == "same" else model

    def driver_on(self, host: Host) -> str | None:
        """The guest's driver for its primary on a host; None if it has none there."""
        model = self.primary_on(host)
        return model and _DRIVERS[model]

    @property
    def has_primary(self) -> bool:
        """Whether the VM has a primary at all."""
        return self.guest != "virtio"

    @property
    def paired(self) -> bool:
        """Whether virtio-net offers VIRTIO_NET_F_STANDBY, so that the guest pairs its NICs by itself."""
        return self.guest in {"vnet-standby", "net-failover"}

    @property
    def can_have_pairs(self) -> bool:
        """Whether the lab can give the VM several pairs."""
        return self.topology == "flat" and self.paired and not self.managed

    @property
    def managed(self) -> bool:
        """Whether management, not QEMU, unplugs and plugs the primary."""
        return self.guest == "bond" or (self.paired and self.owner == "management")

    @property
    def needs_series(self) -> bool:
        """Whether only a QEMU with the series has what it takes; without it failover refuses a NIC that has VFs."""
        primaries = {self.primary_on("a"), self.primary_on("b")}
        return self.paired and (self.managed or "igb" in primaries)
