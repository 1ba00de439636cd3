# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: what it prints, its exit status, and what it loads."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_machine import ALIAS, MAC, Machine, vf

from vnet_standby.host import cli
from vnet_standby.host import host as host_module
from vnet_standby.host.host import Host

PACKAGE = Path(host_module.__file__).parent


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)

    @contextlib.contextmanager
    def this_host() -> Iterator[Host]:
        yield machine.host

    monkeypatch.setattr(host_module, "this_host", this_host)
    return machine


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


@pytest.mark.usefixtures("machine")
def test_the_whole_way_of_a_vf(capsys: pytest.CaptureFixture[str]) -> None:
    would = run(capsys, "assign", "eth0", "--mac", MAC, "--trust", "on", "--dry-run").splitlines()
    did = run(capsys, "assign", "eth0", "--mac", MAC, "--trust", "on").splitlines()
    *changes, note, _ = did
    assert would[:-2] == [f"would {line}" for line in changes]
    assert note.startswith("note: igb can't take the link of one VF down")
    assert f"-device vfio-pci,host={vf(0)};" in did[-1]
    assert f"x-standby-primary-mac={ALIAS}" in did[-1]
    again = json.loads(run(capsys, "assign", "eth0", "--mac", MAC, "--json"))
    assert again == {
        "changed": [],
        "notes": [],
        "address": vf(0),
        "pf": "eth0",
        "vf": 0,
        "mac": MAC,
        "identity": ALIAS,
        "dry_run": False,
    }
    pf, _nic = json.loads(run(capsys, "list", "--json"))
    assert (pf["netdev"], pf["vfs"][0]["mac"], pf["vfs"][0]["driver"]) == ("eth0", MAC, "vfio-pci")
    steering = ("steer", MAC, "--tap", "standby", "--to")
    assert run(capsys, *steering, "standby").startswith("point br0 at standby")
    assert run(capsys, *steering, "standby") == "nothing to change\n"
    assert json.loads(run(capsys, *steering, "primary", "--json"))["to"] == "primary"
    assert run(capsys, "steer", MAC, "--off").startswith("remove the bridge's entry")
    assert "clear the MAC of VF 0 of eth0" in run(capsys, "release", vf(0))
    assert run(capsys, "release", vf(0)) == "nothing to change\n"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["assign", "eth9", "--mac", MAC], "error: no PCI NIC eth9"),
        (["release", "eth0"], "error: eth0 is a PF"),
        (["steer", MAC, "--to", "standby"], "error: which tap is the standby's?"),
        (["steer", MAC, "--off", "--tap", "standby"], "error: --off takes no --tap"),
        (["pair", "/nowhere/qmp"], "error: no such QMP socket"),
    ],
)
def test_an_error_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(message)
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["assign", "eth0", "--mac", "01:00:5e:00:00:01"],
        ["assign", "eth0", "--mac", MAC, "--vfs", "0"],
        ["steer", MAC],
        [],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "command", ["list", "assign", "release", "pair", "steer", "agent", "migrate"]
)
def test_help_needs_nothing_loaded(command: str) -> None:
    code = (
        "import sys\n"
        "from vnet_standby.host import cli\n"
        "try:\n"
        f"    cli.main(['{command}', '--help'])\n"
        "except SystemExit:\n"
        "    print(sorted({'pyroute2', 'qemu.qmp', 'asyncio'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_it_goes_to_a_host_alone() -> None:
    code = (
        "import pkgutil, sys, importlib\n"
        "import vnet_standby.host as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module('vnet_standby.host.' + module.name)\n"
        "import pyroute2, qemu.qmp\n"
        "print(*(name for name in sys.modules if name.startswith('vnet_standby.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    others = {name for name in done.stdout.split() if not name.startswith("vnet_standby.host")}
    assert others == {"vnet_standby.errors"}


def test_as_a_program_it_ends_with_a_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vnet_standby.host", "pair", "/nowhere/qmp"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no such QMP socket")
