# SPDX-License-Identifier: GPL-2.0-or-later
"""The patched QEMU and the stock one migrate to each other, with a pair and without."""

from labtest import LabTest


class Compatibility(LabTest):
    """
    :avocado: tags=compat
    """

    async def test_patched_to_stock(self) -> None:
        await self.migrate("patched", "stock", guest="net-failover")

    async def test_stock_to_patched(self) -> None:
        await self.migrate("stock", "patched", guest="net-failover")

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

    async def migrate(self, source: str, destination: str, **scenario: str) -> None:
        async with self.between(source, destination, **scenario) as lab:
            await self.migrate_once(lab)
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        ports = ["a-primary", "a-standby", "b-standby", "b-primary"]
        self.assertEqual(self.route(verdict, "from_guest"), ports)
