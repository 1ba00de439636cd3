# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointing the fabric: what is changed, in which order, what is left alone, what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from host_machine import ALIAS, MAC, PF, Machine, link, vf

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Transaction
from vnet_standby.host.drivers import DRIVERS
from vnet_standby.host.fabric import Datapath, find_fabric, forget, steer
from vnet_standby.host.network import FdbEntry

PF_INDEX, TAP_INDEX = 2, 4


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.network.set_vf_mac(machine.network.link("eth0"), 0, MAC)
    machine.network.calls.clear()
    return machine


def steered(machine: Machine, to: Datapath, **names: str) -> list[str]:
    machine.network.calls.clear()
    with Transaction() as change:
        steer(machine.host, change, find_fabric(machine.host, MAC, "standby", **names), to)
    return machine.network.calls


def test_to_the_standby_the_bridge_comes_first_and_the_pf_s_own_address_last(
    machine: Machine,
) -> None:
    assert steered(machine, "standby") == [
        "bridge standby static None",
        f"vf 0 mac {ALIAS}",
        "own add eth0",
    ]
    assert steered(machine, "standby") == []


def test_to_the_primary_it_is_the_other_way_round(machine: Machine) -> None:
    steered(machine, "standby")
    assert steered(machine, "primary") == [
        "own remove eth0",
        f"vf 0 mac {MAC}",
        "bridge eth0 static None",
    ]
    assert steered(machine, "primary") == []


def test_a_pf_that_is_not_promiscuous_takes_the_mac_before_the_vf_leaves_it(
    machine: Machine,
) -> None:
    machine.network.alter("eth0", promiscuous=False)
    assert [call.split()[0] for call in steered(machine, "standby")] == ["bridge", "own", "vf"]
    assert [call.split()[0] for call in steered(machine, "primary")] == ["vf", "own", "bridge"]


@pytest.mark.parametrize("driver", ["i40e", "ice", "mlx5_core"])
@pytest.mark.parametrize("to", ["primary", "standby"])
def test_a_pf_that_would_reset_the_vf_is_left_alone(
    machine: Machine, driver: str, to: Datapath
) -> None:
    machine.pci.set_driver(PF, driver)
    with Transaction() as change:
        steer(machine.host, change, find_fabric(machine.host, MAC, "standby"), to)
    assert len(machine.network.calls) == 1
    assert machine.network.calls[0].startswith("bridge")
    assert change.notes == [DRIVERS[driver].limit]


def test_a_learnt_entry_moves_and_comes_back_with_an_undo(machine: Machine) -> None:
    learnt = FdbEntry(MAC, PF_INDEX, None, "dynamic", False)
    machine.network.write_entry(learnt)
    before = machine.state()
    machine.network.refuses = "vf"
    with pytest.raises(VnetStandbyError, match="refuses"):
        steered(machine, "standby")
    assert machine.state() == before
    assert machine.network.entries[None] == learnt


