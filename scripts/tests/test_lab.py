# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's logic that needs no VM: command lines, the agent's line protocol, the event log."""

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vnet_standby.build.image import GuestImage
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.agent import Agent, Link
from vnet_standby.lab.command import (
    MAX_PAIRS,
    QemuBinary,
    assigned_primary,
    boot_arguments,
    inspect_qemu,
    machine_arguments,
    nic_arguments,
    twin_device,
    write_boot_settings,
)
from vnet_standby.lab.events import EventLog
from vnet_standby.lab.flat import Flat
from vnet_standby.lab.scenario import MAC, Host, Scenario
from vnet_standby.lab.vm import Vm

QEMU = QemuBinary(Path("/q"), "QEMU 10", "pc-q35-10.0", Path("/fw"), True, True)
RUN = Path("/run-folder")
IMAGE = GuestImage(Path("/vmlinuz"), Path("/initramfs.gz"), "6.12.1-test")
LINK = "eth1 mac=52:54:00:76:6e:01 carrier=1 operstate=up flags=0x1003 mtu=1500 driver=e1000e master=eth0 addresses="


def kernel_command_line(scenario: Scenario) -> str:
    arguments = boot_arguments(scenario, IMAGE.kernel, IMAGE.initramfs, RUN)
    return arguments[arguments.index("-append") + 1]


def flat(scenario: Scenario) -> Flat:
    return Flat(scenario, QEMU, IMAGE, "tcg")


def options(arguments: list[str]) -> list[str]:
    return [arguments[at + 1] for at, word in enumerate(arguments) if word == "-device"]


def devices(scenario: Scenario, *, incoming: bool = False, host: Host = "a") -> list[str]:
    arguments = flat(scenario).vm_arguments(host, RUN, incoming=incoming)
    return [option for option in options(arguments) if not option.startswith("pcie-root-port")]


def test_net_failover_pairs_by_id_on_both_hosts() -> None:
    for incoming in (False, True):
        standby, primary = devices(Scenario(), incoming=incoming)
        assert "failover=on" in standby
        assert "failover_pair_id=standby0" in primary


def test_the_driver_of_ours_is_paired_as_net_failover_is() -> None:
    ours = Scenario(guest="vnet-standby")
    assert devices(ours) == devices(Scenario())
    assert not ours.managed
    assert Scenario(guest="vnet-standby", owner="management").managed
    assert "vnet.guest=vnet-standby" in kernel_command_line(ours)


def test_the_datapath_protocol_needs_all_sides() -> None:
    ours = Scenario(guest="vnet-standby", driver="patched")
    without = replace(QEMU, has_datapath_protocol=False)
    assert flat(ours).protocol
    assert "x-standby-datapath=on" in devices(ours)[0]
    assert not flat(replace(ours, driver="drop-in")).protocol
    assert not flat(Scenario(guest="net-failover")).protocol
    mixed = Flat(ours, QEMU, IMAGE, "tcg", destination_qemu=without)
    assert not mixed.protocol
    assert "x-standby-datapath" not in " ".join(mixed.vm_arguments("a", RUN, incoming=False))


def test_a_spare_port_is_empty() -> None:
    plain, spare = (
        nic_arguments(Scenario(spare_port=port), "a-standby", None) for port in (False, True)
    )
    added = [option for option in spare if option not in plain]
    assert [option.split(",")[:2] for option in added] == [["pcie-root-port", "id=rp-spare"]]
    assert twin_device()["bus"] == "rp-spare"


