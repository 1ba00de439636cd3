# SPDX-License-Identifier: GPL-2.0-or-later
"""A VF or NIC for a VM, and back: what is changed, in which order, what is refused, and that all is undone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from host_machine import ALIAS, MAC, NIC, NIC_MAC, PF, PF_MAC, Machine, vf

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.assignment import Assignment, assign, release
from vnet_standby.host.changes import Transaction
from vnet_standby.host.mac import ZERO
from vnet_standby.host.network import FdbEntry


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def assigned(
    machine: Machine, target: str = "eth0", mac: str = MAC, **options: object
) -> list[str]:
    with Transaction() as change:
        assign(machine.host, change, target, mac, **options)  # type: ignore[arg-type]
    return change.changed


def released(machine: Machine, target: str) -> list[str]:
    with Transaction() as change:
        release(machine.host, change, target)
    return change.changed


def test_of_a_pf_the_first_free_vf_is_taken(machine: Machine) -> None:
    machine.give_host_driver(0, "vf0")
    machine.network.given["vf0"] = ["192.0.2.1"]
    with Transaction() as change:
        given = assign(machine.host, change, "eth0", MAC, trust=True)
    assert given == Assignment(vf(1), "eth0", 1, MAC, ALIAS)
    assert machine.pci.function(vf(1)).driver == "vfio-pci"
    assert machine.network.settings[1].mac == MAC
    assert machine.network.settings[1].trust


def test_a_second_time_changes_nothing(machine: Machine) -> None:
    assert assigned(machine, trust=True)
    assert assigned(machine, trust=True) == []
    assert assigned(machine, vf(0)) == []


def test_a_vf_that_runs_and_is_steered_away_is_left_alone(machine: Machine) -> None:
    assigned(machine)
    machine.network.set_vf_mac(machine.network.link("eth0"), 0, ALIAS)
    machine.open_group(321, "20")
    assert assigned(machine) == []


def test_the_mac_is_set_before_vfio_pci_resets_the_vf(machine: Machine) -> None:
    machine.give_host_driver(0, "vf0")
    what = assigned(machine)
    assert [line.split()[0] for line in what] == ["set", "unbind", "reserve", "bind"]
    assert [name for name, _ in machine.pci.writes] == [
        "unbind",
        "driver_override",
        "drivers_probe",
    ]


def test_a_dry_run_changes_nothing_and_tells_the_same(machine: Machine) -> None:
    before = machine.state()
    with Transaction(dry_run=True) as change:
        given = assign(machine.host, change, "eth0", MAC, trust=True)
    assert machine.state() == before
    assert given.address == vf(0)
    assert change.changed == assigned(machine, trust=True)


def test_what_the_pfs_driver_cant_do_is_told(machine: Machine) -> None:
    with Transaction() as change:
        assign(machine.host, change, "eth0", MAC)
    assert [note for note in change.notes if "igb can't take the link of one VF down" in note]


def test_release_gives_back_what_assign_took(machine: Machine) -> None:
    machine.give_host_driver(0, "vf0")
    machine.pci.host_drivers[vf(0)] = "igbvf"
    before = machine.state()
    assigned(machine, trust=True)
    assert released(machine, vf(0))
    assert machine.state() == before
    assert released(machine, vf(0)) == []


def test_a_vf_that_no_host_driver_takes_is_released_all_the_same(machine: Machine) -> None:
    assigned(machine)
    with Transaction() as change:
        release(machine.host, change, vf(0))
    assert machine.network.settings[0].mac == ZERO
    assert any("is its module loaded" in note for note in change.notes)
    assert released(machine, vf(0)) == []


def test_the_mac_that_a_host_driver_chose_is_its_own(machine: Machine) -> None:
    machine.give_host_driver(0, "vf0")
    machine.network.set_vf_mac(machine.network.link("eth0"), 0, "d2:11:22:33:44:55")
    assert released(machine, vf(0)) == []


def test_vfs_are_created_where_there_are_none(machine: Machine) -> None:
    machine.pci.remove_vfs(PF)
    with Transaction(dry_run=True) as change:
        foretold = assign(machine.host, change, "eth0", MAC, vfs=2)
    assert foretold == Assignment(vf(0), "eth0", 0, MAC, ALIAS)
    assert change.changed == ["create 2 VFs of eth0"]
    assert machine.pci.function(PF).vfs == ()
    assert assigned(machine, vfs=2)[0] == "create 2 VFs of eth0"
    assert assigned(machine, vfs=2) == []


def test_created_vfs_are_removed_if_it_fails_later(machine: Machine) -> None:
    machine.pci.remove_vfs(PF)
    machine.pci.refuses = "driver_override"
    with pytest.raises(VnetStandbyError, match="needs root"):
        assigned(machine, vfs=2)
    assert machine.pci.function(PF).vfs == ()


def test_a_whole_nic_is_only_bound(machine: Machine) -> None:
    before = machine.state()
    assert [line.split()[0] for line in assigned(machine, "eth1", NIC_MAC)] == [
        "unbind",
        "reserve",
        "bind",
    ]
    assert machine.network.calls == []
    assert assigned(machine, NIC, NIC_MAC) == []
    assert released(machine, NIC)
    assert machine.state() == before
    assert released(machine, NIC) == []


@pytest.mark.parametrize("refused", ["unbind", "driver_override", "drivers_probe"])
def test_half_way_is_undone(machine: Machine, refused: str) -> None:
    machine.give_host_driver(0, "vf0")
    before = machine.state()
    machine.pci.refuses = refused
    with pytest.raises(VnetStandbyError, match="needs root"):
        assigned(machine, vf(0), trust=True)
    assert machine.state() == before


def test_a_netdev_that_was_up_is_up_again_after_an_undo(machine: Machine) -> None:
    machine.give_host_driver(0, "vf0")
    machine.pci.refuses = "drivers_probe"
    with pytest.raises(VnetStandbyError, match="needs root"):
        assigned(machine, vf(0))
    assert "up vf0" in machine.network.calls


def test_a_vf_that_vfio_pci_refuses_is_back_with_its_driver(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.give_host_driver(0, "vf0")
    before = machine.state()
    monkeypatch.setattr(machine.pci, "_probe", lambda _address: None)
    with pytest.raises(VnetStandbyError, match="did not take"):
        assigned(machine, vf(0))
    assert machine.state() == before


def test_release_half_way_is_undone(machine: Machine) -> None:
    assigned(machine, trust=True)
    before = machine.state()
    machine.pci.refuses = "drivers_probe"
    with pytest.raises(VnetStandbyError, match="needs root"):
        released(machine, vf(0))
    assert machine.state() == before


def all_taken(machine: Machine) -> None:
    assigned(machine, vf(0), "02:00:00:00:00:a0")
    machine.give_host_driver(1, "vf1")
    machine.network.given["vf1"] = ["192.0.2.1"]


def on_another_vf(machine: Machine) -> None:
    assigned(machine, vf(1))


def on_another_vf_s_alias(machine: Machine) -> None:
    machine.network.set_vf_mac(machine.network.link("eth0"), 1, ALIAS)


def on_a_port(machine: Machine) -> None:
    machine.network.alter("standby", mac=MAC)
    machine.network.write_entry(FdbEntry(MAC, 4, None, "local", False))


def running(machine: Machine) -> None:
    assigned(machine, vf(0), "02:00:00:00:00:a0")
    machine.open_group(321, "20")


def nic_in_use(machine: Machine) -> None:
    machine.network.given["eth1"] = ["192.0.2.9"]


def pf_down(machine: Machine) -> None:
    machine.network.alter("eth0", up=False)


def iommu_off(machine: Machine) -> None:
    for address in (vf(0), NIC):
        (machine.pci.root / "bus/pci/devices" / address / "iommu_group").unlink()


def shared_group(machine: Machine) -> None:
    machine.pci.add("0000:05:00.0", **{"class": "0x010000"})
    machine.pci.set_driver("0000:05:00.0", "nvme")
    (machine.pci.root / "kernel/iommu_groups/20/devices/0000:05:00.0").symlink_to(
        machine.pci.root / "bus/pci/devices/0000:05:00.0"
    )


def no_vfio(machine: Machine) -> None:
    (machine.pci.root / "bus/pci/drivers/vfio-pci").rmdir()


def pf_elsewhere(machine: Machine) -> None:
    (machine.pci.root / "bus/pci/devices" / PF / "net/eth0").rmdir()


def silent_driver(machine: Machine) -> None:
    machine.network.settings.clear()


def as_it_is(_machine: Machine) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "target", "mac", "message"),
    [
        (all_taken, "eth0", MAC, "no VF of eth0 is free .*VF 0: assigned.*VF 1: netdev vf1 with"),
        (on_another_vf, vf(0), MAC, "is taken by VF 1 of eth0"),
        (on_another_vf_s_alias, vf(0), MAC, "is taken by VF 1 of eth0"),
        (on_a_port, "eth0", MAC, "own address of standby in br0"),
        (as_it_is, "eth0", PF_MAC, "it is the PF eth0's own"),
        (running, vf(0), MAC, r"in use by qemu-system-x86 \(pid 321\)"),
        (nic_in_use, "eth1", MAC, "in use by netdev eth1 with 192.0.2.9"),
        (pf_down, "eth0", MAC, "the PF eth0 is down; ip link set eth0 up"),
        (pf_down, vf(0), MAC, "the PF eth0 is down; ip link set eth0 up"),
        (iommu_off, vf(0), MAC, "intel_iommu=on"),
        (iommu_off, "eth1", NIC_MAC, "intel_iommu=on"),
        (shared_group, vf(0), MAC, r"group 20 .* not viable: 0000:05:00.0 \(nvme\)"),
        (no_vfio, vf(0), MAC, "modprobe vfio-pci"),
        (pf_elsewhere, vf(0), MAC, "no netdev in this network namespace"),
        (silent_driver, vf(0), MAC, "does not tell about its VFs"),
        (as_it_is, "eth1", MAC, f"keeps its own MAC {NIC_MAC}"),
    ],
)
def test_bad_input_is_one_message_and_changes_nothing(
    machine: Machine, prepare: Callable[[Machine], None], target: str, mac: str, message: str
) -> None:
    prepare(machine)
    before = machine.state()
    with pytest.raises(VnetStandbyError, match=message) as caught:
        assigned(machine, target, mac)
    assert "\n" not in str(caught.value)
    assert machine.state() == before


def test_a_group_shared_with_bridges_and_vfio_is_viable(machine: Machine) -> None:
    shared_group(machine)
    for driver in ("pcieport", "vfio-pci", ""):
        machine.pci.set_driver("0000:05:00.0", driver)
        with Transaction(dry_run=True) as change:
            assign(machine.host, change, vf(0), MAC)


def test_what_makes_no_sense_is_refused(machine: Machine) -> None:
    with pytest.raises(VnetStandbyError, match="has 2 VFs, not 4"):
        assigned(machine, vfs=4)
    with pytest.raises(VnetStandbyError, match="is a VF"):
        assigned(machine, vf(0), vfs=2)
    with pytest.raises(VnetStandbyError, match="no SR-IOV"):
        assigned(machine, "eth1", NIC_MAC, trust=True)
    with pytest.raises(VnetStandbyError, match="is a PF"):
        released(machine, "eth0")
    machine.pci.remove_vfs(PF)
    with pytest.raises(VnetStandbyError, match="--vfs N creates them"):
        assigned(machine)
    with pytest.raises(VnetStandbyError, match="can have 7 VFs, not 8"):
        assigned(machine, vfs=8)


def test_release_waits_for_the_vm_to_end(machine: Machine) -> None:
    running(machine)
    with pytest.raises(VnetStandbyError, match="in use by qemu"):
        released(machine, vf(0))
