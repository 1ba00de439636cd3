# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts what the guest stamped with its own clock on the host's clock.

The guest's clock stands still while the VM is stopped, so the offset between the clocks is constant only within one
stretch in which the guest runs, from a RESUME to the next STOP. Within a stretch whatever the guest dated and the host
saw later (a clock sample, a probe from the guest) bounds the offset from above, since news never arrives early; the
smallest difference is taken. Mapped times are therefore late, never early, by the shortest way from guest to host.
How late at most follows from the probes the other way: one that the host sent before the guest had it bounds the
offset from below.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from vnet_standby.errors import VnetStandbyError

BORDER_NS: Final = 50_000_000
"""How near to a stop a guest time must be for the stretch to be in doubt: QEMU reports STOP after and RESUME before
the fact, by some ms under load."""

SLACK_NS: Final = 1_000_000
"""A mapped time that breaks a bound by less is not in the wrong stretch: it is as late as all are."""


class Pair(NamedTuple):
    """One moment's neighbourhood on both clocks."""

    host_ns: int
    guest_ns: int


@dataclass(frozen=True)
class Stretch:
    """A time in which the guest ran on one host, on the host's clock (ns)."""

    host: str
    start_ns: int
    end_ns: int


class GuestClock:
    """The guest's clock over a run."""

    def __init__(
        self, stretches: Sequence[Stretch], later: Iterable[Pair], earlier: Iterable[Pair]
    ) -> None:
        """Fit one offset per stretch.

        `later` pairs have a host time after the guest's, `earlier` pairs one before it. Raises VnetStandbyError if
        there is no `later` pair at all.
        """
        self.unsampled: tuple[Stretch, ...]
        """Stretches without a pair; their offset follows from that of a neighbour and the length of the stop."""
        self._stretches = stretches
        self._offsets = self._fit(_by_stretch(stretches, later))
        self._stops = [
            stretch.end_ns - offset
            for stretch, offset in zip(stretches[:-1], self._offsets[:-1], strict=True)
        ]
        errors = self._errors(earlier)
        self.error_ns: int | None = max(errors) if errors else None
        """Mapped times are late by no more than this; None if no probe to the guest bounds it."""
        self.drift_ns: int = max((-error for error in errors if error < 0), default=0)
        """By how much the two bounds contradict each other: the clocks run at different rates."""

    def host_ns(
        self, guest_ns: int, *, not_before: int | None = None, not_after: int | None = None
    ) -> int:
        """Map a time of the guest; the bounds (host, ns) decide where it is close to a stop."""
        place = bisect_left(self._stops, guest_ns)
        mapped = guest_ns + self._offsets[place]
        near_end = place < len(self._stops) and self._stops[place] - guest_ns < BORDER_NS
        near_start = place > 0 and guest_ns - self._stops[place - 1] < BORDER_NS
        if near_end and not_before is not None and mapped < not_before - SLACK_NS:
            return guest_ns + self._offsets[place + 1]
        if near_start and not_after is not None and mapped > not_after + SLACK_NS:
            return guest_ns + self._offsets[place - 1]
        return mapped

    def _fit(self, pairs: Sequence[Sequence[Pair]]) -> list[int]:
        offsets: list[int | None] = []
        stop = None
        for stretch, sample in zip(self._stretches, pairs, strict=True):
            # what the guest dated before the stop and the host got afterwards says nothing about this stretch
            usable = [
                pair.host_ns - pair.guest_ns
                for pair in sample
                if stop is None or pair.guest_ns > stop + BORDER_NS
            ]
            offset = min(usable, default=None)
            offsets.append(offset)
            stop = None if offset is None else stretch.end_ns - offset
        self.unsampled = tuple(
            stretch
            for stretch, offset in zip(self._stretches, offsets, strict=True)
            if offset is None
        )
        return self._bridge(offsets)

    def _bridge(self, offsets: list[int | None]) -> list[int]:
        """Fill in missing offsets: across a stop the offset grows by the time for which the guest stood still."""
        known = next((place for place, offset in enumerate(offsets) if offset is not None), None)
        if known is None:
            raise VnetStandbyError(
                "guest-clock.csv: no sample of the guest's clock; did the guest's agent run?"
            )
        stretches = self._stretches
        filled = list(offsets)
        for place in (*range(known - 1, -1, -1), *range(known + 1, len(filled))):
            if filled[place] is None:
                neighbour = place + 1 if place < known else place - 1
                base = filled[neighbour]
                assert base is not None
                first, second = sorted((place, neighbour))
                stood = stretches[second].start_ns - stretches[first].end_ns
                filled[place] = base - stood if place < known else base + stood
        return [offset for offset in filled if offset is not None]

    def _errors(self, earlier: Iterable[Pair]) -> list[int]:
        """Per stretch with probes to the guest: the upper bound of the offset less the lower."""
        lower: dict[int, int] = {}
        for host_ns, guest_ns in earlier:
            place = bisect_left(self._stops, guest_ns)
            if place and guest_ns - self._stops[place - 1] < BORDER_NS:
                continue
            if place < len(self._stops) and self._stops[place] - guest_ns < BORDER_NS:
                continue
            lower[place] = max(lower.get(place, host_ns - guest_ns), host_ns - guest_ns)
        return [self._offsets[place] - bound for place, bound in lower.items()]


def _by_stretch(stretches: Sequence[Stretch], pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Sort pairs by the stretch in which, or after which, the host got them."""
    starts = [stretch.start_ns for stretch in stretches]
    sorted_pairs: list[list[Pair]] = [[] for _ in stretches]
    for pair in pairs:
        sorted_pairs[max(0, bisect_right(starts, pair.host_ns) - 1)].append(pair)
    return sorted_pairs
