# SPDX-License-Identifier: GPL-2.0-or-later
"""The datapath protocol, the guest driver's half: what it tells, what it waits for, what it does when nothing comes.

The spec is qemu-patches/spec/virtio-net-standby-datapath.md. QEMU's half has qtests.
"""

import contextlib
import re
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

from scapy.layers.l2 import Ether
from scapy.packet import Raw

from labtest import SETTLE_S, LabTest
from vnet_standby.lab.command import PRIMARY_ID, STANDBY_ID
from vnet_standby.lab.events import Event
from vnet_standby.lab.lab import Lab
from vnet_standby.lab.network import PEER, PEER_MAC
from vnet_standby.lab.scenario import MAC
from vnet_standby.traffic.probe import GUEST_ADDRESS, PEER_ADDRESS

SWITCHES = 100

HOLD_MS = 100
"""The spec's bound for what a new path's frames wait."""

FABRIC_MS = 500
"""What a fabric that never answers costs at a failback; the driver would wait for a second."""

PING_COUNT = 20
PINGS = f"ping -c {PING_COUNT} -i 0.1 -W 2 {PEER_ADDRESS}"

MARKER = 0x88B5
"""The end marker's EtherType."""


def marker(left: int, magic: bytes = b"VNSM") -> bytes:
    """An end marker of the path `left`; an ordinary frame if the magic is another."""
    return bytes(Ether(src=PEER_MAC, dst=MAC, type=MARKER) / Raw(magic + bytes([left, *[0] * 41])))


class ProtocolTest(LabTest):
    @contextlib.asynccontextmanager
    async def speaking(self, **scenario: Any) -> AsyncIterator[Lab]:
        """A VM on its primary whose driver and device have negotiated the protocol."""
        self.require_datapath_protocol()
        async with self.lab(guest="vnet-standby", driver="patched", **scenario) as lab:
            await lab.start_vm()
            await self.until(lab, active_path_is_primary=1)
            yield lab

    async def until(self, lab: Lab, **wanted: int) -> dict[str, int]:
        """Return the driver's counters as soon as those named are as wanted."""

        def reached(counters: Mapping[str, int]) -> bool:
            return all(counters[name] == value for name, value in wanted.items())

        return await self.counted(lab, reached, f"the driver counting {wanted}")

    async def ask_for(self, lab: Lab, datapath: str) -> None:
        """The user's request, as management makes it."""
        await lab.vm.execute("x-virtio-net-standby-switch", device=STANDBY_ID, datapath=datapath)

    async def told(self, lab: Lab, since: int, datapath: str) -> Event:
        """The driver's first word, from event number `since` on, that it has moved there."""
        return await lab.vm.expect(
            "VIRTIO_NET_STANDBY_DATAPATH", SETTLE_S, since, datapath=datapath
        )

    async def assert_reachable(self, lab: Lab) -> None:
        await lab.vm.agent.run(f"ping -c 3 -W 2 {PEER_ADDRESS}")


