# SPDX-License-Identifier: GPL-2.0-or-later
"""What a lab needs to know of the place where its VM runs: two hosts, their NICs, the wires that are recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vnet_standby.lab.command import QemuBinary
from vnet_standby.lab.events import EventLog
from vnet_standby.lab.scenario import Host
from vnet_standby.lab.vm import Launch, Vm


class Topology(Protocol):
    """Two hosts and the network between them."""

    @property
    def binaries(self) -> Mapping[Host, QemuBinary]:
        """The QEMU that runs the VM on each host."""

    @property
    def protocol(self) -> bool:
        """Whether standby and guest tell each other which datapath is in use."""

    @property
    def ports(self) -> Mapping[str, str]:
        """The interfaces to be recorded, and what each is: standby, primary, or uplink (both of a host's)."""

    async def create(self, events: EventLog, run: Path) -> None:
        """Build it, in a network namespace of its own; `run` is the folder for logs."""

    async def close(self) -> None:
        """End all that runs in it."""

    def vm(self, host: Host, events: EventLog, run: Path) -> Vm:
        """A VM, not started yet, on a host."""

    def launch(self, host: Host) -> Launch:
        """The way to start a VM on a host."""

    def vm_arguments(self, host: Host, run: Path, *, incoming: bool) -> list[str]:
        """QEMU's command line for the VM on a host; `run` is the folder for files of the VM."""

    def primary(self, host: Host, *, incoming: bool) -> Mapping[str, str] | None:
        """The VM's primary on a host, as device_add wants it; None if it has none there."""

    def migration_uri(self, host: Host) -> str:
        """Where a host listens for an incoming migration."""

    async def start_recording(self) -> None:
        """Start what records inside the hosts."""

    async def write_records(self, run: Path) -> None:
        """Write what the hosts recorded."""

    def facts(self) -> dict[str, Any]:
        """What run.json says about it."""
