# SPDX-License-Identifier: GPL-2.0-or-later
"""An emulated host: a VM with an IOMMU, an SR-IOV NIC and another NIC, that runs the lab's VM inside."""

import asyncio
import contextlib
import shlex
import socket
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vnet_standby.build.host_image import IPROUTE2, PYTHON_COMMAND
from vnet_standby.build.image import GuestImage
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.accelerator import Accelerator
from vnet_standby.lab.agent import PORT_NAME
from vnet_standby.lab.command import (
    QemuBinary,
    agent_arguments,
    machine_arguments,
    monitor_arguments,
    tap_netdev,
)
from vnet_standby.lab.events import Event, EventLog
from vnet_standby.lab.host_agent import JournalReader, record_memory
from vnet_standby.lab.network import MANAGEMENT_ADDRESS, PREFIX_LENGTH
from vnet_standby.lab.scenario import Host
from vnet_standby.lab.vm import Launched, Vm, local, running_vm
from vnet_standby.lab.waiting import ProcessExitedError, unless_ended

T = TypeVar("T")

TAP = "standby"
"""The tap of the VM's standby, in each emulated host."""

MONITORS = Path("/run/vms")
"""Where each emulated host's agent finds the monitors of its VMs."""

IP = str(IPROUTE2 / "ip")
"""iproute2, for a shell in an emulated host."""

_OWN_RAM_MIB = 448
"""What a host needs beside its VM's memory, which VFIO pins as a whole."""

_BOOT_S = 180
_COMMAND_S = 60
_CONNECT_S = 60
_CLOCK_ROUNDS = 30

# Locally administered; the last byte is the host.
_MACS = {
    "management": "02:00:00:00:01:{:02x}",
    "uplink": "02:00:00:00:02:{:02x}",
    "nic": "02:00:00:00:03:{:02x}",
}


@dataclass(frozen=True)
class ClockOffset:
    """How far a host's clock is ahead of ours, in seconds, and how wrong that can be, in seconds."""

    seconds: float
    error: float


