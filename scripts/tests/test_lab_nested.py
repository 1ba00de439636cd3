# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested topology's logic that needs no VM: its wires, its command lines, its processes, its clocks."""

import asyncio
from pathlib import Path

import pytest

from vnet_standby.build.image import GuestImage
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.command import QemuBinary
from vnet_standby.lab.emulated_host import ClockOffset, EmulatedHost, _HostProcess
from vnet_standby.lab.events import EventLog
from vnet_standby.lab.nested import Nested
from vnet_standby.lab.scenario import MAC, Scenario
from vnet_standby.lab.traffic import _link_local
from vnet_standby.lab.vm import Vm

QEMU = QemuBinary(Path("/q/qemu-system-x86_64"), "QEMU 10", "pc-q35-10.0", Path("/fw"), True, True)
IMAGE = GuestImage(Path("/vmlinuz"), Path("/host.cpio"), "6.12.1-test")
RUN = Path("/run-folder")


def nested(scenario: Scenario) -> Nested:
    return Nested(scenario, QEMU, QEMU, IMAGE, "tcg")


def host(nic_mac: str | None = None) -> EmulatedHost:
    return EmulatedHost("b", QEMU, "tcg", IMAGE, 256, nic_mac)


def test_both_datapaths_share_a_wire_unless_a_whole_nic_is_the_primary() -> None:
    assert nested(Scenario(topology="nested", primary="vf")).ports == {
        "a-uplink": "uplink",
        "b-uplink": "uplink",
    }
    other = Scenario(topology="nested", primary="vf", destination_primary="nic")
    assert nested(other).ports["b-nic"] == "primary"
    assert "a-nic" not in nested(other).ports


def test_the_vm_gets_what_the_operator_set_aside() -> None:
    topology = nested(Scenario(topology="nested", primary="vf"))
    assert topology.primary("a", incoming=False) is None
    topology._assigned["a"] = "0000:00:12.0"
    arguments = " ".join(topology.vm_arguments("a", RUN, incoming=False))
    assert "vfio-pci,host=0000:00:12.0" in arguments
    assert "-accel kvm" in arguments
    assert "ifname=standby" in arguments
    assert "-L /opt/qemu/firmware" in arguments


def test_a_managed_primary_is_not_there_when_a_migration_comes_in() -> None:
    topology = nested(Scenario(topology="nested", primary="vf", guest="bond"))
    topology._assigned["b"] = "0000:00:12.0"
    assert "vfio-pci" not in " ".join(topology.vm_arguments("b", RUN, incoming=True))
    assert topology.primary("b", incoming=True) is not None


def test_a_host_has_an_iommu_and_a_console_for_each_of_its_layers() -> None:
    arguments = host()._arguments(RUN)
    line = " ".join(arguments)
    assert "pc-q35-10.0,kernel-irqchip=split" in line
    assert line.index("intel-iommu") < line.index("-device igb")
    serial = [arguments[at + 1] for at, word in enumerate(arguments) if word == "-serial"]
    assert serial == ["file:/run-folder/b-console.log", "file:/run-folder/b-qemu.log"]


def test_a_nic_that_is_a_primary_has_the_pairs_mac() -> None:
    assert f"e1000e,bus=rp-nic,netdev=nic,mac={MAC}" in " ".join(host(MAC)._arguments(RUN))
    assert MAC not in " ".join(host()._arguments(RUN))


def test_a_hosts_time_is_told_in_ours() -> None:
    machine = host()
    machine.clock = ClockOffset(seconds=2.5, error=0.0001)
    assert machine.lab_time(102.5) == pytest.approx(100)


def test_a_process_has_ended_when_the_agent_says_so() -> None:
    async def story() -> None:
        events = EventLog()
        await events.add("host-b", "exited", {"name": "vm", "status": "7", "pid": "1"})
        machine = Vm("host-b", events, RUN, inside="host-b")
        process = _HostProcess(machine, "vm")
        assert process.returncode is None, "the exit of an earlier one"
        await events.add("host-a", "exited", {"name": "vm", "status": "1", "pid": "2"})
        assert process.returncode is None, "the exit of another host's"
        await events.add("host-b", "exited", {"name": "vm", "status": "137", "pid": "3"})
        assert process.returncode == 137

    asyncio.run(story())


def test_only_records_of_living_hosts_are_promised() -> None:
    topology = nested(Scenario(topology="nested", primary="vf"))
    topology._killed.add("b")
    assert list(topology.ports) == ["a-uplink"]


def test_clocks_are_among_the_facts() -> None:
    topology = nested(Scenario(topology="nested", primary="vf"))
    topology.hosts["b"].clock = ClockOffset(0.7, 0.00012)
    facts = topology.facts()
    assert facts["clocks"]["b"] == {"error_ms": 0.12}
    assert facts["accelerator"] == "kvm in tcg"


def test_a_link_local_address_comes_from_the_mac() -> None:
    assert str(_link_local("52:54:00:76:6e:01")) == "fe80::5054:ff:fe76:6e01"


def test_what_only_the_flat_topology_can_do_is_refused() -> None:
    with pytest.raises(VnetStandbyError, match="can be reset by the lab"):
        Scenario(topology="nested", primary="vf", resettable=True)
