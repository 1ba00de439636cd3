# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator does on a host with an SR-IOV NIC, and what can go wrong: nothing is left half done."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

from labtest import LabTest
from vnet_standby import paths
from vnet_standby.build.host_image import host_image
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.accelerator import choose_accelerator
from vnet_standby.lab.binaries import image_under_test, qemu_under_test
from vnet_standby.lab.emulated_host import IP, TAP, EmulatedHost
from vnet_standby.lab.events import EventLog
from vnet_standby.lab.namespace import enter_private_network
from vnet_standby.lab.network import create_network
from vnet_standby.lab.scenario import MAC

OTHER_MAC = "52:54:00:76:6e:02"
THIRD_MAC = "52:54:00:76:6e:03"


class Operator(LabTest):
    """
    :avocado: tags=nested,host,parallel
    """

    timeout = 600

    async def test_assign_and_release(self) -> None:
        async with self.host() as host:
            uplink = await host.netdev("uplink")
            await self.refused(host, "no VF", "assign", uplink, "--mac", MAC)
            first = await self.changes(host, "assign", uplink, "--mac", MAC, "--vfs", "2")
            again = await self.changes(host, "assign", uplink, "--mac", MAC, "--vfs", "2")
            self.assertNotEqual(first["changed"], [])
            self.assertEqual(again["changed"], [])
            self.assertEqual(again["address"], first["address"])

            other = await self.changes(host, "assign", uplink, "--mac", OTHER_MAC)
            self.assertNotEqual(other["address"], first["address"])
            await self.refused(host, "is free", "assign", uplink, "--mac", THIRD_MAC)
            await self.refused(host, MAC, "assign", other["address"], "--mac", MAC)

            await self.changes(host, "release", other["address"])
            released = await self.changes(host, "release", other["address"])
            self.assertEqual(released["changed"], [])

    async def test_bad_input(self) -> None:
        async with self.host() as host:
            uplink = await host.netdev("uplink")
            await host.run(f"{IP} link set {uplink} down")
            await self.refused(host, "down", "assign", uplink, "--mac", MAC, "--vfs", "2")
            await host.run(f"{IP} link set {uplink} up")

            await host.run("rmmod vfio_pci")
            await self.refused(
                host, "modprobe vfio-pci", "assign", uplink, "--mac", MAC, "--vfs", "2"
            )
            await host.run("modprobe vfio-pci")

            nic = await host.netdev("nic")
            await host.run(f"{IP} address add 192.0.2.9/24 dev {nic} && {IP} link set {nic} up")
            await self.refused(host, "in use", "assign", nic, "--mac", MAC)

            await self.refused(host, "0000:99:00.0", "assign", "0000:99:00.0", "--mac", MAC)

    async def test_steering(self) -> None:
        """The fabric is pointed at the tap and back, and is as it was once that is taken away."""
        async with self.host() as host:
            uplink = await host.netdev("uplink")
            assigned = await self.changes(host, "assign", uplink, "--mac", MAC, "--vfs", "2")
            before = await self.fabric(host, uplink)
            to_tap = ("steer", MAC, "--to", "standby", "--tap", TAP, "--vf", assigned["address"])
            planned = await self.changes(host, *to_tap, "--dry-run")
            self.assertEqual(await self.fabric(host, uplink), before)
            done = await self.changes(host, *to_tap)
            self.assertEqual(done["changed"], planned["changed"])
            self.assertIn(f"{MAC} dev {TAP}", await self.fabric(host, uplink))
            self.assertEqual((await self.changes(host, *to_tap))["changed"], [])
            to_vf = ("steer", MAC, "--to", "primary", "--tap", TAP, "--vf", assigned["address"])
            await self.changes(host, *to_vf)
            self.assertNotIn(f"{MAC} dev {TAP}", await self.fabric(host, uplink))
            await self.changes(host, "steer", MAC, "--off")
            self.assertEqual(await self.fabric(host, uplink), before)

    @contextlib.asynccontextmanager
    async def host(self) -> AsyncIterator[EmulatedHost]:
        """One emulated host, without a VM."""
        hardware = qemu_under_test("patched")
        guest = image_under_test("virtio", self.params.get("kernel", default=None))
        image = host_image(self.qemu().path, guest)
        accelerator = await choose_accelerator(
            hardware, guest.kernel, guest.initramfs, paths.BUILD / "accelerator.json"
        )
        run = Path(self.run_folder)
        run.mkdir(parents=True)
        enter_private_network()
        await create_network(["a-uplink", "a-nic"], ["a-mgmt"])
        host = EmulatedHost("a", hardware, accelerator, image, vm_ram_mib=0)
        try:
            await host.create(EventLog(), run)
            yield host
        finally:
            await host.close()

    async def changes(self, host: EmulatedHost, *arguments: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(await host.operate(*arguments, "--json"))
        return result

    async def refused(self, host: EmulatedHost, why: str, *arguments: str) -> None:
        """The command fails with one line that says why, and nothing has changed."""
        before = await host.operate("list", "--json")
        told = await self.error(host.operate(*arguments))
        self.assertIn(why, told)
        self.assertNotIn("Traceback", told)
        self.assertEqual(await host.operate("list", "--json"), before, f"after {arguments}")

    async def error(self, failing: Awaitable[str]) -> str:
        try:
            said = await failing
        except VnetStandbyError as error:
            return str(error)
        raise AssertionError(f"not refused: {said}")

    async def fabric(self, host: EmulatedHost, uplink: str) -> str:
        """The static entries of the bridge and the PF's VF filters."""
        entries = await host.run("/opt/iproute2/bridge fdb show br br0 | sort")
        static = [line for line in entries.splitlines() if "static" in line or "permanent" in line]
        filters = await host.run(f"{IP} link show {uplink} | grep 'vf 0'")
        return "\n".join([*static, filters])
