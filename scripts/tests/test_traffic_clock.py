# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's clock on the host's: one offset a stretch, late but never early."""

import random

import pytest

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.clock import GuestClock, Pair, Stretch

MS = 1_000_000
S = 1_000 * MS
END = 1 << 62

STRETCHES = (
    Stretch("a", 0, 10 * S),
    Stretch("b", 10 * S + 90 * MS, 20 * S),
    Stretch("a", 21 * S, END),
)
OFFSETS = (3 * S, 3 * S + 90 * MS, 4 * S + 90 * MS)
"""Host less guest in each stretch."""


def stretch_at(host_ns: int) -> int:
    return next(n for n, s in enumerate(STRETCHES) if s.start_ns <= host_ns < s.end_ns)


def guest(host_ns: int) -> int:
    return host_ns - OFFSETS[stretch_at(host_ns)]


RUNNING = [
    t * 37 * MS for t in range(800) if any(s.start_ns <= t * 37 * MS < s.end_ns for s in STRETCHES)
]


def samples(late: int = 300_000, jitter: int = 5 * MS) -> list[Pair]:
    choose = random.Random(1)  # noqa: S311
    return [Pair(t + late + choose.randrange(jitter), guest(t)) for t in RUNNING]


def test_maps_every_stretch_late_by_the_shortest_way() -> None:
    clock = GuestClock(STRETCHES, samples(), [Pair(t - 200_000, guest(t)) for t in RUNNING])
    for t in range(0, 25 * S, 7 * MS):
        if any(s.start_ns <= t < s.end_ns - MS for s in STRETCHES):
            assert 300_000 <= clock.host_ns(guest(t)) - t <= 500_000
    assert clock.error_ns is not None
    assert 500_000 <= clock.error_ns <= 700_000
    assert clock.drift_ns == 0
    assert clock.unsampled == ()


def test_without_probes_to_the_guest_the_error_is_unknown() -> None:
    assert GuestClock(STRETCHES, samples(), []).error_ns is None


@pytest.mark.parametrize("missing", [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}])
def test_a_stretch_without_samples_follows_from_its_neighbour(missing: set[int]) -> None:
    some = [
        pair for t, pair in zip(RUNNING, samples(), strict=True) if stretch_at(t) not in missing
    ]
    clock = GuestClock(STRETCHES, some, [])
    assert clock.unsampled == tuple(STRETCHES[n] for n in sorted(missing))
    for t in RUNNING:
        assert 300_000 <= clock.host_ns(guest(t), not_before=t) - t <= 500_000


def test_close_to_a_stop_the_bounds_decide() -> None:
    clock = GuestClock(STRETCHES, samples(), [])
    last, first = 10 * S - 50_000, 10 * S + 90 * MS + 50_000
    for t in (last, first):
        mapped = clock.host_ns(guest(t), not_before=t - 100_000, not_after=t + 600_000)
        assert abs(mapped - t) <= 500_000


def test_what_waited_for_the_resume_says_nothing_of_the_new_stretch() -> None:
    # sent just before the stop, seen by the host after RESUME was reported, before the guest really ran again
    straggler = Pair(10 * S + 90 * MS + 10_000, guest(10 * S - 100_000))
    clock = GuestClock(STRETCHES, [*samples(), straggler], [])
    t = 15 * S
    assert 300_000 <= clock.host_ns(guest(t)) - t <= 500_000


def test_drift_shows_as_a_contradiction() -> None:
    one = (Stretch("a", 0, END),)
    ppm = [(t, t - 3 * S - t // 10_000) for t in range(0, 60 * S, 100 * MS)]
    clock = GuestClock(
        one, [Pair(t + 300_000, g) for t, g in ppm], [Pair(t - 200_000, g) for t, g in ppm]
    )
    assert clock.drift_ns == pytest.approx(60 * S // 10_000 - 500_000, rel=0.02)


def test_no_sample_at_all_is_an_error() -> None:
    with pytest.raises(VnetStandbyError, match="no sample"):
        GuestClock(STRETCHES, [], [Pair(1, 1)])
