# SPDX-License-Identifier: GPL-2.0-or-later
"""A failover that can't hang, lie or lose the primary, whatever the guest or the user does. Needs the series."""

from labtest import LabTest
from vnet_standby.lab.command import PRIMARY_ID, emulated_primary
from vnet_standby.lab.lab import Lab

SLOW_MIB_S = 6  # leaves time to interfere with the RAM phase
TIMEOUT_MS = 3000
E1000E = "0x10d3"  # Intel 82574L, PCI device id
NATIVE_UNPLUG_S = (
    15  # the attention button's 5 s (PCIe base spec 6.7.1.5), and the guest's own work
)


class FailSafe(LabTest):
    """
    :avocado: tags=failsafe
    """

    def setUp(self) -> None:
        """The faults are QEMU's own: one without the series has them all."""
        self.require_standby_property()

    async def test_guest_never_ejects(self) -> None:
        """
        :avocado: tags=quick
        """
        async with self.lab(hotplug="pcie") as lab:
            await lab.start_vm()
            await self.disable_hotplug(lab)
            await lab.start_traffic()
            await lab.vm.execute("migrate-set-parameters", **{"wait-unplug-timeout": TIMEOUT_MS})
            await lab.begin_migration()
            reason = await lab.failed_migration()
            self.assertIn("wait-unplug-timeout", reason)
            await lab.stop_traffic()
        self.assert_untouched(lab)

    async def test_guest_ejects_late(self) -> None:
        """A guest that gives its primary back after the migration was cancelled gets it again."""
        async with self.lab(hotplug="pcie") as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.begin_migration()
            await lab.wait_status("wait-unplug")
            since = len(lab.events)
            await lab.cancel_migration()
            await lab.expect_guest("gone", NATIVE_UNPLUG_S, since)
            await lab.wait_primary()
            await lab.migrate()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertEqual(self.route(verdict, "from_guest")[-1], "b-primary")

    async def test_paused_guest(self) -> None:
        async with self.lab() as lab:
            await lab.start_vm()
            await lab.vm.execute("stop")
            await lab.begin_migration()
            reason = await lab.failed_migration()
            self.assertIn(PRIMARY_ID, reason)
            await lab.vm.execute("cont")
            await lab.start_traffic()
            await lab.stop_traffic()
        self.assert_untouched(lab)

    async def test_reset_into_a_kernel_without_the_driver(self) -> None:
        """What boots next may never ask for the primary: it doesn't see it, and a migration doesn't wait for it."""
        async with self.lab(resettable=True) as lab:
            await lab.start_vm()
            await lab.reset(drivers="none")
            devices = await lab.vm.agent.run("cat /sys/bus/pci/devices/*/device")
            self.assertNotIn(E1000E, devices)
            await lab.migrate()
            waits = lab.events.seen(lambda event: event.data.get("status") == "wait-unplug")
            self.assertEqual(waits, [])
            await lab.reset(drivers="all")
            await lab.wait_primary()
            await lab.start_traffic()
            await lab.stop_traffic()
        self.assert_untouched(lab, "b-primary")

    async def test_silent_guest(self) -> None:
        """QEMU announces the datapath that a guest which only receives moves to: it is not deaf in the RAM phase."""
        async with self.lab(traffic="to-guest", bandwidth_mib_s=SLOW_MIB_S) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            result = await lab.migrate()
            await lab.stop_traffic()
        sent_meanwhile = lab.scenario.rate_hz * result["total-time"] / 1000
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertLess(verdict.counts["to_guest"].lost, sent_meanwhile / 5)

    async def test_primary_replaced(self) -> None:
        """A primary that the user deleted is forgotten; another one takes its place, and fails over as the first."""
        async with self.lab(bandwidth_mib_s=40) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.vm.unplug(PRIMARY_ID, NATIVE_UNPLUG_S)
            other = {**emulated_primary(lab.scenario, "a", incoming=False), "id": "primary1"}
            await lab.vm.plug(other)
            await lab.wait_primary()
            since = len(lab.events)
            await lab.begin_migration()
            await lab.finish_migration()
            unplugs = lab.events.seen(lambda event: event.event == "UNPLUG_PRIMARY", since)
            self.assertEqual([event.data["device-id"] for event in unplugs], ["primary1"])
            await lab.stop_traffic()
        self.assert_persists(self.judge())

    async def test_cancel_at_five_moments(self) -> None:
        async with self.lab(bandwidth_mib_s=SLOW_MIB_S) as lab:
            await lab.start_vm()
            await lab.vm.execute(
                "migrate-set-capabilities",
                capabilities=[{"capability": "pause-before-switchover", "state": True}],
            )
            await lab.start_traffic()
            for moment in ("", "setup", "wait-unplug", "active", "pre-switchover"):
                if moment == "pre-switchover":
                    await lab.vm.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
                await lab.begin_migration()
                if moment:  # the first time it is cancelled before anything is known of it
                    await lab.wait_status(moment)
                await lab.cancel_migration()
                await lab.wait_primary()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertEqual(self.route(verdict, "from_guest")[-1], "a-primary")

    async def disable_hotplug(self, lab: Lab) -> None:
        """Take the slots from the guest's hotplug driver: nobody answers the attention button any more."""
        await lab.vm.agent.run(
            "cd /sys/bus/pci_express/drivers/pciehp && for port in 0000:*; do echo $port > unbind; done"
        )

    def assert_untouched(self, lab: Lab, port: str = "a-primary") -> None:
        """The traffic never left the primary."""
        verdict = self.judge()
        self.assert_persists(verdict)
        for direction, counts in verdict.counts.items():
            self.assertEqual(counts.lost, 0, direction)
            self.assertEqual(self.route(verdict, direction), [port])
        self.assertEqual(lab.vm.name, port[0])
