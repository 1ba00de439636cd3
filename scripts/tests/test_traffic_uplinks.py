# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging nested runs: both datapaths of a host share one wire, and the standby's tap tells them apart."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from test_traffic_analysis import (
    EJECTED,
    END,
    MIGRATE,
    RESUME,
    STOP,
    smooth,
    stock_from_guest,
    stock_to_guest,
)
from test_traffic_records import edit, setting
from traffic_run import EPOCH_NS, PORTS, Run, Way, lost, nested

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.analysis import judge
from vnet_standby.traffic.verdict import LossRun, Verdict


def with_migration(run: Run) -> Run:
    run.event(0.0, "lab", "traffic-start")
    run.migration(MIGRATE, STOP, RESUME, eject=EJECTED - MIGRATE)
    run.event(END, "lab", "traffic-stop")
    return run


def stock(run: Run) -> Verdict:
    """What stock software does, in the topology of the run."""
    with_migration(run)
    run.to_guest(stock_to_guest, 0, END)
    run.from_guest(stock_from_guest, 0, END)
    return judge(run.write())


def without_causes(verdict: Verdict) -> dict[str, Any]:
    told = asdict(verdict)
    for loss in told["losses"]:
        del loss["cause"]
    return told


def test_the_same_truth_is_judged_the_same_as_on_flat_hosts(tmp_path: Path) -> None:
    flat, emulated = stock(Run(tmp_path / "flat")), stock(nested(tmp_path / "nested"))
    assert emulated.ports == flat.ports == PORTS
    assert emulated.counts["to_guest"].lost > 100
    assert emulated.time_on_standby_s > 3
    assert emulated.warnings == ()
    assert without_causes(emulated) == without_causes(flat)


def test_a_migration_that_loses_nothing_takes_every_way_in_turn(tmp_path: Path) -> None:
    run = with_migration(nested(tmp_path / "run"))
    run.to_guest(smooth, 0, END)
    run.from_guest(smooth, 0, END)
    verdict = judge(run.write())
    ways = list(dict.fromkeys(point.via for point in verdict.points))
    assert ways == ["a-primary", "a-standby", "b-standby", "b-primary"]
    assert [switch.kind for switch in verdict.switches] == ["failover", "blackout", "failback"]
    assert verdict.losses == ()
    assert verdict.time_on_standby_s == pytest.approx(6 - MIGRATE, abs=0.02)


def test_an_emulated_hosts_own_events_do_not_move_the_guest(tmp_path: Path) -> None:
    run = nested(tmp_path / "run")
    for t, who, name in ((0.5, "host-a", "STOP"), (0.6, "host-b", "RESUME")):
        run.event(t, who, name)
    verdict = stock(run)
    assert without_causes(verdict) == without_causes(stock(nested(tmp_path / "other")))


IN_BY_UPLINK = r"it entered host {} by the uplink, and the standby's tap did not carry it"
FATES = [
    (
        "to_guest",
        1.5,
        lost("a-primary"),
        "a-primary",
        IN_BY_UPLINK.format("a") + ".*lost at the VF",
    ),
    ("to_guest", 1.8, lost(), "peer", "the bridge between the hosts gave it to no port"),
    ("to_guest", 2.1, lost("a-primary"), "a-primary", "not let go of it yet"),
    (
        "to_guest",
        2.5,
        lost("a-primary"),
        "a-primary",
        "after the guest had let go of that NIC: probably the PF's filter still pointed there",
    ),
    ("to_guest", 3.0, lost("a-standby"), "a-standby", "given to a-standby, but not received"),
    ("to_guest", 5.03, lost("b-standby"), "b-standby", "while the guest was stopped"),
    (
        "to_guest",
        5.3,
        lost("a-primary"),
        "a-primary",
        "after the guest had left host a: the bridge between the hosts still pointed there",
    ),
    ("to_guest", 5.6, lost("b-standby"), "b-standby", "net_failover drops there"),
    ("from_guest", 1.5, lost("a-primary"), "a-primary", "the bridge between the hosts did not"),
    (
        "from_guest",
        3.0,
        lost("a-tap"),
        "a-standby",
        "came in by the standby's tap in host a, but did not leave that host by its uplink",
    ),
    ("from_guest", 3.5, lost(), "guest", "no port and by no standby's tap"),
]


def spoilt(direction: str) -> Callable[[float], Way]:
    def way(t: float) -> Way:
        fates = [fate for fate in FATES if fate[0] == direction and fate[1] <= t < fate[1] + 0.02]
        return fates[0][2] if fates else smooth(t)

    return way


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> tuple[LossRun, ...]:
    run = with_migration(nested(tmp_path_factory.mktemp("fates") / "run"))
    run.to_guest(spoilt("to_guest"), 0, END)
    run.from_guest(spoilt("from_guest"), 0, END)
    return judge(run.write()).losses


@pytest.mark.parametrize(("direction", "t", "way", "last_seen", "cause"), FATES)
def test_fate(
    losses: tuple[LossRun, ...], direction: str, t: float, way: Way, last_seen: str, cause: str
) -> None:
    start = EPOCH_NS / 1e9 + t
    (loss,) = (
        loss for loss in losses if loss.direction == direction and abs(loss.start - start) < 0.011
    )
    assert (loss.last_seen, way.arrives) == (last_seen, False)
    assert loss.count == 4
    assert re.search(cause, loss.cause), loss.cause


