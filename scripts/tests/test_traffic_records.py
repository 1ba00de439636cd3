# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a run's folder: what is missing or malformed is named with file and line."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from traffic_run import NIC_S, Run, Way

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.analysis import judge
from vnet_standby.traffic.records import read_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = Run(tmp_path / "run")
    run.event(0, "lab", "traffic-start")
    run.to_guest(lambda _: Way(("a-primary",)), 0, 1)
    run.from_guest(lambda _: Way(("a-primary",)), 0, 1)
    run.event(2, "lab", "traffic-stop")
    return run.write()


def test_reads_everything_back(folder: Path) -> None:
    records = read_run(folder)
    assert records.settings.rate_hz == 200
    assert records.settings.interval_ns == 5_000_000
    assert [event.name for event in records.events] == ["traffic-start", "traffic-stop"]
    assert len(records.sightings) == 800
    assert [got.seq for got in records.received] == list(range(200))
    assert [sent.errno for sent in records.sent] == [0] * 200
    there = next(s for s in records.sightings if s.interface == "a-primary" and s.to_guest)
    back = next(s for s in records.sightings if s.interface == "peer" and not s.to_guest)
    assert there.outbound
    assert not back.outbound
    assert abs(back.time_ns - there.time_ns - NIC_S * 1e9) < 2000


FILES = [
    "run.json",
    "events.jsonl",
    "capture.pcapng",
    "capture.json",
    "guest-received.csv",
    "guest-sent.csv",
    "guest-clock.csv",
]


@pytest.mark.parametrize("name", FILES)
def test_names_the_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(VnetStandbyError, match=rf"{name}.*No such file"):
        judge(folder)


def test_names_the_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match="no such folder"):
        judge(tmp_path / "nothing")


DAMAGED = [b"", b"\xff\xfe\x00 damaged", b"[]", b"\x0a\x0d\x0d\x0a" + bytes(40)]


@pytest.mark.parametrize(
    ("name", "content"),
    # a run without any event is a valid one
    [pair for pair in product(FILES, DAMAGED) if pair != ("events.jsonl", b"")],
)
def test_never_takes_a_damaged_file_for_a_good_one(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(VnetStandbyError, match=name) as error:
        judge(folder)
    assert "\n" not in str(error.value)


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change a text file of a run."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(change(path.read_text()))

    return apply


def setting(key: str, value: object) -> Callable[[Path], None]:
    """Change one value in run.json."""
    return edit("run.json", lambda text: json.dumps({**json.loads(text), key: value}))


def cut_capture(folder: Path) -> None:
    path = folder / "capture.pcapng"
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (setting("rate_hz", 0), r'run.json: "rate_hz"'),
        (setting("rate_hz", "200"), r'run.json: "rate_hz"'),
        (setting("rate_hz", True), r'run.json: "rate_hz"'),
        (
            setting("traffic", "some"),
            r'run.json: "traffic" must be one of both, to-guest, from-guest',
        ),
        (setting("guest", None), r'run.json: "guest"'),
        (setting("ports", {}), r'run.json: "ports"'),
        (
            setting("ports", {"a-x": "backup"}),
            r'run.json: port "a-x" must be one of standby, primary',
        ),
        (setting("ports", {"c-primary": "primary"}), r"capture.json: c-primary not captured"),
        (edit("run.json", lambda text: text.replace(",", ",\n,", 1)), r"run.json:2: not JSON"),
        (edit("events.jsonl", lambda text: text + "{\n"), r"events.jsonl:3: not JSON"),
        (edit("events.jsonl", lambda text: text + "3\n"), r"events.jsonl:3: must be a JSON object"),
        (
            edit(
                "events.jsonl",
                lambda text: text + '{"t": "now", "who": "a", "event": "X", "data": {}}',
            ),
            r'events.jsonl:3: "t"',
        ),
        (
            edit(
                "events.jsonl", lambda text: text + '{"t": 1, "who": 1, "event": "X", "data": {}}'
            ),
            r'events.jsonl:3: "who"',
        ),
        (
            edit("events.jsonl", lambda text: text + '{"t": 1, "who": "a", "event": "X"}'),
            r'events.jsonl:3: "data"',
        ),
        (
            edit(
                "events.jsonl",
                lambda text: (
                    text + '{"t": 1, "who": "lab", "event": "migrate", "data": {"to": "b"}}'
                ),
            ),
            r'events.jsonl:3: "migrate" must say "from"',
        ),
        (
            edit("guest-sent.csv", lambda text: text.replace("errno", "error")),
            r"guest-sent.csv:1: the header",
        ),
        (
            edit("guest-sent.csv", lambda text: text + "7,8\n"),
            r"guest-sent.csv:202: must have 3 fields",
        ),
        (
            edit("guest-sent.csv", lambda text: text + "7,8,ENETDOWN\n"),
            r"guest-sent.csv:202: not integers",
        ),
        (
            edit("guest-received.csv", lambda text: text[:-3]),
            r"guest-received.csv:201: the line is cut off",
        ),
        (edit("guest-clock.csv", lambda text: text + "\n"), r"guest-clock.csv:\d+: must have 2"),
        (
            edit("capture.json", lambda text: text.replace('"kept"', '"seen"')),
            r'capture.json: "peer" must have',
        ),
        (
            edit("capture.json", lambda text: text.replace("400", "401", 1)),
            r"capture.pcapng: 400 frames of peer",
        ),
        (cut_capture, r"capture.pcapng: \d+ frames of .* cut off"),
    ],
)
def test_names_what_is_malformed(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(VnetStandbyError, match=message) as error:
        judge(folder)
    assert "\n" not in str(error.value)
