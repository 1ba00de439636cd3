# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as one HTML page that needs nothing but itself: no network, no script, no other file."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vnet_standby.report import plots
from vnet_standby.report.document import (
    add_legend,
    add_section,
    add_table,
    add_warnings,
    opened,
    written,
)
from vnet_standby.report.story import (
    SPOKEN,
    Event,
    LossGroup,
    Story,
    aligned,
    count,
    settled,
    warnings,
)
from vnet_standby.report.svg import node
from vnet_standby.traffic.verdict import Verdict

_CLOSE_UPS = 24
"""Switches shown probe by probe; a run with more of them still has all in its table."""
_LOSS_ROWS = 60
_TIMELINE_ROWS = 1500
_LOOKS = (
    ("primary", "primary"),
    ("standby", "standby"),
    ("lost", "lost"),
    ("gap", "silence of a switch"),
)


def page(verdict: Verdict, events: Sequence[Event], run: Mapping[str, Any]) -> str:
    """Return the page: `events` is the content of events.jsonl, `run` that of run.json."""
    story = Story(verdict, events, run)
    root, main = opened(_name(story))
    _opening(main, story)
    _warnings(main, verdict)
    _overview(main, story)
    _counts(main, story)
    _switches(main, verdict, story)
    _close_ups(main, story)
    _losses(main, story)
    _timeline(main, story)
    _ground(main, run)
    return written(root)


def _name(story: Story) -> str:
    migrations = len(story.verdict.migrations)
    told = "no migration" if not migrations else count(migrations, "migration")
    return f"{told}, {story.run.get('guest', 'unknown')} guest"


def _opening(main: ET.Element, story: Story) -> None:
    node(main, "h1", _name(story))
    node(main, "p", ", ".join(story.setting), class_="ground")
    tiles = node(main, "dl", class_="tiles")
    for name, figure, note in _tiles(story):
        tile = node(tiles, "div")
        node(tile, "dt", name)
        node(node(tile, "dd", figure), "small", note)


def _tiles(story: Story) -> Iterable[tuple[str, str, str]]:
    verdict = story.verdict
    for direction in story.directions:
        counts = verdict.counts[direction]
        yield f"lost {SPOKEN[direction]}", f"{counts.lost:,}", f"of {counts.sent:,} probes"
    gaps = [(gap.silence_ms, s.kind) for s in verdict.switches for gap in s.gaps.values()]
    if gaps:
        worst, kind = max(gaps)
        yield "longest silence", _ms(worst), kind
    migration = settled(verdict)
    if migration:
        yield "migration", f"{migration.total_s:.2f} s", migration.status
        yield "downtime", _ms(migration.downtime_ms), "as QEMU reports it"
    yield "on the standby", f"{verdict.time_on_standby_s:.2f} s", "of the run"
    if verdict.tcp:
        tcp = verdict.tcp
        rates = f"through the migration; {tcp.before_mib_s:.1f} before, {tcp.after_mib_s:.1f} after"
        yield "TCP to guest", f"{tcp.through_mib_s:.1f} MiB/s", rates
        again = f"longest stall {_ms(tcp.longest_stall_ms)}"
        yield "TCP sent again", count(tcp.retransmitted, "segment"), again
    yield "noise floor", f"{verdict.noise_floor_ms:.2f} ms", "before the migration"
    if story.host_clocks:
        hosts = ", ".join(story.host_clocks)
        yield "host clocks", f"{max(story.host_clocks.values()):.2f} ms", f"{hosts} aligned within"


def _warnings(main: ET.Element, verdict: Verdict) -> None:
    told = warnings(verdict)
    if told:
        add_warnings(main, count(len(told), "warning"), told)


def _overview(main: ET.Element, story: Story) -> None:
    section = add_section(main, "The run")
    add_legend(section, _LOOKS)
    figure = node(section, "figure")
    plots.overview(figure, story)
    text = (
        "Each port's lane shows how many of the probes sent at that moment came by; the lane's "
        "full height is every probe. What came by and was lost all the same stands out in the "
        "colour of loss. Rest the pointer on a mark to read what it is."
    )
    if story.nested:
        text += (
            " A host's uplink carries both datapaths: what the standby's tap in the host carried, too, "
            "went by HOST-standby; the rest is taken for the VF's, HOST-primary."
        )
    node(figure, "figcaption", text)


def _counts(main: ET.Element, story: Story) -> None:
    section = add_section(main, "Probes")
    head = ("direction", "sent", "received", "lost", "duplicated", "reordered")
    rows = [
        (SPOKEN[d], *(f"{n:,}" for n in (c.sent, c.received, c.lost, c.duplicated, c.reordered)))
        for d in story.directions
        for c in [story.verdict.counts[d]]
    ]
    add_table(section, head, rows, words={0})


