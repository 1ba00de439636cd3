# SPDX-License-Identifier: GPL-2.0-or-later
"""The standby and primary NICs of a running VM, as QEMU tells over QMP; works with stock QEMU since 7.2."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.mac import is_for

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

_TIMEOUT_S = 10

# where QEMU keeps what -device and device_add made: with an id, and without
_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
_CHILD = re.compile(r"child<(.+)>")

# HMP `info network`: " \ net0: index=0,type=tap,ifname=tap0,script=no" below the NIC that net0 is the peer of
_NETDEV = re.compile(
    r"^(?: \\ )?(?P<id>[^:\s]+): index=\d+,type=(?P<type>[^,]+)(?P<rest>.*)$", re.M
)
_IFNAME = re.compile(r",ifname=([^,\s]+)")

_FEATURE = "VIRTIO_NET_F_STANDBY"


@dataclass(frozen=True)
class Nic:
    """A NIC of the VM; texts are empty where there is no such thing."""

    id: str
    """As given to -device; the QOM path for a NIC without."""
    type: str
    mac: str
    """As QEMU knows it: a device passed through brings its own, which is known where it is a VF with one set."""
    netdev: str
    backend: str
    """The netdev's type: tap, vhost-user, user ..."""
    ifname: str
    """The host's interface behind the netdev; empty too for a tap that QEMU was given open."""
    host_address: str
    """The host's PCI address, for vfio-pci."""


@dataclass(frozen=True)
class Pair:
    """A standby and its primary."""

    standby: Nic
    made_by: Literal["failover", "standby"]
    """Which property of virtio-net is on: failover (QEMU owns the primary) or standby (management does)."""
    negotiated: bool | None
    """Whether the guest's driver accepted the feature; None if QEMU is too old to tell."""
    primary: Nic | None
    """None while it isn't plugged: QEMU hides it (until the guest has accepted the feature), or there is none; stock
    QEMU does not tell which. One that the guest ejected for a migration still shows as plugged."""


async def pairs(monitor: str, vf_macs: Mapping[str, str] | None = None) -> list[Pair]:
    """Return the pairs of a VM.

    `monitor` is the path of its QMP socket, or HOST:PORT. `vf_macs` are the MACs of the host's VFs by PCI address:
    where management owns the primary, QEMU knows of no pair, and one passed through is found by them. Raises
    `VnetStandbyError` if there is no VM, or no pair in it.
    """
    async with _connected(monitor) as vm:
        nics = await _nics(vm, vf_macs or {})
        found = [pair for path, nic in nics.items() if (pair := await _pair(vm, path, nic, nics))]
    if not found:
        raise VnetStandbyError(
            f"the VM at {monitor} has no pair: none of its virtio-net devices has failover=on or standby=on"
        )
    return found


class _Vm:
    """QMP with this module's errors."""

    def __init__(self, client: "QMPClient", monitor: str) -> None:
        self._client = client
        self._monitor = monitor

    async def execute(self, command: str, **arguments: object) -> Any:
        """A command's return value; None if QEMU refuses it."""
        from qemu.qmp import ExecuteError, QMPError  # noqa: PLC0415  # slow to load

        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._client.execute(command, arguments or None)
        except ExecuteError:
            return None
        except TimeoutError:
            raise VnetStandbyError(
                f"the VM at {self._monitor} does not answer {command} within {_TIMEOUT_S} s"
            ) from None
        except QMPError as error:
            raise VnetStandbyError(f"the VM at {self._monitor} went away ({error})") from error

    async def get(self, path: str, name: str) -> Any:
        """A QOM property; None if the object has none of this name."""
        return await self.execute("qom-get", path=path, property=name)

    async def text(self, path: str, name: str) -> str:
        """A QOM property as text; empty if there is none."""
        value = await self.get(path, name)
        return value if isinstance(value, str) else ""


@contextlib.asynccontextmanager
async def _connected(monitor: str) -> AsyncIterator[_Vm]:
    from qemu.qmp import ConnectError, QMPClient, QMPError  # noqa: PLC0415  # slow to load

    client = QMPClient("host")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await client.connect(_address(monitor))
    except TimeoutError:
        raise VnetStandbyError(
            f"no greeting from {monitor} within {_TIMEOUT_S} s: it is no QMP monitor, or another client (libvirt?) "
            "has it; a QMP monitor serves one at a time, give the VM another -qmp"
        ) from None
    except ConnectError as error:
        raise VnetStandbyError(_why_not(monitor, error.exc)) from error
    try:
        yield _Vm(client, monitor)
    finally:
        with contextlib.suppress(QMPError, EOFError, OSError):  # gone meanwhile
            await client.disconnect()


