# SPDX-License-Identifier: GPL-2.0-or-later
"""The pairs of a VM: a real QEMU without a guest, and sockets with something else behind them."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host import qmp
from vnet_standby.host.pairs import Nic, Pair, pairs
from vnet_standby.host.tables import pair_text
from vnet_standby.paths import FIRMWARE, QEMU_PATCHED, QEMU_STOCK

MAC = "52:54:00:76:6e:01"
HOST = "0000:01:10.0"

FAILOVER = [
    "virtio-net-pci,id=standby0,bus=rp1,failover=on,netdev=n0,mac=52:54:00:76:6E:01,romfile=",
    "e1000e,id=primary0,bus=rp2,failover_pair_id=standby0,netdev=n1,mac=52:54:00:76:6E:01,romfile=",
]
BY_MANAGEMENT = [
    "virtio-net-pci,id=standby0,bus=rp1,standby=on,netdev=n0,mac=52:54:00:76:6E:01,romfile=",
    "e1000e,id=other,mac=52:54:00:00:00:09,romfile=",
    "e1000e,id=primary0,bus=rp2,netdev=n1,mac=52:54:00:76:6E:01,romfile=",
]


class Qemu:
    """Starts VMs that never run."""

    def __init__(self, folder: Path) -> None:
        self.monitor = folder / "qmp"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, build: Path, devices: list[str]) -> str:
        """Start one with these devices; return where its monitor listens."""
        binary = build / "qemu-system-x86_64"
        if not binary.exists():
            pytest.skip(f"{build.name} is not built")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.monitor))
        listener.listen(1)  # now QEMU need not be waited for
        arguments = [
            str(binary), "-nodefaults", "-no-user-config", "-display", "none", "-S", "-m", "64",
            "-machine", "q35", "-L", str(FIRMWARE),
            "-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            "-netdev", "hubport,hubid=0,id=n0", "-netdev", "hubport,hubid=0,id=n1",
        ]  # fmt: skip
        for number in (1, 2):
            arguments += ["-device", f"pcie-root-port,id=rp{number},chassis={number},slot={number}"]
        for device in devices:
            arguments += ["-device", device]
        self._process = subprocess.Popen(
            arguments, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        )
        listener.close()
        return str(self.monitor)

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    qemu = Qemu(tmp_path)
    yield qemu
    qemu.stop()


@pytest.mark.parametrize("build", [QEMU_STOCK, QEMU_PATCHED], ids=["stock", "patched"])
def test_a_hidden_primary_is_not_there(qemu: Qemu, build: Path) -> None:
    (pair,) = asyncio.run(pairs(qemu.start(build, FAILOVER)))
    assert pair == Pair(
        Nic("standby0", "virtio-net-pci", MAC, "n0", "", "", ""), "failover", False, None
    )
    assert pair_text([pair]).splitlines() == [
        f"standby standby0  virtio-net-pci  {MAC}  netdev n0  failover=on, not accepted by the guest",
        "primary hidden, or there is none",
    ]


def test_management_s_primary_is_found_by_its_mac(qemu: Qemu) -> None:
    (pair,) = asyncio.run(pairs(qemu.start(QEMU_PATCHED, BY_MANAGEMENT)))
    assert pair.made_by == "standby"
    assert pair.primary is not None
    assert (pair.primary.id, pair.primary.type, pair.primary.netdev) == ("primary0", "e1000e", "n1")


def test_a_vm_without_a_pair_says_so(qemu: Qemu) -> None:
    monitor = qemu.start(QEMU_STOCK, ["virtio-net-pci,romfile=", "e1000e,romfile="])
    with pytest.raises(VnetStandbyError, match="has no pair"):
        asyncio.run(pairs(monitor))


VERSION = {"qemu": {"major": 7, "minor": 1, "micro": 0}, "package": ""}
GREETING = json.dumps({"QMP": {"version": VERSION, "capabilities": []}}).encode() + b"\r\n"


def requests(connection: socket.socket) -> Iterator[dict[str, object]]:
    """What a client asks, one object at a time; nothing separates them."""
    text = ""
    while received := connection.recv(4096).decode():
        text += received
        with contextlib.suppress(json.JSONDecodeError):  # more of it is to come
            request, end = json.JSONDecoder().raw_decode(text)
            text = text[end:].lstrip()
            yield request


def reply_to(
    connection: socket.socket, request: Mapping[str, object], reply: Mapping[str, object]
) -> None:
    """Send a reply; it carries the request's id, if that had one."""
    ids = {key: value for key, value in request.items() if key == "id"}
    connection.sendall(json.dumps({**reply, **ids}).encode() + b"\r\n")


