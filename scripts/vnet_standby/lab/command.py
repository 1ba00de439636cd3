# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line for a scenario, and the device that management plugs later."""

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.network import PREFIX_LENGTH
from vnet_standby.lab.scenario import MAC, Host, Scenario
from vnet_standby.traffic.probe import GUEST_ADDRESS

MAX_PAIRS = 16
STANDBY_ID = "standby0"
PRIMARY_ID = "primary0"
TWIN_ID = "twin0"

_BOOT_SETTINGS = "boot-settings.img"
_SECTOR = 512  # bytes; a disk has whole ones

_FUNCTIONS = 8  # of a PCI device
_FURTHER_PORTS = {"standby": 0x10, "primary": 0x12}
"""The first PCI device whose functions are root ports for further pairs."""
_FIRST_FURTHER_SLOT = 16

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
    has_datapath_protocol: bool
    """Whether virtio-net can tell the guest's driver, and be told, which datapath is in use."""


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
    return QemuBinary(
        path,
        version,
        machine,
        firmware,
        "standby=" in properties,
        "x-standby-datapath=" in properties,
    )


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


def speak_datapath_protocol(scenario: Scenario, binaries: Iterable[QemuBinary]) -> bool:
    """Whether the guest and all these QEMUs have the protocol: a guest that uses it can only move among such."""
    speaks = scenario.guest == "vnet-standby" and scenario.driver == "patched"
    return speaks and all(binary.has_datapath_protocol for binary in binaries)


def boot_arguments(scenario: Scenario, kernel: Path, initramfs: Path, run: Path) -> list[str]:
    """What the guest boots, and whether it may do so more than once."""
    arguments = ["-kernel", str(kernel), "-initrd", str(initramfs)]
    arguments += ["-append", _kernel_command_line(scenario)]
    if not scenario.resettable:
        return [*arguments, "-no-reboot"]  # a guest that panics ends its QEMU
    disk = f"driver=file,node-name=settings,filename={run / _BOOT_SETTINGS},read-only=on"
    return [*arguments, "-blockdev", disk, "-device", "virtio-blk-pci,drive=settings"]


def _kernel_command_line(scenario: Scenario) -> str:
    return (
        # the console gets warnings, too: what the kernel finds wrong with itself often is no more than that
        f"console=ttyS0 loglevel=5 panic=-1 vnet.guest={scenario.guest} "
        f"vnet.address={GUEST_ADDRESS}/{PREFIX_LENGTH} vnet.first={scenario.first_driver} "
        f"vnet.driver={scenario.driver}"
    )


def write_boot_settings(run: Path, settings: Mapping[str, str]) -> None:
    """Write the disk from which a resettable guest reads settings that override its kernel command line's."""
    text = "".join(f"vnet.{name}={value}\n" for name, value in settings.items())
    (run / _BOOT_SETTINGS).write_bytes(text.encode().ljust(_SECTOR, b"\0"))


def machine_arguments(
    qemu: QemuBinary, accelerator: str, ram_mib: int, hotplug: str = "acpi", vcpus: int = 1
) -> list[str]:
    """The part of the command line that makes a q35 PC without NICs, boot medium or display."""
    arguments = ["-nodefaults", "-no-user-config", "-display", "none"]
    arguments += ["-machine", qemu.machine, "-m", str(ram_mib), "-smp", str(vcpus)]
    if accelerator == "kvm":
        arguments += ["-accel", "kvm", "-cpu", "host"]
    else:
        arguments += ["-accel", "tcg,thread=multi", "-cpu", "max"]
    if hotplug == "pcie":
        arguments += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    if qemu.firmware:
        arguments += ["-L", str(qemu.firmware)]
    return arguments


def nic_arguments(
    scenario: Scenario,
    standby_tap: str,
    primary: Mapping[str, str] | None,
    primary_tap: str | None = None,
    *,
    protocol: bool = False,
    identity: str = "",
) -> list[str]:
    """Root ports, taps and NICs of the VM; `primary` is None where it has none when QEMU starts.

    `protocol` is whether the standby offers the datapath protocol, `identity` another MAC of its primary.
    """
    arguments: list[str] = []
    for slot, datapath in enumerate(_datapaths(scenario), start=1):
        root_port = f"pcie-root-port,id=rp-{datapath},bus=pcie.0,chassis={slot},slot={slot}"
        arguments += ["-device", root_port]
    if scenario.standby:
        arguments += ["-netdev", tap_netdev("net-standby", standby_tap, vhost=scenario.vhost)]
    if primary_tap:
        arguments += ["-netdev", tap_netdev("net-primary", primary_tap)]
    if scenario.spare_port:
        arguments += ["-device", "pcie-root-port,id=rp-spare,bus=pcie.0,chassis=9,slot=9"]
    if scenario.standby:
        arguments += ["-device", _option(_standby(scenario, protocol, identity))]
    if primary:
        arguments += ["-device", _option(primary)]
    return arguments


