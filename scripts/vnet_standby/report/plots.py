# SPDX-License-Identifier: GPL-2.0-or-later
"""The page's plots: the whole run on one time axis, and one close look at each switch."""

import math
import xml.etree.ElementTree as ET
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vnet_standby.report import svg
from vnet_standby.report.story import (
    SPOKEN,
    Event,
    Segment,
    Story,
    cost,
    count,
    describe,
    summary,
)
from vnet_standby.traffic.verdict import DIRECTIONS, Direction, LossRun, Point, Switch

WIDTH = 1120.0

_LEFT, _RIGHT = 150.0, 1108.0
_BINS = 479
_PROBES_A_BIN = 8
"""Fewer than these would make the outline jump with the rounding of the rate alone."""

_CLOSE_UP_HEIGHT = 260.0
_MARKS = 8000
"""Single probes drawn on the whole page; what is denser is thinned to one mark per spot."""
_QUIET_EVENTS = {"MIGRATION", "MIGRATION_PASS"}
"""The lanes of the migration show the one, and the other comes with every pass over the RAM."""
_LOST_AT = 26.0
_GLYPH = 6.2
"""Width of a character of the plots' small text (px), to know which label still has room."""


@dataclass(frozen=True)
class _Row:
    """One lane of the overview: `draw` fills it between its upper and its lower border."""

    name: str
    height: float
    draw: Callable[[ET.Element, float, float], None]
    group: str = ""
    """The heading above this row, if it begins a group."""
    direction: Direction | None = None
    """The direction whose probes it shows."""


def overview(parent: ET.Element, story: Story) -> None:
    """Draw the whole run: states, then per direction the datapath, each port's probes, the lost."""
    _Overview(story).draw(parent)