class EmulatedHost:
    """Host a or b, as a VM; made by `create`, ended by `close`."""

    def __init__(
        self,
        name: Host,
        hardware: QemuBinary,
        accelerator: Accelerator,
        image: GuestImage,
        vm_ram_mib: int,
        nic_mac: str | None = None,
    ) -> None:
        """`hardware` emulates it; `nic_mac` is the MAC of its whole NIC, if that is meant to be a VM's primary."""
        self.name = name
        self.address = f"198.51.100.{self._number(name)}"
        self.clock = ClockOffset(0, 0)
        self._hardware = hardware
        self._accelerator = accelerator
        self._image = image
        self._ram_mib = vm_ram_mib + _OWN_RAM_MIB
        self._nic_mac = nic_mac
        self._vm: Vm | None = None
        self._agent: JournalReader | None = None
        self._stack = contextlib.AsyncExitStack()

    @property
    def booted(self) -> bool:
        """Whether it was started at all."""
        return self._vm is not None

    @property
    def machine(self) -> Vm:
        """The host as the VM that it is."""
        assert self._vm is not None, "create() comes first"
        return self._vm

    async def create(self, events: EventLog, run: Path) -> None:
        """Boot it; it has its bridge with uplink and tap then."""
        name = f"host-{self.name}"
        machine = Vm(name, events, run, inside=name)
        arguments = self._arguments(run)
        await self._stack.enter_async_context(
            running_vm(machine, arguments, local(self._hardware.path))
        )
        self._vm = machine
        await machine.bounded(machine.agent.wait_alive(), _BOOT_S, f"booting host {self.name}")
        await self._require_kvm()
        self.clock = await self._measure_clock()

    async def close(self) -> None:
        """End it."""
        await self._stack.aclose()

    async def run(self, command: str, timeout_s: float = _COMMAND_S) -> str:
        """Run a shell command on the host and return its output; an error if it fails."""
        return await self.machine.bounded(
            self.machine.agent.run(command, timeout_s),
            timeout_s + 5,
            f"host {self.name}: {command}",
        )

    async def operate(self, *arguments: str) -> str:
        """Run `vnet_standby.host` there, as the host's operator would, and return its output."""
        return await self.run(f"{PYTHON_COMMAND} -m vnet_standby.host {shlex.join(arguments)} 2>&1")

    async def netdev(self, kind: str) -> str:
        """The name of the host's netdev for `uplink` or `nic`."""
        links = await self.machine.agent.links()
        mac = self._mac(kind)
        found = [name for name, link in links.items() if link.mac == mac and link.driver]
        if len(found) != 1:
            raise VnetStandbyError(f"host {self.name} has no {kind} ({mac}); see its console log")
        return found[0]

    def lab_time(self, host_time: float) -> float:
        """A time of the host's clock, in seconds, by ours."""
        return host_time - self.clock.seconds

    async def launch(self, vm: Vm, command: Sequence[str]) -> Launched:
        """Start a VM's QEMU there; monitor and agent's port call us over the management network."""
        with _listener() as qmp, _listener() as agent:
            argv = [
                *command,
                "-serial", "file:/dev/ttyS1",
                *monitor_arguments(_call(qmp)),
                *agent_arguments(_call(agent), PORT_NAME),
            ]  # fmt: skip
            line = shlex.join(argv)
            process = _HostProcess(self.machine, "vm")
            await self.machine.agent.ask(f"spawn vm {line} >/dev/ttyS2 2>&1")
            what = f"starting QEMU on host {self.name}"
            qmp_end = await self._unless_exited(process, _accept(qmp), what, vm.stderr)
            agent_end = await self._unless_exited(process, _accept(agent), what, vm.stderr)
        return Launched(process, line, qmp_end, agent_end)

    async def kill_agent(self) -> None:
        """End the host's agent as a crash would; its guard, another process, lives on."""
        assert self._agent is not None, "start_agent() comes first"
        await self.run(f"kill -9 {self._agent.pid}")

    async def start_agent(self, events: EventLog, log: Path) -> None:
        """Start the host's agent, for the VMs in `MONITORS`; its journal calls us over the management network.

        `log` is where ttyS2 of the host goes. Raises `VnetStandbyError` if the agent does not start.
        """
        what = f"starting the agent of host {self.name}"
        with _listener() as listener:
            address, port = listener.getsockname()
            agent = f"{PYTHON_COMMAND} -m vnet_standby.host agent --folder {MONITORS} 2>/dev/ttyS2"
            line = f"mkdir -p {MONITORS} && {agent} | nc {address} {port}"
            process = _HostProcess(self.machine, "agent")
            await self.machine.agent.ask(f"spawn agent sh -c {shlex.quote(line)}")
            end = await self._unless_exited(process, _accept(listener), what, log)
        stream, connection = await asyncio.open_connection(sock=end)
        self._stack.callback(connection.close)
        journal = JournalReader(stream, events, self.lab_time)
        # the agent ends with its host, which says no farewell
        self._stack.push_async_callback(journal.cancel)
        await self._unless_exited(process, journal.ready.wait(), what, log)
        self._agent = journal

    async def record_agent_memory(self) -> None:
        """Make an event of how much memory the host's agent has needed, if it has one that lives."""
        if self._agent:
            status = f"/proc/{self._agent.pid}/status"
            await record_memory(
                await self.run(f"[ ! -e {status} ] || cat {status}"), self.machine.events
            )

    async def _unless_exited(
        self, process: "_HostProcess", waiting: Awaitable[T], what: str, log: Path
    ) -> T:
        try:
            return await unless_ended(waiting, process.wait(), _CONNECT_S)
        except ProcessExitedError as end:
            raise VnetStandbyError(
                f"{what}: it exited with status {end.status}; see {log}"
            ) from None
        except TimeoutError:
            raise VnetStandbyError(f"{what}: it does not answer; see {log}") from None

    async def _require_kvm(self) -> None:
        try:
            await self.run("test -c /dev/kvm")
        except VnetStandbyError:
            raise VnetStandbyError(
                f"host {self.name} has no /dev/kvm: its processor, as emulated with {self._accelerator}, cannot nest; "
                "with KVM, set the module option nested=1 on this machine"
            ) from None

    async def _measure_clock(self) -> ClockOffset:
        """Ask the host's clock several times; the fastest answer says most, and half of its delay is the error."""
        rounds = [await self.machine.agent.clock() for _ in range(_CLOCK_ROUNDS)]
        asked, told, answered = min(rounds, key=lambda r: r[2] - r[0])
        middle = (asked + answered) / 2
        return ClockOffset((told - middle) / 1e9, (answered - asked) / 2e9)

    def _arguments(self, run: Path) -> list[str]:
        q35 = machine_arguments(self._hardware, self._accelerator, self._ram_mib)
        # an IOMMU that remaps interrupts needs the kernel's half of a split interrupt controller under KVM
        q35[q35.index("-machine") + 1] += ",kernel-irqchip=split"
        return [
            *q35,
            "-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs),
            "-append", self._kernel_arguments(), "-no-reboot",
            # before the devices whose DMA it translates
            "-device", "intel-iommu,intremap=on,caching-mode=on",
            *self._tap("mgmt"),
            "-device", f"virtio-net-pci,netdev=mgmt,mac={self._mac('management')},romfile=",
            *self._tap("uplink"),
            "-device", f"igb,id=pf,netdev=uplink,mac={self._mac('uplink')},romfile=",
            *self._tap("nic"),
            "-device", "pcie-root-port,id=rp-nic,bus=pcie.0,chassis=1,slot=1",
            "-device", f"e1000e,bus=rp-nic,netdev=nic,mac={self._mac('nic')},romfile=",
        ] + [
            # its own console comes first; then its VM's, and what that VM's QEMU has to say
            word for name in (f"{self.name}-console", f"{self.name}-qemu")
            for word in ("-serial", f"file:{run / name}.log")
        ]  # fmt: skip

    def _kernel_arguments(self) -> str:
        return (
            "console=ttyS0 quiet panic=-1 intel_iommu=on iommu=pt "
            f"vnet.management={self._mac('management')},{self.address}/{PREFIX_LENGTH} "
            f"vnet.uplink={self._mac('uplink')} vnet.tap={TAP}"
        )

    def _tap(self, kind: str) -> list[str]:
        return ["-netdev", tap_netdev(kind, f"{self.name}-{kind}")]

    def _mac(self, kind: str) -> str:
        if kind == "nic" and self._nic_mac:
            return self._nic_mac
        return _MACS[kind].format(self._number(self.name))

    @staticmethod
    def _number(name: Host) -> int:
        return {"a": 10, "b": 11}[name]