def test_further_pairs_have_their_own_of_everything() -> None:
    """Two devices that shared a port, a tap or a MAC would be one for QEMU, the bridge or the guest."""
    scenario = Scenario(guest="vnet-standby", driver="patched", pairs=MAX_PAIRS)
    arguments = flat(scenario).vm_arguments("b", RUN, incoming=True)
    given = [dict(re.findall(r"([\w-]+)=([^,]+)", argument)) for argument in arguments]
    ports = [o for o in given if o.get("bus") == "pcie.0"]
    assert len({o["addr"] for o in ports if "addr" in o}) == 2 * (MAX_PAIRS - 1)
    assert len({o["slot"] for o in ports}) == len(ports) == 2 * MAX_PAIRS
    for key in ("ifname", "netdev"):
        assert len({o[key] for o in given if key in o}) == 2 * MAX_PAIRS
    nics = [o for o in given if "mac" in o]
    assert {o["bus"] for o in nics} == {o["id"] for o in ports}
    standbys = {o["id"]: o["mac"] for o in nics if "failover" in o}
    primaries = {o["failover_pair_id"]: o["mac"] for o in nics if "failover_pair_id" in o}
    assert standbys == primaries
    assert len(set(standbys.values())) == MAX_PAIRS
    assert standbys["standby0"] == MAC
    assert all(o.get("x-standby-datapath") == "on" for o in nics if "failover" in o)


@pytest.mark.parametrize("impossible", [{"guest": "bond"}, {"topology": "nested", "primary": "vf"}])
def test_several_pairs_where_they_can_not_be_are_refused(impossible: dict[str, Any]) -> None:
    with pytest.raises(VnetStandbyError, match="can't have 2 pairs"):
        Scenario(**impossible, pairs=2)


def test_management_owns_the_primary_of_a_standby_property() -> None:
    scenario = Scenario(owner="management")
    standby, primary = devices(scenario)
    assert "standby=on" in standby
    assert "failover" not in standby + primary
    assert len(devices(scenario, incoming=True)) == 1


def test_bond_has_no_feature_and_its_primary_is_plugged_after_the_migration() -> None:
    scenario = Scenario(guest="bond")
    assert not any("failover" in device or "standby=on" in device for device in devices(scenario))
    assert len(devices(scenario, incoming=True)) == 1
    primary = flat(scenario).primary("b", incoming=True)
    assert primary is not None
    assert primary["mac"] == MAC


def test_virtio_has_no_primary() -> None:
    assert list(flat(Scenario(guest="virtio")).ports) == ["a-standby", "b-standby"]
    assert len(devices(Scenario(guest="virtio"))) == 1


def test_controls() -> None:
    assert "a-standby" not in flat(Scenario(guest="bond", standby=False)).ports
    wrong = Scenario(destination_primary_mac="52:54:00:00:00:99")
    assert MAC in devices(wrong)[1]
    assert "52:54:00:00:00:99" in devices(wrong, incoming=True)[1]


def test_the_destination_may_have_another_primary_or_none() -> None:
    other = Scenario(destination_primary="e1000")
    assert devices(other)[1].startswith("e1000e,")
    assert devices(other, incoming=True, host="b")[1].startswith("e1000,")
    assert (other.driver_on("a"), other.driver_on("b")) == ("e1000e", "e1000")
    none = Scenario(destination_primary="none")
    assert len(devices(none, incoming=True, host="b")) == 1
    assert "b-primary" not in flat(none).ports
    assert flat(none).primary("b", incoming=True) is None
    # the migration needs the same root ports on both sides
    assert (
        options(flat(none).vm_arguments("b", RUN, incoming=True))[:2]
        == options(flat(none).vm_arguments("a", RUN, incoming=False))[:2]
    )


def test_a_primary_of_the_other_topology_is_refused() -> None:
    with pytest.raises(VnetStandbyError, match="flat topology has no primary vf; it has e1000e"):
        Scenario(primary="vf")
    with pytest.raises(VnetStandbyError, match="nested topology has no primary e1000e"):
        Scenario(topology="nested")


def test_an_igb_needs_a_qemu_with_the_series() -> None:
    assert Scenario(primary="igb").needs_series
    assert Scenario(destination_primary="igb").needs_series
    assert not Scenario().needs_series
    assert not Scenario(guest="bond", primary="igb").needs_series


def test_processors() -> None:
    assert "-smp 2" in " ".join(flat(Scenario(vcpus=2)).vm_arguments("a", RUN, incoming=False))
    with pytest.raises(VnetStandbyError, match="only a VM of the flat topology"):
        Scenario(topology="nested", primary="vf", vcpus=2)


