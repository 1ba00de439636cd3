# SPDX-License-Identifier: GPL-2.0-or-later
"""A made-up host for the tests: a sysfs tree that reacts to writes as the kernel does, and a network in memory."""

# ruff: noqa: D102  # FakeNetwork's methods are Network's

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.host import Host
from vnet_standby.host.mac import ZERO
from vnet_standby.host.network import FdbEntry, Link, Network, VfSettings
from vnet_standby.host.pci import PciBus

PF = "0000:01:00.0"
NIC = "0000:02:00.0"
PF_MAC = "52:54:00:aa:00:01"
NIC_MAC = "52:54:00:aa:00:02"
MAC = "52:54:00:76:6e:01"
ALIAS = "d2:54:00:76:6e:01"


def vf(index: int) -> str:
    """The address of a VF, as igb's offset of 128 and stride of 2 make it."""
    return f"0000:01:{0x10 + index // 4:02x}.{index % 4 * 2}"


class FakePci(PciBus):
    """A sysfs tree whose files do what the kernel's do."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.host_drivers: dict[str, str] = {}
        """Which host driver takes a function when it is probed; the test's to change."""
        self.refuses = ""
        """A file name; writing to it fails as for a user who may not."""
        self.writes: list[tuple[str, str]] = []

    def add(self, address: str, **files: str) -> Path:
        """Add a function with these attributes; `class` is a network controller's unless it is given."""
        folder = self.root / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        attributes = {"class": "0x020000", "driver_override": "(null)", **files}
        for name, value in attributes.items():
            (folder / name).write_text(f"{value}\n")
        return folder

    def add_driver(self, *names: str) -> None:
        """Load drivers."""
        for name in names:
            (self.root / "bus/pci/drivers" / name).mkdir(parents=True, exist_ok=True)

    def add_to_group(self, address: str, group: str) -> None:
        """Put a function into an IOMMU group."""
        devices = self.root / "kernel/iommu_groups" / group / "devices"
        devices.mkdir(parents=True, exist_ok=True)
        folder = self.root / "bus/pci/devices" / address
        (devices / address).symlink_to(folder)
        (folder / "iommu_group").symlink_to(devices.parent)

    def set_driver(self, address: str, driver: str) -> None:
        """Bind a function, or unbind it."""
        link = self.root / "bus/pci/devices" / address / "driver"
        link.unlink(missing_ok=True)
        if driver:
            self.add_driver(driver)
            link.symlink_to(self.root / "bus/pci/drivers" / driver)

    def set_netdev(self, address: str, name: str) -> None:
        """Give a function a netdev."""
        (self.root / "bus/pci/devices" / address / "net" / name).mkdir(parents=True)

    def create_vfs(self, pf: str, count: int) -> None:
        """What a write to sriov_numvfs does."""
        for index in range(count):
            folder = self.add(vf(index))
            (folder / "physfn").symlink_to(folder.parent / pf)
            (folder.parent / pf / f"virtfn{index}").symlink_to(folder)
            self.add_to_group(vf(index), str(20 + index))

    def remove_vfs(self, pf: str) -> None:
        """What writing 0 to sriov_numvfs does."""
        for link in (self.root / "bus/pci/devices" / pf).glob("virtfn*"):
            address = link.resolve().name
            link.unlink()
            for group in (self.root / "kernel/iommu_groups").glob(f"*/devices/{address}"):
                group.unlink()
            shutil.rmtree(self.root / "bus/pci/devices" / address)

    def _write(self, path: Path, value: str) -> None:
        if path.name == self.refuses:
            raise VnetStandbyError(f"writing {path.name} needs root")
        self.writes.append((path.name, value))
        match path.name:
            case "unbind":
                self.set_driver(value, "")
            case "bind":
                self.set_driver(value, path.parent.name)
            case "drivers_probe":
                self._probe(value)
            case "sriov_numvfs" if value == "0":
                self.remove_vfs(path.parent.name)
            case "sriov_numvfs":
                self.create_vfs(path.parent.name, int(value))
            case _:
                path.write_text(value if value.strip() else "(null)\n")

    def _probe(self, address: str) -> None:
        function = self.function(address)
        if not function.driver:
            self.set_driver(address, function.override or self.host_drivers.get(address, ""))


