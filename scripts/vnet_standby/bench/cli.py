# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of `vnet-standby bench`."""

import argparse
import re
import shlex
import sys
import time
from pathlib import Path

from vnet_standby import paths
from vnet_standby.bench import bench, compare
from vnet_standby.bench import plan as plans
from vnet_standby.bench.markdown import BEGIN, END, put
from vnet_standby.bench.matrix import KINDS, PRESETS, Wishes, expand
from vnet_standby.bench.plan import Plan
from vnet_standby.bench.results import FILE, read
from vnet_standby.build.progress import say
from vnet_standby.lab.command import MAX_PAIRS
from vnet_standby.lab.cost import COST_GUESTS
from vnet_standby.lab.scenario import HOTPLUGS, TOPOLOGIES, TRAFFIC_KINDS, Scenario
from vnet_standby.options import add_sources, number

_DESCRIPTION = f"""\
Migrate each kind of guest some times, under the same traffic and on the same machine, and put the figures side by side:
{FILE}, {bench.PAGE} and {bench.TABLES} in one folder, beside the raw records of every run. A run that fails is recorded
as not measured, with the reason, and the others go on. Ctrl-C ends it in order; --resume goes on where it was.
"""
_NAME = r"[A-Za-z0-9_.]+"


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the options, and `compare` as a command of its own."""
    parser.description = _DESCRIPTION
    parser.set_defaults(command=_bench)
    add = parser.add_argument
    add(
        "--preset",
        choices=PRESETS,
        default="quick",
        help="on two processors without KVM quick takes 20 minutes; standard, which has TCP, nested hosts and larger "
        "VMs as well, an hour; full hours (%(default)s)",
    )
    _add_matrix(parser)
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("--out", type=Path, metavar="DIR", help="a new folder (build/bench/TIME)")
    folder.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the bench there, as it was begun; a finished one gets its result written anew. With --repeats "
        "it gets more runs of each cell, or makes do with fewer",
    )
    add(
        "--readme",
        type=Path,
        metavar="FILE",
        help=f"put the tables there, between the lines {BEGIN.format('flat')} and {END.format('flat')}; "
        "those of nested hosts likewise",
    )
    add_sources(parser)
    commands = parser.add_subparsers(metavar="compare")
    _add_compare(commands.add_parser("compare", help="hold two results against each other"))


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    matrix = parser.add_argument_group("matrix", "in place of the preset's")
    add = matrix.add_argument
    add("--guest", nargs="+", choices=KINDS, default=(), help="kinds of guests")
    add("--qemu", nargs="+", default=(), metavar="NAME", help="stock, patched, or a --binary")
    add(
        "--binary",
        type=_binary,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a QEMU of yours; named stock or patched it takes that one's place",
    )
    add("--hotplug", nargs="+", choices=HOTPLUGS, default=(), help="of the primary")
    add("--traffic", nargs="+", choices=TRAFFIC_KINDS, default=(), help="as for demo")
    add("--topology", nargs="+", choices=TOPOLOGIES, default=(), help="as for demo")
    add("--ram", nargs="+", type=number(256, 65536), default=(), metavar="MIB", help="guest memory")
    add("--pairs", nargs="+", type=number(1, MAX_PAIRS), default=(), help="as for demo")
    add("--tcp", action="store_true", help="with a TCP stream to the guest in every cell")
    add("--repeats", type=number(1, 1000), metavar="N", help="runs of each cell")
    add("--bandwidth", type=number(1, 100_000), metavar="MIB/S", help="of the migrations")
    add(
        "--rate",
        type=number(1, 5000),
        default=Scenario.rate_hz,
        metavar="HZ",
        help="probes/s (%(default)s)",
    )
    add("--no-cost", action="store_true", help="do not count what a packet costs in the guest")


def _binary(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not (re.fullmatch(_NAME, name) and path):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=PATH, with a name like {_NAME}")
    return name, path


def _bench(options: argparse.Namespace) -> None:
    if options.resume:
        out = options.resume
        plan = plans.load(out)
        qemus = bench.find_qemus(plan.cells, plan.qemus, options.qemu_source)
        plans.require_same_ground(plan, bench.ground(plan.cells, qemus, plan.kernel), out)
        if options.repeats:
            with bench.alone(out):
                plan = plans.repeat(plan, options.repeats, out)
    else:
        out = options.out or paths.BUILD / "bench" / time.strftime("%Y%m%d-%H%M%S")
        plan = _new_plan(options)
        plans.save(plan, out)
    bench.run(plan, out.resolve(), say)
    result = read(out)
    if options.readme:
        put(result, out, options.readme)
    say(f"result: {out / FILE}")
    say(f"page: {out / bench.PAGE}")
    bench.require_measured(result)


def _new_plan(options: argparse.Namespace) -> Plan:
    preset = PRESETS[options.preset]
    wishes = Wishes(
        kinds=options.guest,
        qemus=options.qemu,
        hotplugs=options.hotplug,
        traffics=options.traffic,
        topologies=options.topology,
        rams=options.ram,
        pairs=options.pairs,
        tcp=options.tcp,
    )
    cells = expand(preset.blocks, wishes)
    qemus = bench.find_qemus(cells, dict(options.binary), options.qemu_source)
    kinds = dict.fromkeys(cell.kind for cell in cells if cell.kind in COST_GUESTS)
    return Plan(
        cells=cells,
        repeats=options.repeats or preset.repeats,
        rate_hz=options.rate,
        bandwidth_mib_s=options.bandwidth or preset.bandwidth_mib_s,
        cost_kinds=[] if options.no_cost else list(kinds),
        qemus={name: str(qemu.path) for name, qemu in qemus.items()},
        kernel=options.kernel,
        command=shlex.join(["scripts/bench", *sys.argv[2:]]),
        begun=time.strftime("%Y-%m-%d %H:%M"),
        ground=bench.ground(cells, qemus, options.kernel),
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = f"Hold two results against each other. {compare.RULE}"
    parser.set_defaults(command=_compare)
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(), type=Path, metavar=name, help=f"a bench's folder, or its {FILE}"
        )


def _compare(options: argparse.Namespace) -> None:
    print(compare.comparison(read(options.a), read(options.b)))