class _HostProcess:
    """A process that the host's agent has started under a name."""

    def __init__(self, machine: Vm, name: str) -> None:
        self._machine = machine
        self._name = name
        self._since = len(machine.events)

    @property
    def returncode(self) -> int | None:
        exits = self._machine.events.seen(self._is_exit, self._since)
        return _status(exits[0]) if exits else None

    async def wait(self) -> int:
        exited = self._machine.events.wait(self._is_exit, self._since)
        try:
            return _status(await unless_ended(exited, self._machine.process.wait()))
        except ProcessExitedError as host:
            return host.status

    async def kill(self) -> None:
        if self.returncode is None and self._machine.process.returncode is None:
            await self._machine.agent.ask(f"kill {self._name}")

    def _is_exit(self, event: Event) -> bool:
        return (
            event.who == self._machine.name
            and event.event == "exited"
            and event.data["name"] == self._name
        )


def _status(exit_: Event) -> int:
    return int(str(exit_.data["status"]))


def _listener() -> socket.socket:
    listener = socket.create_server((MANAGEMENT_ADDRESS, 0))
    listener.setblocking(False)
    return listener


def _call(listener: socket.socket) -> str:
    address, port = listener.getsockname()
    return f"host={address},port={port}"


async def _accept(listener: socket.socket) -> socket.socket:
    end, _ = await asyncio.get_running_loop().sock_accept(listener)
    end.setblocking(False)
    return end
