# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: list, assign, release, pair, steer, agent, migrate."""

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.mac import parse_mac

_AGENT = """\
Move what this host delivers a pair's frames by (bridge table, VF filter) whenever the guest's driver says that it has
changed its datapath, send the end marker on the path that is left, and acknowledge; hand a migrating VM's MAC over at
the gate. Pairs are those whose standby has x-standby-datapath=on; others are left as they are.
"""
_AGENT_EPILOG = """\
One agent a network namespace. It needs CAP_NET_ADMIN, CAP_NET_RAW and the right to open the sockets. Fabrics: a Linux
bridge with the taps of standby and emulated primary; a bridge with the tap and the PF of the VF (PF drivers that `list`
and `assign` know; the VM needs x-standby-primary-mac, the address that the agent names if it is missing).

The log is JSON lines {"t": seconds since the Epoch, "who": "agent", "event", "data"}. "ready" comes when all VMs that
were given are attached. Ends at SIGTERM or Ctrl-C, and when the VMs that were given have all ended, unless there is a
folder. However it ends, by SIGKILL, too, entries that would stay where they are forever are taken back: bridges learn
again, and VFs have an alias, so that all frames come by the standby until an agent is back.
"""

PROG = "python3 -m vnet_standby.host"


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0 only if it did what it says, 1 on an error, 2 on wrong usage."""
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except VnetStandbyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="PFs and VFs of this host, the pairs of its VMs, and its fabric."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands.add_parser("list", help="show NICs, VFs, and who uses them"))
    _add_assign(commands.add_parser("assign", help="get a VF or NIC ready for a VM"))
    _add_release(commands.add_parser("release", help="give a VF or NIC back to its host driver"))
    _add_pair(commands.add_parser("pair", help="show standby and primary of a running VM"))
    _add_steer(commands.add_parser("steer", help="point this host at the VF or the tap for a MAC"))
    add_agent(commands.add_parser("agent", help="move the fabric as the VMs of this host say"))
    add_migrate(commands.add_parser("migrate", help="migrate a VM from one QEMU to another"))
    return parser


def add_migrate(parser: argparse.ArgumentParser) -> None:
    """The options of `migrate`, which the project's own command line has, too."""
    parser.description = (
        "Migrate a VM from one QEMU to another that waits for it: compare the two, switch on what the gate needs, "
        "show each step, and cancel at Ctrl-C or after the time limit: the VM goes on at the source then. The exit "
        "status is 0 only if the guest runs at the destination."
    )
    parser.set_defaults(command=_migrate)
    parser.add_argument("source", metavar="SOURCE-QMP", help="path, or HOST:PORT; not the agent's")
    parser.add_argument(
        "destination", metavar="DESTINATION-QMP", help="the same of the QEMU that waits"
    )
    parser.add_argument("uri", metavar="URI", help="the way of the migration stream: tcp:HOST:PORT")
    parser.add_argument("--bandwidth", type=_positive, metavar="MIB/S", help="limit (QEMU's)")
    parser.add_argument(
        "--limit", type=_positive, metavar="SECONDS", help="cancel after that (never)"
    )
    _add_json(parser)


def add_agent(parser: argparse.ArgumentParser) -> None:
    """The options of the agent, which the project's own command line has, too."""
    parser.description = _AGENT
    parser.epilog = _AGENT_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=_agent)
    parser.add_argument(
        "monitors", nargs="*", metavar="QMP-SOCKET",
        help="path, or HOST:PORT, of a QMP monitor for the agent alone; it has to be there",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, metavar="DIR",
        help="attach to every socket that is or comes there; all have to be such monitors",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=_port, action="append", default=[], metavar="[VM/]DEVICE=TAP",
        help="the tap of a NIC that QEMU does not tell it of: it was given the tap open",
    )  # fmt: skip
    parser.add_argument(
        "--uplink", action="append", default=[], metavar="PORT",
        help="a bridge's port that leads to other hosts (all that are NICs, bonds, VLANs or tunnels)",
    )  # fmt: skip
    parser.add_argument("--log", type=Path, metavar="FILE", help="append the log there (stdout)")
    parser.add_argument("--status", action="store_true", help="show what the agent here does")
    parser.add_argument("--json", action="store_true", help="print JSON (with --status)")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show the PCI NICs of this host, their VFs, and who uses them."
    parser.set_defaults(command=_list)
    _add_json(parser)