class FakeNetwork(Network):
    """Netdevs, VF settings and bridge tables in memory; `calls` tells what was changed, in order."""

    def __init__(self, links: Iterable[Link], settings: dict[int, VfSettings]) -> None:
        super().__init__(None)
        self.by_index = {link.index: link for link in links}
        self.settings = settings
        self.given: dict[str, list[str]] = {}
        self.entries: dict[int | None, FdbEntry] = {}
        self.own: set[int] = set()
        self.port_vlans: dict[str, tuple[int, ...]] = {}
        self.calls: list[str] = []
        self.refuses = ""

    def links(self) -> dict[int, Link]:
        return dict(self.by_index)

    def alter(self, netdev: str, **changes: object) -> None:
        """Change something of a netdev."""
        link = self.link(netdev)
        self.by_index[link.index] = replace(link, **changes)  # type: ignore[arg-type]

    def addresses(self, link: Link) -> list[str]:
        return self.given.get(link.name, [])

    def set_up(self, name: str) -> None:
        self._call(f"up {name}")
        self.alter(name, up=True)

    def vfs(self, pf: Link) -> dict[int, VfSettings]:
        return dict(self.settings)

    def set_vf_mac(self, pf: Link, vf: int, mac: str) -> None:
        self._call(f"vf {vf} mac {mac}")
        self.settings[vf] = replace(self.settings[vf], mac=mac)

    def set_vf_trust(self, pf: Link, vf: int, trust: bool) -> None:
        self._call(f"vf {vf} trust {trust}")
        self.settings[vf] = replace(self.settings[vf], trust=trust)

    def bridge_entries(self, mac: str) -> list[FdbEntry]:
        return [entry for entry in self.entries.values() if entry.mac == mac]

    def write_entry(self, entry: FdbEntry) -> None:
        self._call(f"bridge {self.by_index[entry.port].name} {entry.kind} {entry.vlan}")
        self.entries[entry.vlan] = entry

    def delete_entry(self, entry: FdbEntry) -> None:
        self._call(f"bridge forget {entry.vlan}")
        if entry.vlan in self.entries and self.entries[entry.vlan].port == entry.port:
            del self.entries[entry.vlan]

    def own_filters(self, mac: str) -> set[int]:
        return set(self.own)

    def add_own_filter(self, link: Link, mac: str) -> None:
        self._call(f"own add {link.name}")
        self.own.add(link.index)

    def remove_own_filter(self, link: Link, mac: str) -> None:
        self._call(f"own remove {link.name}")
        self.own.discard(link.index)

    def vlans(self, port: Link) -> tuple[int, ...]:
        return self.port_vlans[port.name]

    def _call(self, what: str) -> None:
        if self.refuses and what.startswith(self.refuses):
            raise VnetStandbyError(f"{what}: the kernel refuses")
        self.calls.append(what)


def link(index: int, name: str, **settings: object) -> Link:
    """A netdev, up unless it is said otherwise."""
    values: dict[str, object] = {
        "mac": f"02:00:00:00:00:{index:02x}",
        "kind": "",
        "up": True,
        "carrier": True,
        "promiscuous": False,
        "master": 0,
        "vlan_filtering": False,
        **settings,
    }
    return Link(index=index, name=name, **values)  # type: ignore[arg-type]


class Machine:
    """A host with an igb PF (eth0, two VFs, in br0 with the tap `standby`) and a NIC (eth1) without SR-IOV."""

    def __init__(self, root: Path) -> None:
        self.pci = FakePci(root / "sys")
        self.pci.add_driver("igb", "igbvf", "e1000e", "vfio-pci")
        self.pci.add(PF, sriov_totalvfs="7", sriov_numvfs="2", sriov_offset="128", sriov_stride="2")
        self.pci.add(NIC)
        self.pci.add("0000:00:00.0", **{"class": "0x060000"})
        for address, driver, netdev, group in (
            (PF, "igb", "eth0", "10"),
            (NIC, "e1000e", "eth1", "11"),
        ):
            self.pci.set_driver(address, driver)
            self.pci.set_netdev(address, netdev)
            self.pci.add_to_group(address, group)
            self.pci.host_drivers[address] = driver
        self.pci.create_vfs(PF, 2)
        self.network = FakeNetwork(
            [
                link(1, "br0", kind="bridge"),
                link(2, "eth0", mac=PF_MAC, master=1, promiscuous=True),
                link(3, "eth1", mac=NIC_MAC),
                link(4, "standby", kind="tun", master=1, promiscuous=True),
            ],
            {index: VfSettings(index, ZERO, False, True) for index in range(2)},
        )
        self.proc = root / "proc"
        self.vfio = root / "vfio"
        self.proc.mkdir()
        self.vfio.mkdir()

    @property
    def host(self) -> Host:
        """It, for the next operation."""
        return Host(self.pci, self.network, self.proc, self.vfio)

    def give_host_driver(self, index: int, netdev: str) -> None:
        """Let igbvf drive a VF, with a netdev."""
        self.pci.set_driver(vf(index), "igbvf")
        self.pci.set_netdev(vf(index), netdev)
        self.network.by_index[10 + index] = link(10 + index, netdev)

    def open_group(self, pid: int, group: str) -> None:
        """Let a QEMU have a VFIO group open."""
        folder = self.proc / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text("qemu-system-x86\n")
        (folder / "35").symlink_to(self.vfio / group)

    def state(self) -> object:
        """All that a command may change, to compare."""
        functions = [(f.address, f.driver, f.override) for f in self.pci.network_functions()]
        network = self.network
        return functions, dict(network.settings), dict(network.entries), set(network.own)
