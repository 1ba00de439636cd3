# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested topology: each host is an emulated machine, which passes a VF of its SR-IOV NIC to the VM inside."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vnet_standby.build.host_image import GUEST_FOLDER, QEMU_FOLDER
from vnet_standby.build.image import GuestImage
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.accelerator import Accelerator
from vnet_standby.lab.command import (
    QemuBinary,
    assigned_primary,
    boot_arguments,
    host_agent_arguments,
    machine_arguments,
    nic_arguments,
    speak_datapath_protocol,
)
from vnet_standby.lab.emulated_host import MONITORS, TAP, EmulatedHost
from vnet_standby.lab.events import EventLog
from vnet_standby.lab.network import create_network
from vnet_standby.lab.scenario import MAC, Host, Scenario
from vnet_standby.lab.vm import Launch, Launched, Vm

_HOSTS: tuple[Host, ...] = ("a", "b")
_VFS = 2
_DUMP_S = 120


class Nested:
    """See `vnet_standby.lab.topology.Topology`."""

    def __init__(
        self,
        scenario: Scenario,
        qemu: QemuBinary,
        hardware: QemuBinary,
        image: GuestImage,
        accelerator: Accelerator,
    ) -> None:
        """`qemu` runs the VM inside the hosts, `hardware` emulates them; `image` is the hosts' (see `host_image`)."""
        self.binaries: Mapping[Host, QemuBinary] = {"a": qemu, "b": qemu}
        self.hosts: dict[Host, EmulatedHost] = {
            host: EmulatedHost(
                host, hardware, accelerator, image, scenario.ram_mib,
                MAC if scenario.primary_on(host) == "nic" else None,
            )
            for host in _HOSTS
        }  # fmt: skip
        self._scenario = scenario
        self._hardware = hardware
        self._image = image
        self._accelerator = accelerator
        self._assigned: dict[Host, str] = {}
        self._identities: dict[Host, str] = {}
        self._killed: set[Host] = set()

    @property
    def protocol(self) -> bool:
        """As guest and QEMU have it."""
        return speak_datapath_protocol(self._scenario, self.binaries.values())

    @property
    def has_agent(self) -> bool:
        """Whether an agent runs on each host."""
        return self.protocol and self._scenario.host_agent

    @property
    def ports(self) -> Mapping[str, str]:
        """The wires of the PFs, which carry both datapaths, and of whole NICs that are primaries.

        Without those of hosts that were killed: only a host's own records tell its datapaths apart.
        """
        alive = [host for host in _HOSTS if host not in self._killed]
        nics = [host for host in alive if self._scenario.primary_on(host) == "nic"]
        return {
            **{f"{host}-uplink": "uplink" for host in alive},
            **{f"{host}-nic": "primary" for host in nics},
        }

    async def create(self, events: EventLog, run: Path) -> None:
        """Boot both hosts and let their operator set a primary aside for the VM."""
        wires = [f"{host}-{kind}" for host in _HOSTS for kind in ("uplink", "nic")]
        await create_network(wires, [f"{host}-mgmt" for host in _HOSTS])
        try:
            async with asyncio.TaskGroup() as preparing:
                for name in _HOSTS:
                    preparing.create_task(self._prepare(name, events, run))
        except ExceptionGroup as failures:
            # when one host fails the other one is not waited for: the first failure is the reason
            raise failures.exceptions[0] from None

    async def _prepare(self, name: Host, events: EventLog, run: Path) -> None:
        await self.hosts[name].create(events, run)
        await self.assign(name)
        if self.has_agent:
            await self.hosts[name].start_agent(events, run / f"{name}-qemu.log")

    async def close(self) -> None:
        """End the hosts."""
        for host in self.hosts.values():
            await host.close()

    async def assign(self, name: Host) -> None:
        """Take the host's primary from its own drivers and give it the VM's MAC, as the scenario wants it."""
        model = self._scenario.primary_on(name)
        if model is None:
            return
        host = self.hosts[name]
        netdev = await host.netdev("uplink" if model == "vf" else "nic")
        vfs = ["--vfs", str(_VFS)] if model == "vf" else []
        said = await host.operate("assign", netdev, "--mac", MAC, *vfs, "--json")
        given = json.loads(said)
        self._assigned[name] = str(given["address"])
        self._identities[name] = str(given["identity"])

    async def release(self, name: Host) -> None:
        """Give the primary back to the host's own driver."""
        await self.hosts[name].operate("release", self._assigned.pop(name))

    async def kill(self, name: Host) -> None:
        """Let a host die as a power loss would; what it recorded is lost."""
        await self.hosts[name].machine.kill()
        self._killed.add(name)

    def vm(self, host: Host, events: EventLog, run: Path) -> Vm:
        """A VM inside a host, timed by that host's clock."""
        return Vm(host, events, run, lab_time=self.hosts[host].lab_time)

    def launch(self, host: Host) -> Launch:
        """Start it inside the host."""

        async def launch(vm: Vm, arguments: Sequence[str]) -> Launched:
            binary = QEMU_FOLDER / "bin" / self.binaries[host].path.name
            return await self.hosts[host].launch(vm, [str(binary), *arguments])

        return launch

    def vm_arguments(self, host: Host, run: Path, *, incoming: bool) -> list[str]:
        """The whole VM; a primary that management owns is missing when a migration comes in."""
        scenario = self._scenario
        qemu = replace(self.binaries[host], firmware=QEMU_FOLDER / "firmware")
        absent = incoming and scenario.managed
        primary = None if absent else self.primary(host, incoming=incoming)
        return [
            *machine_arguments(qemu, "kvm", scenario.ram_mib, scenario.hotplug),
            *boot_arguments(
                scenario, GUEST_FOLDER / "vmlinuz", GUEST_FOLDER / "initramfs.gz", run
            ),
            *nic_arguments(
                scenario, TAP, primary, protocol=self.protocol, identity=self._identities.get(host, "")
            ),
            *(host_agent_arguments(MONITORS / f"{host}.qmp") if self.has_agent else []),
        ]  # fmt: skip

    def primary(self, host: Host, *, incoming: bool) -> Mapping[str, str] | None:
        """The function that the host's operator set aside."""
        address = self._assigned.get(host)
        return assigned_primary(self._scenario, address) if address else None

    def migration_uri(self, host: Host) -> str:
        """The host's address in the management network."""
        return f"tcp:{self.hosts[host].address}:4444"

    async def start_recording(self) -> None:
        """Record which probes pass each standby's tap: the wire doesn't show whether the VF had them."""
        for host in self.hosts.values():
            await host.machine.agent.ask(f"observe {TAP}")

    async def write_records(self, run: Path) -> None:
        """Write what passed the taps, and what the agents have needed."""
        for name, host in self.hosts.items():
            if name in self._killed:
                continue
            if host.machine.process.returncode is not None:
                raise VnetStandbyError(f"host {name} is gone, and its records with it")
            lines = await host.machine.agent.ask(f"observed {TAP}", _DUMP_S)
            rows = ["seq,direction,host_ns", *(line.replace(" ", ",") for line in lines)]
            (run / f"{name}-tap.csv").write_text("\n".join(rows) + "\n")
            await host.record_agent_memory()

    def facts(self) -> dict[str, Any]:
        """Kernels, the machine that the hosts are, and how well their clocks are known."""
        return {
            "versions": {
                "guest kernel": self._image.version,
                "hosts": f"Linux {self._image.version} on emulated hardware, {self._hardware.version}",
            },
            "accelerator": f"kvm in {self._accelerator}",
            "host_commands": {
                name: host.machine.command for name, host in self.hosts.items() if host.booted
            },
            "clocks": {
                name: {"error_ms": round(host.clock.error * 1e3, 3)}
                for name, host in self.hosts.items()
            },
        }