def _add_assign(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Give a VF a MAC and bind it to vfio-pci; of a PF, take the first free VF; a whole NIC is only bound. "
        "What is so already is left alone. If it fails or is interrupted, all is undone."
    )
    parser.set_defaults(command=_assign)
    parser.add_argument("target", metavar="PF|VF|NIC", help="netdev or PCI address, see `list`")
    parser.add_argument("--mac", type=_mac, required=True, help="of the pair")
    parser.add_argument(
        "--trust", choices=("on", "off"), help="may the VM change the VF's filters?"
    )
    parser.add_argument("--vfs", type=_count, metavar="N", help="create so many if the PF has none")
    _add_dry_run(parser)
    _add_json(parser)


def _add_release(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Give a VF or NIC back to its host driver, without MAC and trust. The VM must have ended; what `steer` set in "
        "bridges and PFs stays until `steer --off`."
    )
    parser.set_defaults(command=_release)
    parser.add_argument("target", metavar="VF|NIC", help="PCI address, see `list`")
    _add_dry_run(parser)
    _add_json(parser)


def _add_pair(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the standby and the primary of a running VM, with what is behind them on the host."
    )
    parser.set_defaults(command=_pair)
    parser.add_argument("monitor", metavar="QMP-SOCKET", help="path, or HOST:PORT")
    _add_json(parser)


def _add_steer(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Point what this host delivers a pair's frames by (VF filter, PF addresses, bridge table) at the primary "
        "or at the standby, in an order that loses nothing. What is so already is left alone. If it fails or is "
        "interrupted, all is undone."
    )
    parser.set_defaults(command=_steer)
    parser.add_argument("mac", type=_mac, metavar="MAC", help="of the pair")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", choices=("primary", "standby"), help="the VF, or the tap")
    where.add_argument(
        "--off", action="store_true",
        help="remove what was set in bridges and PFs; the VF's filter stays until `release`",
    )  # fmt: skip
    parser.add_argument("--tap", help="the standby's (with --to)")
    parser.add_argument("--vf", help="PCI address of the primary (the VF with this MAC)")
    parser.add_argument(
        "--uplink", metavar="PORT",
        help="the bridge's port that leads to the primary (the one with the VF's PF, or the only NIC)",
    )  # fmt: skip
    _add_dry_run(parser)
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show what would be changed")


def _mac(text: str) -> str:
    try:
        return parse_mac(text)
    except VnetStandbyError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _port(text: str) -> tuple[str, str]:
    device, _, netdev = text.partition("=")
    if not device or not netdev:
        raise argparse.ArgumentTypeError(f"{text} is not of the form DEVICE=TAP or VM/DEVICE=TAP")
    return device, netdev


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number of VFs")
    return int(text)


# Each command loads what it needs when it runs: Python is slow to load on small hosts.


def _list(options: argparse.Namespace) -> None:
    from vnet_standby.host.host import this_host  # noqa: PLC0415
    from vnet_standby.host.inventory import inventory  # noqa: PLC0415
    from vnet_standby.host.tables import nic_table  # noqa: PLC0415

    with this_host() as host:
        nics = inventory(host)
    print(_json(nics) if options.json else nic_table(nics))


def _assign(options: argparse.Namespace) -> None:
    from vnet_standby.host.assignment import assign  # noqa: PLC0415
    from vnet_standby.host.changes import Transaction  # noqa: PLC0415
    from vnet_standby.host.host import this_host  # noqa: PLC0415

    trust = {"on": True, "off": False}.get(options.trust)
    with this_host() as host, Transaction(dry_run=options.dry_run) as change:
        given = assign(host, change, options.target, options.mac, trust, options.vfs)
    result = {"changed": change.changed, "notes": change.notes, **dataclasses.asdict(given)}
    agent = f"; with a host agent its standby wants x-standby-primary-mac={given.identity}"
    _report(
        options,
        result,
        f"for QEMU: -device vfio-pci,host={given.address}{agent if given.identity else ''}",
    )


