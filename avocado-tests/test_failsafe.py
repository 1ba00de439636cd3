# SPDX-License-Identifier: GPL-2.0-or-later
"""A failover that can't hang, lie or lose the primary, whatever the guest or the user does. Needs the series."""

from typing import Any

from labtest import STOP_EDGE_S, LabTest
from vnet_standby.lab.command import PRIMARY_ID, emulated_primary
from vnet_standby.lab.events import Event
from vnet_standby.lab.lab import Lab

SLOW_MIB_S = 6  # leaves time to interfere with the RAM phase
TRICKLE_MIB_S = 1  # the RAM phase ends when a test lets it
E1000E = "0x10d3"  # Intel 82574L, PCI device id
NATIVE_UNPLUG_S = (
    15  # the attention button's 5 s (PCIe base spec 6.7.1.5), and the guest's own work
)


class FailSafe(LabTest):
    """
    :avocado: tags=failsafe,parallel
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
            await self.ignore_unplugs(lab)
            await lab.start_traffic()
            await self.bound_the_wait(lab, "fail")
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

    async def test_unplug_refused(self) -> None:
        """A guest that is busy with the slot can't be asked: the migration fails, and the primary is usable."""
        async with self.lab(hotplug="pcie") as lab:
            await lab.start_vm()
            await lab.begin_migration()
            await self.slot_is_busy(lab)
            await lab.vm.execute("stop")
            await lab.failed_migration()
            await lab.start_destination()
            since = len(lab.events)
            await lab.vm.execute("cont")
            await lab.begin_migration()
            reason = await lab.failed_migration()
            self.assertIn("power indicator blinking", reason)
            await lab.expect_guest("gone", NATIVE_UNPLUG_S, since)
            await lab.wait_primary()
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

    async def slot_is_busy(self, lab: Lab) -> None:
        """The guest has noticed the attention button, and waits for 5 s of its time before it ejects."""
        await lab.vm.agent.run("grep -q 'will power off' /dev/kmsg")


class KeptPrimary(LabTest):
    """What the guest does not give back goes along with it, where it can: wait-unplug-policy=keep-primary.

    :avocado: tags=failsafe
    """

    def setUp(self) -> None:
        """The policy is the series' own."""
        self.require_standby_property()

    async def test_e1000e(self) -> None:
        await self.keep(primary="e1000e")

    async def test_e1000(self) -> None:
        """
        :avocado: tags=long
        """
        await self.keep(primary="e1000")

    async def test_guest_ejects_late(self) -> None:
        """The guest ejects the primary while its RAM is on the way, and has it back at once; it goes along then."""
        async with self.lab(hotplug="pcie", bandwidth_mib_s=TRICKLE_MIB_S) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await self.bound_the_wait(lab, "keep-primary")
            since = len(lab.events)
            await lab.begin_migration()
            await lab.vm.expect(
                "VIRTIO_NET_STANDBY_PRIMARY", NATIVE_UNPLUG_S, since, change="exposed"
            )
            await lab.wait_primary()
            await self.sends_by_primary(lab)
            await lab.vm.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
            await lab.finish_migration()
            await lab.wait_primary()
            (pair,) = await lab.vm.execute("query-virtio-net-standby")
            await lab.stop_traffic()
        self.assertEqual(
            self.changes(lab, "a")[-4:], ["unplug-requested", "kept", "ejected", "exposed"]
        )
        self.assertEqual(self.changes(lab, "b"), ["kept"])
        self.assertEqual(pair["primary-state"], "exposed")
        verdict = self.judge()
        self.assert_persists(verdict)
        ports = ["a-primary", "a-standby", "a-primary", "b-primary"]
        self.assertEqual(self.route(verdict, "from_guest"), ports)

    async def keep(self, **scenario: Any) -> None:
        """The guest never answers; its traffic goes on by the primary, and its driver does not notice."""
        async with self.lab(hotplug="pcie", **scenario) as lab:
            await lab.start_vm()
            await self.ignore_unplugs(lab)
            await lab.start_traffic()
            await self.bound_the_wait(lab, "keep-primary")
            since = len(lab.events)
            await lab.migrate()
            (pair,) = await lab.vm.execute("query-virtio-net-standby")
            links = lab.events.seen(lambda event: event.who == "guest", since)
            await lab.stop_traffic()
        self.assertEqual(self.changes(lab, "a")[-2:], ["unplug-requested", "kept"])
        self.assertEqual(self.changes(lab, "b"), ["kept"])
        self.assertEqual(pair["primary-state"], "unplug-requested")
        self.assertEqual(links, [], "what the guest tells of its links")
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        self.assert_route(verdict, ["a-primary", "b-primary"])
        (blackout,) = [switch for switch in verdict.switches if switch.kind == "blackout"]
        outside = [
            loss
            for loss in verdict.losses
            if loss.end < blackout.start - STOP_EDGE_S or loss.start > blackout.end + STOP_EDGE_S
        ]
        self.assertEqual(outside, [], "losses outside of the blackout")

    def changes(self, lab: Lab, host: str) -> list[object]:
        """What became of the primary, as a host's QEMU tells."""

        def tells(event: Event) -> bool:
            return event.who == host and event.event == "VIRTIO_NET_STANDBY_PRIMARY"

        return [event.data["change"] for event in lab.events.seen(tells)]