def further_pair_arguments(
    scenario: Scenario, host: Host, *, incoming: bool, protocol: bool
) -> list[str]:
    """The VM's pairs but the first.

    Their root ports are functions of few PCI devices: the root bus has 32, and a port of its own for each NIC of 16
    pairs would not leave one for anything else.
    """
    arguments: list[str] = []
    for number in range(1, scenario.pairs):
        device, function = divmod(number - 1, _FUNCTIONS)
        for kind, (datapath, first) in enumerate(_FURTHER_PORTS.items()):
            name, vhost = f"{datapath}{number}", scenario.vhost and datapath == "standby"
            slot = _FIRST_FURTHER_SLOT + 2 * number + kind
            arguments += [
                "-device", f"pcie-root-port,id=rp-{name},bus=pcie.0,addr={first + device:#x}.{function},"
                f"multifunction=on,chassis={slot},slot={slot}",
                "-netdev", tap_netdev(f"net-{name}", f"{host}-{name}", vhost=vhost),
            ]  # fmt: skip
        primary = emulated_primary(scenario, host, incoming=incoming, number=number)
        arguments += ["-device", _option(_standby(scenario, protocol, "", number))]
        arguments += ["-device", _option(primary)]
    return arguments


def further_taps(scenario: Scenario, host: Host) -> list[str]:
    """The taps of a host for all pairs but the first."""
    return [
        f"{host}-{datapath}{number}"
        for number in range(1, scenario.pairs)
        for datapath in _FURTHER_PORTS
    ]


def _mac(number: int) -> str:
    """The MAC of a pair; the first one's is the one that the probes go to."""
    octets = bytearray.fromhex(MAC.replace(":", ""))
    octets[-1] += number
    return octets.hex(":")


def tap_netdev(name: str, ifname: str, *, vhost: bool = False) -> str:
    """QEMU's netdev on a tap that exists; with `vhost` the host's kernel moves its frames."""
    backend = "vhostforce=on" if vhost else "vhost=off"  # with vhost=on, QEMU would do without
    return f"tap,id={name},ifname={ifname},script=no,downscript=no,{backend}"


def _datapaths(scenario: Scenario) -> list[str]:
    datapaths = {"standby": scenario.standby, "primary": scenario.has_primary}
    return [name for name, there in datapaths.items() if there]


def emulated_primary(
    scenario: Scenario, host: Host, *, incoming: bool, number: int = 0
) -> dict[str, str]:
    """A NIC that QEMU emulates as a pair's primary, as device_add wants it; the host must be one that has a primary."""
    other = incoming and not number
    return {
        "driver": str(scenario.primary_on(host)),
        "netdev": f"net-primary{number or ''}",
        "mac": scenario.destination_primary_mac if other else _mac(number),
        "romfile": "",
        **_primary(scenario, number),
    }


def assigned_primary(scenario: Scenario, address: str) -> dict[str, str]:
    """A host's PCI function as the primary, as device_add wants it; `address` is where the host has it."""
    return {"driver": "vfio-pci", "host": address, **_primary(scenario)}


def _primary(scenario: Scenario, number: int = 0) -> dict[str, str]:
    pair = {} if scenario.managed else {"failover_pair_id": f"standby{number}"}
    return {"id": f"primary{number}", "bus": f"rp-primary{number or ''}", **pair}


def twin_device() -> dict[str, str]:
    """A NIC with the pair's MAC, connected to nothing, as device_add wants it; needs the scenario's spare port."""
    return {"driver": "e1000e", "id": TWIN_ID, "bus": "rp-spare", "mac": MAC, "romfile": ""}


def _standby(scenario: Scenario, protocol: bool, identity: str, number: int = 0) -> dict[str, str]:
    device = {
        "driver": "virtio-net-pci",
        "id": f"standby{number}",
        "netdev": f"net-standby{number or ''}",
        "bus": f"rp-standby{number or ''}",
        "mac": _mac(number),
        "romfile": "",
    }
    if scenario.paired:
        device["failover" if scenario.owner == "qemu" else "standby"] = "on"
    if protocol:
        device["x-standby-datapath"] = "on"
        if identity:
            device["x-standby-primary-mac"] = identity
    return device


def _option(device: Mapping[str, str]) -> str:
    driver, *rest = device.items()
    return ",".join([driver[1], *(f"{key}={value}" for key, value in rest)])


def agent_arguments(end: str, port_name: str) -> list[str]:
    """The virtio-serial port of the guest agent, on the socket that `end` describes (fd=N or host=...,port=...)."""
    return [
        "-device", "virtio-serial-pci,max_ports=2",
        "-chardev", f"socket,id=agent,{end}",
        "-device", f"virtserialport,chardev=agent,name={port_name}",
    ]  # fmt: skip


def monitor_arguments(end: str) -> list[str]:
    """A QMP monitor on the socket that `end` describes (fd=N or host=...,port=...)."""
    return ["-chardev", f"socket,id=qmp,{end}", "-mon", "chardev=qmp,mode=control"]


def host_agent_arguments(monitor: Path) -> list[str]:
    """A second QMP monitor, on a UNIX socket that the host agent finds."""
    return [
        "-chardev", f"socket,id=host-agent,path={monitor},server=on,wait=off",
        "-mon", "chardev=host-agent,mode=control",
    ]  # fmt: skip
