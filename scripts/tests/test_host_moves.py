# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent does to a host with a VF, and the frames that it sends; the host is made up."""

from dataclasses import replace
from pathlib import Path

import pytest
from host_machine import ALIAS, MAC, PF, Machine, vf

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host import moves
from vnet_standby.host.changes import Transaction
from vnet_standby.host.fabric import Fabric, find_pair_fabric, loosen, park, where
from vnet_standby.host.frames import announcement, end_marker
from vnet_standby.host.network import FdbEntry, Link

TAP_INDEX = 4
LOCAL_VM = "52:54:00:00:00:99"


class FakeOutlet:
    """Takes down what leaves by which netdev, and that the fabric had moved by then."""

    sent: list[tuple[str, bytes]] = []  # noqa: RUF012  # each test's fixture makes a new one

    def __init__(self, link: Link) -> None:
        self._link = link

    def send(self, frame: bytes) -> None:
        """Take it down."""
        self.sent.append((self._link.name, frame))

    def close(self) -> None:
        """As in Outlet."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    monkeypatch.setattr(FakeOutlet, "sent", [])
    monkeypatch.setattr(moves, "Outlet", FakeOutlet)
    return FakeOutlet.sent


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.network.set_vf_mac(machine.network.link("eth0"), 0, MAC)
    machine.network.calls.clear()
    return machine


def fabric_of(machine: Machine, address: str = vf(0)) -> Fabric:
    return find_pair_fabric(machine.host, MAC, "standby", address=address)


def test_a_vf_leaves_with_a_marker_to_its_alias(
    machine: Machine, sent: list[tuple[str, bytes]]
) -> None:
    fabric = fabric_of(machine)
    assert where(machine.host, fabric) == "primary"
    moved = moves.follow(machine.host, fabric, "standby", mark=True)
    assert machine.network.calls == [
        "bridge standby static None",
        f"vf 0 mac {ALIAS}",
        "own add eth0",
    ]
    assert sent == [("eth0", end_marker(ALIAS, "primary"))]
    assert moved.marked is not None
    assert moved.marked >= moved.moved >= moved.began
    assert where(machine.host, fabric) == "standby"
    moves.follow(machine.host, fabric, "primary", mark=True)
    assert sent[1:] == [("standby", end_marker(MAC, "standby"))]
    assert where(machine.host, fabric) == "primary"


def test_a_vf_that_qemu_hides_is_found_by_its_mac(machine: Machine) -> None:
    fabric = fabric_of(machine, address="")
    assert fabric.vf is not None
    assert fabric.vf.name == "VF 0 of eth0"


def test_before_its_vm_has_come_a_vf_has_the_alias_only(machine: Machine) -> None:
    with Transaction() as change:
        park(machine.host, change, fabric_of(machine))
    assert machine.network.calls == [f"vf 0 mac {ALIAS}"]


def test_without_an_agent_a_guest_may_go_on_sending_by_its_vf(machine: Machine) -> None:
    fabric = fabric_of(machine)
    moves.follow(machine.host, fabric, "primary", mark=False)
    machine.network.calls.clear()
    with Transaction() as change:
        loosen(machine.host, change, fabric)
    assert machine.network.calls == ["bridge eth0 dynamic None"]
    machine.network.calls.clear()
    with Transaction() as change:
        loosen(machine.host, change, fabric, fabric.tap)  # a driver that was reset
    assert machine.network.settings[0].mac == ALIAS


def test_without_an_agent_all_goes_to_the_tap_if_a_vf_may_send_anything(machine: Machine) -> None:
    machine.network.settings[0] = replace(machine.network.settings[0], spoof_check=False)
    fabric = fabric_of(machine)
    moves.follow(machine.host, fabric, "primary", mark=False)
    machine.network.calls.clear()
    with Transaction() as change:
        loosen(machine.host, change, fabric)
    assert machine.network.calls == [
        f"vf 0 mac {ALIAS}",
        "own add eth0",
        "bridge standby dynamic None",
    ]


def test_a_vm_that_comes_is_announced_on_the_wire_and_given_back(
    machine: Machine, sent: list[tuple[str, bytes]]
) -> None:
    before = machine.state()
    taken = moves.take(machine.host, fabric_of(machine), ())
    assert sent == [("eth0", announcement(MAC))]
    assert taken.announced_on == ("eth0",)
    assert moves.give_back(machine.host, taken) == []
    assert machine.state() == before


def test_what_somebody_else_has_by_now_is_not_given_back(
    machine: Machine, sent: list[tuple[str, bytes]]
) -> None:
    taken = moves.take(machine.host, fabric_of(machine), ("eth0",))
    assert sent
    machine.network.entries[None] = FdbEntry(MAC, 2, None, "static", True)
    machine.network.calls.clear()
    assert moves.give_back(machine.host, taken) == []
    assert machine.network.calls == []


def test_a_vm_that_leaves_leaves_nothing_but_the_way_to_it(
    machine: Machine, sent: list[tuple[str, bytes]]
) -> None:
    fabric = fabric_of(machine)
    moves.follow(machine.host, fabric, "standby", mark=False)
    machine.network.calls.clear()
    moves.leave(machine.host, fabric, (), to_wire=True)
    assert machine.network.calls == ["own remove eth0", "bridge eth0 dynamic None"]
    moves.leave(machine.host, fabric, (), to_wire=False)
    assert machine.network.settings[0].mac == ALIAS
    assert sent == []


def test_a_vf_that_would_be_reset_has_no_marker(
    machine: Machine, sent: list[tuple[str, bytes]]
) -> None:
    machine.pci.set_driver(PF, "i40e")
    moved = moves.follow(machine.host, fabric_of(machine), "standby", mark=True)
    assert machine.network.calls == ["bridge standby static None"]
    assert "no way to put a frame behind the last one on the primary" in moved.unmarked
    assert sent == []


def test_a_whole_nic_is_left_to_the_switches_outside(
    machine: Machine, sent: list[tuple[str, bytes]]
) -> None:
    machine.network.set_vf_mac(machine.network.link("eth0"), 0, "00:00:00:00:00:00")
    machine.network.calls.clear()
    fabric = fabric_of(machine, address="0000:02:00.0")
    assert fabric.vf is None
    moves.follow(machine.host, fabric, "primary", mark=False)
    assert machine.network.calls == ["bridge standby static None"]  # what the uplink still brings
    assert sent == []
    moves.follow(machine.host, fabric, "standby", mark=False)
    assert machine.network.calls == ["bridge standby static None"]
    assert sent == [("eth0", announcement(MAC))]
    assert where(machine.host, fabric) is None


def test_vlans_are_announced_as_the_port_has_them(
    machine: Machine, sent: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.network.alter("br0", vlan_filtering=True)
    machine.network.port_vlans |= {"standby": (1, 20, 30), "eth0": (1, 20)}
    monkeypatch.setattr(machine.network, "untagged", lambda _port: {1})
    fabric = fabric_of(machine)
    assert moves.announce(machine.host, fabric, ()) == ("eth0",)
    assert sent == [("eth0", announcement(MAC)), ("eth0", announcement(MAC, 20))]


def test_the_taps_of_a_pair_are_in_one_bridge(machine: Machine) -> None:
    with pytest.raises(VnetStandbyError, match="not supported: eth1 is in no bridge"):
        find_pair_fabric(machine.host, MAC, "standby", primary_tap="eth1")


def test_the_frames_are_as_their_standards_have_them() -> None:
    marker = end_marker(MAC, "primary")
    assert len(marker) == 60
    assert marker[:6] == bytes.fromhex("525400766e01")
    assert marker[12:19] == bytes.fromhex("88b5 564e534d 01")
    assert not any(marker[19:])
    rarp = announcement(MAC)
    assert rarp[:22] == bytes.fromhex("ffffffffffff 525400766e01 8035 0001 0800 06 04 0003")
    assert announcement(MAC, 20)[12:18] == bytes.fromhex("8100 0014 8035")
