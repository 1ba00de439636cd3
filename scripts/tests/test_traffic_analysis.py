# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging: runs with a known truth, and the verdict must be that truth."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from traffic_run import EPOCH_NS, Run, Way, lost

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.analysis import judge
from vnet_standby.traffic.verdict import Counts, Gap, Verdict

# one migration: asked for at 2.001, the source stops at 5.001, the destination runs from 5.091 on
MIGRATE, EJECTED, STOP, RESUME, END = 2.001, 2.251, 5.001, 5.091, 9.0
FAILOVER_DONE = 2.076
"""From here on the bridge points at the standby."""
MOVED = 5.116
"""From here on the bridge points at the destination."""
REGISTERED, FAILED_BACK = 5.601, 6.076

A, B = Way(("a-primary",)), Way(("b-primary",))
A_STANDBY, B_STANDBY = Way(("a-standby",)), Way(("b-standby",))


def stock_to_guest(t: float) -> Way:
    """What stock software does to the stream to the guest."""
    steps = [
        (MIGRATE + 0.01, A),
        (FAILOVER_DONE, lost("a-primary")),
        (STOP, A_STANDBY),
        (MOVED, lost("a-standby")),
        (REGISTERED, B_STANDBY),
        (FAILED_BACK, lost("b-standby")),
    ]
    return next((way for end, way in steps if t < end), B)


def stock_from_guest(t: float) -> Way:
    """The guest's own stream loses a little where it fails over."""
    steps = [
        (2.091, A),
        (2.101, Way((), arrives=False)),
        (STOP, A_STANDBY),
        (FAILED_BACK, B_STANDBY),
    ]
    return next((way for end, way in steps if t < end), B)


def smooth(t: float) -> Way:
    """A migration that loses nothing."""
    return A if t < MIGRATE else A_STANDBY if t < STOP else B_STANDBY if t < 6 else B


def migrated(folder: Path, guest: str = "net-failover", traffic: str = "both") -> Run:
    """A run with one migration, without traffic yet."""
    run = Run(folder / "run", guest=guest, traffic=traffic)
    run.event(0.0, "lab", "traffic-start")
    run.migration(MIGRATE, STOP, RESUME, eject=EJECTED - MIGRATE)
    run.event(END, "lab", "traffic-stop")
    return run


def sent_in(start: float, end: float, rate: float = 200) -> int:
    """Probes sent in [start, end)."""
    return sum(start <= number / rate < end for number in range(round(10 * rate)))


def gap(verdict: Verdict, kind: str, direction: str = "to_guest") -> Gap:
    (switch,) = (switch for switch in verdict.switches if switch.kind == kind)
    return next(gap for name, gap in switch.gaps.items() if name == direction)


def test_a_quiet_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.to_guest(lambda _: A, 0, 3)
    run.from_guest(lambda _: A, 0, 3)
    verdict = judge(run.write())
    assert verdict.counts == {
        "to_guest": Counts(600, 600, 0, 0, 0),
        "from_guest": Counts(600, 600, 0, 0, 0),
    }
    assert (verdict.switches, verdict.losses, verdict.migrations) == ((), (), ())
    assert verdict.noise_floor_ms < 0.01
    assert verdict.time_on_standby_s == 0
    assert verdict.warnings == ()
    point = verdict.points[7]
    assert (point.direction, point.seq, point.ports) == ("to_guest", 7, ("a-primary",))
    assert point.sent == pytest.approx(EPOCH_NS / 1e9 + 0.035, abs=2e-6)
    assert point.arrived == pytest.approx(point.sent + 320e-6, abs=1e-3)
    assert verdict.clock_error_ms is not None
    assert verdict.clock_error_ms < 1