def test_a_learnt_entry_that_can_not_come_back_is_forgotten(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.network.write_entry(FdbEntry(MAC, PF_INDEX, None, "dynamic", False))
    write = machine.network.write_entry

    def without_carrier(entry: FdbEntry) -> None:
        if entry.kind == "dynamic":
            raise VnetStandbyError("Operation not permitted")
        write(entry)

    monkeypatch.setattr(machine.network, "write_entry", without_carrier)
    machine.network.refuses = "vf"
    with pytest.raises(VnetStandbyError, match=r"^vf 0 mac .* refuses$"):
        steered(machine, "standby")
    assert machine.network.entries == {}


def test_half_way_is_undone(machine: Machine) -> None:
    before = machine.state()
    machine.network.refuses = "own add"
    with pytest.raises(VnetStandbyError, match="refuses"):
        steered(machine, "standby")
    assert machine.state() == before


def test_a_dry_run_changes_nothing(machine: Machine) -> None:
    before = machine.state()
    with Transaction(dry_run=True) as change:
        steer(machine.host, change, find_fabric(machine.host, MAC, "standby"), "standby")
    assert machine.state() == before
    assert [what.split()[0] for what in change.changed] == ["point", "move", "add"]


def test_on_a_vlan_aware_bridge_each_vlan_of_the_tap_moves(machine: Machine) -> None:
    machine.network.alter("br0", vlan_filtering=True)
    machine.network.port_vlans["standby"] = (1, 20)
    assert steered(machine, "standby")[:2] == [
        "bridge standby static 1",
        "bridge standby static 20",
    ]


def test_off_removes_what_was_set_and_leaves_the_vf_s_filter(machine: Machine) -> None:
    steered(machine, "standby")
    machine.network.calls.clear()
    with Transaction() as change:
        forget(machine.host, change, MAC)
    assert machine.network.calls == ["bridge forget None", "own remove eth0"]
    assert machine.network.settings[0].mac == ALIAS
    with Transaction() as change:
        forget(machine.host, change, MAC)
    assert change.changed == []


def test_off_takes_an_entry_without_vlan_for_all_of_its_port(machine: Machine) -> None:
    steered(machine, "standby")
    machine.network.write_entry(FdbEntry(MAC, TAP_INDEX, 1, "static", True))
    with Transaction(dry_run=True) as change:
        forget(machine.host, change, MAC)
    assert [what for what in change.changed if "bridge" in what] == [
        f"remove the bridge's entry for {MAC} on standby"
    ]


def test_off_leaves_what_others_set(machine: Machine) -> None:
    machine.network.write_entry(FdbEntry(MAC, PF_INDEX, None, "static", False))
    with Transaction() as change:
        forget(machine.host, change, MAC)
    assert change.changed == []


def test_a_whole_nic_as_primary_moves_the_bridge_only(machine: Machine) -> None:
    machine.network.set_vf_mac(machine.network.link("eth0"), 0, "00:00:00:00:00:00")
    assert steered(machine, "standby") == ["bridge standby static None"]
    assert steered(machine, "primary") == ["bridge eth0 static None"]
    with Transaction() as change:
        steer(machine.host, change, find_fabric(machine.host, MAC, "standby"), "standby")
    assert "only the bridge" in change.notes[0]


def test_the_uplink_can_be_named(machine: Machine) -> None:
    machine.network.by_index[7] = link(7, "rep0", master=1)
    assert "bridge rep0 static None" in steered(machine, "primary", uplink_name="rep0")
    with pytest.raises(VnetStandbyError, match="no other port of br0"):
        steered(machine, "primary", uplink_name="eth1")


def test_a_pf_in_a_bond_is_reached_by_the_bond(machine: Machine) -> None:
    machine.network.by_index[7] = link(7, "bond0", kind="bond", master=1)
    machine.network.alter("eth0", master=7)
    assert steered(machine, "primary") == ["bridge bond0 static None"]


def unknown_driver(machine: Machine) -> None:
    machine.pci.set_driver(PF, "bnxt_en")


def macvtap(machine: Machine) -> None:
    machine.network.alter("standby", kind="macvtap")


def ovs(machine: Machine) -> None:
    machine.network.alter("br0", kind="openvswitch", name="ovs-system")


def no_bridge(machine: Machine) -> None:
    machine.network.alter("standby", master=0)


def own_address(machine: Machine) -> None:
    machine.network.write_entry(FdbEntry(MAC, TAP_INDEX, None, "local", False))


def somebody_else_s(machine: Machine) -> None:
    machine.network.by_index[7] = link(7, "tap7", master=1)
    machine.network.write_entry(FdbEntry(MAC, 7, None, "static", False))


def two_vfs(machine: Machine) -> None:
    machine.network.set_vf_mac(machine.network.link("eth0"), 1, ALIAS)


def pf_down(machine: Machine) -> None:
    machine.network.alter("eth0", up=False)


def two_uplinks(machine: Machine) -> None:
    machine.network.set_vf_mac(machine.network.link("eth0"), 0, "00:00:00:00:00:00")
    machine.network.alter("eth1", master=1)


def no_tap(machine: Machine) -> None:
    del machine.network.by_index[TAP_INDEX]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (unknown_driver, "bnxt_en move a MAC; known are igb, ixgbe, i40e, ice, mlx5_core"),
        (macvtap, "not supported: standby is a macvtap"),
        (ovs, "not supported: standby is in ovs-system, an Open vSwitch"),
        (no_bridge, "not supported: standby is in no bridge"),
        (own_address, "it is the own address of standby"),
        (somebody_else_s, "static entry for it on tap7"),
        (two_vfs, "taken more than once, by VF 0 .* and VF 1"),
        (pf_down, "the PF eth0 is down"),
        (two_uplinks, r"name it with --uplink \(NICs there: eth0, eth1\)"),
        (no_tap, "no netdev standby here"),
    ],
)
def test_bad_input_is_one_message_and_changes_nothing(
    machine: Machine, prepare: Callable[[Machine], None], message: str
) -> None:
    prepare(machine)
    before = machine.state()
    with pytest.raises(VnetStandbyError, match=message) as caught:
        steered(machine, "primary")
    assert "\n" not in str(caught.value)
    assert machine.state() == before


def test_a_named_vf_must_be_the_pair_s(machine: Machine) -> None:
    assert steered(machine, "standby", vf_name=vf(0))
    with pytest.raises(VnetStandbyError, match=r"VF 1 of eth0 has the MAC .*; assign it first"):
        steered(machine, "standby", vf_name=vf(1))
    with pytest.raises(VnetStandbyError, match="is no VF"):
        steered(machine, "standby", vf_name="eth1")
    machine.network.alter("eth0", master=0)
    with pytest.raises(VnetStandbyError, match="is not in br0"):
        steered(machine, "standby", vf_name=vf(0))


def test_each_driver_s_row_has_a_source_and_a_reason() -> None:
    for row in DRIVERS.values():
        assert row.sources
        assert row.flips == (not row.limit)
