# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration that ends badly leaves the guest where it was, with its primary and its traffic."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from labtest import LabTest
from vnet_standby.lab.lab import Lab

SLOW_MIB_S = 6  # leaves time to interfere with the RAM phase


class Failures(LabTest):
    """
    :avocado: tags=failure,parallel
    """

    async def test_cancel_bond(self) -> None:
        async with self.migrating(guest="bond") as lab:
            await lab.cancel_migration()

    async def test_destination_killed(self) -> None:
        """
        :avocado: tags=quick
        """
        async with self.migrating(guest="net-failover") as lab:
            await lab.kill_destination()
            await lab.failed_migration()

    async def test_migrates_after_cancel(self) -> None:
        async with self.lab(bandwidth_mib_s=SLOW_MIB_S) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.begin_migration()
            await lab.wait_status("active")
            await lab.cancel_migration()
            await lab.wait_primary()
            await lab.migrate()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertEqual(self.route(verdict, "from_guest")[-1], "b-primary")

    @contextlib.asynccontextmanager
    async def migrating(self, **scenario: Any) -> AsyncIterator[Lab]:
        """A VM whose memory is on the way; the context's body ends that, and the VM stays as it was."""
        async with self.lab(bandwidth_mib_s=SLOW_MIB_S, **scenario) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.begin_migration()
            await lab.wait_status("active")
            yield lab
            self.assertEqual(lab.vm.name, "a")
            self.assertEqual((await lab.vm.execute("query-status"))["status"], "running")
            await lab.wait_primary()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        self.assertNotIn("blackout", [switch.kind for switch in verdict.switches])
        self.assertEqual(self.route(verdict, "from_guest")[-1], "a-primary")
