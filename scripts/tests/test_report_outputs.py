# SPDX-License-Identifier: GPL-2.0-or-later
"""The three outputs of a run (JSON, terminal, page), made from verdicts that no VM was needed for."""

import json
import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vnet_standby.errors import VnetStandbyError
from vnet_standby.report.html import page
from vnet_standby.report.result import result, result_json
from vnet_standby.report.story import Story
from vnet_standby.report.terminal import COLUMNS, timeline
from vnet_standby.report.text import cells
from vnet_standby.report.write import write
from vnet_standby.traffic.verdict import (
    Counts,
    Direction,
    Gap,
    LossRun,
    Migration,
    Point,
    Switch,
    Verdict,
)

START = 1_700_000_000.0
"""Host time of the first probe (s)."""
MIGRATE, END = START + 5, START + 25
FIXED_KEYS = [
    "lost",
    "duplicated",
    "reordered",
    "sent",
    "switches",
    "time_on_standby_s",
    "migration",
    "noise_floor_ms",
    "versions",
    "events",
]
HOSTILE = "</title><script>alert(1)</script>\"'&\x1b[31m\u202e\x00"
VOID_ELEMENTS = {"meta"}


def event(offset: float, who: str, what: str, **data: Any) -> dict[str, Any]:
    return {"t": MIGRATE + offset, "who": who, "event": what, "data": data}


def migration_events() -> list[dict[str, Any]]:
    return [
        event(-5, "lab", "traffic-start"),
        event(0, "lab", "migrate", **{"from": "a", "to": "b"}),
        event(0.01, "a", "MIGRATION", status="setup"),
        event(0.02, "a", "UNPLUG_PRIMARY", **{"device-id": "primary0"}),
        event(0.3, "a", "MIGRATION", status="active"),
        event(16, "a", "STOP"),
        event(16.1, "b", "RESUME"),
        event(16.11, "a", "MIGRATION", status="completed"),
        event(16.2, "lab", "migrated", **{"status": "completed", "total-time": 16110}),
        event(20, "lab", "traffic-stop"),
    ]


def run_record(**more: Any) -> dict[str, Any]:
    ports = {f"{h}-{role}": role for h in "ab" for role in ("standby", "primary")}
    record = {"rate_hz": 200, "traffic": "both", "guest": "net-failover", "ports": ports}
    record |= {"versions": {"qemu": "10.0.13"}, "commands": {"a": "qemu -m 512", "b": "qemu"}}
    return record | more


def probes(direction: Direction, number: int = 5000) -> list[Point]:
    """Evenly sent; 0.2 s after migrate 20 are lost, then the path changes; again at 16 and 16.5 s."""
    step = (END - START) / number
    return [probe(direction, seq, START + seq * step) for seq in range(number)]


def probe(direction: Direction, seq: int, sent: float) -> Point:
    offset = sent - MIGRATE
    port = "a-primary" if offset < 0.2975 else "a-standby" if offset < 16 else "b-standby"
    port = "b-primary" if offset > 16.5 else port
    lost = 0.1975 <= offset < 0.2975
    return Point(direction, seq, sent, None if lost else sent + 0.0004, (port,), port)


def loss(offset: float = 0.2, cause: str = "the primary had gone", number: int = 20) -> LossRun:
    start = MIGRATE + offset
    return LossRun("to_guest", start, start + 0.1, number, "a-primary", cause, "failover")


def verdict(**more: Any) -> Verdict:
    gap = replace(
        Gap(20, lost_ms=100.0, silence_ms=99.1234567, path_ms=98.0, agree=True, lost_in_gap=20),
        start=MIGRATE + 0.195,
        end=MIGRATE + 0.3,
    )
    quiet = Gap(lost=0, lost_ms=0.0, silence_ms=0.4, path_ms=None, agree=True)
    stop, resume = MIGRATE + 16, MIGRATE + 16.1
    whole = Verdict(
        start=START,
        end=END,
        counts={
            "to_guest": Counts(sent=5000, received=4980, lost=20, duplicated=1, reordered=2),
            "from_guest": Counts(sent=5000, received=5000, lost=0, duplicated=0, reordered=0),
        },
        switches=(
            Switch("failover", MIGRATE, stop, gaps={"to_guest": gap, "from_guest": quiet}),
            Switch("failback", resume, END, gaps={"to_guest": quiet}),
        ),
        losses=(loss(),),
        migrations=(Migration(total_s=16.11, downtime_ms=98.0, status="completed"),),
        time_on_standby_s=16.3,
        noise_floor_ms=0.8,
        points=(*probes("to_guest"), *probes("from_guest")),
    )
    return replace(whole, **more)