class Switching(ProtocolTest):
    """
    :avocado: tags=driver,protocol
    """

    async def test_on_request(self) -> None:
        """
        :avocado: tags=quick
        """
        async with self.speaking(host_agent=False) as lab:
            before = await self.counters(lab)
            since = len(lab.events)
            await self.ask_for(lab, "standby")
            self.assertFalse((await self.told(lab, since, "standby")).data["forced"])
            after = await self.until(lab, active_path_is_primary=0, fabric_is_primary=0)
            self.assertEqual(after["tx_drained"], before["tx_drained"] + 1)
            await self.assert_reachable(lab)

            since = len(lab.events)
            await self.ask_for(lab, "primary")
            await self.told(lab, since, "primary")
            after = await self.until(lab, active_path_is_primary=1, fabric_is_primary=1)
            self.assertEqual(after["tx_drained"], before["tx_drained"] + 2)
            self.assertEqual(after["tx_forced"], 0)
            self.assertEqual(after["datapath_set_refused"], 0)
            await self.assert_reachable(lab)

    async def test_hundred_switches(self) -> None:
        """To and fro under traffic with a fabric that follows: nothing lost, doubled or out of order."""
        async with self.speaking(rate_hz=1000) as lab:
            await lab.start_traffic()
            since = len(lab.events)
            for number in range(SWITCHES):
                datapath = ("standby", "primary")[number % 2]
                await self.ask_for(lab, datapath)
                await self.told(lab, since, datapath)
                await self.until(lab, active_path_is_primary=int(datapath == "primary"))
                since = len(lab.events)
            after = await self.until(lab, fabric_is_primary=1)
            await lab.stop_traffic()
        self.assertEqual(after["tx_forced"], 0)
        self.assertEqual(after["rx_hold_forced"], 0)
        self.assertGreaterEqual(after["markers"], SWITCHES)
        verdict = self.judge()
        for direction, counts in verdict.counts.items():
            faults = counts.lost, counts.duplicated, counts.reordered
            self.assertEqual(faults, (0, 0, 0), f"lost, duplicated, reordered {direction}")

    async def test_module_removed(self) -> None:
        """The guest's administrator takes the primary's driver away: the device is told in time."""
        async with self.speaking(host_agent=False) as lab:
            since = len(lab.events)
            await lab.vm.agent.run("rmmod e1000e")
            self.assertFalse((await self.told(lab, since, "standby")).data["forced"])
            since = len(lab.events)
            await lab.vm.agent.run("modprobe e1000e")
            await self.told(lab, since, "primary")
            await self.until(lab, active_path_is_primary=1)

    async def test_xdp(self) -> None:
        """A program on the master sees each frame that the guest gets: while there is one, no primary is used."""
        async with self.speaking() as lab:
            since = len(lab.events)
            said = await lab.vm.agent.run(f"xdp native eth0 pass '{PINGS}'")
            await self.told(lab, since, "standby")
            await self.told(lab, since, "primary")
            await self.until(lab, active_path_is_primary=1)
            await self.assert_reachable(lab)
            await self.check_redirects(lab)
        received = int(re.findall(r"(\d+) packets received", said)[0])
        self.assertEqual(int(said.splitlines()[-1]), received, "what the program has seen")
        self.assertGreater(received, 10)

    async def check_redirects(self, lab: Lab) -> None:
        """What a program on another netdev redirects to the master leaves by the path in use, once."""
        run = lab.vm.agent.run
        # busybox can't name the other end: the kernel calls it veth0
        await run(f"modprobe veth && ip link add source address {MAC} type veth")
        await run("ip link set source up && ip link set veth0 up")
        await run(f"ip route add {PEER_ADDRESS} dev source src {GUEST_ADDRESS}")
        await run(f"arp -i source -s {PEER_ADDRESS} {PEER_MAC}")
        await self.redirect(lab, f"xdp generic veth0 eth0 '{PINGS}'", on_primary=True)
        # only with a program of its own virtio_net takes from other drivers, and with that the primary is not used
        native = f"xdp native veth0 eth0 '{PINGS}'"
        await self.redirect(lab, f'xdp native eth0 pass "{native}"', on_primary=False)
        await run("ip link delete source")

    async def redirect(self, lab: Lab, command: str, *, on_primary: bool) -> None:
        """Each of the command's echo requests reaches the peer once, on this path."""
        before = await self.counters(lab)
        said = await lab.vm.agent.run(command)
        after = await self.counters(lab)
        self.assertIn(f"{PING_COUNT} packets transmitted, {PING_COUNT} packets received", said)
        self.assertNotIn("duplicates", said)
        self.assertIn(f"\n{PING_COUNT}\n", said + "\n", "redirected")
        sent = after["primary_tx_packets"] - before["primary_tx_packets"]
        if on_primary:
            self.assertGreaterEqual(sent, PING_COUNT)
        else:
            self.assertLess(sent, PING_COUNT)

    async def test_carrier_lost(self) -> None:
        """What the driver could not plan is told, and named as forced."""
        async with self.speaking(host_agent=False) as lab:
            since = len(lab.events)
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=False)
            await self.told(lab, since, "standby")
            await self.until(lab, active_path_is_primary=0)
            await self.assert_reachable(lab)
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=True)
            await self.until(lab, active_path_is_primary=1)


