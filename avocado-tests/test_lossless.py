# SPDX-License-Identifier: GPL-2.0-or-later
"""Not one packet lost: device, driver and host agent move the traffic together, and the gate spans the blackout."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Literal, get_args

from labtest import TAIL_PROBES, LabTest
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.agent import Link
from vnet_standby.lab.command import PRIMARY_ID, STANDBY_ID
from vnet_standby.lab.events import Event
from vnet_standby.lab.flat import Flat
from vnet_standby.lab.lab import Lab
from vnet_standby.lab.nested import Nested as NestedTopology
from vnet_standby.traffic.verdict import Verdict

PAIRS = 16
SWITCH_S = 30
TCP_MIB_S = 4

UNPLANNED = 100
"""How many probes may be lost to a NIC that is suddenly deaf: it takes the guest, the host agent and the fabric so long
to know (README). At 1,000 a second that is 100 ms, at 200 a second, in emulated hosts, 500 ms."""

Step = Literal["asked", "left", "active", "closed", "passed"]
STEPS: tuple[Step, ...] = get_args(Step)
"""Of the sequence: the guest is asked to leave the primary; has left it; its memory is on the way; the gate is closed,
and the destination's agent has not answered yet; the guest is stopped behind the gate."""


def _without_carrier(links: Sequence[Link]) -> bool:
    return any(link.master and not link.carrier for link in links)


def _gives_up(event: Event) -> bool:
    """QEMU has not waited any longer for the fabric, or for the gate to be answered."""
    too_often = event.data.get("reason") == "The gate was withdrawn too often"
    return too_often or event.data.get("outcome") == "timed-out"


class LosslessTest(LabTest):
    forced: dict[str, int]
    """How often the guest's driver has given the order up, by direction."""

    @contextlib.asynccontextmanager
    async def managed(self, **scenario: Any) -> AsyncIterator[Lab]:
        """A VM on its primary, under traffic, with a host agent that has armed its pair."""
        self.require_datapath_protocol()
        async with self.lab(guest="vnet-standby", driver="patched", **scenario) as lab:
            await lab.start_vm()
            await self.followed(lab, "primary")
            await lab.start_traffic()
            yield lab
            await lab.stop_traffic()
            counters = await self.counters(lab)
            self.forced = {
                "to_guest": counters["rx_hold_forced"],
                "from_guest": counters["tx_forced"],
            }

    async def followed(self, lab: Lab, datapath: str, since: int = 0) -> None:
        """The agent has pointed the fabric, be it later than QEMU waits: the machine may be busy."""

        def acknowledged(event: Event) -> bool:
            pair = event.data.get("device"), event.data.get("to")
            return event.event == "acknowledged" and pair == (STANDBY_ID, datapath)

        waiting = lab.events.wait(acknowledged, since)
        await lab.vm.bounded(waiting, SWITCH_S, f"the agent pointing the fabric at the {datapath}")

    async def moved(self, lab: Lab, datapath: str, since: int) -> None:
        """The fabric has followed the guest, as the agent says."""
        await lab.vm.expect(
            "VIRTIO_NET_STANDBY_FABRIC", SWITCH_S, since,
            device=STANDBY_ID, datapath=datapath, outcome="acknowledged",
        )  # fmt: skip

    async def carried(self, lab: Lab) -> None:
        """The primary has carried as much of the guest's traffic as `assert_persists` judges.

        That the fabric follows doesn't say so: the guest hears of it after everybody else.
        """
        to_guest = lab.scenario.traffic == "to-guest"
        counter = "primary_rx_packets" if to_guest else "primary_tx_packets"
        enough = (await self.counters(lab))[counter] + TAIL_PROBES
        await self.counted(lab, lambda counters: counters[counter] >= enough, "using the primary")

    async def migrate(self, lab: Lab) -> None:
        """The gate is passed, and the primary there carries the traffic."""
        since = len(lab.events)
        source = lab.vm
        await lab.migrate()
        await source.expect("VIRTIO_NET_STANDBY_GATE", 0, since, role="source", state="passed")
        await self.followed(lab, "primary", since)
        await self.carried(lab)

    async def check(self, **scenario: Any) -> None:
        async with self.managed(**scenario) as lab:
            await self.migrate(lab)
        verdict = self.judge()
        self.assert_lossless(verdict)
        kinds = [switch.kind for switch in verdict.switches]
        self.assertEqual(kinds, ["failover", "blackout", "failback"])

    def assert_lossless(self, verdict: Verdict) -> None:
        """Nothing is lost or twice, nor out of order, unless the driver says that it could not wait so long.

        It holds frames for 50 (sending) or 90 ms (receiving) at most; a test machine may stand still for longer.
        """
        self.assert_complete(verdict)
        for direction, counts in verdict.counts.items():
            if not self.forced[direction]:
                self.assertEqual(counts.reordered, 0, f"reordered {direction}")

    def assert_complete(self, verdict: Verdict) -> None:
        """Nothing is lost or twice."""
        for direction, counts in verdict.counts.items():
            faults = counts.lost, counts.duplicated
            self.assertEqual(faults, (0, 0), f"lost, duplicated {direction}")
        self.assert_persists(verdict)


