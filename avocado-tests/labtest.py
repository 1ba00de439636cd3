# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests share: a lab on the QEMU under test, the run's verdict, and assertions on packets and their order.

Parameters (`avocado run -p NAME=VALUE`):
    qemu     patched (default), stock, or the path of any qemu-system-x86_64
    kernel   the guest's kernel, as for `scripts/demo --kernel`
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from avocado import Test

from vnet_standby import paths
from vnet_standby.build.kernel import CHECKED
from vnet_standby.lab.binaries import image_under_test, qemu_under_test
from vnet_standby.lab.command import QemuBinary
from vnet_standby.lab.demo import topology_of
from vnet_standby.lab.lab import Lab
from vnet_standby.lab.scenario import MAC, Scenario
from vnet_standby.report.write import write
from vnet_standby.traffic.analysis import judge
from vnet_standby.traffic.verdict import Direction, Verdict

T = TypeVar("T")

BANDWIDTH_MIB_S = 40
"""A RAM phase of 2 to 3 s: long enough for hundreds of probes, short enough for many tests."""

SETTLE_S = 30
"""How long a test waits for what should take the guest, the agent or QEMU no time to speak of."""

STOP_EDGE_S = 0.05
"""What still waits in the source's tap when the guest is stopped is lost with it, although it was sent before; and what
is sent right after it resumed is, until the bridge has heard of it there."""

UNPLUG_TIMEOUT_MS = 3000
"""How long a migration waits for a guest that a test has made deaf to unplug requests."""

LEAKS = (
    "mount -t debugfs debugfs /sys/kernel/debug; cd /sys/kernel/debug; [ ! -e kmemleak ] || "
    "{ sleep 5; echo scan > kmemleak; echo scan > kmemleak; cat kmemleak; }"
)
"""What nobody in the guest's kernel refers to any more, where it has kmemleak: that looks at nothing younger than 5 s,
and names nothing that it has seen only once."""

LEAKS_S = 120

CHECKED_RATE_HZ = 200
"""Probes a second that a guest can take whose kernel checks itself; with more it has time for nothing else."""

SOME_PROBES = 20
"""So many of a NIC's packets are more than what a guest says by itself when it gets a NIC."""

TAIL_PROBES = 200
"""Traffic persists if this many of the last probes arrive: one second of the lab's aftermath."""