def test_a_flooded_probe_is_seen_on_both_hosts_and_delivered_where_the_guest_is(
    tmp_path: Path,
) -> None:
    run = nested(tmp_path / "run")
    run.event(0.0, "lab", "traffic-start")
    run.to_guest(lambda _: Way(("a-primary", "b-standby")), 0, 2)
    run.from_guest(lambda _: Way(("a-primary",)), 0, 2)
    run.event(2.0, "lab", "traffic-stop")
    verdict = judge(run.write())
    assert {point.via for point in verdict.points} == {"a-primary"}
    assert verdict.points[9].ports == ("a-primary", "b-standby")
    assert verdict.time_on_standby_s == 0


def test_another_vendors_nic_has_a_wire_of_its_own(tmp_path: Path) -> None:
    run = with_migration(nested(tmp_path / "run", destination_primary="nic"))
    run.ports["b-nic"] = "primary"

    def way(t: float) -> Way:
        if 7 <= t < 7.02:
            return lost("b-uplink")
        return Way(("b-nic",)) if t >= 6 else smooth(t)

    run.to_guest(way, 0, END)
    run.from_guest(lambda t: Way(("b-nic",)) if t >= 6 else smooth(t), 0, END)
    verdict = judge(run.write())
    assert verdict.ports == {
        "a-standby": "standby",
        "a-primary": "primary",
        "b-standby": "standby",
        "b-uplink": "uplink",
        "b-nic": "primary",
    }
    assert verdict.points[-1].via == "b-nic"
    assert verdict.time_on_standby_s == pytest.approx(6 - MIGRATE, abs=0.02)
    (loss,) = verdict.losses
    assert (loss.count, loss.last_seen) == (4, "b-uplink")
    assert loss.cause.endswith("the guest has no VF of host b")


def test_a_destination_without_a_vf(tmp_path: Path) -> None:
    run = with_migration(nested(tmp_path / "run", destination_primary="none"))

    def way(t: float) -> Way:
        if 5.2 <= t < 5.22:
            return lost("b-uplink")
        return Way(("b-standby",)) if t >= 6 else smooth(t)

    run.to_guest(way, 0, END)
    run.from_guest(lambda t: Way(("b-standby",)) if t >= 6 else smooth(t), 0, END)
    verdict = judge(run.write())
    assert "b-primary" not in verdict.ports
    assert verdict.time_on_standby_s == pytest.approx(END - MIGRATE, abs=0.03)
    assert [loss.cause.rpartition(": ")[2] for loss in verdict.losses] == [
        "the guest has no VF of host b"
    ]


def test_the_control_has_no_primary_on_either_host(tmp_path: Path) -> None:
    run = with_migration(nested(tmp_path / "run", guest="virtio"))

    def way(t: float) -> Way:
        return Way(("a-standby",)) if t < STOP else Way(("b-standby",))

    run.to_guest(way, 0, END)
    run.from_guest(way, 0, END)
    verdict = judge(run.write())
    assert set(verdict.ports.values()) == {"standby", "uplink"}
    assert [switch.kind for switch in verdict.switches] == ["blackout"]


def test_warns_of_clocks_that_are_not_aligned(tmp_path: Path) -> None:
    run = nested(tmp_path / "run", clocks={"a": {"error_ms": 12.3}})
    verdict = stock(run)
    assert [warning for warning in verdict.warnings if "clock of host" in warning] == [
        "the clock of host a is aligned with the lab's within 12.3 ms only: so are its events",
        "the clock of host b was not aligned with the lab's: its events may be at any time",
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = nested(tmp_path / "run")
    run.event(0, "lab", "traffic-start")
    run.to_guest(lambda _: Way(("a-standby",)), 0, 1)
    run.from_guest(lambda _: Way(("a-standby",)), 0, 1)
    run.event(2, "lab", "traffic-stop")
    return run.write()


def remove_tap(folder: Path) -> None:
    (folder / "b-tap.csv").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_tap, r"b-tap.csv.*No such file"),
        (edit("a-tap.csv", lambda text: text.replace("host_ns", "ns")), r"a-tap.csv:1: the header"),
        (edit("a-tap.csv", lambda text: text[:-3]), r"a-tap.csv:401: the line is cut off"),
        (edit("a-tap.csv", lambda text: text + "\n"), r"a-tap.csv:402: must have 3 fields"),
        (
            edit("a-tap.csv", lambda text: text + "1,sideways,2\n"),
            r"a-tap.csv:402: must be a number, to_guest or from_guest, and a time",
        ),
        (edit("a-tap.csv", lambda text: text + "to_guest,to_guest,2\n"), r"a-tap.csv:402: must be"),
        (edit("a-tap.csv", lambda text: text + "-1,to_guest,2\n"), r"a-tap.csv:402: must be"),
        (setting("topology", "deep"), r'run.json: "topology" must be one of flat, nested'),
        (
            setting("topology", "flat"),
            r'run.json: port "a-uplink" must be one of standby, primary$',
        ),
        (setting("clocks", []), r'run.json: "clocks" must give'),
        (setting("clocks", {"a": {}}), r'run.json: "clocks" must give'),
        (setting("clocks", {"a": {"error_ms": -1}}), r'run.json: "clocks" must give'),
    ],
)
def test_names_what_is_malformed(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    judge(folder)
    damage(folder)
    with pytest.raises(VnetStandbyError, match=message) as error:
        judge(folder)
    assert "\n" not in str(error.value)