class _Overview:
    def __init__(self, story: Story) -> None:
        self.story = story
        low, high = (story.at(t) for t in story.span)
        self.x = svg.Linear(low, high, _LEFT, _RIGHT)

    def draw(self, parent: ET.Element) -> None:
        rows = list(self._rows())
        tops = list(_tops(rows))
        bottom = tops[-1] + rows[-1].height + 6
        title = "The whole run on one time axis"
        plot = svg.canvas(parent, WIDTH, bottom + 36, title, self._spoken())
        self._grid(plot, bottom)
        for direction, borders in _groups(rows, tops):
            self._shade(plot, direction, borders)
        for row, top in zip(rows, tops, strict=True):
            if row.group:
                svg.label(plot, 4.0, top - 7, row.group, "group")
            svg.label(plot, _LEFT - 8, top + row.height / 2 + 4, row.name, "lane end")
            row.draw(plot, top, top + row.height)

    def _spoken(self) -> str:
        counts = self.story.verdict.counts
        lost = [f"{SPOKEN[d]}: {counts[d].lost} of {counts[d].sent} lost" for d in counts]
        kinds = ", ".join(switch.kind for switch in self.story.verdict.switches) or "none"
        return f"{'; '.join(lost)}. Switches: {kinds}. The tables below hold the figures."

    def _rows(self) -> Iterable[_Row]:
        yield _Row("switches", 32, self._switches, "States")
        yield _Row("events", 14, self._events)
        for who in self.story.migration_states:
            yield _Row(f"migration, {who}", 16, self._migration(who))
        yield _Row("VM runs on", 16, self._running)
        for direction in self.story.directions:
            heading = f"Probes {SPOKEN[direction]}"
            yield _Row("delivered by", 16, self._datapath(direction), heading, direction)
            seen = _bins(self.story, direction)
            for port in self.story.ports:
                if port in seen:
                    density = self._density(seen[port], port)
                    yield _Row(self.story.shown(port), 26, density, "", direction)
            yield _Row("lost", 16, self._lost(direction), "", direction)

    def _grid(self, plot: ET.Element, bottom: float) -> None:
        for tick in self.x.ticks(12):
            at = self.x(tick)
            svg.line(plot, (at, at), (8, bottom), "grid")
            svg.label(plot, at, bottom + 14, f"{tick:g}", "tick middle")
        name = f"seconds since {self.story.zero_name}"
        svg.label(plot, (_LEFT + _RIGHT) / 2, bottom + 31, name, "tick middle")

    def _shade(self, plot: ET.Element, direction: Direction, borders: tuple[float, float]) -> None:
        for switch, (start, end) in _gaps(self.story, direction):
            x = self.x(self.story.at(start)), self.x(self.story.at(end))
            text = f"{switch.kind}: nothing arrived for {1000 * (end - start):.1f} ms"
            svg.hint(svg.bar(plot, x, borders, "gap"), text)

    def _switches(self, plot: ET.Element, top: float, bottom: float) -> None:
        free = [-math.inf, -math.inf]
        for switch in self.story.verdict.switches:
            start, end = self.story.focus(switch)
            x = self.x(self.story.at(start)), self.x(self.story.at(end))
            svg.hint(svg.bar(plot, x, (bottom - 3, bottom), "switch"), summary(switch))
            text = f"{switch.kind} {_worst(switch):.0f} ms"
            width = len(text) * _GLYPH
            at = min(x[0], _RIGHT - width)
            level = next((i for i, end in enumerate(free) if at > end + 4), None)
            if level is not None:
                free[level] = at + width
                svg.label(plot, at, bottom - 7 - 13 * level, text, "kind")

    def _events(self, plot: ET.Element, top: float, bottom: float) -> None:
        low, high = self.story.span
        events = [
            event
            for event in self.story.events
            if event["event"] not in _QUIET_EVENTS and low <= float(event["t"]) <= high
        ]
        at = [self.x(self.story.at(float(event["t"]))) for event in events]
        for first, end in svg.apart([(x, x) for x in at]):
            mark = svg.bar(plot, (at[first] - 0.75, at[first] + 0.75), (top, bottom), "event")
            told = [_event_line(self.story, event) for event in events[first:end][:12]]
            rest = [f"... and {end - first - 12} more"] if end - first > 12 else []
            svg.hint(mark, "; ".join(told + rest))

    def _migration(self, who: str) -> Callable[[ET.Element, float, float], None]:
        def draw(plot: ET.Element, top: float, bottom: float) -> None:
            for span in self.story.migration_states[who]:
                x = self.x(span.start), self.x(span.end)
                look = "bulk" if span.name in {"active", "wait-unplug"} else "phase"
                mark = svg.bar(plot, x, (top, bottom), look)
                svg.hint(mark, f"{span.name} at {span.start:+.3f} s")
                final = span.start == span.end
                _inside(plot, x, bottom, span.name, room=_RIGHT if final else x[1])

        return draw

    def _running(self, plot: ET.Element, top: float, bottom: float) -> None:
        for span in self.story.running:
            x = self.x(span.start), self.x(span.end)
            look = "host0" if span.name == self.story.running[0].name else "host1"
            mark = svg.bar(plot, x, (top, bottom), look)
            svg.hint(mark, f"runs on {span.name} from {span.start:+.3f} to {span.end:+.3f} s")
            _inside(plot, x, bottom, f"host {span.name}", room=x[1])

    def _datapath(self, direction: Direction) -> Callable[[ET.Element, float, float], None]:
        segments = self.story.segments[direction]

        def draw(plot: ET.Element, top: float, bottom: float) -> None:
            spans = [
                (self.x(self.story.at(s.first)), self.x(self.story.at(s.last))) for s in segments
            ]
            for first, end in _by_port(segments, spans):
                x = spans[first][0], spans[end - 1][1]
                segment = segments[first]
                role = self.story.role(segment.port)
                svg.hint(svg.bar(plot, x, (top, bottom), role), self._carried(segments[first:end]))
                name = self.story.shown(segment.port)
                _inside(plot, x, bottom, name, room=x[1], look=f"inside on-{role}")

        return draw

    def _carried(self, segments: Sequence[Segment]) -> str:
        first, last = self.story.at(segments[0].first), self.story.at(segments[-1].last)
        changes = f", {len(segments) - 1} changes between" if len(segments) > 1 else ""
        probes = count(sum(s.probes for s in segments), "probe")
        name = self.story.shown(segments[0].port)
        return f"{name}: {probes}, {first:+.3f} to {last:+.3f} s{changes}"

    def _density(self, seen: "_Bins", port: str) -> Callable[[ET.Element, float, float], None]:
        def draw(plot: ET.Element, top: float, bottom: float) -> None:
            svg.line(plot, (_LEFT, _RIGHT), (bottom, bottom), "base")
            for counts, look in (
                (list(map(sum, zip(seen.delivered, seen.lost, strict=True))), "lost"),
                (seen.delivered, self.story.role(port)),
            ):
                heights = [(bottom - top) * min(n / seen.full, 1.0) for n in counts]
                svg.skyline(plot, heights, (_LEFT, _RIGHT), bottom, look)
            svg.hint(
                svg.bar(plot, (_LEFT, _RIGHT), (top, bottom), "hover"),
                f"{self.story.shown(port)} ({self.story.role(port)}): saw {count(sum(seen.delivered), 'probe')} "
                f"that arrived and {sum(seen.lost):,} that were lost",
            )

        return draw

    def _lost(self, direction: Direction) -> Callable[[ET.Element, float, float], None]:
        losses = _losses(self.story, direction)

        def draw(plot: ET.Element, top: float, bottom: float) -> None:
            svg.line(plot, (_LEFT, _RIGHT), (bottom, bottom), "base")
            spans = [
                (self.x(self.story.at(loss.start)), self.x(self.story.at(loss.end)))
                for loss in losses
            ]
            for first, end in svg.apart(spans):
                x = spans[first][0], max(stop for _, stop in spans[first:end])
                mark = svg.bar(plot, x, (top, bottom), "lost")
                svg.hint(mark, _why(self.story, losses[first:end]))

        return draw


