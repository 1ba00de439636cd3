# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI network functions as sysfs shows them, and the writes that bind them to drivers.

The files are those of Documentation/ABI/testing/sysfs-bus-pci in the kernel's sources.
"""

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.errors import VnetStandbyError

_NETWORK_CLASS = 0x02
_ADDRESS = re.compile(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_REPRESENTOR = re.compile(r"(?:c\d+)?pf\d+(?:vf|sf)\d+")  # phys_port_name, set by devlink


@dataclass(frozen=True)
class PciFunction:
    """A network function; texts are empty where there is no such thing."""

    address: str
    """DOMAIN:BUS:SLOT.FUNCTION, as QEMU's vfio-pci takes it for `host`."""
    driver: str
    override: str
    """What driver_override holds: the only driver that may take the function."""
    iommu_group: str
    netdevs: tuple[str, ...]
    """In this network namespace; a PF's representors are left out."""
    pf: str
    """The address of the PF, for a VF."""
    total_vfs: int
    """How many VFs it can have; 0 for a function without SR-IOV."""
    vfs: tuple[str, ...]
    """The addresses of its VFs, by index."""

    @property
    def netdev(self) -> str:
        """Its netdev's name."""
        return self.netdevs[0] if self.netdevs else ""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return self.netdev or self.address

    @property
    def is_on_vfio(self) -> bool:
        """Whether vfio-pci or a vendor's variant of it (mlx5_vfio_pci ...) drives it."""
        return is_vfio(self.driver)


def is_vfio(driver: str) -> bool:
    """Whether this is the name of a VFIO driver."""
    return "vfio" in driver


class PciBus:
    """The host's PCI functions. `root` is where sysfs is mounted."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.root = root
        self._devices = root / "bus/pci/devices"
        self._drivers = root / "bus/pci/drivers"

    def network_functions(self) -> list[PciFunction]:
        """All of them, VFs included, by address."""
        if not self._devices.is_dir():
            return []
        folders = sorted(self._devices.iterdir())
        return [self._read(folder) for folder in folders if _class(folder) == _NETWORK_CLASS]

    def function(self, address: str) -> PciFunction:
        """The function at an address; raises `VnetStandbyError` if there is none or it is no NIC."""
        folder = self._devices / address
        if not folder.is_dir():
            raise VnetStandbyError(f"no PCI function {address}; `list` shows those there are")
        if _class(folder) != _NETWORK_CLASS:
            raise VnetStandbyError(f"{address} is no NIC; `list` shows those there are")
        return self._read(folder)

    def find(self, name: str) -> PciFunction:
        """The function with this PCI address (its domain may be left out, as lspci does) or netdev."""
        address = name.lower()
        if _ADDRESS.fullmatch(address):
            return self.function(address if address.count(":") == 2 else f"0000:{address}")
        for function in self.network_functions():
            if name in function.netdevs:
                return function
        raise VnetStandbyError(f"no PCI NIC {name}; give a netdev or PCI address from `list`")

    def group_members(self, group: str) -> list[tuple[str, str]]:
        """(address, driver) of each PCI function in an IOMMU group."""
        folder = self.root / "kernel/iommu_groups" / group / "devices"
        return [(link.name, _link(link / "driver")) for link in sorted(folder.iterdir())]

    def vfio_devices(self, address: str) -> tuple[str, ...]:
        """The names of a function's character devices in /dev/vfio/devices."""
        return _names(self._devices / address / "vfio-dev")

    def has_driver(self, driver: str) -> bool:
        """Whether a PCI driver is loaded."""
        return (self._drivers / driver).is_dir()

    def set_vf_count(self, pf: str, count: int) -> None:
        """Create the VFs of a PF, or remove them (0)."""
        self._write(self._devices / pf / "sriov_numvfs", str(count))

    def vf_address(self, pf: str, index: int) -> str:
        """The address that VF `index` of a PF has or will have (PCIe base specification, 9.2.1.2: VF Routing ID)."""
        folder = self._devices / pf
        offset, stride = (int(_text(folder / f"sriov_{what}")) for what in ("offset", "stride"))
        domain, bus, rest = pf.split(":")
        slot, number = rest.split(".")
        routing_id = (int(bus, 16) << 8) + (int(slot, 16) << 3) + int(number)
        routing_id += offset + index * stride
        return f"{domain}:{routing_id >> 8:02x}:{routing_id >> 3 & 31:02x}.{routing_id & 7}"

    def override(self, address: str, driver: str) -> None:
        """Let only this driver take the function; an empty text lets all of them."""
        self._write(self._devices / address / "driver_override", driver or "\n")

    def unbind(self, address: str) -> None:
        """Take the function from its driver."""
        self._write(self._devices / address / "driver/unbind", address)

    def bind(self, address: str, driver: str) -> None:
        """Give the function to this driver, which must be willing."""
        self._write(self._drivers / driver / "bind", address)

    def probe(self, address: str) -> str:
        """Let a willing driver take the function; return which one did, if any."""
        self._write(self.root / "bus/pci/drivers_probe", address)
        return _link(self._devices / address / "driver")

    def _read(self, folder: Path) -> PciFunction:
        return PciFunction(
            address=folder.name,
            driver=_link(folder / "driver"),
            override=_text(folder / "driver_override").replace("(null)", ""),
            iommu_group=_link(folder / "iommu_group"),
            netdevs=_netdevs(folder),
            pf=_link(folder / "physfn"),
            total_vfs=int(_text(folder / "sriov_totalvfs") or 0),
            vfs=_vfs(folder),
        )

    def _write(self, path: Path, value: str) -> None:
        try:
            path.write_text(value)
        except PermissionError as error:
            raise VnetStandbyError(f"writing {path} needs root; run it as root") from error
        except OSError as error:
            raise VnetStandbyError(
                f"writing {value.strip() or 'nothing'} to {path} failed: {_reason(error)}"
            ) from error


def _reason(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return "sysfs is read-only here (a container's?); run it on the host"
    return f"{error.strerror}; `dmesg` may say more"


def _class(folder: Path) -> int:
    return int(_text(folder / "class") or "0", 16) >> 16


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _link(path: Path) -> str:
    return path.resolve().name if path.is_symlink() else ""


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else ()


def _netdevs(folder: Path) -> tuple[str, ...]:
    below = [folder / "net", *folder.glob("virtio*/net")]
    return tuple(
        name
        for net in below
        for name in _names(net)
        if not _REPRESENTOR.fullmatch(_port_name(net / name))
    )


def _port_name(netdev: Path) -> str:
    try:
        return _text(netdev / "phys_port_name")
    except OSError:  # EOPNOTSUPP: the driver has no such names
        return ""


def _vfs(folder: Path) -> tuple[str, ...]:
    links = sorted(folder.glob("virtfn*"), key=lambda link: int(link.name.removeprefix("virtfn")))
    return tuple(_link(link) for link in links)