class UnhurriedTest(LosslessTest):
    """QEMU waits 500 ms for an agent: one in an emulated host, or with many pairs, can need more on a busy machine."""

    gave_up: Sequence[Event] = ()

    async def migrate(self, lab: Lab) -> None:
        since = len(lab.events)
        try:
            await super().migrate(lab)
        except VnetStandbyError:
            self.excuse(lab.events.seen(_gives_up, since))
            raise
        self.gave_up = lab.events.seen(_gives_up, since)

    def assert_complete(self, verdict: Verdict) -> None:
        try:
            super().assert_complete(verdict)
        except AssertionError:
            self.excuse(self.gave_up)
            raise

    def excuse(self, gave_up: Sequence[Event]) -> None:
        """Cancel the test if QEMU has given up waiting for an agent."""
        if gave_up:
            self.cancel(f"this machine is too slow for it: {gave_up[0]}")


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

    async def test_tcp(self) -> None:
        """A stream beside the probes pauses for the blackout, and nothing of it is lost.

        A segment that is answered late, by a machine that stands still, is sent again all the same; the guest says so.
        """
        async with self.managed(tcp_mib_s=TCP_MIB_S) as lab:
            await self.migrate(lab)
        verdict = self.judge()
        self.assert_lossless(verdict)
        assert verdict.tcp is not None, "the stream ended early"
        self.log.info("%s", verdict.tcp)
        self.assertEqual(verdict.tcp.retransmitted - verdict.tcp.doubled, 0)


class ManyPairs(UnhurriedTest):
    """
    :avocado: tags=lossless
    """

    async def test_sixteen_pairs(self) -> None:
        """All fail over at once, and each finds its own primary again."""
        async with self.managed(pairs=PAIRS) as lab:
            await self.assert_paired(lab)
            await self.migrate(lab)
            await lab.wait_primary()
            await self.assert_paired(lab)
        self.assert_lossless(self.judge())

    async def assert_paired(self, lab: Lab) -> None:
        """Each standby has a primary, and that has its MAC."""
        links = await lab.vm.agent.links()
        pairs = {link.master: link.mac for link in links.values() if link.master}
        self.assertEqual(len(pairs), PAIRS)
        self.assertEqual(pairs, {master: links[master].mac for master in pairs})


