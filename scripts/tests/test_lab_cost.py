# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading what the guest has counted, and showing it."""

import pytest

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.cost import Cost, GuestCost, parse
from vnet_standby.report.cost import cost_table

CONSOLE = (
    "[    4.0] igb: loaded\r\ncalibration 2000005\r\n"
    "run 1000 9000000 110 1000\r\n"
    "run 1000 1000000 110 1000\r\nrun 3000 2700000 311 3000\r\n"
    "run 1000 1200000 111 1000\r\nrun 3000 2600000 310 3000\r\n"
)


def test_the_cost_is_the_slope_between_the_cheapest_runs() -> None:
    assert parse(CONSOLE, "bare (send)") == Cost(instructions=800, interrupts=0.1)


def test_what_the_guest_could_not_do_is_the_error() -> None:
    with pytest.raises(VnetStandbyError, match=r"bond \(send\).*sendto: No buffer space"):
        parse(CONSOLE + "error sendto: No buffer space available\r\n", "bond (send)")


def test_no_figures_are_an_error_with_the_last_words() -> None:
    with pytest.raises(VnetStandbyError, match=r"no figures.*Kernel panic"):
        parse("calibration 2000005\r\nKernel panic\r\n", "bare (send)")
    with pytest.raises(VnetStandbyError, match=r"no figures.*nothing"):
        parse("", "bare (send)")


def test_a_clock_that_does_not_count_instructions_is_refused() -> None:
    with pytest.raises(VnetStandbyError, match=r"\+150.0%"):
        parse(CONSOLE.replace("2000005", "5000000"), "bare (send)")


def test_packets_that_took_the_standby_are_not_the_primary_s_cost() -> None:
    astray = CONSOLE.replace("310 3000", "310 1500")
    with pytest.raises(VnetStandbyError, match="only 1500 of 3000"):
        parse(astray, "vnet-standby (send)")
    assert parse(astray, "vnet-standby (ignore)").instructions == 800


def test_the_table_says_what_is_more_than_bare() -> None:
    bare = GuestCost(send=Cost(6400, 0.1), receive=Cost(5000, 0.125))
    bond = GuestCost(send=Cost(6912, 0.1), receive=Cost(4990, 0.125))
    assert cost_table({"bare": bare, "bond": bond}).splitlines() == [
        "instructions a packet sending                   receiving",
        "bare                  6400 [0.100]              5000 [0.125]",
        "bond                  +512 (+8.0%) [0.100]      -10 (-0.2%) [0.125]",
    ]
