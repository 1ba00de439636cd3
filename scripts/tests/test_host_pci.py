# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading sysfs, and who uses a function."""

import errno
import os
from pathlib import Path

import pytest
from host_machine import MAC, NIC, PF, Machine, link, vf

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.inventory import inventory
from vnet_standby.host.pci import PciBus
from vnet_standby.host.tables import nic_table


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_only_nics_are_listed(machine: Machine) -> None:
    assert [f.address for f in machine.pci.network_functions()] == [PF, vf(0), vf(1), NIC]


@pytest.mark.parametrize("name", ["eth0", PF, "01:00.0", PF.upper()])
def test_a_function_is_found_by_netdev_and_address(machine: Machine, name: str) -> None:
    function = machine.pci.find(name)
    assert (function.address, function.driver, function.netdev) == (PF, "igb", "eth0")
    assert function.vfs == (vf(0), vf(1))
    assert function.total_vfs == 7
    assert machine.pci.find(vf(1)).pf == PF


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eth9", "no PCI NIC eth9"),
        ("09:00.0", "no PCI function 0000:09:00.0"),
        ("0000:00:00.0", "is no NIC"),
    ],
)
def test_what_is_not_there_is_named(machine: Machine, name: str, message: str) -> None:
    with pytest.raises(VnetStandbyError, match=message):
        machine.pci.find(name)


def test_vfs_beyond_nine_keep_their_order(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.pci.remove_vfs(PF)
    machine.pci.create_vfs(PF, 12)
    assert machine.pci.function(PF).vfs == tuple(vf(index) for index in range(12))


def test_the_address_of_a_vf_is_known_before_it_is_there(machine: Machine) -> None:
    assert [machine.pci.vf_address(PF, index) for index in range(6)] == [vf(i) for i in range(6)]


def test_representors_are_not_the_pf_s_netdev(machine: Machine) -> None:
    folder = machine.pci.root / "bus/pci/devices" / PF / "net"
    (folder / "a0").mkdir()
    (folder / "a0/phys_port_name").write_text("pf0vf0\n")
    (folder / "eth0/phys_port_name").write_text("p0\n")
    assert machine.pci.function(PF).netdevs == ("eth0",)


def test_a_virtio_nic_has_its_netdev_one_level_down(machine: Machine) -> None:
    folder = machine.pci.add("0000:03:00.0")
    (folder / "virtio0/net/eth5").mkdir(parents=True)
    assert machine.pci.find("eth5").address == "0000:03:00.0"


def test_a_host_without_pci_has_no_nics(tmp_path: Path) -> None:
    assert PciBus(tmp_path).network_functions() == []


def test_writes_go_to_the_kernel_s_files(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:01:00.0"
    driver = tmp_path / "bus/pci/drivers/igb"
    device.mkdir(parents=True)
    driver.mkdir(parents=True)
    (device / "driver").symlink_to(driver)
    bus = PciBus(tmp_path)
    bus.override("0000:01:00.0", "vfio-pci")
    assert (device / "driver_override").read_text() == "vfio-pci"
    bus.override("0000:01:00.0", "")
    assert (device / "driver_override").read_text() == "\n"
    bus.unbind("0000:01:00.0")
    assert (driver / "unbind").read_text() == "0000:01:00.0"
    bus.bind("0000:01:00.0", "igb")
    assert (driver / "bind").read_text() == "0000:01:00.0"
    assert bus.probe("0000:01:00.0") == "igb"
    assert (tmp_path / "bus/pci/drivers_probe").read_text() == "0000:01:00.0"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "needs root"),
        (errno.EROFS, "read-only here"),
        (errno.EBUSY, "Device or resource busy; `dmesg` may say more"),
    ],
)
def test_a_refused_write_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(VnetStandbyError, match=message):
        PciBus(tmp_path).set_vf_count(PF, 2)


def test_a_vfio_group_is_in_use_by_the_process_that_has_it_open(machine: Machine) -> None:
    machine.pci.set_driver(vf(0), "vfio-pci")
    machine.open_group(321, "20")
    machine.open_group(400, "99")
    assert machine.host.use_of(machine.pci.function(vf(0))) == "qemu-system-x86 (pid 321)"


def test_a_vfio_device_opened_by_iommufd_is_in_use(machine: Machine) -> None:
    machine.pci.set_driver(vf(0), "vfio-pci")
    (machine.pci.root / "bus/pci/devices" / vf(0) / "vfio-dev/vfio3").mkdir(parents=True)
    machine.open_group(321, "devices/vfio3")
    assert "321" in machine.host.use_of(machine.pci.function(vf(0)))


def test_a_group_that_is_open_out_of_sight_is_in_use(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.pci.set_driver(vf(0), "vfio-pci")

    def busy(*_: object) -> int:
        raise OSError(errno.EBUSY, "busy")

    machine.host.require_unused(machine.pci.function(vf(0)))
    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(VnetStandbyError, match="does not show here"):
        machine.host.require_unused(machine.pci.function(vf(0)))


def test_a_netdev_with_an_address_a_master_or_an_upper_is_in_use(machine: Machine) -> None:
    def use() -> str:
        return machine.host.use_of(machine.pci.function(vf(0)))

    machine.give_host_driver(0, "vf0")
    assert not use()
    (machine.pci.root / "class/net/vf0").mkdir(parents=True)
    (machine.pci.root / "class/net/vf0/upper_vf0.5").symlink_to(machine.pci.root)
    assert use() == "netdev vf0 below vf0.5"
    machine.network.alter("vf0", master=1)
    assert use() == "netdev vf0 in br0"
    machine.network.given["vf0"] = ["192.0.2.1"]
    assert use() == "netdev vf0 with 192.0.2.1"


def test_a_netdev_in_another_namespace_is_in_use(machine: Machine) -> None:
    machine.pci.set_driver(vf(0), "igbvf")
    assert "not in this network namespace" in machine.host.use_of(machine.pci.function(vf(0)))


def test_the_inventory_tells_vfs_and_whole_nics(machine: Machine) -> None:
    machine.network.set_vf_mac(machine.network.link("eth0"), 1, MAC)
    machine.pci.set_driver(vf(1), "vfio-pci")
    machine.open_group(321, "21")
    machine.network.alter("eth1", up=False)
    pf, nic = inventory(machine.host)
    assert (pf.netdev, pf.bridge, pf.total_vfs, pf.used_by) == (
        "eth0",
        "br0",
        7,
        "netdev eth0 in br0",
    )
    assert [(v.index, v.mac, v.driver) for v in pf.vfs] == [
        (0, "00:00:00:00:00:00", ""),
        (1, MAC, "vfio-pci"),
    ]
    assert (nic.netdev, nic.total_vfs, nic.vfs, nic.up) == ("eth1", 0, (), False)
    table = nic_table([pf, nic])
    assert "eth0, 2 of 7 VFs" in table
    assert "qemu-system-x86 (pid 321)" in table
    assert "down" in table


def test_the_bridge_is_found_through_a_bond(machine: Machine) -> None:
    machine.network.by_index[7] = link(7, "bond0", kind="bond", master=1)
    machine.network.alter("eth0", master=7)
    bridge, port = machine.host.bridge_of(machine.network.link("eth0"))
    assert bridge is not None
    assert (bridge.name, port.name) == ("br0", "bond0")
