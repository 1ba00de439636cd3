# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with a pair migrates under traffic: the primary's port, the standby's, and the new host's primary carry it."""

from typing import Any

from labtest import LabTest
from vnet_standby.lab.scenario import Scenario
from vnet_standby.traffic.verdict import Verdict

ROUTE = ["a-primary", "a-standby", "b-standby", "b-primary"]
EDGE_PROBES = 10  # 50 ms at the ends of the blackout


class Migration(LabTest):
    """
    :avocado: tags=migration,parallel
    """

    async def test_bond(self) -> None:
        """
        :avocado: tags=quick
        """
        self.check(await self.migrate(guest="bond"))

    async def test_virtio(self) -> None:
        verdict = await self.migrate(guest="virtio")
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        self.assert_route(verdict, ["a-standby", "b-standby"])
        # The bridge points at the source until the destination announces itself: what is sent in the blackout is lost.
        (blackout,) = verdict.switches
        self.assertEqual(blackout.kind, "blackout")
        blacked_out = Scenario().rate_hz * (blackout.end - blackout.start)
        self.assertLessEqual(verdict.counts["to_guest"].lost, blacked_out + EDGE_PROBES)
        self.assertEqual(verdict.counts["from_guest"].lost, 0)

    async def migrate(self, **scenario: Any) -> Verdict:
        async with self.lab(**scenario) as lab:
            await lab.start_vm()
            await lab.start_destination()
            await lab.start_traffic()
            result = await lab.migrate()
            self.assertEqual(result["status"], "completed")
            await lab.stop_traffic()
        return self.judge()

    def check(self, verdict: Verdict) -> None:
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        self.assertEqual(
            [switch.kind for switch in verdict.switches], ["failover", "blackout", "failback"]
        )
        self.assertEqual(self.route(verdict, "from_guest")[0], ROUTE[0])
        for direction in verdict.counts:
            self.assertEqual(self.route(verdict, direction)[-1], ROUTE[-1])
            self.assertIn("a-standby", self.route(verdict, direction))


class ThereAndBack(LabTest):
    """
    :avocado: tags=migration,parallel
    """

    async def test_net_failover(self) -> None:
        await self.there_and_back(guest="net-failover")

    async def there_and_back(self, **scenario: Any) -> None:
        async with self.lab(**scenario) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.migrate()
            await lab.migrate()
            self.assertEqual(lab.vm.name, "a")
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        self.assertEqual(
            [switch.kind for switch in verdict.switches],
            ["failover", "blackout", "failback"] * 2,
        )
        self.assertEqual([migration.status for migration in verdict.migrations], ["completed"] * 2)
        for direction in verdict.counts:
            self.assertLessEqual({"a-standby", ROUTE[-1]}, set(self.route(verdict, direction)))
        for end in (0, -1):
            self.assertEqual(self.route(verdict, "from_guest")[end], ROUTE[0])