class FakeMonitor:
    """A QMP monitor whose answers are the test's."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], object]) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, args=(serve,), daemon=True)
        self._thread.start()

    def _serve(self, serve: Callable[[socket.socket], object]) -> None:
        connection, _ = self._listener.accept()
        with connection:
            serve(connection)


def answering(
    objects: dict[str, dict[str, object]], info_network: str
) -> Callable[[socket.socket], object]:
    """A VM with these QOM objects in /machine/peripheral."""

    def answer(request: dict[str, object]) -> object:
        arguments = request.get("arguments", {})
        assert isinstance(arguments, dict)
        match request["execute"]:
            case "qmp_capabilities":
                return {}
            case "human-monitor-command":
                return info_network
            case "qom-list" if arguments["path"] == "/machine/peripheral":
                return [{"name": "type", "type": "string"}] + [
                    {"name": name, "type": f"child<{values['type']}>"}
                    for name, values in objects.items()
                ]
            case "qom-get":
                return objects[arguments["path"].rpartition("/")[2]].get(arguments["property"])
        return None

    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for request in requests(connection):
            result = answer(request)
            error = {"class": "GenericError", "desc": "no"}
            reply = {"error": error} if result is None else {"return": result}
            reply_to(connection, request, reply)

    return serve


STANDBY: dict[str, object] = {
    "type": "virtio-net-pci",
    "failover": True,
    "mac": MAC,
    "netdev": "net0",
}
VF: dict[str, object] = {"type": "vfio-pci", "failover_pair_id": "standby0", "host": HOST}
INFO_NETWORK = (
    "standby0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:76:6e:01\r\n"
    " \\ net0: index=0,type=tap,ifname=standby,script=no,downscript=no\r\n"
)


def test_a_vf_shows_its_host_address_and_the_mac_that_the_pf_knows(tmp_path: Path) -> None:
    monitor = FakeMonitor(tmp_path / "q", answering({"standby0": STANDBY, "vf": VF}, INFO_NETWORK))
    (pair,) = asyncio.run(pairs(monitor.path, {HOST: MAC}))
    assert pair.standby == Nic("standby0", "virtio-net-pci", MAC, "net0", "tap", "standby", "")
    assert pair.primary == Nic("vf", "vfio-pci", MAC, "", "", "", HOST)
    assert pair.negotiated is None
    assert "netdev net0 (tap standby)" in pair_text([pair])
    assert f"primary vf  vfio-pci  {MAC}  host {HOST}  plugged" in pair_text([pair])


@pytest.mark.parametrize("mac", [MAC, "d2:54:00:76:6e:01"])
def test_management_s_vf_is_found_by_the_mac_that_the_pf_knows(tmp_path: Path, mac: str) -> None:
    standby = {**STANDBY, "failover": False, "standby": True}
    vf: dict[str, object] = {"type": "vfio-pci", "host": HOST}
    monitor = FakeMonitor(tmp_path / "q", answering({"standby0": standby, "vf": vf}, INFO_NETWORK))
    (pair,) = asyncio.run(pairs(monitor.path, {HOST: mac}))
    assert pair.primary is not None
    assert pair.primary.host_address == HOST


def http(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def hang_up(_connection: socket.socket) -> None:
    pass


def go_away(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    asked = requests(connection)
    reply_to(connection, next(asked), {"return": {}})
    next(asked)


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        (http, "does not speak QMP"),
        (hang_up, "does not speak QMP"),
        (go_away, "went away"),
    ],
)
def test_a_socket_with_something_else_behind_it(
    tmp_path: Path, serve: Callable[[socket.socket], object], message: str
) -> None:
    monitor = FakeMonitor(tmp_path / "q", serve)
    with pytest.raises(VnetStandbyError, match=message) as caught:
        asyncio.run(pairs(monitor.path))
    assert "\n" not in str(caught.value)


def test_a_monitor_that_somebody_else_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_TIMEOUT_S", 0.2)
    done = threading.Event()
    monitor = FakeMonitor(tmp_path / "q", lambda _connection: done.wait(10))
    with pytest.raises(VnetStandbyError, match="another client"):
        asyncio.run(pairs(monitor.path))
    done.set()


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match="no such QMP socket"):
        asyncio.run(pairs(str(tmp_path / "none")))
    (tmp_path / "file").write_text("")
    with pytest.raises(VnetStandbyError, match="is no socket"):
        asyncio.run(pairs(str(tmp_path / "file")))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(VnetStandbyError, match="nobody listens"):
        asyncio.run(pairs(str(tmp_path / "dead")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(VnetStandbyError, match="nobody listens"):
        asyncio.run(pairs(f"127.0.0.1:{port}"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open any socket")
def test_a_socket_of_somebody_else(tmp_path: Path) -> None:
    monitor = FakeMonitor(tmp_path / "q", hang_up)
    Path(monitor.path).chmod(0)
    with pytest.raises(VnetStandbyError, match="not accessible"):
        asyncio.run(pairs(monitor.path))
