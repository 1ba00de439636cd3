# SPDX-License-Identifier: GPL-2.0-or-later
"""One host: its PCI functions, its network, and who uses them."""

import errno
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.network import Link, Network, VfSettings, open_network
from vnet_standby.host.pci import PciBus, PciFunction


@dataclass(frozen=True)
class VfPlace:
    """A VF in its PF."""

    function: PciFunction
    pf_function: PciFunction
    pf: Link
    settings: VfSettings

    @property
    def index(self) -> int:
        """Its number among the PF's VFs."""
        return self.settings.index

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"VF {self.index} of {self.pf.name}"


@dataclass(frozen=True)
class Host:
    """A host, for one operation: who has VFIO devices open is found out once."""

    pci: PciBus
    network: Network
    proc: Path = Path("/proc")
    vfio: Path = Path("/dev/vfio")

    def place(self, function: PciFunction) -> VfPlace:
        """Find a VF in its PF; raises `VnetStandbyError` if the PF can't set it."""
        places = self.places(self.pci.function(function.pf))
        return next(place for place in places if place.function.address == function.address)

    def places(self, pf_function: PciFunction) -> list[VfPlace]:
        """All VFs of a PF; raises `VnetStandbyError` if the PF can't set them."""
        pf = self.pf_link(pf_function)
        settings = self.network.vfs(pf)
        if len(settings) < len(pf_function.vfs):
            raise VnetStandbyError(
                f"{pf.name} ({pf_function.driver}) does not tell about its VFs; "
                "its driver has no VF settings over netlink, so this NIC can't be used here"
            )
        return [
            VfPlace(self.pci.function(address), pf_function, pf, settings[index])
            for index, address in enumerate(pf_function.vfs)
        ]

    def pfs(self) -> list[PciFunction]:
        """The PFs that have VFs, and a netdev in this network namespace (sysfs may be another one's)."""
        here = {link.name for link in self.network.links().values()}
        return [f for f in self.pci.network_functions() if f.vfs and f.netdev in here]

    def pf_link(self, pf_function: PciFunction) -> Link:
        """Return a PF's netdev; raises `VnetStandbyError` if it has none here."""
        if not pf_function.netdev:
            driver = pf_function.driver or "no driver"
            raise VnetStandbyError(
                f"the PF {pf_function.address} ({driver}) has no netdev in this network namespace; "
                "bind it to its host driver, or run this where its netdev is"
            )
        return self.network.link(pf_function.netdev)

    def bridge_of(self, link: Link) -> tuple[Link | None, Link]:
        """Return the bridge that a netdev is in (None if it is in none), and the port by which it is in it."""
        links = self.network.links()
        port = link
        while port.master in links:
            master = links[port.master]
            if master.kind == "bridge":
                return master, port
            port = master
        return None, port

    def vfio_users(self, function: PciFunction) -> list[str]:
        """The processes that have a function's VFIO group or device open, as far as /proc shows them."""
        names = self.pci.vfio_devices(function.address)
        files = [
            self.vfio / function.iommu_group,
            *(self.vfio / "devices" / name for name in names),
        ]
        pids = {pid for file in files for pid in self._vfio_files.get(str(file), ())}
        return [self._process(pid) for pid in sorted(pids)]

    def use_of(self, function: PciFunction) -> str:
        """Who uses a function, or an empty text: nobody who would notice if it were taken away."""
        if function.is_on_vfio:
            return ", ".join(self.vfio_users(function))
        if not function.netdevs:
            return self._use_out_of_sight(function)
        uses = [self._use_of_netdev(self.network.link(name)) for name in function.netdevs]
        return "; ".join(filter(None, uses))

    def require_unused(self, function: PciFunction) -> None:
        """Raise `VnetStandbyError` if somebody uses a function."""
        use = self.use_of(function)
        if not use and function.is_on_vfio and self._group_is_busy(function.iommu_group):
            use = "a process that /proc does not show here (a container's?)"
        if use:
            raise VnetStandbyError(
                f"{function.address} is in use by {use}; end that use first, or choose another"
            )

    def _use_of_netdev(self, link: Link) -> str:
        addresses = self.network.addresses(link)
        links = self.network.links()
        if addresses:
            return f"netdev {link.name} with {', '.join(addresses)}"
        if link.master in links:
            return f"netdev {link.name} in {links[link.master].name}"
        uppers = sorted((self.pci.root / "class/net" / link.name).glob("upper_*"))
        if uppers:
            return f"netdev {link.name} below {uppers[0].name.removeprefix('upper_')}"
        return ""

    def _use_out_of_sight(self, function: PciFunction) -> str:
        # a NIC with a host driver has a netdev somewhere: a container's, else the driver serves a process (DPDK)
        if not function.driver:
            return ""
        return f"{function.driver}, whose netdev is not in this network namespace"

    def _group_is_busy(self, group: str) -> bool:
        """Whether the VFIO group is open: it can't be opened twice (drivers/vfio/group.c, vfio_group_fops_open())."""
        try:
            os.close(os.open(self.vfio / group, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    @functools.cached_property
    def _vfio_files(self) -> dict[str, set[int]]:
        """The open files below /dev/vfio, and the processes that have them."""
        found: dict[str, set[int]] = {}
        for process in self.proc.iterdir():
            if process.name.isdigit():
                for file in _open_files(process):
                    if file.startswith(f"{self.vfio}/"):
                        found.setdefault(file, set()).add(int(process.name))
        return found

    def _process(self, pid: int) -> str:
        try:
            name = (self.proc / str(pid) / "comm").read_text().strip()
        except OSError:  # ended meanwhile
            name = "process"
        return f"{name} (pid {pid})"


def _open_files(process: Path) -> list[str]:
    try:
        entries = list((process / "fd").iterdir())
    except (
        OSError
    ):  # ended meanwhile, or not ours to look into: `require_unused` asks the group itself
        return []
    return list(filter(None, map(_target, entries)))


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:  # closed meanwhile
        return ""


@contextmanager
def this_host() -> Iterator[Host]:
    """The host that this program runs on, in its network namespace."""
    with open_network() as network:
        yield Host(PciBus(), network)
