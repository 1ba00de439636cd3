# SPDX-License-Identifier: GPL-2.0-or-later
"""One measured migration, from booting the VM to the records on disk."""

from collections.abc import Callable
from pathlib import Path

from vnet_standby import paths
from vnet_standby.build.host_image import host_image
from vnet_standby.build.image import GuestImage
from vnet_standby.lab.accelerator import choose_accelerator
from vnet_standby.lab.binaries import qemu_under_test
from vnet_standby.lab.command import QemuBinary
from vnet_standby.lab.flat import Flat
from vnet_standby.lab.lab import QUIET_S, Lab
from vnet_standby.lab.nested import Nested
from vnet_standby.lab.scenario import Scenario
from vnet_standby.lab.topology import Topology


def jobs_of(scenario: Scenario, qemu: str) -> list[str]:
    """What a demo has to do for the first time, so that all missing packages are named at once."""
    nested = scenario.topology == "nested"
    there = {
        "qemu": {"patched": paths.QEMU_PATCHED, "stock": paths.QEMU_STOCK}.get(qemu, paths.REPO),
        "guest": paths.GUEST,
        "driver": paths.GUEST / "driver" if scenario.guest == "vnet-standby" else paths.REPO,
        "nested": paths.HOST if nested else paths.REPO,
    }
    if nested and not paths.QEMU_PATCHED.exists():  # it emulates the hosts
        there["qemu"] = paths.QEMU_PATCHED
    return ["lab", *(job for job, place in there.items() if not place.exists())]


async def topology_of(
    scenario: Scenario,
    qemu: QemuBinary,
    image: GuestImage,
    accelerator_cache: Path,
    kernel: str | None = None,
    *,
    destination_qemu: QemuBinary | None = None,
) -> Topology:
    """The topology that a scenario asks for, not created yet; the hosts of the nested one run `kernel`.

    `destination_qemu` runs host b of the flat topology if it is another one.
    The emulated hardware of the nested one is always our own build: the series makes its SR-IOV NIC behave.
    """
    if scenario.topology == "flat":
        chosen = await choose_accelerator(qemu, image.kernel, image.initramfs, accelerator_cache)
        return Flat(scenario, qemu, image, chosen, destination_qemu=destination_qemu)
    hardware = qemu_under_test("patched")
    host = host_image(qemu.path, image, kernel)
    chosen = await choose_accelerator(hardware, image.kernel, image.initramfs, accelerator_cache)
    return Nested(scenario, qemu, hardware, host, chosen)


async def measure_migration(
    scenario: Scenario, topology: Topology, run: Path, say: Callable[[str], None]
) -> None:
    """Migrate the scenario's VM from host a to host b under traffic; the records are in `run` afterwards.

    `say` gets a line before each step that takes a while. Raises `VnetStandbyError` if a step fails.
    """
    if scenario.topology == "nested":
        say("booting the hosts a and b, setting a primary aside on each")
    async with Lab(scenario, topology, run) as lab:
        facts = topology.facts()
        say(
            f"booting the VM on host a ({scenario.guest}, {topology.binaries['a'].machine}, {facts['accelerator']})"
        )
        await lab.start_vm()
        await lab.start_destination()
        say(
            f"traffic: {scenario.traffic}, {scenario.rate_hz} probes/s; undisturbed for {QUIET_S:g} s"
        )
        await lab.start_traffic()
        say(f"migrating to host b ({scenario.ram_mib} MiB at {scenario.bandwidth_mib_s} MiB/s)")
        await lab.migrate()
        say("collecting the records")
        await lab.stop_traffic()