def _switches(main: ET.Element, verdict: Verdict, story: Story) -> None:
    section = add_section(main, "Switches")
    if not verdict.switches:
        node(section, "p", "The run has no switch of datapath or host.")
        return
    counted = ("lost", "in gap", "held")
    timed = ("lost x interval", "silence", "path change", "estimates agree")
    head = ("switch", "at (s)", "direction", *counted, *timed)
    rows = [
        (
            switch.kind,
            f"{story.at(story.focus(switch)[0]):+.3f}",
            SPOKEN[direction],
            f"{gap.lost:,}",
            f"{gap.lost_in_gap:,}",
            f"{gap.held:,}",
            _ms(gap.lost_ms),
            _ms(gap.silence_ms),
            "-" if gap.path_ms is None else _ms(gap.path_ms),
            "yes" if gap.agree else "no",
        )
        for switch in verdict.switches
        for direction, gap in switch.gaps.items()
    ]
    add_table(section, head, rows, words={0, 2, 9})
    text = (
        "A switch's gap is the receiver's silence that cost the most probes in that phase. Of the "
        "probes lost in the phase, some were lost in the gap; those held arrived late. Three "
        "estimates of the gap, each less the probe interval: probes lost in it times the "
        "interval; the silence itself, which also sees delay; the first probe by the new path "
        "minus the last by the old one, where the path changed."
    )
    node(section, "p", text, class_="note")


def _close_ups(main: ET.Element, story: Story) -> None:
    switches = story.verdict.switches
    if not switches:
        return
    section = add_section(main, "Each switch, probe by probe")
    text = (
        "Circles went by a primary, squares by a standby (grey: seen on both); the height is the "
        "time under way. Crosses at the top were lost. The shaded stretch is the receiver's "
        "silence; dashed lines are events."
    )
    if story.verdict.clock_error_ms is not None:
        error = f"{story.verdict.clock_error_ms:.2f} ms"
        text += f" Times taken in the guest may be up to {error} late."
    if story.host_clocks:
        text += f" Clocks of hosts {aligned(story.host_clocks)}: so are their events."
    node(section, "p", text, class_="note")
    shown = switches[:_CLOSE_UPS]
    for switch in shown:
        at = story.at(story.focus(switch)[0])
        node(section, "h3", f"{switch.kind} at {at:+.3f} s")
        plots.close_up(node(section, "figure"), story, switch, len(shown))
    if len(switches) > len(shown):
        more = f"{len(switches) - len(shown)} later switches are in the table only."
        node(section, "p", more, class_="note")


def _losses(main: ET.Element, story: Story) -> None:
    section = add_section(main, "Where the lost probes went")
    groups = story.loss_groups
    if not groups:
        node(section, "p", "No probe was lost.")
        return
    head = ("direction", "in", "probes", "runs", "from (s)", "to (s)", "last seen at", "why")
    rows = [_loss(group, story) for group in groups[:_LOSS_ROWS]]
    add_table(section, head, rows, words={0, 1, 6, 7})
    if len(groups) > _LOSS_ROWS:
        more = f"{len(groups) - _LOSS_ROWS} further kinds of loss are in result.json only."
        node(section, "p", more, class_="note")


def _loss(group: LossGroup, story: Story) -> tuple[str, ...]:
    return (
        SPOKEN[group.direction],
        group.switch or "no switch",
        f"{group.probes:,}",
        f"{group.runs:,}",
        f"{story.at(group.start):+.3f}",
        f"{story.at(group.end):+.3f}",
        story.shown(group.last_seen),
        group.cause,
    )


def _timeline(main: ET.Element, story: Story) -> None:
    section = add_section(main, "Timeline")
    fold = node(section, "details")
    node(fold, "summary", count(len(story.entries), "line"))
    rows = [(f"{e.time:+.3f}", e.who, e.what) for e in story.entries[:_TIMELINE_ROWS]]
    add_table(fold, ("time (s)", "who", "what"), rows, words={1, 2})
    if len(story.entries) > _TIMELINE_ROWS:
        node(fold, "p", "The rest is in timeline.txt.", class_="note")


def _ground(main: ET.Element, run: Mapping[str, Any]) -> None:
    section = add_section(main, "Versions and command lines")
    versions = run.get("versions", {})
    if versions:
        fold = node(section, "details")
        node(fold, "summary", "Versions")
        add_table(fold, ("what", "version"), [*versions.items()], words={0, 1})
    for host, command in run.get("commands", {}).items():
        fold = node(section, "details")
        node(fold, "summary", f"QEMU's command line on host {host}")
        node(node(fold, "pre"), "code", command)
    for host, command in run.get("host_commands", {}).items():
        fold = node(section, "details")
        node(fold, "summary", f"The command line of host {host} itself, an emulated machine")
        node(node(fold, "pre"), "code", command)


def _ms(value: float) -> str:
    return f"{value:,.1f} ms"
