# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest driver: two netdevs, one interface; what carries the traffic, and what a change of path costs."""

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from labtest import LabTest
from vnet_standby.lab.agent import Link
from vnet_standby.lab.command import PRIMARY_ID, STANDBY_ID, TWIN_ID
from vnet_standby.lab.lab import UNPLUG_S, Lab
from vnet_standby.lab.network import PEER, PEER_MAC
from vnet_standby.lab.scenario import MAC
from vnet_standby.traffic.probe import GUEST_PORT, NUMBERED, PEER_ADDRESS, PEER_PORT, VnetProbe
from vnet_standby.traffic.verdict import Verdict

ROUTE = ["a-primary", "a-standby", "b-standby", "b-primary"]

PROBES = 20

FLAPS = 100

VCPUS = 2
FLOWS = 16
"""From each CPU. A queue gets half of all by chance; less than an eighth of them once in 100,000 runs."""

OTHER = "cat /tmp/other"
"""Tells the process that is in the guest's other network namespace."""

THERE = f"nsenter -n -m -t $({OTHER})"

VLAN, VLAN_ADDRESS = 7, "198.51.100.2"

FAILOVER_PROBES = 5
"""25 ms: what may be on its way to the primary when the guest is asked to let go of it."""


def tagged_probe(number: int) -> bytes:
    """A probe of the peer's in the VLAN; the host's kernel need not know VLANs for it."""
    probe = VnetProbe(kind=NUMBERED, seq=number)
    addresses = IP(src="198.51.100.1", dst=VLAN_ADDRESS) / UDP(sport=PEER_PORT, dport=GUEST_PORT)
    return bytes(Ether(src=PEER_MAC, dst=MAC) / Dot1Q(vlan=VLAN) / addresses / probe)


class DriverTest(LabTest):
    """The drop-in; `-p driver=patched` for the patched pair of modules."""

    def driver(self) -> str:
        return str(self.params.get("driver", default="drop-in"))

    @contextlib.asynccontextmanager
    async def paired(self, **scenario: Any) -> AsyncIterator[Lab]:
        """A lab with a vnet-standby guest that runs on its primary."""
        async with self.lab(guest="vnet-standby", driver=self.driver(), **scenario) as lab:
            await lab.start_vm()
            yield lab

    async def pair(self, lab: Lab) -> tuple[Link, Link]:
        """The visible netdev and its slave."""
        links = (await lab.vm.agent.links()).values()
        (master,) = [link for link in links if link.driver == "virtio_net"]
        (slave,) = [link for link in links if link.master == master.name]
        return master, slave

    async def assert_active(self, lab: Lab, path: str) -> None:
        """The guest says that this path carries the traffic, and the peer's echo takes it, there and back."""
        before = await self.counters(lab)
        self.assertEqual(before["active_path_is_primary"], path == "primary", path)
        await lab.vm.agent.run(f"ping -c 3 -W 2 {PEER_ADDRESS}")
        after = await self.counters(lab)
        sent = after["primary_tx_packets"] - before["primary_tx_packets"]
        if path == "primary":
            self.assertGreaterEqual(sent, 3)
        else:
            self.assertEqual(sent, 0)


class Pair(DriverTest):
    """
    :avocado: tags=driver,parallel
    """

    async def test_standby_driver_first(self) -> None:
        await self.check_pair(first_driver="standby")

    async def test_primary_driver_first(self) -> None:
        """
        :avocado: tags=quick
        """
        await self.check_pair(first_driver="primary")

    async def check_pair(self, **scenario: str) -> None:
        async with self.paired(**scenario) as lab:
            links = await lab.vm.agent.links()
            self.assertEqual(len(links), 3, f"lo, the visible netdev and its slave: {links}")
            master, slave = await self.pair(lab)
            self.assertEqual(slave.driver, lab.scenario.primary)
            self.assertEqual(slave.addresses, ())
            self.assertIn("192.0.2.2", master.addresses)
            await self.assert_active(lab, "primary")

    async def test_twin_left_alone(self) -> None:
        """A second NIC with the MAC is none of the pair's, and its going changes nothing."""
        async with self.paired(spare_port=True) as lab:
            _, before = await self.pair(lab)
            await lab.plug_twin()
            _, slave = await self.pair(lab)
            self.assertEqual(slave.name, before.name)
            await lab.vm.agent.run("dmesg | grep 'is left alone'")
            await self.assert_active(lab, "primary")
            await lab.vm.unplug(TWIN_ID, UNPLUG_S)
            await self.assert_active(lab, "primary")