class Nested(UnhurriedTest):
    """The same with real VFs, whose filters the agents of two hosts move.

    :avocado: tags=lossless,nested
    """

    timeout = 600
    hosts: ClassVar[dict[str, Any]] = {
        "topology": "nested",
        "primary": "vf",
        "ram_mib": 256,
        "bandwidth_mib_s": 20,
    }

    async def test_migration(self) -> None:
        """The hosts' kernels move the standbys' frames: the gate takes its queue from vhost-net."""
        await self.check(**self.hosts, vhost=True)

    async def test_to_another_vendor(self) -> None:
        await self.across("primary", "nic", destination_primary="nic")

    async def test_from_another_vendor(self) -> None:
        """
        :avocado: tags=long
        """
        await self.across("nic", "primary", primary="nic", destination_primary="vf")

    async def across(self, source: str, destination: str, **primaries: str) -> None:
        """One end has a whole NIC, to which switches outside come by announcements: those keep no order.

        `source` and `destination` are the ports that carry the traffic before and after.
        """
        async with self.managed(**{**self.hosts, **primaries}) as lab:
            await self.migrate(lab)
        verdict = self.judge()
        self.assert_complete(verdict)
        ports = [f"a-{source}", "a-standby", "b-standby", f"b-{destination}"]
        self.assertEqual(self.route(verdict, "from_guest"), ports)

    async def test_cable_pulled(self) -> None:
        """A whole NIC loses its link before anybody knows; the guest is back on it once it has one again."""
        async with self.managed(**{**self.hosts, "primary": "nic"}) as lab:
            assert isinstance(lab.topology, NestedTopology)
            for up, datapath in ((False, "standby"), (True, "primary")):
                since = len(lab.events)
                await lab.topology.hosts["a"].machine.execute("set_link", name="nic", up=up)
                await self.followed(lab, datapath, since)
            await self.carried(lab)
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertEqual(self.route(verdict, "from_guest"), ["a-nic", "a-standby", "a-nic"])
        for direction, counts in verdict.counts.items():
            self.assertEqual(counts.duplicated, 0, f"duplicated {direction}")
            self.assertLessEqual(counts.lost, UNPLANNED, f"lost {direction}")

    async def test_agent_killed(self) -> None:
        """A guest on its VF goes on: the PF lets a VF send with the MAC of its filter only, so that stays."""
        async with self.managed(**self.hosts) as lab:
            assert isinstance(lab.topology, NestedTopology)
            left = lab.events.wait(lambda event: event.event == "left", len(lab.events))
            await lab.topology.hosts["a"].kill_agent()
            await lab.vm.bounded(left, SWITCH_S, "the agent's guard putting the fabric in order")
        self.assert_lossless(self.judge())


class Unplanned(LosslessTest):
    """
    :avocado: tags=lossless,failure
    """

    async def test_driver_unbound(self) -> None:
        """The guest's administrator takes the primary from its driver, which stops receiving before anybody knows."""
        async with self.managed(rate_hz=1000) as lab:
            device = await self.primary_device(lab)
            for action, datapath in (("unbind", "standby"), ("bind", "primary")):
                since = len(lab.events)
                await lab.vm.agent.run(f"echo {device} > /sys/bus/pci/drivers/e1000e/{action}")
                await self.moved(lab, datapath, since)
            await self.carried(lab)
        verdict = self.judge()
        self.assert_persists(verdict)
        for direction, counts in verdict.counts.items():
            self.assertEqual(counts.duplicated, 0, f"duplicated {direction}")
            self.assertLessEqual(counts.lost, UNPLANNED, f"lost {direction}")
        elsewhere = [
            loss for loss in verdict.losses if loss.last_seen not in {"a-primary", "guest"}
        ]
        self.assertEqual(elsewhere, [])

    async def primary_device(self, lab: Lab) -> str:
        """The guest's PCI address of the primary."""
        links = (await lab.vm.agent.links()).values()
        primary = next(link.name for link in links if link.master)
        return await lab.vm.agent.run(f"basename $(readlink -f /sys/class/net/{primary}/device)")