def test_what_is_passed_through_is_paired_like_an_emulated_primary() -> None:
    scenario = Scenario(topology="nested", primary="vf")
    primary = assigned_primary(scenario, "0000:00:12.0")
    assert primary["host"] == "0000:00:12.0"
    assert primary["failover_pair_id"] == "standby0"
    assert scenario.driver_on("a") == scenario.driver_on("b") == "igbvf"


def test_native_hotplug_switches_acpi_hotplug_off() -> None:
    option = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"
    assert option in machine_arguments(QEMU, "tcg", 512, "pcie")
    assert option not in machine_arguments(QEMU, "tcg", 512, "acpi")


def test_guest_settings_are_on_the_kernel_command_line() -> None:
    line = kernel_command_line(Scenario(guest="bond", first_driver="primary"))
    assert "vnet.guest=bond" in line
    assert "vnet.first=primary" in line


def test_only_a_resettable_vm_boots_twice(tmp_path: Path) -> None:
    once, more = (
        boot_arguments(Scenario(resettable=resettable), IMAGE.kernel, IMAGE.initramfs, tmp_path)
        for resettable in (False, True)
    )
    assert "-no-reboot" in once
    assert "-no-reboot" not in more
    write_boot_settings(tmp_path, {"drivers": "none"})
    disk = (tmp_path / "boot-settings.img").read_bytes()
    assert disk.rstrip(b"\0") == b"vnet.drivers=none\n"
    assert len(disk) == 512
    with pytest.raises(VnetStandbyError, match="only a VM of the flat topology"):
        Scenario(topology="nested", primary="vf", resettable=True)


def fake_qemu(folder: Path, machines: str) -> Path:
    binary = folder / "qemu"
    binary.write_text(
        f"#!/bin/sh\ncase $1 in -machine) echo '{machines}';; *) echo 'QEMU emulator 1.0';; esac\n"
    )
    binary.chmod(0o755)
    return binary


def test_a_binary_without_q35_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match="no q35 machine type"):
        inspect_qemu(fake_qemu(tmp_path, "none  empty machine"), None)


def test_newest_versioned_machine_where_the_preferred_one_is_missing(tmp_path: Path) -> None:
    machines = "pc-q35-9.2  Standard PC\npc-q35-11.1  Standard PC\nq35  alias"
    assert inspect_qemu(fake_qemu(tmp_path, machines), None).machine == "pc-q35-11.1"


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(VnetStandbyError, match="can't be run"):
        inspect_qemu(tmp_path / "text", None)