class Levels(ProtocolTest):
    """The device's status counts as it is, not how it came there.

    :avocado: tags=driver,protocol
    """

    async def test_asked_while_down(self) -> None:
        """A request that comes while the interface is down holds when it is up again."""
        async with self.speaking(host_agent=False) as lab:
            run = lab.vm.agent.run
            since = len(lab.events)
            await run("ip link set eth0 down")
            await self.told(lab, since, "standby")
            await self.ask_for(lab, "standby")
            await run("ip link set eth0 up")
            await lab.wait_primary()
            await self.assert_reachable(lab)
            await self.until(lab, active_path_is_primary=0)
            await self.ask_for(lab, "primary")
            await self.until(lab, active_path_is_primary=1)

    async def test_reset(self) -> None:
        """After a reset the device knows nothing: the driver says again where it is."""
        async with self.speaking(host_agent=False, resettable=True) as lab:
            since = len(lab.events)
            await lab.reset()
            event = await self.told(lab, since, "standby")
            self.assertEqual(event.data["cause"], "reset")
            await self.told(lab, since, "primary")
            await self.until(lab, active_path_is_primary=1)

    async def test_suspend(self) -> None:
        """The guest's kernel suspends its devices and resumes them: the same without a boot.

        e1000: with e1000e the receive ring is out of step with QEMU's at times when the NIC is resumed.
        """
        async with self.speaking(host_agent=False, primary="e1000") as lab:
            test = "echo devices > /sys/power/pm_test && echo mem > /sys/power/state"
            since = len(lab.events)
            await lab.vm.agent.run(test)
            await self.told(lab, since, "standby")
            await self.told(lab, since, "primary")
            await self.until(lab, active_path_is_primary=1)
            await self.assert_reachable(lab)


class Fabric(ProtocolTest):
    """A fabric that does not do its part; this test is the fabric.

    :avocado: tags=driver,protocol
    """

    async def manage(self, lab: Lab, datapath: str) -> None:
        await lab.vm.execute(
            "x-virtio-net-standby-fabric",
            device=STANDBY_ID,
            datapath=datapath,
            timeout=FABRIC_MS,
            marks=True,
        )

    async def test_no_marker(self) -> None:
        """What arrives on the new path waits for the end of the old one no longer than it may."""
        async with self.speaking(host_agent=False) as lab:
            await self.manage(lab, "primary")
            since = len(lab.events)
            await self.ask_for(lab, "standby")
            await self.told(lab, since, "standby")
            before = await self.until(lab, active_path_is_primary=0)
            took = await self.reached(lab)
            self.assertLess(took, 3 * HOLD_MS)
            after = await self.until(lab, rx_hold_forced=before["rx_hold_forced"] + 1)
            self.assertGreater(after["rx_held"], 0)
            await self.assert_reachable(lab)

    async def reached(self, lab: Lab) -> float:
        """How long an echo to the peer takes (ms)."""
        text = await lab.vm.agent.run(f"ping -c 1 -W 2 {PEER_ADDRESS}")
        return float(text.split("time=")[1].split()[0])

    async def test_no_answer(self) -> None:
        """A fabric that never says that it has moved delays the failback, and no more."""
        async with self.speaking(host_agent=False) as lab:
            await self.manage(lab, "primary")
            since = len(lab.events)
            await self.ask_for(lab, "standby")
            await lab.vm.expect("VIRTIO_NET_STANDBY_FABRIC", SETTLE_S, since, outcome="timed-out")
            await self.ask_for(lab, "primary")
            await self.until(lab, active_path_is_primary=1)
            await self.assert_reachable(lab)

    async def test_markers(self) -> None:
        """No marker reaches the stack, expected or not; what only looks like one is an ordinary frame."""
        async with self.speaking(host_agent=False) as lab:
            await lab.vm.agent.run(f"ping -c 1 -W 2 {PEER_ADDRESS}")  # the bridge learns the path
            await self.assert_taken(lab, marker(left=1), markers=1)
            await self.assert_taken(lab, marker(left=0), markers=1)
            await self.assert_taken(lab, marker(left=1, magic=b"VNSX"), markers=0)
            await self.assert_reachable(lab)

    async def assert_taken(self, lab: Lab, frame: bytes, markers: int) -> None:
        """The frame reaches the guest, and this many markers of it do not reach its stack."""
        before = await self.counters(lab)
        unknown = await self.unhandled(lab)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((PEER, 0))
            sender.send(frame)
        await self.assert_reachable(lab)
        after = await self.counters(lab)
        self.assertEqual(after["markers"], before["markers"] + markers)
        self.assertEqual(await self.unhandled(lab), unknown + 1 - markers)

    async def unhandled(self, lab: Lab) -> int:
        """Frames that reached the stack, where nobody wanted them."""
        return int(await lab.vm.agent.run("cat /sys/class/net/eth0/statistics/rx_dropped"))
