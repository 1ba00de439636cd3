# SPDX-License-Identifier: GPL-2.0-or-later
"""Not one packet lost: device, driver and host agent move the traffic together, and the gate spans the blackout."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from labtest import LabTest
from vnet_standby.lab.agent import Link
from vnet_standby.lab.command import PRIMARY_ID, STANDBY_ID
from vnet_standby.lab.flat import Flat
from vnet_standby.lab.lab import Lab
from vnet_standby.traffic.verdict import Verdict

SLOW_MIB_S = 6  # leaves time to interfere with the RAM phase
SWITCH_S = 10


def _without_carrier(links: Sequence[Link]) -> bool:
    return any(link.master and not link.carrier for link in links)


class LosslessTest(LabTest):
    forced: dict[str, int]
    """How often the guest's driver has given the order up, by direction."""

    @contextlib.asynccontextmanager
    async def managed(self, **scenario: Any) -> AsyncIterator[Lab]:
        """A VM on its primary, under traffic, with a host agent that has armed its pair."""
        self.require_datapath_protocol()
        async with self.lab(guest="vnet-standby", driver="patched", **scenario) as lab:
            await lab.start_vm()
            await self.moved(lab, "primary", 0)
            await lab.start_traffic()
            yield lab
            await lab.stop_traffic()
            counters = await self.counters(lab)
            self.forced = {
                "to_guest": counters["rx_hold_forced"],
                "from_guest": counters["tx_forced"],
            }

    async def moved(self, lab: Lab, datapath: str, since: int) -> None:
        """The fabric has followed the guest, as the agent says."""
        await lab.vm.expect(
            "VIRTIO_NET_STANDBY_FABRIC", SWITCH_S, since,
            datapath=datapath, outcome="acknowledged",
        )  # fmt: skip

    async def migrate(self, lab: Lab) -> None:
        """The gate is passed at the first attempt, and the primary there carries the traffic."""
        since = len(lab.events)
        source = lab.vm
        await lab.migrate()
        await source.expect("VIRTIO_NET_STANDBY_GATE", 0, since, role="source", state="passed")
        await self.moved(lab, "primary", since)

    def assert_lossless(self, verdict: Verdict) -> None:
        """Nothing is lost or twice, nor out of order, unless the driver says that it could not wait so long.

        It holds frames for 50 (sending) or 90 ms (receiving) at most; a test machine may stand still for longer.
        """
        for direction, counts in verdict.counts.items():
            faults = counts.lost, counts.duplicated
            self.assertEqual(faults, (0, 0), f"lost, duplicated {direction}")
            if not self.forced[direction]:
                self.assertEqual(counts.reordered, 0, f"reordered {direction}")
        self.assert_persists(verdict)


class Lossless(LosslessTest):
    """
    :avocado: tags=lossless
    """

    async def test_migration(self) -> None:
        """
        :avocado: tags=quick
        """
        await self.check(rate_hz=1000)

    async def test_silent_guest(self) -> None:
        await self.check(rate_hz=1000, traffic="to-guest")

    async def test_native_hotplug(self) -> None:
        await self.check(hotplug="pcie")

    async def test_there_and_back(self) -> None:
        async with self.managed() as lab:
            await self.migrate(lab)
            await self.migrate(lab)
        self.assert_lossless(self.judge())

    async def test_link_taken_down(self) -> None:
        """The operator takes the primary's link down through QEMU, which lets the guest leave it first."""
        async with self.managed() as lab:
            since = len(lab.events)
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=False)
            await self.moved(lab, "standby", since)
            await lab.wait_links(_without_carrier, "the guest noticing that the link is down")
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=True)
            await self.moved(lab, "primary", since)
        self.assert_lossless(self.judge())

    async def test_link_up_at_once(self) -> None:
        """The operator changes their mind when the guest has just left."""
        async with self.managed() as lab:
            since = len(lab.events)
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=False)
            await self.moved(lab, "standby", since)
            await lab.vm.execute("set_link", name=PRIMARY_ID, up=True)
            await self.moved(lab, "primary", since)
        self.assert_lossless(self.judge())

    async def check(self, **scenario: Any) -> None:
        async with self.managed(**scenario) as lab:
            await self.migrate(lab)
        verdict = self.judge()
        self.assert_lossless(verdict)
        kinds = [switch.kind for switch in verdict.switches]
        self.assertEqual(kinds, ["failover", "blackout", "failback"])


class Undone(LosslessTest):
    """A migration that ends badly costs nothing either, and an agent that is gone costs no VM its traffic.

    :avocado: tags=lossless,failure
    """

    async def test_cancel(self) -> None:
        async with self.managed(bandwidth_mib_s=SLOW_MIB_S) as lab:
            await lab.begin_migration()
            await lab.wait_status("active")
            since = len(lab.events)
            await lab.cancel_migration()
            await self.moved(lab, "primary", since)
        self.assert_lossless(self.judge())

    async def test_destination_killed(self) -> None:
        async with self.managed(bandwidth_mib_s=SLOW_MIB_S) as lab:
            await lab.begin_migration()
            await lab.wait_status("active")
            since = len(lab.events)
            await lab.kill_destination()
            await self.moved(lab, "primary", since)
        self.assert_lossless(self.judge())

    async def test_agent_killed(self) -> None:
        """Nobody acknowledges any more, and nobody answers at the gate: the migration goes on as without an agent."""
        async with self.managed(bandwidth_mib_s=SLOW_MIB_S) as lab:
            await lab.begin_migration()
            await lab.wait_status("active")
            assert isinstance(lab.topology, Flat)
            await lab.topology.kill_agent()
            result = await lab.finish_migration()
            self.assertEqual(result["status"], "completed")
        self.assert_persists(self.judge())

    async def test_no_agent(self) -> None:
        """The bridge learns by itself; what the guest sends is not lost then either."""
        self.require_datapath_protocol()
        async with self.lab(guest="vnet-standby", driver="patched", host_agent=False) as lab:
            await lab.start_vm()
            await lab.start_traffic()
            await lab.migrate()
            await lab.stop_traffic()
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertEqual(verdict.counts["from_guest"].lost, 0)

    async def test_switched_by_hand(self) -> None:
        """An operator moves the guest to the standby and back, without a migration."""
        async with self.managed() as lab:
            for datapath in ("standby", "primary"):
                since = len(lab.events)
                await lab.vm.execute(
                    "x-virtio-net-standby-switch", device=STANDBY_ID, datapath=datapath
                )
                await self.moved(lab, datapath, since)
        self.assert_lossless(self.judge())