class Queues(DriverTest):
    """
    :avocado: tags=driver,parallel
    """

    async def test_primary(self) -> None:
        """What several CPUs send by a master with one queue goes to all of the primary's, not by its qdiscs."""
        self.require_standby_property()  # else an igb can't be a failover primary
        async with self.paired(primary="igb", vcpus=VCPUS) as lab:
            _, slave = await self.pair(lab)
            queued = (await self.counters(lab))["primary_tx_queued"]
            before = await lab.vm.agent.counters(slave.name)
            for cpu in range(VCPUS):
                # a flow of one frame each way: nobody listens there
                connect = f"taskset -c {cpu} nc -w 1 {PEER_ADDRESS} 9 2>&1 | grep -q refused"
                await lab.vm.agent.run(f"set -e; for i in $(seq {FLOWS}); do {connect}; done")
            after = await lab.vm.agent.counters(slave.name)
            for queue in range(VCPUS):
                name = f"tx_queue_{queue}_packets"
                self.assertGreaterEqual(after[name] - before[name], FLOWS // 4, name)
            self.assertLess((await self.counters(lab))["primary_tx_queued"] - queued, FLOWS)


class Following(DriverTest):
    """
    :avocado: tags=driver,parallel
    """

    async def test_settings(self) -> None:
        """The slave has the master's settings, and gets each change of them; what it can't follow pins."""
        async with self.paired() as lab:
            master, slave = await self.pair(lab)
            run = lab.vm.agent.run
            self.assertEqual(await self.groups(lab, slave), await self.groups(lab, master))

            # e1000e takes its link down for a change of its MTU
            await run(f"ip link set {master.name} mtu 1400")
            self.assertEqual((await self.pair(lab))[1].mtu, 1400)
            await self.wait_active(lab, "primary")
            await run(f"ip link set {master.name} mtu 20000")
            await self.assert_active(lab, "standby")
            await run(f"ip link set {master.name} mtu 1500")
            await self.wait_active(lab, "primary")

            await run(f"ifconfig {master.name} allmulti")
            self.assertTrue(await self.flags(lab, slave) & 0x200)
            await run(f"ifconfig {master.name} -allmulti")
            self.assertFalse(await self.flags(lab, slave) & 0x200)

            for state in ("off", "on"):
                await run(f"gro {master.name} {state}")
                await run(f"until [ $(gro {slave.name}) = {state} ]; do sleep 1; done")

            await run(f"ifconfig {master.name} promisc")
            await self.wait_active(lab, "standby")
            await run(f"ifconfig {master.name} -promisc")
            await self.wait_active(lab, "primary")

    async def test_vlan(self) -> None:
        """The slave lets a VLAN of the master through, one that was there before it, too."""
        async with self.paired() as lab:
            master, _ = await self.pair(lab)
            run = lab.vm.agent.run
            await run(
                f"modprobe 8021q && ip link add link {master.name} name v{VLAN} type vlan id {VLAN}"
            )
            await run(f"ip link set v{VLAN} up && ip address add {VLAN_ADDRESS}/24 dev v{VLAN}")
            await self.send_tagged(lab, on_primary=True)
            await run("rmmod e1000e")
            await self.send_tagged(lab, on_primary=False)
            await run("modprobe e1000e")
            await lab.wait_primary()
            await self.wait_active(lab, "primary")
            await self.send_tagged(lab, on_primary=True)

    async def send_tagged(self, lab: Lab, *, on_primary: bool) -> None:
        """Probes in the VLAN reach the guest, on the path that the peer's bridge has learnt last."""
        await lab.vm.agent.ask("forget")
        await lab.vm.agent.run(f"ping -c 1 -W 2 {PEER_ADDRESS}")
        before = (await self.counters(lab))["primary_rx_packets"]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((PEER, 0))
            for number in range(PROBES):
                sender.send(tagged_probe(number))
        await self.assert_received(lab)
        taken = (await self.counters(lab))["primary_rx_packets"] - before
        self.assertGreaterEqual(taken, PROBES * on_primary)

    async def test_broadcast_once(self) -> None:
        """A frame that reaches the guest on both paths is taken once, on either."""
        async with self.paired() as lab:
            _, slave = await self.pair(lab)
            await self.broadcast(lab)
            dropped = (await self.counters(lab))["standby_rx_group_dropped"]
            self.assertGreaterEqual(dropped, PROBES)
            await lab.vm.agent.run(f"ip link set {slave.name} down")
            await self.broadcast(lab)
            self.assertLess(
                (await self.counters(lab))["standby_rx_group_dropped"], dropped + PROBES
            )

    async def broadcast(self, lab: Lab) -> None:
        await lab.vm.agent.ask("forget")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, PEER.encode())
            sender.bind((PEER_ADDRESS, 0))
            for number in range(PROBES):
                sender.sendto(
                    bytes(VnetProbe(kind=NUMBERED, seq=number)), ("255.255.255.255", GUEST_PORT)
                )
        await self.assert_received(lab)

    async def assert_received(self, lab: Lab) -> None:
        """The guest has each of the probes, once."""
        await lab.vm.agent.run(f"ping -c 2 -W 2 {PEER_ADDRESS}")  # behind them on either path
        received = sorted(int(line.split()[0]) for line in await lab.vm.agent.ask("received"))
        self.assertEqual(received, list(range(PROBES)))

    async def test_path_by_hand(self) -> None:
        """Slave down and up, master down and up: the traffic goes where it can."""
        async with self.paired() as lab:
            master, slave = await self.pair(lab)
            run = lab.vm.agent.run
            await run(f"ip link set {slave.name} down")
            await self.assert_active(lab, "standby")
            await run(f"ip link set {slave.name} up")
            await lab.wait_primary()
            await self.wait_active(lab, "primary")
            await run(f"ip link set {master.name} down")
            await run(f"ip link set {master.name} up")
            await lab.wait_primary()
            await self.wait_active(lab, "primary")
            self.assertEqual((await self.pair(lab))[1].addresses, ())

    async def test_carrier(self) -> None:
        """The host takes the primary's link away and gives it back, and the same with the standby's."""
        async with self.paired() as lab:
            master, _ = await self.pair(lab)
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=False)
            await self.wait_active(lab, "standby")
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=True)
            await self.wait_active(lab, "primary")
            await lab.vm.execute("set_link", name=STANDBY_ID, up=False)
            await lab.vm.agent.run("sleep 2")  # the kernel tells of a lost carrier within a second
            self.assertTrue((await self.pair(lab))[0].carrier, f"carrier of {master.name}")
            await self.assert_active(lab, "primary")
            await lab.vm.execute("set_link", name=STANDBY_ID, up=True)
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=False)
            await self.wait_active(lab, "standby")

    async def test_namespace(self) -> None:
        """The primary follows the master, also one that comes later; not one that somebody has moved away."""
        async with self.paired() as lab:
            master, slave = await self.pair(lab)
            run = lab.vm.agent.run
            await self.make_namespace(lab)
            await self.move(lab, master)
            await self.wait_active_there(lab, master)

            await run(f"{THERE} ip link set {slave.name} netns 1")
            await run(f"{THERE} ping -c 3 -W 2 {PEER_ADDRESS}")
            masters = {link.name: link.master for link in (await lab.vm.agent.links()).values()}
            self.assertEqual(masters, {"lo": "", slave.name: ""}, "taken from where it was put")

            await run("rmmod e1000e && modprobe e1000e")
            await self.wait_active_there(lab, master)
            self.assertEqual(list(await lab.vm.agent.links()), ["lo"])

            await run(f"{THERE} ip link set {master.name} netns 1")
            await self.wait_paired_again(lab, master)

    async def test_namespace_dies(self) -> None:
        """Both come back to the first namespace, in either order, and are a pair again."""
        async with self.paired() as lab:
            master, slave = await self.pair(lab)
            for first in master, slave:
                await self.make_namespace(lab)
                if first == slave:
                    await lab.vm.agent.run(f"ip link set {slave.name} netns $({OTHER})")
                await self.move(lab, master)
                await self.wait_active_there(lab, master)
                await lab.vm.agent.run(f"kill $({OTHER}) && rm /tmp/other")
                await self.wait_paired_again(lab, master)

    async def make_namespace(self, lab: Lab) -> None:
        """A network namespace, for as long as its process lives, with a /sys that shows it."""
        process = "mount -t sysfs sys /sys && echo $$ > /tmp/other && exec sleep 600"
        await lab.vm.agent.run(f"unshare -n -m sh -c '{process}' > /dev/null 2>&1 &")
        await lab.vm.agent.run("until [ -s /tmp/other ]; do sleep 1; done")

    async def move(self, lab: Lab, master: Link) -> None:
        await lab.vm.agent.run(f"ip link set {master.name} netns $({OTHER})")
        await self.set_up(lab, master, THERE)

    async def set_up(self, lab: Lab, master: Link, where: str = "") -> None:
        """Configure the master as it was before it was new, or moved."""
        await lab.vm.agent.run(f"{where} ip address add 192.0.2.2/24 dev {master.name}")
        await lab.vm.agent.run(f"{where} ip link set {master.name} up")

    async def wait_active_there(self, lab: Lab, master: Link) -> None:
        """Ask until an echo has left by the master's slave: nothing tells of what goes on in that namespace."""
        sent = f"cat /sys/class/net/{master.name}/lower_*/statistics/tx_packets"
        echo = f"before=$({sent}) && ping -c 1 -W 2 {PEER_ADDRESS} && [ $({sent}) -gt $before ]"
        await lab.vm.agent.run(f"{THERE} sh -c 'until {echo}; do sleep 1; done'")

    async def wait_paired_again(self, lab: Lab, master: Link) -> None:
        def back(links: Sequence[Link]) -> bool:
            return any(link.name == master.name for link in links)

        await lab.wait_links(back, "the master coming back")
        await self.set_up(lab, master)
        await lab.wait_primary()
        await self.wait_active(lab, "primary")

    async def test_flapping(self) -> None:
        """A primary that comes and goes many times leaves a pair that works."""
        async with self.paired() as lab:
            _, slave = await self.pair(lab)
            flap = f"ip link set {slave.name} down && ip link set {slave.name} up"
            await lab.vm.agent.run(f"for i in $(seq {FLAPS}); do {flap}; done", FLAPS)
            await lab.wait_primary()
            await self.wait_active(lab, "primary")

    async def test_modules(self) -> None:
        """Each module goes and comes in any order; the one in use says that it is busy."""
        async with self.paired() as lab:
            run = lab.vm.agent.run
            modules = {"drop-in": "net_failover", "patched": "vnet_standby"}
            ours = modules[self.driver()]
            await run(f"! rmmod {ours}")
            await run("rmmod e1000e")
            await self.assert_active(lab, "standby")
            await run("modprobe e1000e")
            await lab.wait_primary()
            await self.wait_active(lab, "primary")

            await run(f"rmmod virtio_net && rmmod {ours}")
            (nic,) = [n for n in (await lab.vm.agent.links()).values() if n.driver == "e1000e"]
            self.assertEqual(nic.master, "")
            await run("modprobe virtio_net")
            (master,) = [
                n for n in (await lab.vm.agent.links()).values() if n.driver == "virtio_net"
            ]
            await self.set_up(lab, master)
            await lab.wait_primary()
            await self.wait_active(lab, "primary")

    async def wait_active(self, lab: Lab, path: str) -> None:
        """The path may change a moment after what makes it change."""
        wanted = int(path == "primary")
        await self.counted(
            lab,
            lambda counters: counters["active_path_is_primary"] == wanted,
            f"being on the {path}",
        )
        await self.assert_active(lab, path)

    async def groups(self, lab: Lab, link: Link) -> set[str]:
        lines = (await lab.vm.agent.run("cat /proc/net/dev_mcast")).splitlines()
        return {line.split()[4] for line in lines if line.split()[1] == link.name}

    async def flags(self, lab: Lab, link: Link) -> int:
        return int(await lab.vm.agent.run(f"cat /sys/class/net/{link.name}/flags"), 16)


