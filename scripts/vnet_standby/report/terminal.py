# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as text for a terminal of 100 columns: what happened when, then the figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vnet_standby.report.story import (
    SPOKEN,
    Entry,
    EntryKind,
    Event,
    Story,
    achieved,
    aligned,
    count,
    settled,
    warnings,
)
from vnet_standby.report.text import pad, printable, table, wrap
from vnet_standby.traffic.verdict import Direction, Gap, Switch, Verdict

COLUMNS = 100

_TIME, _WHO = 10, 10
_WHAT = COLUMNS - _TIME - _WHO - 4

_COLOUR: dict[EntryKind, str] = {
    "lab": "1",
    "event": "",
    "path": "34",
    "switch": "1;33",
    "loss": "31",
    "more": "2",
}


def timeline(
    verdict: Verdict, events: Sequence[Event], run: Mapping[str, Any], *, colour: bool = False
) -> str:
    """Return the run's timeline and tables, no line longer than 100 columns.

    `events` is the content of events.jsonl, `run` that of run.json. `colour` adds ANSI colours,
    which take no columns; everything they say is in the text as well.
    """
    story = Story(verdict, events, run)
    parts = [
        _heading(story),
        _entries(story, colour=colour),
        _counts(story),
        _switches(verdict),
        _figures(story),
        _warnings(verdict, colour=colour),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _heading(story: Story) -> list[str]:
    return wrap(", ".join(story.setting), COLUMNS) if story.setting else []


def _entries(story: Story, *, colour: bool) -> list[str]:
    head = f"{'time (s)':>{_TIME}}  {'who':<{_WHO}}  what (time 0: {story.zero_name})"
    lines = [line for entry in story.entries for line in _entry(entry, colour=colour)]
    return [head, *lines]


def _entry(entry: Entry, *, colour: bool) -> Iterable[str]:
    time, who = f"{entry.time:+{_TIME}.3f}", wrap(entry.who, _WHO)[0]
    for what in wrap(entry.what, _WHAT):
        painted = _paint(what, _COLOUR[entry.kind]) if colour else what
        yield f"{time:{_TIME}}  {pad(who, _WHO)}  {painted}".rstrip()
        time, who = "", ""


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _counts(story: Story) -> list[str]:
    head = ("direction", "sent", "received", "lost", "duplicated", "reordered")
    rows = [
        (SPOKEN[d], *(f"{n:,}" for n in (c.sent, c.received, c.lost, c.duplicated, c.reordered)))
        for d in story.directions
        for c in [story.verdict.counts[d]]
    ]
    return table(head, rows, words=1)


def _switches(verdict: Verdict) -> list[str]:
    if not verdict.switches:
        return ["no switch of datapath or host"]
    counted = ("lost", "in gap", "held")
    timed = ("lost x interval", "silence", "path change", "agree")
    head = ("switch", "direction", *counted, *timed)
    rows = [_gap(switch, d, gap) for switch in verdict.switches for d, gap in switch.gaps.items()]
    return table(head, rows, words=2)


def _gap(switch: Switch, direction: Direction, gap: Gap) -> tuple[str, ...]:
    return (
        switch.kind,
        SPOKEN[direction],
        f"{gap.lost:,}",
        f"{gap.lost_in_gap:,}",
        f"{gap.held:,}",
        f"{gap.lost_ms:.1f} ms",
        f"{gap.silence_ms:.1f} ms",
        "-" if gap.path_ms is None else f"{gap.path_ms:.1f} ms",
        "yes" if gap.agree else "NO",
    )


def _figures(story: Story) -> list[str]:
    verdict = story.verdict
    migration = settled(verdict)
    told = "none"
    if migration:
        status = printable(migration.status)
        told = f"{status}, {migration.total_s:.2f} s, downtime {migration.downtime_ms:.0f} ms"
        told += f" (the last of {len(verdict.migrations)})" if len(verdict.migrations) > 1 else ""
    clock = "unknown" if verdict.clock_error_ms is None else f"{verdict.clock_error_ms:.2f} ms"
    noise = f"{verdict.noise_floor_ms:.2f} ms (99 % within {verdict.noise_p99_ms:.2f} ms)"
    return [
        f"migration        {told}",
        f"time on standby  {verdict.time_on_standby_s:.2f} s",
        f"noise floor      {noise}",
        f"clock error      {clock}",
        *([f"TCP to guest     {achieved(verdict.tcp)}"] if verdict.tcp else []),
        *([f"host clocks      {aligned(story.host_clocks)}"] if story.host_clocks else []),
    ]


def _warnings(verdict: Verdict, *, colour: bool) -> list[str]:
    told = warnings(verdict)
    if not told:
        return []
    heading = count(len(told), "warning") + ":"
    lines = [_paint(heading, "1;33") if colour else heading]
    for warning in told:
        first, *rest = wrap(warning, COLUMNS - 4)
        lines += [f"  - {first}", *(f"    {line}" for line in rest)]
    return lines