def nothing() -> Verdict:
    """A run in which neither a probe nor a migration came about."""
    return verdict(
        end=START,
        counts={},
        switches=(),
        losses=(),
        migrations=(),
        time_on_standby_s=0.0,
        noise_floor_ms=0.0,
        points=(),
    )


def one_direction() -> Verdict:
    whole = verdict()
    return replace(
        whole,
        counts={"to_guest": whole.counts["to_guest"]},
        switches=tuple(replace(s, gaps={"to_guest": s.gaps["to_guest"]}) for s in whole.switches),
        points=tuple(p for p in whole.points if p.direction == "to_guest"),
    )


class Outline(HTMLParser):
    """Checks that every element is closed, and notes what a page contains."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """End the innermost element, and no other."""
        assert self.open.pop() == tag


def plots(text: str) -> list[ET.Element]:
    found = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    return [ET.fromstring(plot) for plot in found]  # noqa: S314 - the text is the test's own


def titles(plot: ET.Element) -> list[str]:
    return [e.text or "" for e in plot.iter() if e.tag.endswith("title")]


# The result


def test_result_has_the_fixed_keys_first_and_their_types() -> None:
    got = result(verdict(), run_record())
    assert list(got)[: len(FIXED_KEYS)] == FIXED_KEYS
    assert got["lost"] == {"to_guest": 20, "from_guest": 0}
    assert got["sent"] == {"to_guest": 5000, "from_guest": 5000}
    assert got["migration"] == {"total_s": 16.11, "downtime_ms": 98.0}
    assert got["versions"] == {"qemu": "10.0.13"}
    assert (got["time_on_standby_s"], got["noise_floor_ms"]) == (16.3, 0.8)
    assert got["events"] == "events.jsonl"


def test_a_switch_says_the_worse_silence_and_the_loss_of_both_directions() -> None:
    failover = result(verdict(), run_record())["switches"][0]
    assert (failover["kind"], failover["gap_ms"], failover["lost"]) == ("failover", 99.123, 20)
    assert failover["directions"]["to_guest"]["path_ms"] == 98.0
    assert failover["directions"]["from_guest"]["path_ms"] is None
    assert failover["directions"]["from_guest"]["agree"] is True


def test_result_is_stable_and_strict_json() -> None:
    endless = Gap(lost=9, lost_ms=45.0, silence_ms=float("inf"), path_ms=None, agree=False)
    odd = verdict(switches=(Switch("blackout", START, END, {"to_guest": endless}),))
    assert result_json(odd, run_record()) == result_json(odd, run_record())
    assert json.loads(result_json(odd, run_record()))["switches"][0]["gap_ms"] is None


def test_result_lists_the_losses_in_order_of_time() -> None:
    losses = result(verdict(losses=(loss(3), loss(1))), run_record())["losses"]
    assert [entry["start"] - MIGRATE for entry in losses] == pytest.approx([1, 3])
    assert losses[0].keys() >= {"direction", "count", "last_seen", "cause", "switch"}


def test_the_result_speaks_of_the_migration_that_completed() -> None:
    done, cancelled = Migration(16, 98, "completed"), Migration(2, 0, "cancelled")
    got = result(verdict(migrations=(done, cancelled)), run_record())
    assert got["migration"]["total_s"] == 16
    assert [m["status"] for m in got["migrations"]] == ["completed", "cancelled"]


def test_a_direction_that_was_not_measured_sent_nothing_and_no_migration_is_null() -> None:
    assert result(one_direction(), run_record())["sent"] == {"to_guest": 5000, "from_guest": 0}
    empty = result(nothing(), run_record())
    assert empty["migration"] == {"total_s": None, "downtime_ms": None}
    assert empty["switches"] == []


def test_estimates_that_disagree_are_a_warning() -> None:
    gap = Gap(lost=20, lost_ms=100.0, silence_ms=900.0, path_ms=None, agree=False)
    odd = verdict(switches=(Switch("failover", START, END, {"to_guest": gap}),))
    told = result(odd, run_record())["warnings"]
    assert any("disagree" in warning and "900.0 ms" in warning for warning in told)


# The terminal


def test_timeline_tells_the_story_in_order_from_the_first_migrate() -> None:
    text = timeline(verdict(), migration_events(), run_record())
    order = ["traffic-start", "+0.000  lab         migrate a -> b", "UNPLUG_PRIMARY", "failover:"]
    order += ["path a-primary -> a-standby", "STOP", "RESUME", "path b-standby -> b-primary"]
    order += ["migrated: completed, total 16.11 s", "direction ", "noise floor      0.80 ms"]
    places = [text.index(part) for part in order]
    assert places[:6] == sorted(places[:6])
    assert places[-3:] == sorted(places[-3:])


def test_no_line_is_longer_than_the_terminal_whatever_the_names() -> None:
    long = f"{HOSTILE} {'网卡' * 80} {'x' * 300} " + "a word " * 40
    events = [
        *migration_events(),
        event(1, "b", "DEVICE_DELETED", device=long[:150]),
        event(2, long, "NOISE", data=long),
    ]
    text = timeline(
        verdict(losses=(loss(cause=long),)), events, run_record(guest=long, primary="网卡" * 90)
    )
    assert max(cells(line) for line in text.splitlines()) <= COLUMNS
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_colours_are_added_only_when_asked_for() -> None:
    plain = timeline(verdict(), migration_events(), run_record())
    coloured = timeline(verdict(), migration_events(), run_record(), colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_hundreds_of_losses_stay_readable() -> None:
    many = tuple(loss(i / 10, f"waited {i}.5 ms in the tap") for i in range(40))
    text = timeline(verdict(losses=many), migration_events(), run_record())
    assert text.count("waited") == 3
    assert "... and 37 more like this until +3.900 s, 740 probes in all" in text


def test_losses_in_the_gap_and_delay_are_told_apart_from_the_rest_of_the_phase() -> None:
    gap = Gap(30, 100.0, 99.0, None, agree=True, lost_in_gap=20, held=7)
    one = verdict(switches=(Switch("blackout", MIGRATE + 16, END, {"to_guest": gap}),))
    text = timeline(one, migration_events(), run_record())
    assert "30 lost, 99.0 ms silent (20 lost in it, 7 held back)" in text


def test_the_guests_links_are_told_by_what_matters_of_them() -> None:
    up = {"name": "eth2", "driver": "e1000e", "master": "eth0", "carrier": "1", "flags": "0x1003"}
    events = [event(1, "guest", "link", **up), event(2, "guest", "gone", name="eth2")]
    text = timeline(verdict(), events, run_record())
    assert "link eth2: driver e1000e, master eth0, carrier 1\n" in text
    assert "link eth2: gone\n" in text


def test_milestones_are_never_cut_short() -> None:
    events = [event(i, "a", name) for i in range(20) for name in ("STOP", "RESUME", "NOISE")]
    text = timeline(verdict(), events, run_record())
    assert (text.count(" STOP"), text.count(" RESUME")) == (20, 20)
    assert text.count(" NOISE") == 3


@pytest.mark.parametrize("made", [nothing, one_direction])
def test_timeline_of_runs_that_lack_things(made: Any) -> None:
    text = timeline(made(), [], {})
    assert "time on standby" in text


# What follows from verdict and events


def test_a_flooded_probe_is_no_change_of_path() -> None:
    seen = [("a-primary",), ("a-primary", "a-standby"), ("a-standby",)]
    vias = ["a-primary", "a-primary", "a-standby"]
    points = tuple(
        Point("to_guest", i, START + i, START + i, ports, via)
        for i, (ports, via) in enumerate(zip(seen, vias, strict=True))
    )
    segments = Story(verdict(points=points), [], run_record()).segments["to_guest"]
    assert [(s.port, s.probes) for s in segments] == [("a-primary", 2), ("a-standby", 1)]


def test_where_the_vm_ran_there_and_back() -> None:
    events = [
        event(0, "lab", "migrate", **{"from": "a", "to": "b"}),
        *(event(1, "a", "STOP"), event(1.1, "b", "RESUME")),
        *(event(5, "b", "STOP"), event(5.2, "a", "RESUME")),
    ]
    running = Story(verdict(), events, run_record()).running
    assert [(s.name, round(s.start, 3), round(s.end, 3)) for s in running] == [
        ("a", -5, 1),
        ("b", 1.1, 5),
        ("a", 5.2, 20),
    ]


def test_the_time_axis_covers_probes_and_migration_not_the_boot_before() -> None:
    events = [event(-60, "a", "RESUME"), *migration_events(), event(90, "b", "SHUTDOWN")]
    assert Story(verdict(), events, run_record()).span == (START, END)


def test_a_guest_without_a_primary_is_not_said_to_have_one() -> None:
    ports = {"a-standby": "standby", "b-standby": "standby"}
    record = run_record(guest="virtio", primary="e1000e", hotplug="acpi", ports=ports)
    assert Story(verdict(), [], record).setting == ["virtio guest", "200 probes/s", "traffic both"]


def test_a_switch_took_place_at_its_silence_else_at_its_change_of_path() -> None:
    story = Story(verdict(), migration_events(), run_record())
    failover, failback = ([story.at(t) for t in story.focus(s)] for s in verdict().switches)
    assert failover == pytest.approx([0.195, 0.3], abs=0.001)
    assert failback == pytest.approx([16.5, 16.505], abs=0.001)
    assert story.scene(verdict().switches[0]) == story.focus(verdict().switches[0])
    bare = Story(verdict(points=()), [], {})
    assert bare.focus(replace(verdict().switches[0], gaps={})) == (MIGRATE, MIGRATE)


# The page


def test_page_is_well_formed_and_needs_no_other_file() -> None:
    text = page(verdict(), migration_events(), run_record())
    outline = Outline(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert outline.links == []
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert len(plots(text)) == 1 + len(verdict().switches)
    assert "prefers-color-scheme: dark" in text


def test_plots_speak_to_those_who_do_not_see_them() -> None:
    for plot in plots(page(verdict(), migration_events(), run_record())):
        assert plot.get("role") == "img"
        assert plot.get("aria-label")


def test_lost_probes_show_why_where_the_pointer_rests() -> None:
    overview, failover, _ = plots(page(verdict(), migration_events(), run_record()))
    assert any("20 probes lost from +0.200" in t and "had gone" in t for t in titles(overview))
    assert any("lost, the primary had gone" in title for title in titles(failover))


def test_each_probe_around_a_switch_is_a_mark_of_its_path() -> None:
    _, failover, _ = plots(page(verdict(), migration_events(), run_record()))
    marks = [e.get("class") for e in failover.iter() if e.get("class")]
    assert marks.count("cross") == 40, "20 in each direction"
    assert {"primary", "standby"} <= set(marks)


def test_names_from_outside_stay_text() -> None:
    record = run_record(
        guest=HOSTILE,
        primary=HOSTILE,
        versions={HOSTILE: HOSTILE},
        commands={HOSTILE: HOSTILE},
        ports={HOSTILE: HOSTILE},
    )
    points = tuple(replace(p, ports=(HOSTILE,)) for p in probes("to_guest", 200))
    hostile = verdict(losses=(replace(loss(cause=HOSTILE), last_seen=HOSTILE),), points=points)
    events = [*migration_events(), event(1, HOSTILE, HOSTILE, **{HOSTILE: HOSTILE})]
    text = page(hostile, events, record)
    assert "script" not in Outline(text).tags
    assert not {"\x1b", "\u202e", "\x00"} & set(text)
    assert plots(text)


@pytest.mark.parametrize("made", [nothing, one_direction])
@pytest.mark.parametrize("events", [[], migration_events()])
def test_page_of_runs_that_lack_things(made: Any, events: list[dict[str, Any]]) -> None:
    for record in ({}, run_record()):
        text = page(made(), events, record)
        Outline(text)
        assert plots(text)


def test_a_long_run_stays_small_and_quick() -> None:
    points = (*probes("to_guest", 100_000), *probes("from_guest", 100_000))
    losses = tuple(loss(i / 200, f"dropped {i}") for i in range(3000))
    switches = verdict().switches * 12
    huge = verdict(points=points, losses=losses, switches=switches)
    began = time.process_time()
    text = page(huge, migration_events(), run_record())
    assert time.process_time() - began < 5
    assert len(text.encode()) < 2_000_000


# The files


def recorded(folder: Path) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run_record()))
    lines = (json.dumps(entry) + "\n" for entry in migration_events())
    (folder / "events.jsonl").write_text("".join(lines))
    return folder


def test_write_puts_the_report_beside_the_events_that_it_names(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    for out in (run, tmp_path / "elsewhere" / "report"):
        report = write(run, verdict(), out)
        named = json.loads(report.result.read_text())["events"]
        assert (out / named).read_text() == (run / "events.jsonl").read_text()
        assert report.html.read_text().startswith("<!DOCTYPE html>")
        assert "migrate a -> b" in report.timeline.read_text()


@pytest.mark.parametrize("name", ["run.json", "events.jsonl"])
def test_records_that_are_damaged_or_missing_are_named(tmp_path: Path, name: str) -> None:
    run = recorded(tmp_path / "run")
    (run / name).write_text('{"t": 1')
    with pytest.raises(VnetStandbyError, match=f"{name} is damaged"):
        write(run, verdict(), run)
    (run / name).unlink()
    with pytest.raises(VnetStandbyError, match=f"can't read .*{name}"):
        write(run, verdict(), run)