def test_a_failing_program_is_refused_with_its_last_words(tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_text("#!/bin/sh\necho libfoo.so: not found >&2\nexit 127\n")
    binary.chmod(0o755)
    with pytest.raises(VnetStandbyError, match=r"libfoo\.so: not found"):
        inspect_qemu(binary, None)


def test_link_parse() -> None:
    link = Link.parse(LINK)
    assert (link.name, link.carrier, link.driver, link.master, link.addresses) == (
        "eth1",
        True,
        "e1000e",
        "eth0",
        (),
    )
    assert Link.parse(LINK + "192.0.2.2,fe80::1").addresses == ("192.0.2.2", "fe80::1")


def talk(
    story: Callable[[Agent, socket.socket], Awaitable[None]],
) -> list[tuple[str, dict[str, object]]]:
    """Run a story with an agent's client and the other end of its port; returns what was notified."""
    notified: list[tuple[str, dict[str, object]]] = []

    async def run() -> None:
        async def notify(event: str, data: dict[str, object]) -> None:
            notified.append((event, data))

        here, there = socket.socketpair()
        here.setblocking(False)
        agent = Agent("a", notify)
        await agent.open(here)
        with there:
            await story(agent, there)
        await agent.close()

    asyncio.run(run())
    return notified


def test_answers_find_their_questions() -> None:
    async def story(agent: Agent, guest: socket.socket) -> None:
        first = asyncio.create_task(agent.ask("hello"))
        second = asyncio.create_task(agent.ask("links"))
        await asyncio.sleep(0)
        guest.sendall(b"2 = two\n! clock 5\n1 = one\n1 ok\n2 = more\n2 ok\n")
        assert await first == ["one"]
        assert await second == ["two", "more"]
        assert [guest_ns for _, guest_ns in agent.clock_samples] == [5]

    talk(story)


def test_an_error_of_the_guest_is_raised_with_its_output() -> None:
    async def story(agent: Agent, guest: socket.socket) -> None:
        asking = asyncio.create_task(agent.run("false"))
        await asyncio.sleep(0)
        guest.sendall(b"1 = went wrong\n1 error exit 1\n")
        with pytest.raises(VnetStandbyError, match="exit 1: went wrong"):
            await asking

    talk(story)


def test_a_silent_guest_is_named_after_the_bound() -> None:
    async def story(agent: Agent, _guest: socket.socket) -> None:
        with pytest.raises(VnetStandbyError, match=r"no answer to 'hello' within 0\.01 s"):
            await agent.ask("hello", timeout_s=0.01)

    talk(story)


def test_a_closed_port_ends_the_wait() -> None:
    async def story(agent: Agent, guest: socket.socket) -> None:
        asking = asyncio.create_task(agent.ask("hello"))
        await asyncio.sleep(0)
        guest.close()
        with pytest.raises(VnetStandbyError, match="its port closed"):
            await asking

    talk(story)


def test_link_changes_are_notified_once() -> None:
    async def story(agent: Agent, guest: socket.socket) -> None:
        vanished = LINK.replace("operstate=up", "operstate=")
        guest.sendall(
            f"! link {LINK}\n! link {LINK}\n! link {vanished}\n! gone eth1\n1 ok\n".encode()
        )
        await agent.ask("hello")

    assert [(event, data["name"]) for event, data in talk(story)] == [
        ("link", "eth1"),
        ("gone", "eth1"),
    ]


def test_events_are_waited_for_from_a_given_number_on() -> None:
    async def story() -> None:
        log = EventLog()
        await log.add("a", "STOP", {})
        waiting = asyncio.create_task(log.wait(lambda event: event.event == "STOP", since=len(log)))
        await asyncio.sleep(0)
        assert not waiting.done()
        await log.add("b", "STOP", {"second": True})
        assert (await waiting).data == {"second": True}

    asyncio.run(story())


def test_events_are_written_in_order_of_time(tmp_path: Path) -> None:
    async def story() -> None:
        log = EventLog()
        await log.add("lab", "late", {}, t=2.0)
        await log.add("a", "early", {"x": 1}, t=1.0)
        log.write(tmp_path / "events.jsonl")

    asyncio.run(story())
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["early", "late"]
    assert json.loads(lines[0]) == {"t": 1.0, "who": "a", "event": "early", "data": {"x": 1}}


REPORTS = (
    "[   12.3] WARNING: CPU: 0 PID: 77 at net/core/dev.c:7 netif_rx+0x1/0x2",
    "[   12.3] WARNING: possible circular locking dependency detected",
    "[   12.3] WARNING: suspicious RCU usage",
    "[   12.3] BUG: KASAN: slab-use-after-free in vnet_standby_receive+0x1/0x2",
    "[   12.3] BUG: sleeping function called from invalid context at mm/slab.h:7",
    "[   12.3] INFO: task kworker/0:1:9 blocked for more than 120 seconds.",
    "[   12.3] Oops: general protection fault, probably for non-canonical address",
    "[   12.3] UBSAN: shift-out-of-bounds in drivers/net/virtio_net.c:7",
    "[   12.3] list_del corruption. prev->next should be ffff, but was 0",
    "[   12.3] unregister_netdevice: waiting for eth0 to become free. Usage count = 2",
)


def test_what_a_kernel_finds_wrong_with_itself_is_read_from_its_console(tmp_path: Path) -> None:
    vm = Vm("a", EventLog(), tmp_path)
    assert vm.kernel_reports() == []
    ordinary = (
        "[    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
        "[    1.2] e1000e 0000:02:00.0 eth1: NIC Link is Up 1000 Mbps Full Duplex",
        "[    1.3] virtio_net virtio0 eth0: vnet-standby: left alone: eth2 has the MAC, too",
    )
    vm.console.write_text("\n".join([*ordinary, *REPORTS]) + "\n")
    assert vm.kernel_reports() == list(REPORTS)
