# SPDX-License-Identifier: GPL-2.0-or-later
"""Two emulated hosts with SR-IOV NICs, and a VM that moves between them with a VF passed through."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from labtest import BANDWIDTH_MIB_S, LabTest
from vnet_standby.lab.command import PRIMARY_ID
from vnet_standby.lab.emulated_host import TAP
from vnet_standby.lab.lab import Lab
from vnet_standby.lab.nested import Nested
from vnet_standby.lab.scenario import MAC, Host
from vnet_standby.lab.traffic import echoes_over_ipv6, teach_peer

SLOW_MIB_S = 10  # leaves time to interfere with the RAM phase
RAM_MIB = 256


class NestedTest(LabTest):
    """Base of the tests with emulated hosts."""

    timeout = 600

    @contextlib.asynccontextmanager
    async def hosts(self, **scenario: Any) -> AsyncIterator[tuple[Lab, Nested]]:
        """A lab with two emulated hosts, and those hosts."""
        defaults = {
            "topology": "nested",
            "primary": "vf",
            "ram_mib": RAM_MIB,
            "bandwidth_mib_s": BANDWIDTH_MIB_S,
        }
        async with self.lab(**{**defaults, **scenario}) as lab:
            assert isinstance(lab.topology, Nested)
            yield lab, lab.topology

    async def start(self, lab: Lab) -> None:
        """Boot the VM, and give it the peer's address.

        Without agents the guest hears nothing while it is on its standby: the PF hands all that is for it to its VF.
        Where that takes longer than a neighbour's address is kept unconfirmed, its kernel would stop sending, too.
        """
        await lab.start_vm()
        await teach_peer(lab.vm.agent)

    async def tap_packets(self, nested: Nested, host: Host) -> int:
        """What a host's VM has sent through its standby so far."""
        counter = f"/sys/class/net/{TAP}/statistics/rx_packets"
        return int(await nested.hosts[host].run(f"cat {counter}"))

    async def primary_packets(self, lab: Lab) -> int:
        """What the guest has sent through its primary so far."""
        links = await lab.vm.agent.links()
        primary = next(link.name for link in links.values() if link.driver == "igbvf")
        counters = f"/sys/class/net/{primary}/statistics/tx_packets"
        return int(await lab.vm.agent.run(f"cat {counters}"))


class NestedHosts(NestedTest):
    """
    :avocado: tags=nested
    """

    async def test_there_and_back(self) -> None:
        """The VF carries the traffic before and after, the tap only in between; each host gets its VF back.

        :avocado: tags=quick
        """
        async with self.hosts(guest="vnet-standby") as (lab, nested):
            await self.start(lab)
            tap = await self.tap_packets(nested, "a")
            vf = await self.primary_packets(lab)
            await lab.start_traffic()
            self.assertGreater(await self.primary_packets(lab), vf, "packets through the VF")
            self.assertEqual(await self.tap_packets(nested, "a"), tap, "packets through the tap")
            await lab.migrate()
            await lab.wait_primary()
            await lab.end_source()
            await self.give_back(nested, "a")
            await nested.assign("a")
            await lab.migrate()
            await lab.wait_primary()
            await lab.stop_traffic()
            await lab.end_source()
            await self.give_back(nested, "b")
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        there = ["a-primary", "a-standby", "b-standby", "b-primary"]
        back = ["b-standby", "a-standby", "a-primary"]
        self.assertEqual(self.route(verdict, "from_guest"), there + back)

    async def test_net_failover(self) -> None:
        """
        :avocado: tags=long
        """
        async with self.hosts(guest="net-failover") as (lab, _):
            await self.start(lab)
            await lab.start_traffic()
            await lab.migrate()
            await lab.wait_primary()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_persists(verdict)
        ports = ["a-primary", "a-standby", "b-standby", "b-primary"]
        self.assertEqual(self.route(verdict, "from_guest"), ports)

    async def test_destination_without_primary(self) -> None:
        async with self.hosts(guest="vnet-standby", destination_primary="none") as (lab, nested):
            await self.start(lab)
            await lab.start_traffic()
            await lab.migrate()
            drivers = {link.driver for link in (await lab.vm.agent.links()).values()}
            self.assertNotIn("igbvf", drivers)
            sent = await self.tap_packets(nested, "b")
            await lab.stop_traffic()
            self.assertGreater(await self.tap_packets(nested, "b"), sent)
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertEqual(self.route(verdict, "from_guest"), ["a-primary", "a-standby", "b-standby"])

    async def test_host_killed(self) -> None:
        """A host that dies answers no TCP any more: management cancels, and the VM stays where it is.

        So it does when management has just changed its mind.
        """
        async with self.hosts(guest="vnet-standby", bandwidth_mib_s=SLOW_MIB_S) as (lab, nested):
            await self.start(lab)
            await lab.start_traffic()
            for dies in (False, True):
                await lab.begin_migration()
                await lab.wait_status("active")
                if dies:
                    await nested.kill("b")
                await lab.cancel_migration()
                self.assertEqual(lab.vm.name, "a")
                self.assertEqual((await lab.vm.execute("query-status"))["status"], "running")
                await lab.wait_primary()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        ports = ["a-primary", "a-standby"] * 2 + ["a-primary"]
        self.assertEqual(self.route(verdict, "from_guest"), ports)

    async def test_vf_is_not_kept(self) -> None:
        """A VF has no state that could migrate: a guest that keeps it stays, whatever the policy."""
        async with self.hosts(guest="net-failover", hotplug="pcie") as (lab, _):
            await self.start(lab)
            await self.ignore_unplugs(lab)
            await lab.start_traffic()
            await self.bound_the_wait(lab, "keep-primary")
            await lab.begin_migration()
            reason = await lab.failed_migration()
            self.assertIn(f"'{PRIMARY_ID}' can't migrate with the guest", reason)
            await lab.stop_traffic()
        self.assert_untouched(lab)

    async def test_ipv6(self) -> None:
        """A bridged PF gets the multicast that IPv6's neighbour discovery lives on."""
        async with self.hosts(guest="virtio") as (lab, _):
            await lab.start_vm()
            self.assertTrue(await echoes_over_ipv6(MAC), "an answer to the peer's echo request")

    async def give_back(self, nested: Nested, host: Host) -> None:
        """The VF is the host's own again, under the host's driver."""
        await nested.hosts[host].run("modprobe igbvf")
        await nested.release(host)
        uplink = await nested.hosts[host].netdev("uplink")
        driver = f"/sys/class/net/{uplink}/device/virtfn0/driver"
        self.assertEqual(await nested.hosts[host].run(f"basename $(readlink {driver})"), "igbvf")
