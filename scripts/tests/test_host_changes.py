# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes are reported, and undone as a whole; MACs and their aliases."""

import os
import signal
import threading

import pytest

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Change, Transaction
from vnet_standby.host.mac import alias, is_for, parse_mac


def step(log: list[str], name: str, *, fails: bool = False, sticks: bool = False) -> Change:
    def do() -> None:
        if fails:
            raise VnetStandbyError(f"{name} failed")
        log.append(name)

    def undo() -> None:
        if sticks:
            raise VnetStandbyError("stuck")
        log.append(f"undo {name}")

    return Change(name, do, undo)


def test_what_was_done_is_reported() -> None:
    log: list[str] = []
    with Transaction() as change:
        change.apply(step(log, "a"), step(log, "b"))
    assert log == change.changed == ["a", "b"]


def test_an_error_undoes_what_was_done_in_reverse() -> None:
    log: list[str] = []
    with pytest.raises(VnetStandbyError, match=r"^c failed$"), Transaction() as change:
        change.apply(step(log, "a"), step(log, "b"), step(log, "c", fails=True))
    assert log == ["a", "b", "undo b", "undo a"]
    assert change.changed == []


def test_what_can_not_be_undone_is_named_and_the_rest_is_undone() -> None:
    log: list[str] = []
    with (
        pytest.raises(VnetStandbyError, match=r"^c failed; not all .*: b \(stuck\)$"),
        Transaction() as change,
    ):
        change.apply(step(log, "a"), step(log, "b", sticks=True), step(log, "c", fails=True))
    assert log == ["a", "b", "undo a"]


def test_a_dry_run_does_nothing_and_reports_the_same() -> None:
    log: list[str] = []
    with Transaction(dry_run=True) as change:
        change.apply(step(log, "a"), step(log, "b", fails=True))
    assert log == []
    assert change.changed == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_between_two_changes_and_undoes_it(number: signal.Signals) -> None:
    log: list[str] = []
    before = signal.getsignal(number)

    def interrupted() -> None:
        os.kill(os.getpid(), number)
        log.append("a, all of it")

    with pytest.raises(KeyboardInterrupt), Transaction() as change:
        change.apply(Change("a", interrupted, lambda: log.append("undo a")), step(log, "b"))
    assert log == ["a, all of it", "undo a"]
    assert signal.getsignal(number) is before


def test_a_signal_in_the_last_change_undoes_it_too() -> None:
    log: list[str] = []

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        log.append("a")

    with pytest.raises(KeyboardInterrupt), Transaction() as change:
        change.apply(Change("a", interrupted, lambda: log.append("undo a")))
    assert log == ["a", "undo a"]


def test_it_works_in_a_thread_where_signals_can_not_be_caught() -> None:
    log: list[str] = []

    def body() -> None:
        with Transaction() as change:
            change.apply(step(log, "a"))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert log == ["a"]


@pytest.mark.parametrize("text", ["", "52:54:00:12:34", "52:54:00:12:34:5g", "52-54-00-12-34-56"])
def test_no_mac(text: str) -> None:
    with pytest.raises(VnetStandbyError, match="is no MAC address"):
        parse_mac(text)


@pytest.mark.parametrize("text", ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"])
def test_no_mac_of_one_nic(text: str) -> None:
    with pytest.raises(VnetStandbyError, match="unicast"):
        parse_mac(text)


@pytest.mark.parametrize(
    "mac", ["52:54:00:76:6e:01", "02:00:00:00:00:01", "3c:fd:fe:01:02:03", "d2:00:00:00:00:01"]
)
def test_an_alias_is_a_local_unicast_address_that_differs_in_the_first_byte(mac: str) -> None:
    other = alias(parse_mac(mac.upper()))
    first = int(other[:2], 16)
    assert first & 0b1111 == 0b0010
    assert other[2:] == mac[2:]
    assert other != mac
    assert is_for(other, mac)
    assert is_for(mac, mac)
    assert not is_for("02:ff:00:00:00:01", mac)