def _release(options: argparse.Namespace) -> None:
    from vnet_standby.host.assignment import release  # noqa: PLC0415
    from vnet_standby.host.changes import Transaction  # noqa: PLC0415
    from vnet_standby.host.host import this_host  # noqa: PLC0415

    with this_host() as host, Transaction(dry_run=options.dry_run) as change:
        back = release(host, change, options.target)
    result = {"changed": change.changed, "notes": change.notes, **dataclasses.asdict(back)}
    _report(options, result)


def _pair(options: argparse.Namespace) -> None:
    import asyncio  # noqa: PLC0415

    from vnet_standby.host.host import this_host  # noqa: PLC0415
    from vnet_standby.host.inventory import vf_macs  # noqa: PLC0415
    from vnet_standby.host.pairs import pairs  # noqa: PLC0415
    from vnet_standby.host.tables import pair_text  # noqa: PLC0415

    with this_host() as host:
        macs = vf_macs(host)
    found = asyncio.run(pairs(options.monitor, macs))
    print(_json(found) if options.json else pair_text(found))


def _steer(options: argparse.Namespace) -> None:
    from vnet_standby.host.changes import Transaction  # noqa: PLC0415
    from vnet_standby.host.fabric import find_fabric, forget, steer  # noqa: PLC0415
    from vnet_standby.host.host import this_host  # noqa: PLC0415

    if options.to and not options.tap:
        raise VnetStandbyError("which tap is the standby's? name it with --tap; `pair` shows it")
    if options.off and (options.tap or options.vf or options.uplink):
        raise VnetStandbyError(
            "--off takes no --tap, --vf or --uplink: it removes all entries for the MAC"
        )
    with this_host() as host, Transaction(dry_run=options.dry_run) as change:
        if options.off:
            forget(host, change, options.mac)
        else:
            names = (options.tap, options.vf or "", options.uplink or "")
            steer(host, change, find_fabric(host, options.mac, *names), options.to)
    result = {
        "changed": change.changed,
        "notes": change.notes,
        "mac": options.mac,
        "to": options.to or "off",
    }
    _report(options, result)


def _agent(options: argparse.Namespace) -> None:
    if options.status:
        from vnet_standby.host.control import read_status  # noqa: PLC0415
        from vnet_standby.host.tables import agent_table  # noqa: PLC0415

        status = read_status()
        print(_json(status) if options.json else agent_table(status))
        return
    from vnet_standby.host.agent import run_agent  # noqa: PLC0415
    from vnet_standby.host.journal import open_journal  # noqa: PLC0415

    if not options.monitors and not options.folder:
        raise VnetStandbyError("which VMs? give their QMP sockets, or --folder")
    with open_journal(options.log) as journal:
        run_agent(options.monitors, options.folder, dict(options.port), options.uplink, journal)


def _migrate(options: argparse.Namespace) -> None:
    import asyncio  # noqa: PLC0415

    from vnet_standby.host.migrate import Result, migrate, outcome_line  # noqa: PLC0415

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    async def run() -> Result:
        task = asyncio.create_task(
            migrate(
                options.source,
                options.destination,
                options.uri,
                say,
                options.bandwidth,
                options.limit,
            )
        )

        def cancel() -> None:
            if not task.cancelling():  # once: the roll-back takes its time
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, cancel)
        return await task

    try:
        result = asyncio.run(run())
    except asyncio.CancelledError:
        raise VnetStandbyError("interrupted before it began; both VMs are as they were") from None
    if options.json:
        print(_json(result))
    if result.outcome != "completed":
        raise VnetStandbyError(outcome_line(result))
    if not options.json:
        print(outcome_line(result))


def _report(options: argparse.Namespace, result: dict[str, Any], closing: str = "") -> None:
    if options.json:
        print(_json({**result, "dry_run": options.dry_run}))
        return
    would = "would " if options.dry_run else ""
    lines = [would + what for what in result["changed"]] or ["nothing to change"]
    lines += [f"note: {note}" for note in result["notes"]]
    print("\n".join([*lines, closing] if closing else lines))


def _json(value: object) -> str:
    return json.dumps(value, indent=1, default=_plain)


def _plain(value: Any) -> object:
    return dataclasses.asdict(value)
