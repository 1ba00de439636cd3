# SPDX-License-Identifier: GPL-2.0-or-later
"""One measured migration, from booting the VM to the records on disk."""

from collections.abc import Callable
from pathlib import Path

from vnet_standby.build.image import GuestImage
from vnet_standby.lab.accelerator import choose_accelerator
from vnet_standby.lab.command import QemuBinary
from vnet_standby.lab.lab import QUIET_S, Lab
from vnet_standby.lab.scenario import Scenario


async def measure_migration(
    scenario: Scenario,
    qemu: QemuBinary,
    image: GuestImage,
    run: Path,
    accelerator_cache: Path,
    say: Callable[[str], None],
) -> None:
    """Migrate the scenario's VM from host a to host b under traffic; the records are in `run` afterwards.

    `say` gets a line before each step that takes a while. Raises `VnetStandbyError` if a step fails.
    """
    accelerator = await choose_accelerator(qemu, image.kernel, image.initramfs, accelerator_cache)
    say(f"booting the VM on host a ({scenario.guest}, {qemu.machine}, {accelerator})")
    async with Lab(scenario, qemu, image, accelerator, run) as lab:
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
