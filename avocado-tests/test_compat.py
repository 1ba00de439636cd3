# SPDX-License-Identifier: GPL-2.0-or-later
"""The patched QEMU and the stock one migrate to each other, with a pair and without."""

from labtest import LabTest

OLD_MACHINE = "pc-q35-7.2"
"""What Debian 12's QEMU starts a VM with that asks for q35."""


class Compatibility(LabTest):
    """
    :avocado: tags=compat,parallel
    """

    async def test_patched_to_stock(self) -> None:
        await self.migrate("patched", "stock", guest="net-failover")

    async def test_stock_to_patched(self) -> None:
        await self.migrate("stock", "patched", guest="net-failover")

    async def test_old_machine_type(self) -> None:
        """A pair moves there and back in a VM that is older than both QEMUs."""
        async with self.between("patched", "stock", OLD_MACHINE) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            for _ in range(2):
                await lab.migrate()
                await lab.wait_primary()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        there = ["a-primary", "a-standby", "b-standby", "b-primary"]
        back = ["b-standby", "a-standby", "a-primary"]
        self.assertEqual(self.route(verdict, "from_guest"), there + back)

    async def test_plain_there_and_back(self) -> None:
        async with self.between("patched", "stock", guest="virtio") as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.migrate()
            await lab.migrate()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)

    async def test_stock_refuses_a_kept_primary(self) -> None:
        """What stock QEMU can't know it refuses by name, while the guest still runs on the source."""
        async with self.between("patched", "stock", hotplug="pcie") as lab:
            await lab.start_vm()
            await self.ignore_unplugs(lab)
            await lab.start_traffic()
            await self.bound_the_wait(lab, "keep-primary")
            await lab.begin_migration()
            await lab.failed_migration()
            await lab.stop_traffic()
        said = (self.run_folder / "b-qemu.log").read_text()
        self.assertIn("Unknown savevm section", said)
        self.assertIn("virtio-net-failover-kept", said)
        stops = lab.events.seen(lambda event: event.event == "STOP")
        self.assertEqual(stops, [])
        self.assert_untouched(lab)

    async def migrate(self, source: str, destination: str, **scenario: str) -> None:
        async with self.between(source, destination, **scenario) as lab:
            await self.migrate_once(lab)
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        ports = ["a-primary", "a-standby", "b-standby", "b-primary"]
        self.assertEqual(self.route(verdict, "from_guest"), ports)
