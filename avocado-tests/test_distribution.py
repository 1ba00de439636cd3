# SPDX-License-Identifier: GPL-2.0-or-later
"""A distribution's user space, which nobody configured: how many interfaces it finds, and what it calls them.

Both services of Debian get an address by DHCP for each Ethernet interface that they take for one. In the guest driver's
pair that is the master alone; of the kernel's own three netdevs it is more than one. Each service has one kind of the
driver installed, or both have the one that `-p driver=drop-in` or `patched` names.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from labtest import LabTest
from vnet_standby import paths
from vnet_standby.build.distribution import DRIVERS, NetworkManagement, distribution_image
from vnet_standby.build.driver import Kind
from vnet_standby.build.image import guest_image
from vnet_standby.lab import traffic
from vnet_standby.lab.accelerator import choose_accelerator
from vnet_standby.lab.agent import Link
from vnet_standby.lab.dhcp import DhcpServer, dhcp_server
from vnet_standby.lab.flat import Flat
from vnet_standby.lab.lab import Lab
from vnet_standby.lab.scenario import MAC, Scenario
from vnet_standby.traffic.probe import GUEST_ADDRESS

RAM_MIB = 768

BOOT_S = 180
"""Some 20 s where nothing else runs; a machine that is busy takes its time."""

SETTLE_S = 3
"""An interface that must get no address: nothing tells that it won't."""

PROCESS_S = 90
"""What a tool that talks to a service may take under emulation."""

STATE: dict[NetworkManagement, str] = {
    "networkd": "networkctl list --no-legend --no-pager {} | sed 's/ *$//; s/.* //'",
    "network-manager": "nmcli -g DEVICE,STATE device | sed -n 's/^{}://p'",
}
"""What to ask each service for its opinion of a netdev."""

UNITS: dict[NetworkManagement, str] = {
    "networkd": "systemd-networkd.socket systemd-networkd.service",
    "network-manager": "NetworkManager.service",
}

REMOVE_DRIVER = (
    "rm -r /lib/modules/$(uname -r)/updates /etc/udev/rules.d/70-vnet-standby.rules "
    "&& depmod && udevadm control --reload"
)


class DistributionTest(LabTest):
    timeout = 600  # the first one builds the image
    management: NetworkManagement

    async def check(self) -> None:
        """The VM boots with its primary; it goes and comes, also under a service that starts without it."""
        async with self.debian() as lab:
            await lab.wait_primary(BOOT_S)
            name = await self.check_visible(lab)
            await self.check_handshake(lab)
            await lab.unplug_primary()
            self.assertEqual(await self.check_visible(lab), name)
            await self.load(lab, "virtio_net")
            self.assertEqual(await self.check_visible(lab), name)
            await lab.plug_primary()
            self.assertEqual(await self.check_visible(lab), name)
            # udev has seen the primary before it was one
            await self.load(lab, "e1000e", "virtio_net")
            await lab.wait_primary(BOOT_S)
            self.assertEqual(await self.check_visible(lab), name)
            await lab.vm.agent.run(REMOVE_DRIVER, PROCESS_S)
            await self.check_net_failover(lab)

    @contextlib.asynccontextmanager
    async def debian(self) -> AsyncIterator[Lab]:
        """A lab with a Debian guest and a DHCP server."""
        self.require_standby_property()
        driver: Kind = self.params.get("driver", default=DRIVERS[self.management])
        scenario = Scenario(
            guest="vnet-standby", driver=driver, owner="management", ram_mib=RAM_MIB
        )
        kernel = self.params.get("kernel", default=None)
        image = distribution_image(self.management, driver, kernel)
        small, cache = guest_image(kernel), paths.BUILD / "accelerator.json"
        qemu = self.qemu()
        accelerator = await choose_accelerator(qemu, small.kernel, small.initramfs, cache)
        self.log.info("records and logs: %s", self.run_folder)
        async with (
            Lab(scenario, Flat(scenario, qemu, image, accelerator), self.run_folder) as lab,
            dhcp_server(self.run_folder) as server,
        ):
            self.server: DhcpServer = server
            await lab.boot_vm(seconds=BOOT_S)
            yield lab
        self.assert_no_reports(lab)

    async def load(self, lab: Lab, *drivers: str) -> None:
        """Load the NICs' drivers anew in this order; as at a boot the service starts when udev is done with them."""
        units = UNITS[self.management]
        run = lab.vm.agent.run
        await run(f"systemctl stop {units}; modprobe -r virtio_net e1000e", BOOT_S)
        for driver in drivers:
            await run(f"modprobe {driver}; udevadm settle", BOOT_S)
        if len(drivers) > 1:
            await lab.wait_links(
                lambda links: any(link.master for link in links), "the guest pairing its NICs"
            )
        await run(f"udevadm settle; systemctl start {units}", BOOT_S)

    async def check_visible(self, lab: Lab) -> str:
        """One interface, with the one address that was given away, at which the guest is reached; returns its name."""
        reached = await traffic.wait_reachable(BOOT_S)
        links = await self.settled(lab)
        (master,) = [link for link in links if not link.master]
        for slave in links:
            if slave is not master:
                await self.check_left_alone(lab, slave)
        self.assertEqual(master.driver, "virtio_net")
        self.assertTrue(reached, "the peer does not reach the guest")
        self.assertIn(GUEST_ADDRESS, master.addresses)
        self.assertEqual([lease.address for lease in self.server.leases()], [GUEST_ADDRESS])
        return master.name

    async def check_left_alone(self, lab: Lab, slave: Link) -> None:
        """The service does not touch it."""
        question = STATE[self.management].format(slave.name)
        state = (await lab.vm.agent.run(question, PROCESS_S)).strip()
        self.assertEqual((state, slave.addresses), ("unmanaged", ()), slave.name)

    async def check_handshake(self, lab: Lab) -> None:
        """The patched pair has told the device of its primary, and the fabric delivers there."""
        if lab.topology.protocol:
            self.assertEqual((await self.counters(lab))["fabric_is_primary"], 1)

    async def check_net_failover(self, lab: Lab) -> None:
        """With the kernel's own three netdevs more than one of them has an address: the difference."""
        await self.load(lab, "virtio_net", "e1000e")
        deadline = time.monotonic() + PROCESS_S
        while time.monotonic() < deadline:
            links = await self.links(lab)
            configured = [link for link in links if any("." in a for a in link.addresses)]
            if len(configured) > 1:
                break
        self.assertEqual(len(links), 3, links)
        self.assertGreater(len(configured), 1, links)

    async def settled(self, lab: Lab) -> list[Link]:
        """The guest's NICs, once udev is done with them and the service had time for all of them."""
        # degraded: a unit has failed, which is none of the pair's business
        booted = "systemctl is-system-running --wait | grep -Ex 'running|degraded'"
        await lab.vm.agent.run(f"{booted} && udevadm settle", BOOT_S)
        if any(link.master for link in await self.links(lab)):
            await asyncio.sleep(SETTLE_S)
        links = await self.links(lab)
        self.log.info("%s; leases: %s", links, self.server.leases())
        return links

    async def links(self, lab: Lab) -> list[Link]:
        """The guest's NICs."""
        links = (await lab.vm.agent.links()).values()
        return [link for link in links if link.mac == MAC]


class Networkd(DistributionTest):
    """
    :avocado: tags=distribution,parallel
    """

    management = "networkd"

    async def test_pair(self) -> None:
        await self.check()


class NetworkManager(DistributionTest):
    """
    :avocado: tags=distribution,parallel
    """

    management = "network-manager"

    async def test_pair(self) -> None:
        await self.check()
