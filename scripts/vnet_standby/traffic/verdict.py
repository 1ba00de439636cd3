# SPDX-License-Identifier: GPL-2.0-or-later
"""What judging a run's raw records yields: counts, switches and where the lost packets went."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["to_guest", "from_guest"]
DIRECTIONS: tuple[Direction, ...] = ("to_guest", "from_guest")

SwitchKind = Literal["failover", "blackout", "failback"]


@dataclass(frozen=True)
class Counts:
    """Probes of one direction over the whole run.

    `received` counts distinct probes, `duplicated` the further copies, `reordered` the probes that arrived after one
    with a higher number (RFC 4737, type-P-reordered).
    """

    sent: int
    received: int
    lost: int
    duplicated: int
    reordered: int


@dataclass(frozen=True)
class Gap:
    """One direction's interruption by one switch, estimated three ways (all in ms, beyond the probe interval).

    The interruption is the silence of the receiver that cost the most probes, the longest one where none cost any, as
    far as it lies in the switch's window. `lost_ms` does not apply if probes were held back or the sender itself paused
    (a stopped guest); `path_ms` does not apply if the path changed at another time than that of the silence, or probes
    were held behind the port.
    """

    lost: int
    """All probes lost that were sent in the window."""
    lost_ms: float
    """Probes lost in that silence times the probe interval."""
    silence_ms: float
    """The length of that silence, less the probe interval."""
    path_ms: float | None
    """First probe by the new path minus last by the old one, at the ports, less the interval; None without a change."""
    agree: bool
    """Whether the estimates that apply agree within the noise floor and one probe interval."""
    lost_in_gap: int = 0
    """The part of `lost` that was lost in that silence."""
    held: int = 0
    """Probes that should have arrived in that silence and did so after it: delay, not loss."""
    start: float = 0.0
    """When that silence began (host s)."""
    end: float = 0.0
    """When it ended (host s)."""
    sender_paused: bool = False
    """Whether the sender sent nothing for a part of that silence, as a stopped or busy guest does."""


@dataclass(frozen=True)
class Switch:
    """One change of datapath or host: its window on the host's clock (s) and each direction's gap."""

    kind: SwitchKind
    start: float
    end: float
    gaps: dict[Direction, Gap]


@dataclass(frozen=True)
class LossRun:
    """Lost probes with one common fate, with at most two others in a row between them."""

    direction: Direction
    start: float
    """Host time (s) at which the first of them was sent."""
    end: float
    """Host time (s) at which the last of them was sent."""
    count: int
    last_seen: str
    """The last place that saw them: a port's name, "peer", "guest", or "nowhere"."""
    cause: str
    """One sentence: why they were lost, as far as the records tell."""
    switch: SwitchKind | None
    """The switch in whose window they were sent."""


@dataclass(frozen=True)
class Migration:
    """What the source's QEMU reports of one migration; what it does not report is measured from the events."""

    total_s: float
    downtime_ms: float
    status: str


@dataclass(frozen=True)
class Throughput:
    """What a TCP stream to the guest achieved."""

    before_mib_s: float
    """Before the migration was asked for."""
    through_mib_s: float
    """From then until RESUME."""
    after_mib_s: float
    """In the first seconds after RESUME, which have the failback in them."""
    longest_stall_ms: float
    """The longest time in the two stretches of the migration in which nothing was acknowledged."""
    retransmitted: int
    """Segments that the peer sent again in these two stretches (RFC 4898, tcpEStatsPerfSegsRetrans)."""
    doubled: int
    """Segments that the guest got twice in them: sent again because its answer was late, not because one was lost."""


@dataclass(frozen=True)
class Point:
    """One probe for plotting: when it was sent (host s), by which ports it went, when it arrived (host s or None)."""

    direction: Direction
    seq: int
    sent: float
    arrived: float | None
    ports: tuple[str, ...]
    via: str | None = None
    """The port that delivered it; a probe that the bridge flooded was seen on others, too."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one run."""

    start: float
    end: float
    counts: dict[Direction, Counts]
    switches: tuple[Switch, ...]
    losses: tuple[LossRun, ...]
    migrations: tuple[Migration, ...]
    time_on_standby_s: float
    noise_floor_ms: float
    """The largest deviation from the probe interval between arrivals before the first migration."""
    points: tuple[Point, ...]
    noise_p99_ms: float = 0.0
    """The same deviation's 99th percentile."""
    clock_error_ms: float | None = None
    """By how much times taken on the guest's clock may be late; None if no probe to the guest bounds it."""
    warnings: tuple[str, ...] = ()
    """What weakens the judgement, one sentence each."""
    tcp: Throughput | None = None
    """None if the run had no TCP stream, or too little of it before or after a completed migration."""
    ports: Mapping[str, str] = field(default_factory=dict)
    """The ways to and from the guest and what each carries: "standby", "primary", or "uplink" for what went no further
    than an emulated host."""
