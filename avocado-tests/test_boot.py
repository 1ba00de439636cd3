# SPDX-License-Identifier: GPL-2.0-or-later
"""The pair comes up in the guest without any set-up, whichever driver loads first."""

from labtest import LabTest


class Boot(LabTest):
    """
    :avocado: tags=boot,parallel
    """

    async def test_standby_driver_first(self) -> None:
        await self.check_pair(first_driver="standby")

    async def test_primary_driver_first(self) -> None:
        """
        :avocado: tags=quick
        """
        await self.check_pair(first_driver="primary")

    async def test_e1000(self) -> None:
        await self.check_pair(primary="e1000")

    async def check_pair(self, **scenario: str) -> None:
        async with self.lab(**scenario) as lab:
            await lab.start_vm()
            links = await lab.vm.agent.links()
        visible = [link for link in links.values() if link.addresses and link.name != "lo"]
        self.assertEqual(len(visible), 1, f"netdevs with an address: {visible}")
        slaves = {link.driver for link in links.values() if link.master == visible[0].name}
        self.assertEqual(slaves, {"virtio_net", lab.scenario.primary})
