# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrating between two real QEMUs; there is no guest but the firmware."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vnet_standby.paths import FIRMWARE, QEMU_PATCHED

PAIR = "virtio-net-pci,id=standby0,bus=rp1,failover=on,mac=52:54:00:76:6E:01,romfile="
WAITING = ["-incoming", "defer"]


class Vms:
    """QEMUs with a monitor each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.uri = f"unix:{folder}/stream"

    def start(self, name: str, *arguments: str, ram: int = 64, device: str = PAIR) -> str:
        """Start one; return where its monitor listens."""
        binary = QEMU_PATCHED / "qemu-system-x86_64"
        if not binary.exists():
            pytest.skip("the patched QEMU is not built")
        path = self.folder / name
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)  # now QEMU need not be waited for
            self.processes[name] = subprocess.Popen(
                [
                    str(binary), "-nodefaults", "-no-user-config", "-display", "none",
                    "-m", str(ram), "-machine", "q35", "-L", str(FIRMWARE),
                    "-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off",
                    "-mon", "chardev=qmp,mode=control",
                    "-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", device,
                    *arguments,
                ],
                pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL,
            )  # fmt: skip
        return str(path)

    def stop(self) -> None:
        """End them."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    def migrate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        command = [*self.command, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def disturbed(self, disturb: Callable[[subprocess.Popen[str]], None]) -> str:
        """Run the command, disturb it while RAM is being sent, and return what it says last."""
        with subprocess.Popen(
            [*self.command, "--bandwidth", "1"], stderr=subprocess.PIPE, text=True
        ) as running:
            assert running.stderr is not None
            for line in running.stderr:
                if "status=active" in line:
                    break
            disturb(running)
            said = running.stderr.read()
            assert running.wait(30) == 1
        return said.splitlines()[-1]

    @property
    def command(self) -> list[str]:
        """It, with both monitors."""
        places = [str(self.folder / name) for name in ("a", "b")]
        return [sys.executable, "-m", "vnet_standby.host", "migrate", *places, self.uri]

    def ask(self, name: str, command: str) -> Any:
        """Ask a monitor."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(str(self.folder / name))
            with asking.makefile("rw") as stream:
                stream.readline()
                for request in ("qmp_capabilities", command):
                    stream.write(json.dumps({"execute": request}))
                    stream.flush()
                    answer = {}
                    while "return" not in answer:
                        answer = json.loads(stream.readline())
        return answer["return"]


@pytest.fixture
def vms(tmp_path: Path) -> Iterator[Vms]:
    vms = Vms(tmp_path)
    yield vms
    vms.stop()


def test_a_vm_moves(vms: Vms) -> None:
    vms.start("a")
    vms.start("b", *WAITING)
    done = vms.migrate("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "completed"
    assert result["downtime_ms"] is not None
    assert ("destination", "RESUME") in [(step["who"], step["event"]) for step in result["steps"]]
    assert result["notes"] == [
        "standby0 can't tell the guest when to change its datapath: x-standby-datapath is off"
    ]
    assert vms.ask("b", "query-status")["status"] == "running"
    capabilities = vms.ask("b", "query-migrate-capabilities")
    assert not any(one["state"] for one in capabilities if one["capability"] == "return-path")


def test_a_destination_that_listens_already(vms: Vms) -> None:
    vms.start("a")
    vms.start("b", "-incoming", vms.uri)
    done = vms.migrate()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("completed in ")


def test_the_time_limit_cancels(vms: Vms) -> None:
    vms.start("a", ram=1024)  # a zero page takes 9 bytes of the stream: 2.25 MiB
    vms.start("b", *WAITING, ram=1024)
    done = vms.migrate("--bandwidth", "1", "--limit", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: cancelled: not done within 1 s; the guest goes on at the source"
    )
    assert vms.ask("a", "query-status")["status"] == "running"
    parameters = vms.ask("a", "query-migrate-parameters")
    assert parameters["max-bandwidth"] != 1 << 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels(vms: Vms, number: int) -> None:
    vms.start("a", ram=256)
    vms.start("b", *WAITING, ram=256)
    assert vms.disturbed(lambda running: running.send_signal(number)) == (
        "error: cancelled: interrupted; the guest goes on at the source"
    )
    assert vms.ask("a", "query-status")["status"] == "running"


def test_a_destination_that_dies(vms: Vms) -> None:
    vms.start("a", ram=256)
    vms.start("b", *WAITING, ram=256)
    said = vms.disturbed(lambda _running: vms.processes["b"].kill())
    assert said.startswith("error: failed: ")
    assert said.endswith("; the guest goes on at the source")
    deadline = time.monotonic() + 10
    while vms.ask("a", "query-status")["status"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def nothing_waits(vms: Vms) -> None:
    vms.start("a")
    vms.start("b")


def nothing_runs(vms: Vms) -> None:
    vms.start("a", *WAITING)
    vms.start("b", *WAITING)


def other_ram(vms: Vms) -> None:
    vms.start("a")
    vms.start("b", *WAITING, ram=128)


def other_mac(vms: Vms) -> None:
    vms.start("a")
    vms.start("b", *WAITING, device=PAIR.replace("E:01", "E:02"))


def other_device(vms: Vms) -> None:
    vms.start("a", "-device", "virtio-rng-pci,id=rng0")
    vms.start("b", *WAITING)


def no_destination(vms: Vms) -> None:
    vms.start("a")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (nothing_waits, "does not wait for a migration; start it with -incoming defer"),
        (nothing_runs, "is no VM that could be migrated (its state: inmigrate)"),
        (other_ram, "RAM (bytes) is 67108864 at the source, 134217728 at the destination"),
        (other_mac, "the standby standby0 is 52:54:00:76:6e:01, without x-standby-datapath at"),
        (other_device, "the device rng0 is virtio-rng-pci at the source, not there at the dest"),
        (no_destination, "no such QMP socket"),
    ],
)
def test_what_can_not_succeed_does_not_begin(
    vms: Vms, prepare: Callable[[Vms], None], message: str
) -> None:
    prepare(vms)
    done = vms.migrate()
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
