# SPDX-License-Identifier: GPL-2.0-or-later
"""The three outputs of a nested run: what they say of its hosts, their clocks and the two ways of an uplink."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_report_outputs import run_record, verdict
from test_traffic_analysis import (
    FAILED_BACK,
    MIGRATE,
    RESUME,
    STOP,
    stock_from_guest,
    stock_to_guest,
)
from traffic_run import Way, nested

from vnet_standby.report.html import page
from vnet_standby.report.result import result
from vnet_standby.report.story import Story
from vnet_standby.report.terminal import COLUMNS, timeline
from vnet_standby.report.write import read_events, read_run, write
from vnet_standby.traffic.analysis import judge
from vnet_standby.traffic.verdict import Verdict

Judged = tuple[Verdict, list[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = nested(
        tmp_path_factory.mktemp("nested") / "run",
        destination_primary="nic",
        host_commands={"a": "qemu -device intel-iommu <a>", "b": "qemu"},
    )
    run.ports["b-nic"] = "primary"
    run.event(-3, "host-a", "RESUME")
    run.migration(MIGRATE, STOP, RESUME)
    run.event(9, "host-a", "SHUTDOWN")
    by_nic = Way(("b-nic",))
    run.to_guest(lambda t: stock_to_guest(t) if t < FAILED_BACK else by_nic, 0, 9)
    run.from_guest(lambda t: stock_from_guest(t) if t < FAILED_BACK else by_nic, 0, 9)
    return run.write()


@pytest.fixture(scope="module")
def judged(folder: Path) -> Judged:
    return judge(folder), read_events(folder), read_run(folder)


def test_result_says_topology_and_clocks(judged: Judged) -> None:
    told = result(judged[0], judged[2])
    assert told["topology"] == "nested"
    assert told["clocks"] == {"a": {"error_ms": 0.31}, "b": {"error_ms": 0.45}}


def test_result_of_flat_hosts_has_no_clocks() -> None:
    for record in (run_record(), run_record(topology="flat")):
        told = result(verdict(), record)
        assert told["topology"] == "flat"
        assert "clocks" not in told


def test_terminal_says_what_the_hosts_are_and_how_well_their_clocks_agree(judged: Judged) -> None:
    text = timeline(*judged)
    assert text.startswith("nested hosts, net-failover guest, primary vf, nic on the destination")
    assert "\nhost clocks      a, b aligned within 0.45 ms\n" in text
    assert "path a-primary (VF) -> a-standby" in text
    assert "last seen at a-primary (VF)" in text
    assert " -> b-nic (NIC)" in text
    assert max(map(len, text.splitlines())) <= COLUMNS


def test_terminal_says_nothing_of_clocks_on_flat_hosts() -> None:
    assert "host clocks" not in timeline(verdict(), [], run_record())


def test_page_explains_the_uplinks(judged: Judged) -> None:
    text = page(*judged)
    for told in (
        "went by HOST-standby; the rest is taken for the VF's, HOST-primary",
        "Clocks of hosts a, b aligned within 0.45 ms",
        "a-primary (VF)",
        "b-nic (NIC)",
        "The command line of host a itself",
        "qemu -device intel-iommu &lt;a&gt;",
    ):
        assert told in text
    assert "a-uplink" not in text
    flat = page(verdict(), [], run_record())
    for absent in ("HOST-standby", "host clocks", "(VF)", "emulated"):
        assert absent not in flat


def test_the_guest_runs_where_its_own_qemu_says(judged: Judged) -> None:
    assert [span.name for span in Story(*judged).running] == ["a", "b"]


def test_writes_a_nested_run(folder: Path, judged: Judged, tmp_path: Path) -> None:
    report = write(folder, judged[0], tmp_path / "out")
    assert json.loads(report.result.read_text())["clocks"]["b"] == {"error_ms": 0.45}
