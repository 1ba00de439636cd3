# SPDX-License-Identifier: GPL-2.0-or-later
"""Columns, scales and marks: the small parts that the report is laid out with."""

import xml.etree.ElementTree as ET

import pytest

from vnet_standby.report import svg
from vnet_standby.report.text import cells, pad, printable, table, wrap


def test_printable_shows_control_characters_instead_of_sending_them() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed\x00\ud800") == r"a\x1b[2Jb\nc\u202ed\x00\ud800"
    assert printable("Grüße 网卡") == "Grüße 网卡"


@pytest.mark.parametrize(("text", "width"), [("ab", 2), ("网卡", 4), ("e\u0301", 1), ("", 0)])
def test_cells_counts_terminal_columns(text: str, width: int) -> None:
    assert cells(text) == width


def test_wrap_breaks_at_spaces_and_cuts_what_is_longer_than_a_line() -> None:
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("x" * 10, 4) == ["xxxx", "xxxx", "xx"]
    assert all(cells(line) <= 5 for line in wrap("网卡网卡网卡 ab", 5))
    assert not wrap("", 5)[0]


def test_table_aligns_words_left_and_figures_right() -> None:
    assert table(("name", "n"), [("网", "10")], words=1) == ["name   n", "网    10"]
    assert pad("ab", 4, right=True) == "  ab"


@pytest.mark.parametrize(("low", "high"), [(-5.2, 20.0), (0.0, 0.013), (16.0, 16.9), (0.0, 3e4)])
def test_ticks_are_round_and_neither_too_many_nor_too_few(low: float, high: float) -> None:
    ticks = svg.Linear(low, high, 0, 100).ticks(8)
    assert 3 <= len(ticks) <= 8
    assert low <= ticks[0] <= ticks[-1] <= high


def test_scales_map_their_limits_and_clamp_what_lies_outside() -> None:
    linear, log = svg.Linear(0, 10, 100, 200), svg.Log(0.01, 100, 100, 200)
    assert (linear(0), linear(5), linear(99)) == (100, 150, 200)
    assert (log(0.01), log(1), log(0)) == (100, 150, 100)
    assert log.ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert svg.Linear(3, 3, 0, 100).ticks(8) == [3]


def test_skyline_is_one_closed_outline() -> None:
    root = ET.Element("svg")
    svg.skyline(root, [0, 5, 5, 0], (0, 40), 10, "primary")
    assert [path.get("d") for path in root] == ["M0 10H10V5H30V10H40V10Z"]


def test_apart_joins_marks_that_would_hide_each_other() -> None:
    spans = [(0.0, 0.1), (0.5, 0.6), (9.0, 12.0), (9.5, 9.6), (12.5, 13.0), (20.0, 20.0)]
    assert svg.apart(spans) == [(0, 2), (2, 5), (5, 6)]
