# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: vnet-standby demo | judge | bench | cost | build | series | summary | host-agent | migrate."""

import argparse
import asyncio
import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from vnet_standby import paths
from vnet_standby.bench.cli import add_bench
from vnet_standby.build.distribution import DRIVERS, distribution_image
from vnet_standby.build.driver import MODULES, build_driver, driver_image
from vnet_standby.build.image import guest_image
from vnet_standby.build.kernel import build_kernel
from vnet_standby.build.packages import require
from vnet_standby.build.progress import say
from vnet_standby.build.qemu import build_qemu
from vnet_standby.build.series import apply, check, check_sanitized, refresh
from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.cli import add_agent, add_migrate
from vnet_standby.lab.binaries import image_under_test, qemu_under_test
from vnet_standby.lab.command import MAX_PAIRS
from vnet_standby.lab.cost import COST_GUESTS, CostGuest, GuestCost, measure_cost
from vnet_standby.lab.demo import jobs_of, measure_migration, topology_of
from vnet_standby.lab.scenario import (
    GUEST_KINDS,
    HOTPLUGS,
    PRIMARY_MODELS,
    RAM_MIB,
    TOPOLOGIES,
    TRAFFIC_KINDS,
    Scenario,
)
from vnet_standby.options import add_sources, number
from vnet_standby.report.cost import cost_table
from vnet_standby.report.suite import summary
from vnet_standby.report.terminal import timeline
from vnet_standby.report.write import read_events, read_run, write
from vnet_standby.traffic.analysis import judge

_BUILDS = ("qemu", "qemu-stock", "guest", "driver", "distribution")
"""What is built unless one is named; the kernel that checks itself takes too long for that."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0 only if it did what it says."""
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except VnetStandbyError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(
                f"the disk is full ({error.filename or 'no file named'}); make room and run it again"
            )
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}")
    return 0


def _place(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""


def _fail(message: str) -> int:
    print(f"vnet-standby: error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vnet-standby", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="migrate a VM under traffic and show what was lost"))
    _add_judge(commands.add_parser("judge", help="judge the records of an earlier run again"))
    _add_build(commands.add_parser("build", help="build QEMU, the guest image and driver"))
    _add_cost(commands.add_parser("cost", help="count what a packet costs in each kind of guest"))
    add_bench(commands.add_parser("bench", help="measure kinds of guests side by side"))
    _add_series(commands.add_parser("series", help="apply, export or check the QEMU patch series"))
    _add_summary(commands.add_parser("summary", help="show what a run of the VM tests found"))
    add_agent(commands.add_parser("host-agent", help="move a host's fabric as its VMs say"))
    add_migrate(commands.add_parser("migrate", help="migrate a VM from one QEMU to another"))
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Boot a VM with a standby and a primary NIC, migrate it from one QEMU to another while probes run, "
        "and show where every lost one went. What is missing is built first."
    )
    parser.set_defaults(command=_demo)
    default = Scenario()
    add = parser.add_argument
    add(
        "--topology",
        choices=TOPOLOGIES,
        default=default.topology,
        help="flat: two QEMUs on one bridge; nested: two emulated hosts with SR-IOV NICs (%(default)s)",
    )
    add(
        "--guest",
        choices=GUEST_KINDS,
        default="vnet-standby",
        help="what unites the two NICs in the guest; virtio: no primary, the control (%(default)s)",
    )
    add(
        "--driver",
        choices=MODULES,
        help="of a vnet-standby guest: beside the kernel's virtio_net, or with a patched one "
        "(patched where QEMU has the datapath protocol)",
    )
    add(
        "--no-host-agent",
        action="store_true",
        help="let the hosts' bridges learn by themselves where the datapath has moved",
    )
    add(
        "--qemu",
        default="patched",
        metavar="patched|stock|PATH",
        help="built with the series, built without, or a binary of yours (%(default)s)",
    )
    add("--hotplug", choices=HOTPLUGS, default=default.hotplug, help="of the primary (%(default)s)")
    models = list(dict.fromkeys(chain(*PRIMARY_MODELS.values())))
    add(
        "--primary",
        choices=models,
        help="flat: emulated NIC, e1000e, e1000 or igb; nested: passed through, an igb VF or a whole NIC (e1000e) "
        "(e1000e, vf)",
    )
    add(
        "--destination-primary",
        choices=("same", "none", *models),
        default=default.destination_primary,
        help="the one on host b (%(default)s)",
    )
    add(
        "--pairs",
        type=number(1, MAX_PAIRS),
        default=default.pairs,
        metavar="N",
        help="pairs of standby and primary; the probes use the first (%(default)s)",
    )
    add(
        "--vhost",
        action="store_true",
        help="the host's kernel moves the standby's frames, by vhost-net, as usual in production",
    )
    add(
        "--traffic",
        choices=TRAFFIC_KINDS,
        default=default.traffic,
        help="to-guest: the guest falls silent before the migration (%(default)s)",
    )
    add(
        "--rate",
        type=number(1, 5000),
        default=default.rate_hz,
        metavar="HZ",
        help="probes/s (%(default)s)",
    )
    add(
        "--tcp",
        type=number(1, 10_000),
        default=default.tcp_mib_s,
        metavar="MIB/S",
        help="send a TCP stream to the guest, too, at most so fast (none)",
    )
    add(
        "--ram",
        type=number(256, 65536),
        metavar="MIB",
        help="guest memory (flat 512, nested 256)",
    )
    add(
        "--bandwidth",
        type=number(1, 100_000),
        default=default.bandwidth_mib_s,
        metavar="MIB/S",
        help="of the migration; sets how long the RAM phase lasts (%(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write the result there, too")
    add("--report", type=Path, metavar="DIR", help="records and report (build/runs/TIME)")
    add_sources(parser)


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.description = "Judge the raw records of an earlier run again and write its report anew."
    parser.set_defaults(command=_judge)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")


