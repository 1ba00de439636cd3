# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench measures: cells, each a set-up to be migrated some times, and the presets that are made of them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from vnet_standby.build.driver import Kind as Driver
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.scenario import RAM_MIB, GuestKind, Hotplug, TopologyName, TrafficKind

Kind = Literal["virtio", "bond", "net-failover", "drop-in", "patched"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Who unites the NICs in the guest; virtio: nobody, there is no primary, the control; drop-in, patched: this project's
driver, of that kind."""

_GUESTS: dict[Kind, GuestKind] = {
    "virtio": "virtio",
    "bond": "bond",
    "net-failover": "net-failover",
    "drop-in": "vnet-standby",
    "patched": "vnet-standby",
}
_DRIVERS: dict[Kind, Driver] = {"drop-in": "drop-in", "patched": "patched"}
OWN_QEMU = {kind: "patched" if kind == "patched" else "stock" for kind in KINDS}
"""The QEMU that a kind needs at least."""

TCP_MIB_S = 50
"""More than emulated NICs take without KVM, less than keeps a migration from converging."""

PresetName = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class Cell:
    """One set-up."""

    kind: Kind
    qemu: str
    """stock, patched, or what the user calls a binary."""
    hotplug: Hotplug = "acpi"
    traffic: TrafficKind = "both"
    topology: TopologyName = "flat"
    ram_mib: int = RAM_MIB["flat"]
    pairs: int = 1
    """How many pairs of a standby and a primary the VM has."""
    tcp: bool = False
    """Whether there is a TCP stream to the guest beside the probes."""

    @property
    def name(self) -> str:
        """What tells it from all others; good as a file's name."""
        pairs = f"-{self.pairs}pairs" if self.pairs != 1 else ""
        tcp = "-tcp" if self.tcp else ""
        plain = f"{self.topology}-{self.kind}-{self.qemu}-{self.hotplug}-{self.traffic}-{self.ram_mib}mib"
        return plain + pairs + tcp

    @property
    def guest(self) -> GuestKind:
        """What the lab calls this kind of guest."""
        return _GUESTS[self.kind]

    @property
    def has_primary(self) -> bool:
        """Whether the VM has a primary at all."""
        return self.kind != "virtio"

    @property
    def impossible(self) -> str:
        """Why it can't be measured, empty if it can."""
        paired = self.topology == "flat" and self.guest in {"vnet-standby", "net-failover"}
        return "" if paired or self.pairs == 1 else "the lab has one pair for such a guest"

    def demo(self) -> list[str]:
        """The options of `vnet-standby demo` that make this set-up, without the QEMU."""
        driver = ["--driver", _DRIVERS[self.kind]] if self.kind in _DRIVERS else []
        return [
            "--topology", self.topology, "--guest", self.guest, *driver,
            "--hotplug", self.hotplug, "--traffic", self.traffic, "--ram", str(self.ram_mib),
            *(["--pairs", str(self.pairs)] if self.pairs != 1 else []),
            *(["--tcp", str(TCP_MIB_S)] if self.tcp else []),
        ]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """All combinations of these; empty qemus and rams stand for each kind's QEMU and each topology's size."""

    kinds: Sequence[Kind] = KINDS
    qemus: Sequence[str] = ()
    hotplugs: Sequence[Hotplug] = ("acpi",)
    traffics: Sequence[TrafficKind] = ("both",)
    topologies: Sequence[TopologyName] = ("flat",)
    rams: Sequence[int] = ()
    pairs: Sequence[int] = (1,)
    tcp: bool = False

    def cells(self) -> Iterator[Cell]:
        """The combinations; without a primary there is nothing to be plugged, so one hotplug stands for both."""
        axes = self.topologies, self.traffics, self.hotplugs, self.pairs, self.kinds
        for topology, traffic, hotplug, pairs, kind in itertools.product(*axes):
            plug = hotplug if kind != "virtio" else "acpi"
            for qemu in self.qemus or (OWN_QEMU[kind],):
                for ram in self.rams or (RAM_MIB[topology],):
                    yield Cell(kind, qemu, plug, traffic, topology, ram, pairs, self.tcp)


@dataclass(frozen=True)
class Preset:
    """A matrix worth running, how often each cell is run, and how fast the VMs migrate."""

    blocks: Sequence[Block]
    repeats: int
    bandwidth_mib_s: int


_WITH_PRIMARY = KINDS[1:]

_STOCK_AND_OURS: Sequence[Kind] = ("net-failover", "patched")
"""What is measured of all sizes."""
_QUICK = (Block(), Block(kinds=_WITH_PRIMARY, traffics=("to-guest",)))

PRESETS: dict[PresetName, Preset] = {
    "quick": Preset(blocks=_QUICK, repeats=3, bandwidth_mib_s=12),
    "standard": Preset(
        blocks=(
            *_QUICK,
            Block(kinds=("bond", *_STOCK_AND_OURS), tcp=True),
            Block(kinds=_STOCK_AND_OURS, rams=(1024, 2048)),
            Block(kinds=_STOCK_AND_OURS, pairs=(4, 16)),
            Block(kinds=("virtio", "bond", *_STOCK_AND_OURS), topologies=("nested",)),
            Block(kinds=_STOCK_AND_OURS, topologies=("nested",), rams=(1024,)),
            Block(
                kinds=("net-failover",),
                qemus=("patched",),
                topologies=("nested",),
                rams=(RAM_MIB["nested"], 1024),
            ),
        ),
        repeats=2,
        bandwidth_mib_s=12,
    ),
    "full": Preset(
        blocks=(
            Block(traffics=("both", "to-guest", "from-guest")),
            Block(qemus=("patched",), traffics=("both", "to-guest")),
            Block(tcp=True),
            Block(kinds=_WITH_PRIMARY, hotplugs=("pcie",)),
            Block(kinds=_STOCK_AND_OURS, rams=(1024, 2048)),
            Block(kinds=_STOCK_AND_OURS, pairs=(4, 16)),
            Block(topologies=("nested",), traffics=("both", "to-guest")),
            Block(kinds=_STOCK_AND_OURS, topologies=("nested",), rams=(1024,)),
        ),
        repeats=5,
        bandwidth_mib_s=6,
    ),
}


@dataclass(frozen=True)
class Wishes:
    """What the user wants in place of a preset's; an empty sequence leaves that as it is."""

    kinds: Sequence[Kind] = ()
    qemus: Sequence[str] = ()
    hotplugs: Sequence[Hotplug] = ()
    traffics: Sequence[TrafficKind] = ()
    topologies: Sequence[TopologyName] = ()
    rams: Sequence[int] = ()
    pairs: Sequence[int] = ()
    tcp: bool = False


def expand(blocks: Iterable[Block], wishes: Wishes) -> list[Cell]:
    """Return the blocks' cells, each once, with the user's wishes in place of the blocks' own.

    Raises `VnetStandbyError` if two cells would have the same name.
    """
    wanted = {axis: values for axis, values in vars(wishes).items() if values}
    cells = dict.fromkeys(cell for block in blocks for cell in replace(block, **wanted).cells())
    by_name = {cell.name: cell for cell in cells}
    if len(by_name) != len(cells):
        raise VnetStandbyError("two cells of the matrix have the same name; rename a --binary")
    return list(cells)