class Undone(LosslessTest):
    """A migration that ends badly costs nothing either, and an agent that is gone costs no VM its traffic.

    :avocado: tags=lossless,failure
    """

    async def test_cancel_at_each_step(self) -> None:
        async with self.managed() as lab:
            for step in STEPS:
                async with self.reached(lab, step):
                    await lab.vm.execute("migrate_cancel")
                await lab.cancel_migration()
                await self.assert_on_primary(lab)
        self.assert_undone(self.judge())

    async def test_destination_killed_at_each_step(self) -> None:
        async with self.managed() as lab:
            for step in STEPS:
                async with self.reached(lab, step):
                    await lab.kill_destination()
                await self.go_on(lab, step)
                await lab.failed_migration()
                await self.assert_on_primary(lab)
        self.assert_undone(self.judge())

    async def test_agent_killed_at_each_step(self) -> None:
        """The migration goes on as without an agent, and the next agent takes over what it finds."""
        async with self.managed() as lab:
            assert isinstance(lab.topology, Flat)
            for step in STEPS:
                async with self.reached(lab, step):
                    await lab.topology.kill_agent()
                await self.go_on(lab, step)
                await lab.finish_migration()
                await self.take_over(lab)
                await self.assert_on_primary(lab)
        verdict = self.judge()
        self.assert_persists(verdict)
        self.assertEqual(verdict.counts["from_guest"].lost, 0)

    @contextlib.asynccontextmanager
    async def reached(self, lab: Lab, step: Step) -> AsyncIterator[None]:
        """Migrate as far as this step; the agent takes no part in it for as long as the context lasts."""
        assert isinstance(lab.topology, Flat)
        pause = {"capability": "pause-before-switchover", "state": step == "passed"}
        await lab.vm.execute("migrate-set-capabilities", capabilities=[pause])
        since = len(lab.events)
        with contextlib.ExitStack() as stalled:
            if step == "left":
                stalled.enter_context(lab.topology.stalled_agent())
            await lab.begin_migration()
            if step == "left":
                event = "VIRTIO_NET_STANDBY_DATAPATH"
                await lab.vm.expect(event, SWITCH_S, since, datapath="standby")
            elif step == "passed":
                await lab.wait_status("pre-switchover")
            else:
                await lab.wait_status("wait-unplug" if step == "asked" else "active")
            if step != "left":
                stalled.enter_context(lab.topology.stalled_agent())
            if step == "closed":
                event = "VIRTIO_NET_STANDBY_GATE"
                await lab.vm.expect(event, SWITCH_S, since, role="source", state="closed")
            yield

    async def go_on(self, lab: Lab, step: Step) -> None:
        """End the pause in which the guest is stopped."""
        if step == "passed":
            await lab.vm.execute("migrate-continue", state="pre-switchover")

    async def take_over(self, lab: Lab) -> None:
        """Start another agent."""
        assert isinstance(lab.topology, Flat)
        since = len(lab.events)
        await lab.topology.start_agent(lab.events, lab.run)

        def armed(event: Event) -> bool:
            return event.event == "armed" and event.data["vm"] == lab.vm.name

        await lab.vm.bounded(lab.events.wait(armed, since), SWITCH_S, "the agent arming the pair")

    async def assert_on_primary(self, lab: Lab) -> None:
        """Guest and fabric are back where they were."""
        (pair,) = await lab.vm.execute("query-virtio-net-standby")
        protocol = pair["protocol"]
        self.assertEqual((protocol["datapath"], protocol["fabric"]), ("primary", "primary"))
        self.assertTrue(protocol["managed"])

    def assert_undone(self, verdict: Verdict) -> None:
        """Nothing is lost but what the gate had let go to the destination, and nothing is twice.

        That was in its tap, or the bridge had nowhere to put it, because that tap's QEMU was dead.
        """
        for direction, counts in verdict.counts.items():
            self.assertEqual(counts.duplicated, 0, f"duplicated {direction}")
        elsewhere = [loss for loss in verdict.losses if loss.last_seen not in {"b-standby", "peer"}]
        self.assertEqual(elsewhere, [])
        self.assert_persists(verdict)

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
