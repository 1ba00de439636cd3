# SPDX-License-Identifier: GPL-2.0-or-later
"""Benches without a VM: a program that leaves, in place of `vnet-standby demo`, a run whose truth is known."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from traffic_run import EPOCH_NS, PORTS, Run, Way, lost

from vnet_standby.bench import run as bench_run
from vnet_standby.bench.matrix import Cell, Kind
from vnet_standby.bench.plan import Plan
from vnet_standby.report.write import write
from vnet_standby.traffic.analysis import judge

MIGRATE, STOP, RESUME, END = 3.0, 6.0, 6.1, 9.0
"""When a run's migration was asked for, and the rest (s)."""

_DEMO = """\
import json, os, pathlib, shutil, signal, sys, time
arguments = sys.argv[1:]
folder = pathlib.Path(arguments[arguments.index("--report" if "--report" in arguments else "--json") + 1])
with open({calls!r}, "a") as calls:
    calls.write(" ".join(arguments) + "\\n")
if arguments[0] == "cost":
    shutil.copyfile({costs!r}, folder)
    sys.exit()
number = sum(line.startswith("demo") for line in open({calls!r}))
{trick}
shutil.copytree({run!r}, folder, dirs_exist_ok=True)
"""

INTERRUPT_SECOND = """\
if number == 2:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it may come before it is waited for
    pathlib.Path(folder, "left-behind").touch()
    os.kill(os.getppid(), signal.SIGINT)
    signal.sigwait({signal.SIGTERM})
    pathlib.Path(folder, "ended").touch()
    sys.exit(1)
"""
"""The user gives Ctrl-C in the second run, which is ended by SIGTERM."""

FAIL_BOND = """\
if "bond" in arguments:
    print("booting")
    print("vnet-standby: error: no answer from the guest; see | its <console>", file=sys.stderr)
    sys.exit(1)
"""


def a_run(folder: Path, lost_probes: int = 20, guest: str = "net-failover") -> Path:
    """A judged run, as the demo leaves it: so many probes to the guest are lost in the failover."""
    run = Run(folder, guest=guest, ports=_ports(guest))
    gap_end = MIGRATE + 0.1 + lost_probes / run.rate

    def way(t: float) -> Way:
        port = _port(t, gap_end, guest)
        return lost(port) if MIGRATE + 0.0999 <= t < gap_end - 1e-4 else Way((port,))

    run.event(0.0, "lab", "traffic-start")
    run.event(MIGRATE + 0.01, "b", "MIGRATION", status="active")
    run.migration(MIGRATE, STOP, RESUME)
    link = {"driver": "e1000e", "master": "eth0"}
    run.event(RESUME + 0.5, "guest", "link", **link, carrier="0")
    run.event(RESUME + 0.75, "guest", "link", **link, carrier="1")
    run.event(END, "lab", "traffic-stop")
    memory = {"t": EPOCH_NS / 1e9 + END + 0.1, "who": "lab", "event": "agent-memory"}
    run.events.append({**memory, "data": {"peak_kib": 20480}})
    run.to_guest(way, 0.0, END)
    run.from_guest(lambda t: Way((_port(t, gap_end, guest),)), 0.0, END)
    run.more = {"accelerator": "tcg", "destination_primary": "same", "versions": {"qemu": "10"}}
    run.write()
    write(folder, judge(folder), folder)
    return folder


def _ports(guest: str) -> dict[str, str]:
    return {port: role for port, role in PORTS.items() if role == "standby" or guest != "virtio"}


def _port(t: float, gap_end: float, guest: str) -> str:
    host = "a" if t < STOP else "b"
    on_standby = gap_end <= t < RESUME + 1 or guest == "virtio"
    return f"{host}-standby" if on_standby else f"{host}-primary"


def costs() -> dict[str, Any]:
    """What `vnet-standby cost` writes."""

    def cost(send: float, receive: float) -> dict[str, Any]:
        return {
            "send": {"instructions": send, "interrupts": 0.1},
            "receive": {"instructions": receive, "interrupts": 0.1},
        }

    return {"bare": cost(6000, 4000), "bond": cost(6500, 4100), "patched": cost(6200, 4050)}


def a_plan(*cells: Cell, repeats: int = 1, cost_kinds: tuple[Kind, ...] = ()) -> Plan:
    return Plan(
        cells=cells,
        repeats=repeats,
        rate_hz=200,
        bandwidth_mib_s=6,
        cost_kinds=cost_kinds,
        qemus={cell.qemu: f"/qemu/{cell.qemu}" for cell in cells},
        kernel=None,
        command="scripts/bench --preset quick",
        begun="2026-01-01 12:00",
        ground={"processors": "2", "host kernel": "6.12"},
    )


class Lab:
    """The program in place of the demo, and what it was asked for."""

    def __init__(self, folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`run` is what each migration leaves."""
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._calls = folder / "calls"
        (folder / "costs.json").write_text(json.dumps(costs()))
        shutil.copytree(run, folder / "run")
        self.behave()

    def behave(self, trick: str = "") -> None:
        """From now on do this before each migration."""
        program = self.folder / "demo.py"
        program.write_text(
            _DEMO.format(
                calls=str(self._calls),
                costs=str(self.folder / "costs.json"),
                run=str(self.folder / "run"),
                trick=trick,
            )
        )
        self._monkeypatch.setattr(bench_run, "PROGRAM", (sys.executable, str(program)))

    def leaves(self, run: Path) -> None:
        """From now on each migration leaves this run."""
        shutil.rmtree(self.folder / "run")
        shutil.copytree(run, self.folder / "run")

    @property
    def calls(self) -> list[list[str]]:
        """The commands that were given."""
        return [line.split() for line in self._calls.read_text().splitlines()]
