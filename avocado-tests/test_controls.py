# SPDX-License-Identifier: GPL-2.0-or-later
"""Negative controls: set-ups that must fail, so that a harness which can't see failures is found out."""

from labtest import LabTest

WRONG_MAC = "52:54:00:76:6e:99"


class Controls(LabTest):
    """
    :avocado: tags=control,parallel
    """

    async def test_wrong_mac_on_destination(self) -> None:
        """The guest must not enslave a primary with another MAC: the traffic never leaves the standby again."""
        async with self.lab(destination_primary_mac=WRONG_MAC) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.migrate()
            links = (await lab.vm.agent.links()).values()
            await lab.stop_traffic()
        verdict = self.judge()
        stranger = [link for link in links if link.mac == WRONG_MAC]
        self.assertEqual([link.master for link in stranger], [""])
        self.assertEqual(self.route(verdict, "from_guest")[-1], "b-standby")
        self.assertNotIn("b-primary", self.route(verdict, "from_guest"))

    async def test_no_standby(self) -> None:
        """Without a standby the guest is cut off for as long as its primary is away."""
        async with self.lab(guest="bond", standby=False) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            result = await lab.migrate()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_persists(verdict)
        # the rate times the migration's duration, and the primary was away for longer than that
        missed = lab.scenario.rate_hz * result["total-time"] / 1000
        for direction, counts in verdict.counts.items():
            self.assertGreater(counts.lost, missed, direction)

    async def test_silent_guest(self) -> None:
        """Stock QEMU tells no bridge that a silent guest's datapath moved: it is deaf for the whole RAM phase."""
        async with self.between("stock", "stock", traffic="to-guest") as lab:
            await lab.start_vm()
            await lab.start_traffic()
            result = await lab.migrate()
            await lab.stop_traffic()
        sent_meanwhile = lab.scenario.rate_hz * result["total-time"] / 1000
        self.assertGreater(self.judge().counts["to_guest"].lost, 0.8 * sent_meanwhile)