def _address(monitor: str) -> str | tuple[str, int]:
    path = Path(monitor)
    host, _, port = monitor.rpartition(":")
    if host and port.isdecimal() and not path.exists():
        return host, int(port)
    if not path.exists():
        raise VnetStandbyError(
            f"no such QMP socket: {monitor}; give the path behind QEMU's -qmp unix:, or HOST:PORT"
        )
    if not path.is_socket():
        raise VnetStandbyError(f"{monitor} is no socket; give the path behind QEMU's -qmp unix:")
    return monitor


def _why_not(monitor: str, error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {monitor}; is the VM running?"
    if isinstance(error, PermissionError):
        return f"{monitor} is not accessible to this user; run it as root or as QEMU's user"
    if isinstance(error, OSError):
        return f"{monitor} can't be reached: {error.strerror or error}"
    return f"{monitor} does not speak QMP; give the socket behind QEMU's -qmp"


async def _nics(vm: _Vm, vf_macs: Mapping[str, str]) -> dict[str, Nic]:
    """The NICs, and whatever else might be a primary, by QOM path."""
    network = await vm.execute("human-monitor-command", **{"command-line": "info network"})
    backends = _backends(network or "")
    return {
        f"{container}/{child['name']}": await _nic(vm, container, child, backends, vf_macs)
        for container in _CONTAINERS
        for child in await vm.execute("qom-list", path=container) or ()
        if _type(child)
    }


async def _nic(
    vm: _Vm,
    container: str,
    child: Mapping[str, str],
    backends: Mapping[str, tuple[str, str]],
    vf_macs: Mapping[str, str],
) -> Nic:
    path = f"{container}/{child['name']}"
    netdev = await vm.text(path, "netdev")
    kind, ifname = backends.get(netdev, ("", ""))
    is_vfio = _type(child).startswith("vfio-pci")
    host_address = await vm.text(path, "host") if is_vfio else ""
    return Nic(
        id=child["name"] if container == _CONTAINERS[0] else path,
        type=_type(child),
        mac=vf_macs.get(host_address, "") if is_vfio else (await vm.text(path, "mac")).lower(),
        netdev=netdev,
        backend=kind,
        ifname=ifname,
        host_address=host_address,
    )


def _type(child: Mapping[str, str]) -> str:
    """The type of a device in a list of QOM properties; empty for what is no device."""
    match = _CHILD.fullmatch(child["type"])
    return match[1] if match else ""


def _backends(info_network: str) -> dict[str, tuple[str, str]]:
    """Type and host interface of each netdev, from HMP's `info network` (QMP has no query for them)."""
    found = {}
    for match in _NETDEV.finditer(info_network.replace("\r", "")):
        ifname = _IFNAME.search(match["rest"])
        found[match["id"]] = (match["type"], ifname[1] if ifname else "")
    return found


async def _pair(vm: _Vm, path: str, nic: Nic, nics: Mapping[str, Nic]) -> Pair | None:
    if not nic.type.startswith("virtio-net-"):
        return None
    if await vm.get(path, "failover"):
        primary = await _paired_by_id(vm, nic, nics)
        return Pair(nic, "failover", await _negotiated(vm, path), primary)
    if await vm.get(path, "standby"):
        return Pair(nic, "standby", await _negotiated(vm, path), _paired_by_mac(nic, nics))
    return None


async def _paired_by_id(vm: _Vm, standby: Nic, nics: Mapping[str, Nic]) -> Nic | None:
    for path, nic in nics.items():
        if await vm.text(path, "failover_pair_id") == standby.id:
            return nic
    return None


def _paired_by_mac(standby: Nic, nics: Mapping[str, Nic]) -> Nic | None:
    others = (nic for nic in nics.values() if nic != standby and is_for(nic.mac, standby.mac))
    return next(others, None)


async def _negotiated(vm: _Vm, path: str) -> bool | None:
    status = await vm.execute("x-query-virtio-status", path=f"{path}/virtio-backend")
    if status is None:
        return None
    return any(text.startswith(_FEATURE) for text in status["guest-features"]["dev-features"])