def _add_cost(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Count the guest instructions that a UDP datagram of 64 bytes takes, sent and received, by the primary. "
        "Instructions, not seconds: the figures are the same on every machine."
    )
    parser.set_defaults(command=_cost)
    parser.add_argument(
        "--qemu", default="patched", metavar="patched|stock|PATH", help="as for demo"
    )
    parser.add_argument(
        "--guest",
        nargs="+",
        choices=COST_GUESTS[1:],
        default=COST_GUESTS[1:],
        help="what unites the two NICs in the guest; drop-in and patched are kinds of our driver (all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    add_sources(parser)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.description = "Build what is missing; a second run builds nothing."
    parser.set_defaults(command=_build)
    parser.add_argument(
        "what", nargs="?", choices=("all", *_BUILDS, "kernel"), default="all",
        help="QEMU with the series, QEMU without, the guest's kernel and initramfs, its driver, guests with a "
        "distribution's user space, or (not among all) a kernel that checks itself, for --kernel (%(default)s)",
    )  # fmt: skip
    add_sources(parser)


def _add_series(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    applying = commands.add_parser("apply", help="git am the series onto a QEMU git tree")
    applying.add_argument("tree", type=Path)
    applying.set_defaults(command=lambda options: apply(options.tree))
    refreshing = commands.add_parser(
        "refresh", help="export the series from a tree that it was applied to"
    )
    refreshing.add_argument("tree", type=Path)
    refreshing.add_argument(
        "--base",
        metavar="COMMIT",
        help="the commit below the first patch (the one that apply noted)",
    )
    refreshing.set_defaults(command=lambda options: refresh(options.tree, options.base))
    checking = commands.add_parser(
        "check",
        help="it applies, checkpatch agrees, every patch builds, the touched devices' qtests pass",
    )
    checking.add_argument("--qemu-source", metavar="DIR|TARBALL|GIT", help="as for demo")
    checking.add_argument(
        "--sanitized",
        action="store_true",
        help="instead, run the series' own qtests on a QEMU with address and undefined behaviour sanitizers",
    )
    checking.set_defaults(
        command=lambda options: (check_sanitized if options.sanitized else check)(
            options.qemu_source
        )
    )


def _add_summary(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show what a run of the VM tests found, a line a test."
    parser.set_defaults(command=lambda options: print(summary(options.jobs)))
    parser.add_argument(
        "jobs", type=Path, nargs="+", metavar="JOB", help="a results folder of avocado"
    )


def _demo(options: argparse.Namespace) -> None:
    scenario = Scenario(
        topology=options.topology,
        guest=options.guest,
        driver=options.driver or "drop-in",
        host_agent=not options.no_host_agent,
        hotplug=options.hotplug,
        primary=options.primary or PRIMARY_MODELS[options.topology][0],
        destination_primary=options.destination_primary,
        pairs=options.pairs,
        vhost=options.vhost,
        traffic=options.traffic,
        rate_hz=options.rate,
        tcp_mib_s=options.tcp,
        ram_mib=options.ram or RAM_MIB[options.topology],
        bandwidth_mib_s=options.bandwidth,
    )
    require(*jobs_of(scenario, options.qemu))
    run = options.report or paths.BUILD / "runs" / time.strftime("%Y%m%d-%H%M%S")
    _run(_migration(options, scenario, run))
    _show(run, options.json)


async def _migration(options: argparse.Namespace, scenario: Scenario, run: Path) -> None:
    qemu = qemu_under_test(options.qemu, options.qemu_source)
    if not options.driver and qemu.has_datapath_protocol:
        scenario = replace(scenario, driver="patched")
    image = image_under_test(scenario.guest, options.kernel)
    cache = paths.BUILD / "accelerator.json"
    topology = await topology_of(scenario, qemu, image, cache, options.kernel)
    await measure_migration(scenario, topology, run, say)


def _cost(options: argparse.Namespace) -> None:
    require("lab", "guest", "driver")
    costs: dict[CostGuest, GuestCost] = {}
    for guest in ("bare", *options.guest):
        qemu = qemu_under_test(options.qemu, options.qemu_source)
        say(f"counting: {guest}")
        costs[guest] = asyncio.run(measure_cost(guest, qemu, options.kernel))
    print(cost_table(costs))
    if options.json:
        figures = {guest: asdict(cost) for guest, cost in costs.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _show(run: Path, result: Path | None) -> None:
    say("judging")
    verdict = judge(run)
    written = write(run, verdict, run)
    print(timeline(verdict, read_events(run), read_run(run), colour=sys.stdout.isatty()))
    if result:
        result.write_text(written.result.read_text())
    say(f"report: {written.html}")


def _judge(options: argparse.Namespace) -> None:
    _show(options.run, options.json)


def _build(options: argparse.Namespace) -> None:
    wanted = _BUILDS if options.what == "all" else (options.what,)
    if "qemu" in wanted:
        say(f"QEMU with the series: {build_qemu('patched', options.qemu_source)}")
    if "qemu-stock" in wanted:
        say(f"QEMU without: {build_qemu('stock', options.qemu_source)}")
    if "guest" in wanted:
        say(f"guest image: {guest_image(options.kernel).initramfs}")
    if "driver" in wanted:
        say(f"guest driver: {' '.join(map(str, build_driver(options.kernel)))}")
        say(f"guest image with it: {driver_image(options.kernel).initramfs}")
    if "distribution" in wanted:
        for management, driver in DRIVERS.items():
            image = distribution_image(management, driver, options.kernel)
            say(f"Debian guest: {image.initramfs}")

    if "kernel" in wanted:
        say(f"kernel: {build_kernel()}")


def _run(story: Coroutine[Any, Any, None]) -> None:
    """Run to the end; SIGTERM ends it as Ctrl-C does, with everything cleaned up."""

    async def guarded() -> None:
        task = asyncio.create_task(story)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await task

    asyncio.run(guarded())
