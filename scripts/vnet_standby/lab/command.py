# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line for a scenario, and the device that management plugs later."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.network import PREFIX_LENGTH, Host, Port
from vnet_standby.lab.scenario import MAC, Scenario
from vnet_standby.traffic.probe import GUEST_ADDRESS

STANDBY_ID = "standby0"
PRIMARY_ID = "primary0"
TWIN_ID = "twin0"

_PREFERRED_MACHINE = (
    "pc-q35-10.0"  # the series' base; both builds have it, so streams between them compare
)


@dataclass(frozen=True)
class QemuBinary:
    """A QEMU system emulator and what the lab needs to know of it."""

    path: Path
    version: str
    machine: str
    """A versioned q35 machine type: the unversioned one differs between builds."""
    firmware: Path | None
    """A folder for -L; None for a QEMU that brings its own."""
    has_standby_property: bool
    """Whether virtio-net takes standby=on, i.e. the series is applied."""


def inspect_qemu(path: Path, firmware: Path | None) -> QemuBinary:
    """Ask a QEMU binary what it is.

    Raises `VnetStandbyError` if it does not run or has no q35 machine.
    """
    version = ask(path, "--version").splitlines()[0]
    machines = re.findall(r"^(pc-q35-(\d+)\.(\d+))\s", ask(path, "-machine", "help"), re.MULTILINE)
    if not machines:
        raise VnetStandbyError(f"{path} has no q35 machine type; use a qemu-system-x86_64 with q35")
    names = {name: (int(major), int(minor)) for name, major, minor in machines}
    machine = (
        _PREFERRED_MACHINE if _PREFERRED_MACHINE in names else max(names, key=lambda n: names[n])
    )
    properties = ask(path, "-device", "virtio-net-pci,help")
    return QemuBinary(path, version, machine, firmware, "standby=" in properties)


def ask(path: Path, *arguments: str) -> str:
    """Run a QEMU binary for what it prints; raises `VnetStandbyError` if it can't or fails."""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except OSError as error:
        raise VnetStandbyError(
            f"{path} can't be run: {error.strerror}; give a QEMU binary"
        ) from error
    except subprocess.TimeoutExpired:
        raise VnetStandbyError(f"{path} {' '.join(arguments)} hangs; give a QEMU binary") from None
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VnetStandbyError(f"{path} {' '.join(arguments)} fails: {complaint}")
    return done.stdout


def ports(scenario: Scenario) -> tuple[Port, ...]:
    """The bridge ports of a scenario: a tap a NIC on each host."""
    hosts: tuple[Host, ...] = ("a", "b")
    standby = tuple(Port(host, "standby") for host in hosts if scenario.standby)
    primary = tuple(Port(host, "primary") for host in hosts if scenario.has_primary)
    return standby + primary


def kernel_arguments(scenario: Scenario) -> str:
    """The guest's kernel command line (guest/image/init reads the vnet. settings)."""
    return (
        f"console=ttyS0 quiet panic=-1 vnet.guest={scenario.guest} "
        f"vnet.address={GUEST_ADDRESS}/{PREFIX_LENGTH} vnet.first={scenario.first_driver}"
    )


def machine_arguments(qemu: QemuBinary, accelerator: str, ram_mib: int, hotplug: str) -> list[str]:
    """The part of the command line that makes a q35 PC without NICs, boot medium or display."""
    arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += ["-machine", qemu.machine, "-m", str(ram_mib), "-smp", "1"]
    if accelerator == "kvm":
        arguments += ["-accel", "kvm", "-cpu", "host"]
    else:
        arguments += ["-accel", "tcg,thread=multi", "-cpu", "max"]
    if hotplug == "pcie":
        arguments += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    if qemu.firmware:
        arguments += ["-L", str(qemu.firmware)]
    return arguments


def nic_arguments(scenario: Scenario, host: Host, *, incoming: bool) -> list[str]:
    """Root ports, taps and NICs; a primary that management owns is missing at an incoming migration's start."""
    arguments: list[str] = []
    for slot, port in enumerate((p for p in ports(scenario) if p.host == host), start=1):
        root_port = f"pcie-root-port,id=rp-{port.datapath},bus=pcie.0,chassis={slot},slot={slot}"
        arguments += ["-device", root_port]
        tap = f"tap,id=net-{port.datapath},ifname={port.name},script=no,downscript=no,vhost=off"
        arguments += ["-netdev", tap]
    if scenario.spare_port:
        arguments += ["-device", "pcie-root-port,id=rp-spare,bus=pcie.0,chassis=9,slot=9"]
    if scenario.standby:
        arguments += ["-device", _option(_standby(scenario))]
    if scenario.has_primary and not (incoming and scenario.managed):
        arguments += ["-device", _option(primary_device(scenario, incoming=incoming))]
    return arguments


def primary_device(scenario: Scenario, *, incoming: bool) -> dict[str, str]:
    """The primary as device_add wants it."""
    device = {
        "driver": scenario.primary,
        "id": PRIMARY_ID,
        "netdev": "net-primary",
        "bus": "rp-primary",
        "mac": scenario.destination_primary_mac if incoming else MAC,
        "romfile": "",
    }
    if not scenario.managed:
        device["failover_pair_id"] = STANDBY_ID
    return device


def twin_device() -> dict[str, str]:
    """A NIC with the pair's MAC, connected to nothing, as device_add wants it; needs the scenario's spare port."""
    return {"driver": "e1000e", "id": TWIN_ID, "bus": "rp-spare", "mac": MAC, "romfile": ""}


def _standby(scenario: Scenario) -> dict[str, str]:
    device = {
        "driver": "virtio-net-pci",
        "id": STANDBY_ID,
        "netdev": "net-standby",
        "bus": "rp-standby",
        "mac": MAC,
        "romfile": "",
    }
    if scenario.paired:
        device["failover" if scenario.owner == "qemu" else "standby"] = "on"
    return device


def _option(device: dict[str, str]) -> str:
    driver, *rest = device.items()
    return ",".join([driver[1], *(f"{key}={value}" for key, value in rest)])


def agent_arguments(fd: int, port_name: str) -> list[str]:
    """The virtio-serial port of the guest agent, on an open socket."""
    return [
        "-device", "virtio-serial-pci,max_ports=2",
        "-chardev", f"socket,id=agent,fd={fd}",
        "-device", f"virtserialport,chardev=agent,name={port_name}",
    ]  # fmt: skip


def monitor_arguments(fd: int) -> list[str]:
    """A QMP monitor on an open socket."""
    return ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]