class DriverMigration(DriverTest):
    """
    :avocado: tags=driver,parallel
    """

    async def test_pcie(self) -> None:
        await self.migrate(hotplug="pcie")

    async def test_e1000(self) -> None:
        await self.migrate(primary="e1000")

    async def test_there_and_back(self) -> None:
        """
        :avocado: tags=quick
        """
        verdict = await self.migrate(times=2)
        there_and_back = ROUTE + ROUTE[::-1][1:]
        self.assertEqual(self.route(verdict, "from_guest"), there_and_back)
        # at the failback the bridge may waver: what the standby was given before comes out of the host late
        self.assertEqual(set(self.route(verdict, "to_guest")), set(ROUTE))

    async def migrate(self, times: int = 1, **scenario: Any) -> Verdict:
        async with self.paired(**scenario) as lab:
            await lab.start_traffic()
            for _ in range(times):
                await lab.migrate()
            counters = await self.counters(lab)
            _, slave = await self.pair(lab)
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        self.assert_reachable_on_standby(verdict)
        self.assert_failback_lossless(lab, verdict)
        self.assertEqual(slave.addresses, ())
        self.assertEqual(counters["active_path_is_primary"], 1)
        self.assertEqual(counters["failovers"], times)
        self.assertEqual(counters["failbacks"], times + 1)
        self.assertGreaterEqual(counters["announcements"], 3 * (2 * times + 1))
        self.assertGreater(counters["primary_rx_packets"], 0)
        return verdict

    def assert_reachable_on_standby(self, verdict: Verdict) -> None:
        """Only a few probes are lost from a failover on until the guest is stopped."""
        for switch in verdict.switches:
            if switch.kind == "failover":
                for direction, gap in switch.gaps.items():
                    self.assertLessEqual(gap.lost, FAILOVER_PROBES, direction)

    def assert_failback_lossless(self, lab: Lab, verdict: Verdict) -> None:
        """No probe is lost from the moment on at which the guest has the new primary."""
        enslaved = lab.events.seen(
            lambda event: (
                event.who == "guest"
                and event.data.get("driver") == lab.scenario.primary
                and bool(event.data.get("master"))
            )
        )
        self.assertTrue(enslaved, "the guest never told of its new primary")
        late = [loss for loss in verdict.losses if loss.end > enslaved[-1].t]
        self.assertEqual(late, [], "lost at the failback")


class DriverComparison(DriverTest):
    """
    :avocado: tags=driver,long
    """

    async def test_both_ways(self) -> None:
        await self.compare("both")

    async def test_silent_guest(self) -> None:
        """A guest that only receives is reached on the standby, for as long as the primary is away."""
        await self.compare("to-guest")

    async def compare(self, traffic: str) -> None:
        """The same migration on the same machine: fewer than a quarter of net_failover's losses."""
        theirs = await self.lost(guest="net-failover", traffic=traffic)
        ours = await self.lost(guest="vnet-standby", driver=self.driver(), traffic=traffic)
        self.assertLess(ours, theirs / 4)

    async def lost(self, **scenario: Any) -> int:
        async with self.lab(**scenario) as lab:
            await lab.start_vm()
            await lab.start_destination()
            await lab.start_traffic()
            await lab.migrate()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_persists(verdict)
        return sum(counts.lost for counts in verdict.counts.values())