class LabTest(Test):  # type: ignore[misc]  # avocado has no type information
    """Base of all tests that boot a VM."""

    timeout = 300

    @contextlib.asynccontextmanager
    async def lab(self, **scenario: Any) -> AsyncIterator[Lab]:
        """A lab with the QEMU under test on both hosts; its logs and records are the test's artefacts."""
        async with self._lab(self.qemu(), self.qemu(), scenario) as lab:
            yield lab

    @contextlib.asynccontextmanager
    async def between(
        self, source: str, destination: str, machine: str | None = None, **scenario: Any
    ) -> AsyncIterator[Lab]:
        """A lab with one of our own builds on each host; `machine` is the VM's type if not today's."""
        binaries = qemu_under_test(source), qemu_under_test(destination)
        if machine:
            binaries = replace(binaries[0], machine=machine), replace(binaries[1], machine=machine)
        async with self._lab(*binaries, scenario) as lab:
            yield lab

    @contextlib.asynccontextmanager
    async def _lab(
        self, qemu: QemuBinary, destination: QemuBinary, scenario: Mapping[str, Any]
    ) -> AsyncIterator[Lab]:
        wanted = Scenario(**{"bandwidth_mib_s": BANDWIDTH_MIB_S, **scenario})
        kernel = self.params.get("kernel", default=None)
        image = image_under_test(wanted.guest, kernel)
        if image.version.endswith(CHECKED):
            wanted = replace(wanted, rate_hz=min(wanted.rate_hz, CHECKED_RATE_HZ))
        cache = paths.BUILD / "accelerator.json"
        self.log.info("records and logs: %s", self.run_folder)
        topology = await topology_of(
            wanted, qemu, image, cache, kernel, destination_qemu=destination
        )
        async with Lab(wanted, topology, self.run_folder) as lab:
            yield lab
            if kernel and lab.vm.process.returncode is None:
                leaks = await lab.vm.agent.run(LEAKS, LEAKS_S)
                self.assertEqual(leaks, "", "the guest's kernel has lost memory")
        self.assert_no_reports(lab)

    @property
    def run_folder(self) -> Path:
        """Where this test's records, logs and report are."""
        return Path(self.outputdir) / "run"

    def qemu(self) -> QemuBinary:
        """The QEMU under test."""
        return qemu_under_test(self.params.get("qemu", default="patched"))

    def require_standby_property(self) -> None:
        """Cancel the test on a QEMU without the series."""
        qemu = self.qemu()
        if not qemu.has_standby_property:
            self.cancel(f"{qemu.path} has no virtio-net property standby: it lacks the series")

    def require_datapath_protocol(self) -> None:
        """Cancel the test on a QEMU whose virtio-net and guest can't tell each other which datapath is in use."""
        qemu = self.qemu()
        if not qemu.has_datapath_protocol:
            self.cancel(f"{qemu.path} has no virtio-net property x-standby-datapath")

    async def migrate_once(self, lab: Lab) -> None:
        """Boot the VM, migrate it under traffic, and wait until its primary there carries the traffic."""
        await lab.start_vm()
        await lab.start_traffic()
        await lab.migrate()
        await lab.wait_primary()
        await lab.stop_traffic()

    async def counters(self, lab: Lab) -> dict[str, int]:
        """What the guest's driver has counted for the pair that carries the probes."""
        links = (await lab.vm.agent.links()).values()
        (master,) = [link for link in links if link.driver == "virtio_net" and link.mac == MAC]
        return await lab.vm.agent.counters(master.name)

    async def counted(
        self, lab: Lab, wanted: Callable[[Mapping[str, int]], bool], what: str
    ) -> dict[str, int]:
        """Return the driver's counters as soon as they are as `wanted`, which `what` says; no event tells of them."""
        return await self.polled(lambda: self.counters(lab), wanted, what)

    async def sends_by_primary(self, lab: Lab) -> None:
        """The guest has begun to send its probes through the primary that it has now, whatever its driver."""

        async def sent() -> int:
            links = (await lab.vm.agent.links()).values()
            primary = next(
                link.name for link in links if link.master and link.driver != "virtio_net"
            )
            statistics = f"/sys/class/net/{primary}/statistics"
            return int(await lab.vm.agent.run(f"cat {statistics}/tx_packets"))

        enough = await sent() + SOME_PROBES
        await self.polled(sent, lambda count: count >= enough, "sending by the primary")

    async def polled(
        self, read: Callable[[], Awaitable[T]], wanted: Callable[[T], bool], what: str
    ) -> T:
        """Return what is read as soon as it is as `wanted`, which `what` says; for what no event tells of."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            found = await read()
            if wanted(found):
                return found
            if time.monotonic() > deadline:
                self.fail(f"{what}: not within {SETTLE_S} s; there is {found}")
            await asyncio.sleep(0.05)

    async def ignore_unplugs(self, lab: Lab) -> None:
        """Take the slots from the guest's hotplug driver: nobody answers the attention button any more.

        Needs a scenario with native hotplug.
        """
        await lab.vm.agent.run(
            "cd /sys/bus/pci_express/drivers/pciehp && for port in 0000:*; do echo $port > unbind; done"
        )

    async def bound_the_wait(self, lab: Lab, policy: str) -> None:
        """Let the next migration not wait long for the guest, and do then what the policy says."""
        parameters = {"wait-unplug-timeout": UNPLUG_TIMEOUT_MS, "wait-unplug-policy": policy}
        await lab.vm.execute("migrate-set-parameters", **parameters)

    def judge(self) -> Verdict:
        """Judge the run's records; the report is an artefact beside them."""
        verdict = judge(self.run_folder)
        self.log.info("report: %s", write(self.run_folder, verdict, self.run_folder).html)
        for direction, counts in verdict.counts.items():
            self.log.info("%s: %s", direction, counts)
        return verdict

    def route(self, verdict: Verdict, direction: Direction) -> list[str]:
        """The ports that carried the delivered probes of a direction, one after the other."""
        points = sorted(verdict.points, key=lambda point: point.seq)
        carriers = [point.via for point in points if point.direction == direction and point.via]
        return [
            port
            for port, before in zip(carriers, [None, *carriers], strict=False)
            if port != before
        ]

    def assert_route(self, verdict: Verdict, ports: list[str]) -> None:
        """The traffic took these ports in this order, and no others, in both directions."""
        for direction in verdict.counts:
            self.assertEqual(self.route(verdict, direction), ports, f"the route of {direction}")

    def assert_persists(self, verdict: Verdict) -> None:
        """Traffic goes on after all that the test did: the last probes of each direction all arrived."""
        for direction in verdict.counts:
            points = [point for point in verdict.points if point.direction == direction]
            tail = sorted(points, key=lambda point: point.seq)[-TAIL_PROBES:]
            self.assertEqual(len(tail), TAIL_PROBES, f"too few probes {direction} to judge")
            lost = [point.seq for point in tail if point.arrived is None]
            self.assertEqual(lost, [], f"probes {direction} lost at the end of the run")

    def assert_untouched(self, lab: Lab, port: str = "a-primary") -> None:
        """The traffic never left this port, a primary's, and the guest is on its host."""
        verdict = self.judge()
        self.assert_persists(verdict)
        for direction, counts in verdict.counts.items():
            self.assertEqual(counts.lost, 0, direction)
        self.assert_route(verdict, [port])
        self.assertEqual(lab.vm.name, port[0])

    def assert_no_reports(self, lab: Lab) -> None:
        """The kernels of the VMs, which have ended by now, found nothing wrong with themselves (their consoles say)."""
        self.assertEqual(lab.kernel_reports, [], "the guest's kernel reports trouble")

    def assert_sound(self, verdict: Verdict) -> None:
        """The records are complete, and nothing is lost or doubled before the first switch."""
        self.assertEqual(verdict.warnings, ())
        for direction, counts in verdict.counts.items():
            self.assertEqual(counts.duplicated, 0, f"duplicates {direction}")
        switching = verdict.switches[0].start - STOP_EDGE_S
        early = [loss for loss in verdict.losses if loss.end < switching]
        self.assertEqual(early, [], "losses before the first switch")