def _tops(rows: Sequence[_Row]) -> Iterable[float]:
    y = 0.0
    for row in rows:
        y += 28 if row.group else 5
        yield y
        y += row.height


def _groups(
    rows: Sequence[_Row], tops: Sequence[float]
) -> Iterable[tuple[Direction, tuple[float, float]]]:
    """Yield the upper and the lower border of each direction's rows."""
    for direction in DIRECTIONS:
        edges = [
            (top, top + row.height)
            for row, top in zip(rows, tops, strict=True)
            if row.direction == direction
        ]
        if edges:
            yield direction, (edges[0][0] - 3, edges[-1][1])


def _gaps(story: Story, direction: Direction) -> Iterable[tuple[Switch, tuple[float, float]]]:
    """Yield each switch with the direction's silence, if that stands out from the noise."""
    for switch in story.verdict.switches:
        gap = switch.gaps.get(direction)
        if gap and story.stands_out(gap):
            yield switch, (gap.start, gap.end)


def _by_port(
    segments: Sequence[Segment], spans: Sequence[tuple[float, float]]
) -> list[tuple[int, int]]:
    """Group segments too short to be told apart; a group never begins in a long segment."""
    groups: list[tuple[int, int]] = []
    for i, (start, stop) in enumerate(spans):
        narrow = stop - start < 1.0
        near = bool(groups) and start - spans[i - 1][1] < 1.0
        if narrow and near and spans[groups[-1][0]][1] - spans[groups[-1][0]][0] < 1.0:
            groups[-1] = (groups[-1][0], i + 1)
        else:
            groups.append((i, i + 1))
    return groups


@dataclass(frozen=True)
class _Bins:
    """How many probes one port saw, by the time at which they were sent."""

    delivered: list[int]
    lost: list[int]
    full: float
    """How many a bin has when every probe comes by."""