def test_stock_software_loses_at_every_switch(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.to_guest(stock_to_guest, 0, END)
    run.from_guest(stock_from_guest, 0, END)
    verdict = judge(run.write())
    at = {
        "failover": sent_in(MIGRATE + 0.01, FAILOVER_DONE),
        "blackout": sent_in(STOP, RESUME),
        "failback": sent_in(RESUME, MOVED) + sent_in(REGISTERED, FAILED_BACK),
    }
    assert verdict.counts["to_guest"].lost == sum(at.values()) == 13 + 18 + 5 + 95
    assert [switch.kind for switch in verdict.switches] == list(at)
    for kind, count in at.items():
        found = gap(verdict, kind)
        assert found.lost == count
        assert found.agree
        assert found.held == 0
        assert found.silence_ms == pytest.approx(found.lost_ms, abs=5)
    assert gap(verdict, "failover").path_ms == pytest.approx(13 * 5, abs=0.1)
    failback = gap(verdict, "failback")
    assert failback.lost_in_gap == 95
    assert failback.lost_ms == 475
    assert failback.path_ms == pytest.approx(475, abs=0.1)

    back = {kind: gap(verdict, kind, "from_guest") for kind in at}
    assert {kind: found.lost for kind, found in back.items()} == {
        "failover": 2,
        "blackout": 0,
        "failback": 0,
    }
    assert all(found.agree for found in back.values())
    assert back["blackout"].silence_ms == pytest.approx(90, abs=5)
    assert back["blackout"].path_ms == pytest.approx(90, abs=5)

    assert verdict.time_on_standby_s == pytest.approx(FAILED_BACK - FAILOVER_DONE, abs=0.01)
    (migration,) = verdict.migrations
    assert migration.total_s == pytest.approx(RESUME - MIGRATE)
    assert (migration.downtime_ms, migration.status) == (42, "completed")
    assert verdict.warnings == ()
    assert [(run.count, run.last_seen, run.switch) for run in verdict.losses] == [
        (13, "a-primary", "failover"),
        (2, "guest", "failover"),
        (18, "a-standby", "blackout"),
        (5, "a-standby", "failback"),
        (95, "b-standby", "failback"),
    ]
    causes = [run.cause for run in verdict.losses]
    assert "asked to go" in causes[0]
    assert "came in by no port; the primary was asked to go" in causes[1]
    assert "while the guest was stopped, and it did not run there again" in causes[2]
    assert "after the guest had left host a" in causes[3]
    assert "net_failover drops there while a primary is registered" in causes[4]


def test_a_silent_guest_hears_nothing_for_the_whole_ram_phase(tmp_path: Path) -> None:
    run = migrated(tmp_path, traffic="to-guest")
    run.event(1.5, "lab", "guest-silent")
    run.to_guest(
        lambda t: A if t < MIGRATE + 0.02 else lost("a-primary") if t < MOVED else B, 0, END
    )
    run.from_guest(lambda _: A, 0, 1.5)
    verdict = judge(run.write())
    assert verdict.counts["from_guest"] == Counts(300, 300, 0, 0, 0)
    assert all(set(switch.gaps) == {"to_guest"} for switch in verdict.switches)
    failover = gap(verdict, "failover")
    assert failover.lost == sent_in(MIGRATE + 0.02, STOP)
    assert failover.silence_ms == pytest.approx(failover.lost_ms, abs=5)
    assert failover.agree
    causes = [run.cause for run in verdict.losses]
    assert any(
        "after the guest had let go of that NIC: the bridge still pointed there" in c
        for c in causes
    )
    assert verdict.time_on_standby_s == 0


def test_held_frames_are_delay_and_not_loss(tmp_path: Path) -> None:
    def hold(t: float) -> Way:
        if t < MIGRATE:
            return A
        if STOP <= t < RESUME:
            return Way(("b-standby",), delay=RESUME + 0.004 - t)
        return A_STANDBY if t < STOP else B_STANDBY

    run = migrated(tmp_path)
    run.to_guest(hold, 0, END)
    run.from_guest(lambda t: A if t < MIGRATE else A_STANDBY if t < STOP else B_STANDBY, 0, END)
    verdict = judge(run.write())
    assert verdict.losses == ()
    blackout = gap(verdict, "blackout")
    assert (blackout.lost, blackout.lost_ms) == (0, 0)
    assert blackout.held == pytest.approx(18, abs=1)
    assert blackout.silence_ms == pytest.approx(90, abs=5)
    assert blackout.path_ms == pytest.approx(0, abs=5)
    assert blackout.agree
    assert verdict.time_on_standby_s == pytest.approx(END - MIGRATE, abs=0.02)


def cancelled(folder: Path, guest: str = "net-failover") -> Run:
    run = Run(folder / "run", guest=guest)
    run.event(0.0, "lab", "traffic-start")
    run.event(MIGRATE, "lab", "migrate", from_="a", to="b")
    if guest == "net-failover":
        run.event(MIGRATE, "a", "UNPLUG_PRIMARY", device_id="primary0")
    run.event(MIGRATE, "a", "MIGRATION", status="wait-unplug")
    run.event(EJECTED, "a", "MIGRATION", status="active")
    run.event(4.0, "lab", "cancel")
    run.event(4.001, "a", "MIGRATION", status="cancelling")
    run.event(4.002, "a", "MIGRATION", status="cancelled")
    run.event(END, "lab", "traffic-stop")
    return run


def test_a_cancelled_migration_has_no_blackout(tmp_path: Path) -> None:
    def way(t: float) -> Way:
        steps = [
            (MIGRATE, A),
            (2.101, lost("a-primary")),
            (4.201, A_STANDBY),
            (4.451, lost("a-standby")),
        ]
        return next((way for end, way in steps if t < end), A)

    run = cancelled(tmp_path)
    run.to_guest(way, 0, END)
    run.from_guest(lambda t: replace(way(t), arrives=True), 0, END)
    verdict = judge(run.write())
    assert [switch.kind for switch in verdict.switches] == ["failover", "failback"]
    assert verdict.switches[0].end == pytest.approx(EPOCH_NS / 1e9 + 4.0, abs=1e-6)
    assert gap(verdict, "failover").lost == 20
    assert gap(verdict, "failback").lost == 50
    assert all(found.agree for switch in verdict.switches for found in switch.gaps.values())
    assert verdict.migrations[0].status == "cancelled"
    assert verdict.migrations[0].downtime_ms == 0
    assert "registered" in verdict.losses[-1].cause


def test_a_migration_that_fails_after_the_stop_has_its_blackout_on_the_source(
    tmp_path: Path,
) -> None:
    run = cancelled(tmp_path)
    run.events = [
        event
        for event in run.events
        if event["event"] != "cancel" and event["t"] < EPOCH_NS / 1e9 + 4
    ]
    run.event(STOP, "a", "STOP")
    run.event(RESUME, "a", "MIGRATION", status="failed")
    run.event(RESUME, "a", "RESUME")
    run.event(END, "lab", "traffic-stop")
    run.pause(STOP, RESUME)
    run.to_guest(lambda t: lost("a-standby") if STOP <= t < RESUME else A_STANDBY, 0, END)
    run.from_guest(lambda _: A_STANDBY, 0, END)
    verdict = judge(run.write())
    assert [switch.kind for switch in verdict.switches] == ["failover", "blackout", "failback"]
    assert gap(verdict, "blackout").lost == 18
    assert "not read after it resumed there" in verdict.losses[0].cause
    assert verdict.migrations[0].status == "failed"
    assert verdict.migrations[0].downtime_ms == pytest.approx(90, abs=0.01)


def test_there_and_back(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.events = [event for event in run.events if event["event"] != "traffic-stop"]
    run.migration(7.001, 8.001, 8.201, way="ba")

    def way(t: float) -> Way:
        steps = [
            (MIGRATE, A),
            (STOP, A_STANDBY),
            (RESUME, lost("a-standby")),
            (6.001, B_STANDBY),
            (7.001, B),
            (8.001, B_STANDBY),
            (8.201, lost("b-standby")),
            (8.5, A_STANDBY),
        ]
        return next((way for end, way in steps if t < end), A)

    run.to_guest(way, 0, END + 1)
    run.from_guest(lambda t: replace(way(t), arrives=True), 0, END + 1)
    verdict = judge(run.write())
    kinds = ["failover", "blackout", "failback"]
    assert [switch.kind for switch in verdict.switches] == kinds * 2
    assert [switch.gaps["to_guest"].lost for switch in verdict.switches] == [0, 18, 0, 0, 40, 0]
    assert all(found.agree for switch in verdict.switches for found in switch.gaps.values())
    assert len(verdict.migrations) == 2
    assert verdict.time_on_standby_s == pytest.approx(4.0 + 1.5, abs=0.02)
    assert all(
        0 <= point.arrived - point.sent < 2e-3
        for point in verdict.points
        if point.arrived is not None
    )


def test_the_control_has_only_a_blackout(tmp_path: Path) -> None:
    run = migrated(tmp_path, guest="virtio")
    run.ports = {"a-standby": "standby", "b-standby": "standby"}
    run.to_guest(
        lambda t: (
            lost("a-standby") if STOP - 0.05 <= t < MOVED else A_STANDBY if t < STOP else B_STANDBY
        ),
        0,
        END,
    )
    run.from_guest(lambda t: A_STANDBY if t < STOP else B_STANDBY, 0, END)
    verdict = judge(run.write())
    assert [switch.kind for switch in verdict.switches] == ["blackout"]
    assert gap(verdict, "blackout").lost == 18
    assert [(run.switch, run.count) for run in verdict.losses] == [
        (None, 6),
        (None, 4),
        ("blackout", 18),
        (None, 5),
    ]
    assert "records don't tell" in verdict.losses[0].cause
    assert "within 20 ms of the guest's stop" in verdict.losses[1].cause


def test_duplicates_and_reordering_count_as_in_rfc_4737(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    # 100 and 101 take 12 ms more: 102 and 103 are there before them; 200 to 209 come twice
    run.to_guest(
        lambda t: replace(
            A, delay=0.0123 if 0.499 < t < 0.506 else 0.0003, copies=2 if 0.999 < t < 1.049 else 1
        ),
        0,
        2,
    )
    run.from_guest(lambda t: replace(A, copies=3 if t > 1.994 else 1), 0, 2)
    verdict = judge(run.write())
    assert verdict.counts["to_guest"] == Counts(400, 400, 0, 10, 2)
    assert verdict.counts["from_guest"] == Counts(400, 400, 0, 2, 0)


def test_what_the_guests_kernel_refuses_is_lost(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.to_guest(lambda t: A if t < STOP else B, 0, END)
    refused = Way((), arrives=False, errno=100)
    run.from_guest(lambda t: refused if 3.001 < t < 3.101 else A if t < STOP else B, 0, END)
    verdict = judge(run.write())
    assert verdict.counts["from_guest"].lost == 20
    (loss,) = verdict.losses
    assert (loss.count, loss.last_seen, loss.switch) == (20, "nowhere", "failover")
    assert loss.cause == "the guest's kernel refused to send it: ENETDOWN"
    found = gap(verdict, "failover", "from_guest")
    assert (found.lost, found.lost_ms, found.agree) == (20, 100, True)


# When a single probe is lost, what saw it last, and what must be said of it.
TO_GUEST_FATES = [
    (1.0, ("a-primary",), "a-primary", "the records don't tell why"),
    (
        2.05,
        ("a-standby",),
        "a-standby",
        "asked to go and the guest had not let go of it yet; net_failover",
    ),
    (2.1, ("a-primary",), "a-primary", "asked to go and the guest had not let go of it yet"),
    (3.0, (), "peer", "the bridge gave it to no port"),
    (3.1, ("a-primary",), "a-primary", "let go of that NIC: the bridge still pointed there"),
    (3.2, ("a-standby",), "a-standby", "the records don't tell why"),
    (3.3, ("b-primary",), "b-primary", "before the guest ran on host b"),
    (3.4, ("a-standby", "b-standby"), "a-standby", "the records don't tell why"),
    (4.99, ("a-standby",), "a-standby", "within 20 ms of the guest's stop; probably"),
    (5.03, ("a-standby",), "a-standby", "it did not run there again"),
    (5.05, ("b-standby",), "b-standby", "not read after it resumed there"),
    (5.07, ("a-primary", "b-standby"), "b-standby", "not read after it resumed there"),
    (5.2, ("a-primary",), "a-primary", "after the guest had left host a"),
    (5.3, ("b-standby",), "b-standby", "not known to be up in the guest; net_failover drops"),
    (5.4, ("b-primary",), "b-primary", "plugged in but not known to be up in the guest"),
    (5.65, ("b-standby",), "b-standby", "registered but without carrier; net_failover drops there"),
    (5.7, ("b-primary",), "b-primary", "registered but without carrier"),
    (5.95, ("b-primary",), "b-primary", "up and nothing had come by it yet"),
    (7.0, ("b-primary",), "b-primary", "the records don't tell why"),
    (
        7.1,
        ("b-standby",),
        "b-standby",
        "while the guest had the primary up; net_failover drops there",
    ),
]
FROM_GUEST_FATES = [
    (2.1, (), "guest", "came in by no port; the primary was asked to go"),
    (3.0, (), "guest", "came in by no port; the records don't tell why"),
    (3.1, ("a-standby",), "a-standby", "by a-standby, but the bridge did not give it to the peer"),
    (4.99, (), "guest", "came in by no port; sent within 20 ms of the guest's stop"),
    (5.2, (), "guest", "came in by no port; the primary was plugged in"),
]
Fates = list[tuple[float, tuple[str, ...], str, str]]


def spoilt(fates: Fates) -> Callable[[float], Way]:
    """A smooth migration that loses single probes."""
    ways = {round(t, 3): lost(*ports) for t, ports, _, _ in fates}
    return lambda t: ways.get(round(t, 3)) or smooth(t)


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    run = migrated(tmp_path_factory.mktemp("fates"))
    for t, carrier in [(5.601, "0"), (5.901, "1")]:
        link = {"name": "eth2", "driver": "e1000e", "master": "eth0", "carrier": carrier}
        run.events.append({"t": EPOCH_NS / 1e9 + t, "who": "guest", "event": "link", "data": link})
    run.to_guest(spoilt(TO_GUEST_FATES), 0, END)
    run.from_guest(spoilt(FROM_GUEST_FATES), 0, END)
    return judge(run.write())


def test_a_guest_that_hears_nothing_forgets_the_peer(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.to_guest(lambda t: A if t < 1 else lost("a-primary"), 0, END)
    run.from_guest(spoilt([(3.9, (), "", ""), (4.1, (), "", "")]), 0, END)
    early, late = (loss for loss in judge(run.write()).losses if loss.direction == "from_guest")
    assert early.cause.endswith("the records don't tell why")
    assert late.cause.endswith(
        "knew the peer's address no more, as nothing had reached it for long"
    )


@pytest.mark.parametrize(
    ("direction", "t", "last_seen", "cause"),
    [("to_guest", fate[0], *fate[2:]) for fate in TO_GUEST_FATES]
    + [("from_guest", fate[0], *fate[2:]) for fate in FROM_GUEST_FATES],
)
def test_fate(fates: Verdict, direction: str, t: float, last_seen: str, cause: str) -> None:
    (loss,) = (
        loss
        for loss in fates.losses
        if loss.direction == direction and abs(loss.start - EPOCH_NS / 1e9 - t) < 0.001
    )
    assert (loss.count, loss.last_seen) == (1, last_seen)
    assert cause in loss.cause


def test_a_managed_primary_is_followed_by_the_labs_own_steps(tmp_path: Path) -> None:
    run = migrated(tmp_path, guest="bond")
    run.event(MIGRATE, "lab", "device_del", host="a", device="nic7")
    run.event(2.5, "a", "DEVICE_DELETED", device="disk1")
    run.event(3.0, "a", "DEVICE_DELETED", device="nic7", path="/machine/peripheral/nic7")
    run.event(6.0, "lab", "device_add", host="b", device="nic7")
    run.to_guest(
        lambda t: (
            lost("a-primary")
            if 2.201 < t < 4
            else lost("b-primary")
            if 5.5 < t < 6.5
            else A_STANDBY
        ),
        0,
        END,
    )
    run.from_guest(lambda _: A_STANDBY, 0, END)
    runs = [run for run in judge(run.write()).losses if run.last_seen != "a-standby"]
    causes = [run.cause for run in runs]
    assert ["asked to go" in causes[0], "let go" in causes[1]] == [True, True]
    assert "before that NIC was plugged in" in causes[2]
    assert "plugged in but not known to be up" in causes[3]
    assert runs[1].start == pytest.approx(EPOCH_NS / 1e9 + 3.0, abs=0.01)


def test_tiny_alternations_do_not_split_a_run_and_borders_do(tmp_path: Path) -> None:
    def way(t: float) -> Way:
        number = round(t * 200)
        if 3 < t < 4:  # one in ten takes another way to its end, one in twenty is delivered
            return (
                A_STANDBY
                if number % 20 == 5
                else lost("b-standby" if number % 10 == 0 else "a-primary")
            )
        if STOP - 0.2 < t < STOP + 0.05:  # the same fate before and after a border
            return lost()
        return A_STANDBY if t < STOP else B_STANDBY

    run = migrated(tmp_path)
    run.to_guest(way, 0, END)
    run.from_guest(lambda t: A_STANDBY if t < STOP else B_STANDBY, 0, END)
    first, before, after = judge(run.write()).losses
    assert (first.count, first.last_seen) == (189, "a-primary")
    assert (before.last_seen, before.switch) == ("peer", "failover")
    assert (after.last_seen, after.switch, after.count) == ("peer", "blackout", 10)


def test_estimates_disagree_if_the_rate_is_not_what_the_run_says(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.rate = 100
    run.to_guest(
        lambda t: lost("a-standby") if 3 <= t < 3.5 else A_STANDBY if t < STOP else B_STANDBY,
        0,
        END,
    )
    run.from_guest(lambda t: A_STANDBY if t < STOP else B_STANDBY, 0, END)
    run.rate = 200
    verdict = judge(run.write())
    failover = gap(verdict, "failover")
    assert (failover.lost, failover.lost_ms) == (50, 250)
    assert failover.silence_ms == pytest.approx(505, abs=1)
    assert not failover.agree
    assert verdict.noise_floor_ms == pytest.approx(5, abs=0.1)


def test_the_gap_is_the_silence_that_cost_probes_not_a_longer_one_that_cost_none(
    tmp_path: Path,
) -> None:
    """A busy machine holds frames back somewhere in a RAM phase of seconds; that is not the switch."""

    def way(t: float) -> Way:
        if 3.0 <= t < 3.2:
            return Way(("a-standby",), delay=3.2 - t)
        return lost("a-primary") if MIGRATE <= t < MIGRATE + 0.05 else smooth(t)

    run = migrated(tmp_path, traffic="to-guest")
    run.to_guest(way, 0, END)
    verdict = judge(run.write())
    found = gap(verdict, "failover")
    assert (found.lost_in_gap, found.held) == (sent_in(MIGRATE, MIGRATE + 0.05), 0)
    assert found.silence_ms == pytest.approx(50, abs=5)
    began = EPOCH_NS / 1e9 + MIGRATE
    assert (found.start, found.end) == pytest.approx((began, began + 0.05), abs=0.01)


def test_a_stall_of_the_sender_is_no_loss_and_no_contradiction(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.to_guest(lambda t: A if t < STOP else B, 0, END)
    run.from_guest(lambda t: A if t < STOP else B, 0, END)
    late = [row for row in run.sent if not 3.0 < (row[1] - run.guest_ns(0)) / 1e9 < 3.1]
    skipped = {row[0] for row in run.sent} - {row[0] for row in late}
    run.sent = late
    run.frames = [
        (t, frame)
        for t, frame in run.frames
        if frame[36:38] != b"\xb7\x98" or int.from_bytes(frame[50:54]) not in skipped
    ]
    found = gap(judge(run.write()), "failover", "from_guest")
    assert (found.lost, found.agree) == (0, True)
    assert found.silence_ms == pytest.approx(95, abs=6)


def test_noise_is_the_worst_before_the_migration_only(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.to_guest(
        lambda t: replace(
            A if t < STOP else B, delay={1.0: 0.0033, 4.0: 0.03}.get(round(t, 6), 0.0003)
        ),
        0,
        END,
    )
    run.from_guest(lambda t: A if t < STOP else B, 0, END)
    verdict = judge(run.write())
    assert verdict.noise_floor_ms == pytest.approx(3, abs=0.01)
    assert verdict.noise_p99_ms < 0.01


def quiet(folder: Path) -> Run:
    run = Run(folder / "run")
    run.to_guest(lambda _: A, 0, 2)
    run.from_guest(lambda _: A, 0, 2)
    return run


def test_warnings_name_what_weakens_the_judgement(tmp_path: Path) -> None:
    run = quiet(tmp_path)
    run.dropped["a-primary"] = 3
    run.received = [(10_000, ns) if seq == 50 else (seq, ns) for seq, ns in run.received]
    run.event(0.01, "lab", "migrate", from_="a", to="b")
    told = judge(run.write()).warnings
    assert any("dropped 3 frames of a-primary" in text for text in told)
    assert any(
        "1 arrivals to the guest of probes that were never seen sent" in text for text in told
    )
    assert any("no quiet stretch" in text for text in told)


def test_warns_of_losses_before_any_migration_and_of_a_deaf_guest(tmp_path: Path) -> None:
    run = quiet(tmp_path)
    run.received = []
    verdict = judge(run.write())
    assert verdict.counts["to_guest"] == Counts(400, 0, 400, 0, 0)
    assert (
        "400 probes to the guest were lost outside any migration, before the first"
        in verdict.warnings
    )
    assert "not one of 400 probes to the guest arrived" in verdict.warnings
    assert verdict.clock_error_ms is None


def test_warns_of_a_stretch_without_clock_samples(tmp_path: Path) -> None:
    run = migrated(tmp_path)
    run.sampled = lambda t: t < STOP
    run.to_guest(lambda t: A if t < STOP else B, 0, END)
    run.from_guest(lambda t: A if t < STOP else lost("b-primary"), 0, END)
    verdict = judge(run.write())
    assert any("no clock sample while the guest ran on b" in text for text in verdict.warnings)
    late = [point.arrived - point.sent for point in verdict.points if point.arrived is not None]
    assert sum(not 0 <= by < 2e-3 for by in late) == 17  # those that waited for the resume


def test_warns_of_drift(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", drift_ppm=1000)
    run.to_guest(lambda _: A, 0, 5)
    run.from_guest(lambda _: A, 0, 5)
    assert any("drifts by" in text for text in judge(run.write()).warnings)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: run.dropped.update(peer=1), "dropped 1 frames of peer"),
        (lambda run: run.sent.clear(), "guest-sent.csv: the guest sent no probe"),
        (lambda run: run.sent.append(run.sent[-1]), "guest-sent.csv: a number was used twice"),
        (lambda run: run.frames.clear(), "capture.pcapng: no probe was sent to the guest"),
        (
            lambda run: (
                run.__setattr__("sampled", lambda _t: False)
                or run.frames.__delitem__(slice(0, None))
                or run.to_guest(lambda _: A, 0, 1)
            ),
            "no sample of the guest's clock",
        ),
    ],
    ids=["dropped", "no stream", "twice", "no capture", "no clock"],
)
def test_refuses_records_that_cannot_carry_a_judgement(
    tmp_path: Path, spoil: Callable[[Run], object], message: str
) -> None:
    run = quiet(tmp_path)
    spoil(run)
    with pytest.raises(VnetStandbyError, match=message):
        judge(run.write())


@pytest.mark.parametrize("seed", range(12))
def test_random_runs_are_counted_right(tmp_path: Path, seed: int) -> None:
    """Whatever is lost, copied or delayed where: counts, runs and switches must add up to the truth."""
    choose = random.Random(seed)  # noqa: S311
    run = Run(tmp_path / "run", rate=choose.choice([50, 200, 333]))
    stop = choose.uniform(2.5, 3.5)
    resume = stop + choose.uniform(0.02, 0.6)
    start, end = choose.uniform(0.5, 1.5), resume + 2
    run.event(0.0, "lab", "traffic-start")
    run.migration(start, stop, resume, eject=choose.uniform(0.1, 0.9))
    run.event(end, "lab", "traffic-stop")
    truth = {"lost": 0, "copies": 0}
    bursts = [(t := choose.uniform(0, end), t + choose.uniform(0, 0.4)) for _ in range(6)]

    def to_guest(t: float) -> Way:
        ports = tuple(choose.sample(sorted(run.ports), choose.randrange(3)))
        if not ports or stop - 0.002 < t < resume or any(low < t < high for low, high in bursts):
            truth["lost"] += 1
            return lost(*ports)
        copies = choose.choice([1, 1, 1, 2])
        truth["copies"] += copies - 1
        return Way(ports, copies=copies)

    run.to_guest(to_guest, 0, end)
    run.from_guest(lambda t: A if t < stop else B_STANDBY, 0, end)
    verdict = judge(run.write())
    counts = verdict.counts["to_guest"]
    assert (counts.lost, counts.duplicated, counts.reordered) == (truth["lost"], truth["copies"], 0)
    assert sum(loss.count for loss in verdict.losses) == counts.lost
    assert verdict.counts["from_guest"].lost == 0
    for switch in verdict.switches:
        inside = [point for point in verdict.points if switch.start <= point.sent < switch.end]
        missing = sum(point.arrived is None for point in inside)
        assert switch.gaps["to_guest"].lost == missing
        assert missing == sum(
            loss.count for loss in verdict.losses if switch.start <= loss.start < switch.end
        )
        assert switch.gaps["to_guest"].lost_in_gap <= missing
    arrived = [point for point in verdict.points if point.arrived is not None]
    assert all(-1e-6 < (point.arrived or 0) - point.sent < 4e-3 for point in arrived)
