# SPDX-License-Identifier: GPL-2.0-or-later
"""The flat topology: both hosts are QEMUs on this machine, whose taps are ports of one bridge."""

import contextlib
import os
import signal
import tempfile
from asyncio.subprocess import Process
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vnet_standby.build.image import GuestImage
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.accelerator import Accelerator
from vnet_standby.lab.command import (
    QemuBinary,
    boot_arguments,
    emulated_primary,
    further_pair_arguments,
    further_taps,
    host_agent_arguments,
    machine_arguments,
    nic_arguments,
    speak_datapath_protocol,
)
from vnet_standby.lab.events import EventLog
from vnet_standby.lab.host_agent import host_agent
from vnet_standby.lab.network import create_network
from vnet_standby.lab.scenario import Host, Scenario
from vnet_standby.lab.vm import Launch, Vm, local

_HOSTS: tuple[Host, ...] = ("a", "b")
_VHOST = "/dev/vhost-net"


class Flat:
    """See `vnet_standby.lab.topology.Topology`."""

    def __init__(
        self,
        scenario: Scenario,
        qemu: QemuBinary,
        image: GuestImage,
        accelerator: Accelerator,
        *,
        destination_qemu: QemuBinary | None = None,
    ) -> None:
        """`destination_qemu` runs host b if it is another one."""
        self.binaries: Mapping[Host, QemuBinary] = {"a": qemu, "b": destination_qemu or qemu}
        self._scenario = scenario
        self._image = image
        self._accelerator = accelerator
        self._monitors = Path()
        self._agent: Process | None = None
        self._stack = contextlib.AsyncExitStack()

    @property
    def protocol(self) -> bool:
        """As guest and both QEMUs have it."""
        return speak_datapath_protocol(self._scenario, self.binaries.values())

    @property
    def ports(self) -> Mapping[str, str]:
        """A tap a NIC on each host."""
        scenario = self._scenario
        ports = {f"{host}-standby": "standby" for host in _HOSTS if scenario.standby}
        primaries = [host for host in _HOSTS if scenario.primary_on(host)]
        return {**ports, **{f"{host}-primary": "primary" for host in primaries}}

    @property
    def has_agent(self) -> bool:
        """Whether a host agent runs; one serves both hosts, as they share a bridge."""
        return self.protocol and self._scenario.host_agent

    async def create(self, events: EventLog, run: Path) -> None:
        """Make the bridge and its ports, and start the host agent."""
        if self._scenario.vhost and not os.access(_VHOST, os.R_OK | os.W_OK):
            raise VnetStandbyError(
                f"{_VHOST} can't be used here; load vhost_net and let this user open it, or take the nested topology, "
                "whose hosts have it"
            )
        further = [tap for host in _HOSTS for tap in further_taps(self._scenario, host)]
        await create_network([*self.ports, *further])
        if self.has_agent:
            # not in `run`: the path of a UNIX socket has at most 107 bytes
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vnet-standby-"))
            self._monitors = Path(folder)
            await self.start_agent(events, run)

    async def start_agent(self, events: EventLog, run: Path) -> None:
        """Start the host agent, for instance one that takes over from one that was killed."""
        agent = host_agent(self._monitors, events, run / "agent.log")
        self._agent = await self._stack.enter_async_context(agent)

    async def kill_agent(self) -> None:
        """End the host agent as a crash would."""
        assert self._agent is not None, "has_agent says whether there is one"
        self._agent.kill()
        await self._agent.wait()

    @contextlib.contextmanager
    def stalled_agent(self) -> Iterator[None]:
        """Meanwhile the host agent does nothing, as if the host gave it no time; it may be killed."""
        assert self._agent is not None, "has_agent says whether there is one"
        self._agent.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if self._agent.returncode is None:
                self._agent.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        """End the agent; the network goes with its namespace."""
        await self._stack.aclose()

    def vm(self, host: Host, events: EventLog, run: Path) -> Vm:
        """A VM on a host, which is this machine."""
        return Vm(host, events, run)

    def launch(self, host: Host) -> Launch:
        """Start it as a process."""
        return local(self.binaries[host].path)

    def vm_arguments(self, host: Host, run: Path, *, incoming: bool) -> list[str]:
        """The whole VM; a primary that management owns is missing when a migration comes in."""
        scenario, qemu = self._scenario, self.binaries[host]
        primary = self.primary(host, incoming=incoming)
        absent = incoming and scenario.managed
        tap = f"{host}-primary" if primary else None
        return [
            *machine_arguments(
                qemu, self._accelerator, scenario.ram_mib, scenario.hotplug, scenario.vcpus
            ),
            *boot_arguments(scenario, self._image.kernel, self._image.initramfs, run),
            *nic_arguments(
                scenario, f"{host}-standby", None if absent else primary, tap, protocol=self.protocol
            ),
            *further_pair_arguments(scenario, host, incoming=incoming, protocol=self.protocol),
            *(host_agent_arguments(self._monitors / f"{host}.qmp") if self.has_agent else []),
        ]  # fmt: skip

    def primary(self, host: Host, *, incoming: bool) -> Mapping[str, str] | None:
        """A NIC that QEMU emulates."""
        if self._scenario.primary_on(host) is None:
            return None
        return emulated_primary(self._scenario, host, incoming=incoming)

    def migration_uri(self, _host: Host) -> str:
        """A port of the private namespace."""
        return "tcp:127.0.0.1:4444"

    async def start_recording(self) -> None:
        """The ports are all outside of the hosts."""

    async def write_records(self, _run: Path) -> None:
        """The ports are all outside of the hosts."""

    def facts(self) -> dict[str, Any]:
        """Kernel and accelerator of the guest."""
        return {"versions": {"guest kernel": self._image.version}, "accelerator": self._accelerator}