def _bins(story: Story, direction: Direction) -> dict[str, _Bins]:
    points = story.sent[direction]
    number = min(max(len(points) // _PROBES_A_BIN, 20), _BINS)
    low, high = story.span
    size = (high - low) / number or 1.0
    seen: dict[str, tuple[list[int], list[int]]] = {}
    every = [0] * number
    for point in points:
        i = min(max(int((point.sent - low) / size), 0), number - 1)
        every[i] += 1
        for port in point.ports:
            if port not in seen:
                seen[port] = [0] * number, [0] * number
            seen[port][point.arrived is None][i] += 1
    full = float(_usual(every))
    return {port: _Bins(delivered, lost, full) for port, (delivered, lost) in seen.items()}


def _usual(counts: Sequence[int]) -> int:
    """Return the lower quartile of the bins that are not empty: rounding makes some a bit fuller."""
    filled = sorted(n for n in counts if n)
    return filled[len(filled) // 4] if filled else 1


def _inside(
    plot: ET.Element,
    x: tuple[float, float],
    bottom: float,
    text: str,
    *,
    room: float,
    look: str = "inside",
) -> None:
    """Write `text` on a bar that has room for it."""
    if room - x[0] > len(text) * _GLYPH + 6:
        svg.label(plot, x[0] + 4, bottom - 4, text, look)


def _losses(story: Story, direction: Direction) -> list[LossRun]:
    return sorted((x for x in story.verdict.losses if x.direction == direction), key=_start)


def _start(loss: LossRun) -> float:
    return loss.start


def _why(story: Story, losses: Sequence[LossRun]) -> str:
    first = losses[0]
    probes = count(sum(loss.count for loss in losses), "probe")
    more = f" (and {count(len(losses) - 1, 'further run')})" if len(losses) > 1 else ""
    return (
        f"{probes} lost from {story.at(first.start):+.3f} to {story.at(losses[-1].end):+.3f} s, "
        f"last seen at {story.shown(first.last_seen)}: {first.cause}{more}"
    )


def _worst(switch: Switch) -> float:
    return max((gap.silence_ms for gap in switch.gaps.values()), default=0.0)


def _event_name(event: Event) -> str:
    netdev = event["data"].get("name", "") if event["event"] == "link" else ""
    return f"{event['who']} {event['event']} {netdev}".rstrip()


def _event_line(story: Story, event: Event) -> str:
    return f"{story.at(float(event['t'])):+.3f} s {event['who']} {describe(event)}"


def close_up(parent: ET.Element, story: Story, switch: Switch, panels: int) -> None:
    """Draw each probe around a switch: when it was sent, and how long it was under way.

    `panels` is the number of such plots on the page: together they stay within a bound.
    """
    start, end = story.scene(switch)
    margin = max(0.25, (end - start) / 8)
    window = start - margin, end + margin
    directions = [d for d in story.directions if d in switch.gaps]
    title = f"{switch.kind} at {story.at(story.focus(switch)[0]):+.3f} s, probe by probe"
    plot = svg.canvas(parent, WIDTH, _CLOSE_UP_HEIGHT, title, summary(switch))
    chosen = {d: _between(story.sent[d], *window) for d in directions}
    delays = [_delay(p) for points in chosen.values() for p in points if p.arrived is not None]
    limits = _decades(delays)
    low, high = story.at(window[0]), story.at(window[1])
    cut = WIDTH / max(len(directions), 1)
    for i, direction in enumerate(directions):
        x = svg.Linear(low, high, i * cut + 56, (i + 1) * cut - 12)
        y = svg.Log(*limits, _CLOSE_UP_HEIGHT - 40, _LOST_AT + 18)
        panel = _CloseUp(story, switch, direction, x, y, first=i == 0)
        panel.draw(plot, chosen[direction], max(_MARKS // (panels * len(directions)), 60))


@dataclass(frozen=True)
class _Spot:
    """Where a probe is drawn, and as what."""

    x: float
    y: float
    look: str
    point: Point


@dataclass(frozen=True)
class _CloseUp:
    story: Story
    switch: Switch
    direction: Direction
    x: svg.Linear
    y: svg.Log
    first: bool

    def draw(self, plot: ET.Element, points: Sequence[Point], marks: int) -> None:
        self._shade(plot)
        self._axes(plot)
        self._events(plot)
        self._points(plot, points, marks)

    def _shade(self, plot: ET.Element) -> None:
        for switch, (start, end) in _gaps(self.story, self.direction):
            if switch is self.switch:
                x = self.x(self.story.at(start)), self.x(self.story.at(end))
                mark = svg.bar(plot, x, (_LOST_AT - 8, self.y.start), "gap")
                svg.hint(mark, f"nothing arrived for {1000 * (end - start):.1f} ms")

    def _axes(self, plot: ET.Element) -> None:
        left, right, bottom = self.x.start, self.x.stop, self.y.start
        for tick in self.x.ticks(8):
            at = self.x(tick)
            svg.line(plot, (at, at), (_LOST_AT - 8, bottom), "grid")
            svg.label(plot, at, bottom + 14, f"{tick:g}", "tick middle")
        for tick in self.y.ticks():
            at = self.y(tick)
            svg.line(plot, (left, right), (at, at), "grid")
            svg.label(plot, left - 6, at + 4, f"{tick:g} ms", "tick end")
        svg.line(plot, (left, right), (bottom, bottom), "base")
        svg.label(plot, left - 6, _LOST_AT + 4, "lost", "tick end")
        svg.label(plot, left, 12, self._heading(), "lane")
        svg.label(plot, (left + right) / 2, bottom + 31, "sent at (s)", "tick middle")

    def _heading(self) -> str:
        return f"{SPOKEN[self.direction]}: {cost(self.switch.gaps[self.direction])}"

    def _events(self, plot: ET.Element) -> None:
        free = -math.inf
        low, high = self.x.low, self.x.high
        for event in self.story.events:
            time = self.story.at(float(event["t"]))
            if not low <= time <= high or event["event"] in _QUIET_EVENTS:
                continue
            at = self.x(time)
            mark = svg.line(plot, (at, at), (_LOST_AT - 8, self.y.start), "when")
            svg.hint(mark, _event_line(self.story, event))
            if at > free:
                turned = svg.label(plot, 0.0, 0.0, _event_name(event), "tiny end")
                spot = f"translate({svg.px(at + 9)} {svg.px(_LOST_AT + 10)}) rotate(-90)"
                turned.set("transform", spot)
                free = at + 10

    def _points(self, plot: ET.Element, points: Sequence[Point], marks: int) -> None:
        losses = _losses(self.story, self.direction)
        for spots in _thinned([self._spot(point) for point in points], marks):
            mark = _mark(plot, spots[0])
            svg.hint(mark, self._probe(spots[0].point, len(spots), losses))

    def _spot(self, point: Point) -> "_Spot":
        x = self.x(self.story.at(point.sent))
        if point.arrived is None:
            return _Spot(x, _LOST_AT, "lost", point)
        # a flooded probe may have come by either path
        roles = {self.story.role(port) for port in point.ports if port in self.story.ports}
        look = roles.pop() if len(roles) == 1 else "other"
        return _Spot(x, self.y(_delay(point)), look, point)

    def _probe(self, point: Point, number: int, losses: Sequence[LossRun]) -> str:
        ports = ", ".join(map(self.story.shown, point.ports)) or "no port"
        more = f" (and {number - 1} more)" if number > 1 else ""
        told = f"probe {point.seq}{more}, sent {self.story.at(point.sent):+.4f} s, {ports}"
        if point.arrived is not None:
            return f"{told}: {_delay(point):.3g} ms"
        loss = _loss_of(point, losses)
        return f"{told}: lost" + (f", {loss.cause}" if loss else "")


def _between(points: Sequence[Point], start: float, end: float) -> Sequence[Point]:
    return points[bisect_left(points, start, key=_sent) : bisect_right(points, end, key=_sent)]


def _sent(point: Point) -> float:
    return point.sent


def _delay(point: Point) -> float:
    """Return a delivered probe's time under way in ms.

    It can't be less than nothing, though the guest's clock, known within a bound, may say so.
    """
    return max(1000 * ((point.arrived or 0.0) - point.sent), 0.001)


def _decades(delays: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten around the delays: two at least, from 0.01 ms on."""
    low = max(10.0 ** math.floor(math.log10(min(delays, default=0.1))), 0.01)
    high = 10.0 ** math.ceil(math.log10(max(delays, default=10.0)))
    return low, max(high, low * 100)


def _loss_of(point: Point, losses: Sequence[LossRun]) -> LossRun | None:
    i = bisect_right(losses, point.sent + 1e-6, key=_start) - 1
    return losses[i] if i >= 0 and point.sent <= losses[i].end + 1e-6 else None


def _thinned(spots: Sequence[_Spot], at_most: int) -> Iterable[list[_Spot]]:
    """Take spots together that lie close to each other; how close depends on how many there are."""
    size = 1.0
    while True:
        near: dict[tuple[int, int, str], list[_Spot]] = {}
        for spot in spots:
            near.setdefault((int(spot.x / size), int(spot.y / size), spot.look), []).append(spot)
        if len(near) <= at_most or size > 100:
            return near.values()
        size *= 1.5


def _mark(plot: ET.Element, spot: _Spot) -> ET.Element:
    """Draw a probe: a cross if it was lost, else a shape by the path that it took."""
    x, y, look = spot.x, spot.y, spot.look
    match look:
        case "lost":
            shape = f"M{svg.px(x - 3)} {svg.px(y - 4)}l6 8m0-8l-6 8"
            return svg.node(plot, "path", d=shape, class_="cross")
        case "standby":
            return svg.node(plot, "rect", x=x - 2, y=y - 2, width=4, height=4, class_=look)
        case _:
            return svg.node(plot, "circle", cx=x, cy=y, r=2, class_=look)
