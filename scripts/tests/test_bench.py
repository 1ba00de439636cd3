# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench: what it runs, what it does after an interruption or a failure, and what it makes of the figures."""

import json
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from bench_runs import FAIL_BOND, INTERRUPT_SECOND, MIGRATE, RESUME, Lab, a_plan, a_run
from test_report_outputs import Outline, plots, titles

from vnet_standby.bench import bench, growth, plan
from vnet_standby.bench.compare import comparison, differences, outcome
from vnet_standby.bench.load import Usage, busy_s, others
from vnet_standby.bench.markdown import BEGIN, END, markdown, put
from vnet_standby.bench.matrix import PRESETS, Block, Cell, Wishes, expand
from vnet_standby.bench.measures import MEASURES, Missing, figures
from vnet_standby.bench.page import page
from vnet_standby.bench.plan import Plan, jobs, run_folder
from vnet_standby.bench.results import collect, failures, read
from vnet_standby.bench.run import Record, read_record, time_left
from vnet_standby.bench.words import cell_name, reasons
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.host_agent import peak_kib

VIRTIO = Cell("virtio", "stock")
BOND = Cell("bond", "stock")
PATCHED = Cell("patched", "patched")

FLAT, FLAT_END = BEGIN.format("flat"), END.format("flat")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def lab(tmp_path: Path, judged: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    folder = tmp_path / "lab"
    folder.mkdir()
    return Lab(folder, judged, monkeypatch)


@pytest.fixture
def said() -> list[str]:
    return []


def run(a_bench: Plan, out: Path, said: list[str]) -> dict[str, Any]:
    if not (out / plan.FILE).exists():
        plan.save(a_bench, out)
    bench.run(plan.load(out), out, said.append)
    return read(out)


# The matrix


def test_quick_has_all_kinds_on_their_own_qemu_and_those_with_a_primary_receive_only_as_well() -> (
    None
):
    cells = expand(PRESETS["quick"].blocks, Wishes())
    assert [(c.kind, c.qemu) for c in cells if c.traffic == "both"] == [
        ("virtio", "stock"),
        ("bond", "stock"),
        ("net-failover", "stock"),
        ("drop-in", "stock"),
        ("patched", "patched"),
    ]
    assert [c.kind for c in cells if c.traffic == "to-guest"] == [
        "bond", "net-failover", "drop-in", "patched",
    ]  # fmt: skip
    assert len(cells) == 9


def test_full_has_each_cell_once_and_none_that_can_not_be_measured() -> None:
    cells = expand(PRESETS["full"].blocks, Wishes())
    assert {c.pairs for c in cells} == {1, 4, 16}
    assert {c.topology for c in cells} == {"flat", "nested"}
    assert len({c.name for c in cells}) == len(cells)
    assert not any(c.impossible for c in cells)


def test_wishes_take_the_place_of_a_presets_own() -> None:
    wishes = Wishes(kinds=["bond"], qemus=["mine", "stock"], rams=[256])
    cells = expand(PRESETS["quick"].blocks, wishes)
    assert [(c.kind, c.qemu, c.traffic, c.ram_mib) for c in cells] == [
        ("bond", "mine", "both", 256),
        ("bond", "stock", "both", 256),
        ("bond", "mine", "to-guest", 256),
        ("bond", "stock", "to-guest", 256),
    ]


def test_without_a_primary_one_hotplug_stands_for_both() -> None:
    cells = expand([Block(kinds=("virtio", "bond"), hotplugs=("acpi", "pcie"))], Wishes())
    assert [(c.kind, c.hotplug) for c in cells] == [
        ("virtio", "acpi"),
        ("bond", "acpi"),
        ("bond", "pcie"),
    ]


def test_each_topology_has_its_own_memory() -> None:
    cells = expand([Block(kinds=("bond",), topologies=("flat", "nested"))], Wishes())
    assert [c.ram_mib for c in cells] == [512, 256]


def test_all_cells_run_once_before_any_of_them_runs_again(tmp_path: Path) -> None:
    pairs = Cell("bond", "stock", pairs=4)
    a_bench = a_plan(VIRTIO, BOND, pairs, repeats=2, cost_kinds=("bond",))
    assert [job.folder for job in jobs(a_bench, tmp_path)] == [
        "cost", run_folder(VIRTIO, 1), run_folder(BOND, 1), run_folder(VIRTIO, 2), run_folder(BOND, 2),
    ]  # fmt: skip


def test_a_cell_is_the_demo_command_that_makes_it(tmp_path: Path) -> None:
    cell = Cell("drop-in", "stock", "pcie", "to-guest", "nested", 1024)
    (job,) = jobs(a_plan(cell), tmp_path)
    assert list(job.arguments) == [
        "demo", "--topology", "nested", "--guest", "vnet-standby", "--driver", "drop-in", "--hotplug", "pcie",
        "--traffic", "to-guest", "--ram", "1024", "--qemu", "/qemu/stock", "--rate", "200", "--bandwidth", "6",
        "--report", str(tmp_path / job.folder),
    ]  # fmt: skip


# Interrupted, failed, resumed


def test_an_interrupted_bench_goes_on_where_it_was_and_gives_one_result(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out, a_bench = tmp_path / "bench", a_plan(VIRTIO, BOND, PATCHED)
    lab.behave(INTERRUPT_SECOND)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    with pytest.raises(KeyboardInterrupt):
        run(a_bench, out, said)
    signal.signal(signal.SIGINT, before)
    interrupted = out / run_folder(BOND, 1)
    assert (interrupted / "ended").exists()
    assert read_record(interrupted) is None
    assert not read(out)["complete"]
    assert said[-1].startswith("interrupted; go on with: scripts/bench --resume")

    lab.behave()
    result = run(a_bench, out, said)
    guests = [call[call.index("--guest") + 1] for call in lab.calls]
    assert guests == ["virtio", "bond", "bond", "vnet-standby"]
    assert not (interrupted / "left-behind").exists()
    assert result["complete"]
    assert [len(cell["runs"]) for cell in result["cells"]] == [1, 1, 1]


def test_a_finished_bench_runs_nothing_again(lab: Lab, tmp_path: Path, said: list[str]) -> None:
    out = tmp_path / "bench"
    first = run(a_plan(VIRTIO, repeats=2), out, said)
    assert run(a_plan(VIRTIO, repeats=2), out, said) == first
    assert len(lab.calls) == 2


def test_a_bench_gets_more_repeats_or_makes_do_with_fewer(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out = tmp_path / "bench"
    run(a_plan(BOND), out, said)
    for repeats, measured in ((3, 3), (2, 2)):
        changed = plan.repeat(plan.load(out), repeats, out)
        assert changed == plan.load(out)
        result = run(changed, out, said)
        assert result["complete"]
        assert result["command"].endswith(f" --repeats {repeats}")
        assert len(result["cells"][0]["runs"]) == measured
    assert len(lab.calls) == 3


def test_a_run_that_fails_is_not_measured_and_the_others_go_on(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    lab.behave(FAIL_BOND)
    result = run(a_plan(BOND, VIRTIO), tmp_path / "bench", said)
    failed, measured = result["cells"]
    reason = "no answer from the guest; see | its <console>"
    assert {figure["not_measured"] for figure in failed["figures"].values()} == {reason}
    assert measured["figures"]["lost_to_guest"]["median"] == 20
    assert failures(result) == [f"{run_folder(BOND, 1)}: {reason}"]
    assert said[1] == f"    not measured: {reason}"
    with pytest.raises(VnetStandbyError, match=r"^1 runs were not measured"):
        bench.require_measured(result)


def test_a_failed_run_is_not_tried_again_behind_the_users_back(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    lab.behave(FAIL_BOND)
    run(a_plan(BOND), tmp_path / "bench", said)
    lab.behave()
    result = run(a_plan(BOND), tmp_path / "bench", said)
    assert result["cells"][0]["runs"][0]["status"] == "failed"
    assert len(lab.calls) == 1


def test_a_program_that_leaves_no_result_has_failed(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    lab.behave("sys.exit(0)")
    result = run(a_plan(BOND), tmp_path / "bench", said)
    assert failures(result) == [f"{run_folder(BOND, 1)}: it left no result.json"]


def test_a_program_that_dies_without_a_word_has_failed(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    lab.behave("print('booting', flush=True); os.kill(os.getpid(), 9)")
    result = run(a_plan(BOND), tmp_path / "bench", said)
    assert failures(result)[0].endswith("it ended with status -9; its last words: booting")


def test_a_program_that_does_not_end_is_ended(
    lab: Lab, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_LIMIT_S", {"flat": 1})
    lab.behave("signal.alarm(10); signal.pause()")
    result = run(a_plan(BOND), tmp_path / "bench", said)
    assert failures(result)[0].endswith("it had not ended after 1 s")


def test_what_can_not_be_measured_is_not_run_and_says_why(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    result = run(a_plan(VIRTIO, Cell("bond", "stock", pairs=4)), tmp_path / "bench", said)
    assert len(lab.calls) == 1
    assert result["cells"][1]["figures"]["lost_to_guest"] == {
        "not_measured": "the lab has one pair for such a guest"
    }
    assert result["complete"]


def test_a_folder_that_holds_a_bench_takes_no_other(tmp_path: Path) -> None:
    plan.save(a_plan(VIRTIO), tmp_path)
    with pytest.raises(VnetStandbyError, match=r"--resume"):
        plan.save(a_plan(BOND), tmp_path)


def test_two_processes_do_not_run_the_same_bench(tmp_path: Path, said: list[str]) -> None:
    plan.save(a_plan(VIRTIO), tmp_path)
    with bench.alone(tmp_path), pytest.raises(VnetStandbyError, match=r"another process"):
        bench.run(plan.load(tmp_path), tmp_path, said.append)


def test_another_ground_is_refused(tmp_path: Path) -> None:
    a_bench = a_plan(VIRTIO)
    plan.require_same_ground(a_bench, dict(a_bench.ground), tmp_path)
    with pytest.raises(VnetStandbyError, match=r"host kernel was 6.12, is 6.13"):
        plan.require_same_ground(a_bench, {**a_bench.ground, "host kernel": "6.13"}, tmp_path)


def test_a_folder_without_a_plan_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match=r"holds no bench"):
        plan.load(tmp_path)
    (tmp_path / plan.FILE).write_text('{"cells": [{"kind": "bond"}]}')
    with pytest.raises(VnetStandbyError, match=r"is no plan"):
        plan.load(tmp_path)


def test_time_left_follows_the_runs_that_are_done(tmp_path: Path) -> None:
    a_bench = a_plan(VIRTIO, BOND, Cell("bond", "stock", topology="nested"), repeats=2)
    wanted = list(jobs(a_bench, tmp_path))
    records: dict[str, Record | None] = {job.folder: None for job in wanted}
    assert time_left(wanted, records) == 4 * 45 + 2 * 150
    records[run_folder(VIRTIO, 1)] = a_record(30)
    records[run_folder(BOND, 1)] = a_record(40)
    assert time_left(wanted, records) == 2 * 35 + 2 * 150
    records[run_folder(BOND, 2)] = a_record(1, status="failed")
    assert time_left(wanted, records) == 35 + 2 * 150


def a_record(elapsed_s: float, status: Any = "measured", others_cpus: float = 0.0) -> Record:
    return Record(status, "", "vnet-standby demo", "2026-01-01 12:00:00", elapsed_s, others_cpus)


# The figures


def test_a_runs_figures_are_what_its_records_say(tmp_path: Path) -> None:
    found = figures(a_run(tmp_path / "run"), Cell("net-failover", "stock"))
    assert found.keys() == MEASURES.keys()
    assert (found["lost_to_guest"], found["lost_from_guest"]) == (20, 0)
    assert (found["lost_failover_to_guest"], found["lost_failback_to_guest"]) == (20, 0)
    assert found["gap_failover_to_guest_ms"] == pytest.approx(100, abs=5)
    assert found["gap_to_guest_ms"] == found["gap_failover_to_guest_ms"]
    assert found["stop_to_resume_ms"] == pytest.approx(100)
    assert found["downtime_ms"] == 42
    assert found["off_fast_path_s"] == pytest.approx(RESUME + 1 - MIGRATE - 0.1, abs=0.02)
    assert found["eject_ms"] == pytest.approx(248, abs=0.1)
    assert found["replug_ms"] == pytest.approx(750)
    assert found["agent_peak_mib"] == 20


def test_a_figure_that_is_none_says_why(tmp_path: Path) -> None:
    a_run(tmp_path / "run", guest="virtio")
    found = figures(tmp_path / "run", Cell("virtio", "stock", traffic="to-guest"))
    assert found["eject_ms"] == found["replug_ms"] == Missing("it has no primary")
    assert found["gap_failover_to_guest_ms"] == Missing("it has no primary")
    silent = Missing("no traffic that way during the migration")
    assert found["lost_from_guest"] == found["gap_blackout_from_guest_ms"] == silent
    assert found["lost_to_guest"] != silent


def test_a_measure_of_several_runs_is_their_median_and_range(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out, a_bench = tmp_path / "bench", a_plan(PATCHED, repeats=3)
    plan.save(a_bench, out)
    for number, lost in enumerate((9, 2, 4), start=1):
        lab.leaves(a_run(tmp_path / str(number), lost_probes=lost))
        bench.run(a_plan(PATCHED, repeats=number), out, said.append)
    figure = collect(a_bench, out)["cells"][0]["figures"]["lost_to_guest"]
    assert (figure["median"], figure["min"], figure["max"]) == (4, 2, 9)
    assert [value["folder"] for value in figure["values"]] == [
        run_folder(PATCHED, n) for n in (1, 2, 3)
    ]


def test_instructions_are_told_over_the_bare_primary(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    result = run(a_plan(BOND, cost_kinds=("bond",)), tmp_path / "bench", said)
    figures_ = result["costs"]["kinds"]["bond"]
    assert (figures_["send_total"]["median"], figures_["send_over_bare"]["median"]) == (6500, 500)
    assert figures_["receive_over_bare"]["median"] == 100
    assert figures_["send_total"]["values"][0]["folder"] == "cost"


def test_tcp_is_told_where_a_cell_has_it_and_its_absence_where_not(tmp_path: Path) -> None:
    plain, with_tcp = Cell("bond", "stock"), Cell("bond", "stock", tcp=True)
    assert plain.name != with_tcp.name
    assert with_tcp.demo()[-2:] == ["--tcp", "50"]
    folder = a_run(tmp_path / "run")
    assert figures(folder, plain)["tcp_stall_ms"] == Missing("no TCP stream in this cell")
    assert figures(folder, with_tcp)["tcp_stall_ms"] == Missing("the TCP stream ended early")
    tcp = {
        "before_mib_s": 7.0,
        "through_mib_s": 5.0,
        "after_mib_s": 6.0,
        "longest_stall_ms": 761.0,
        "retransmitted": 3,
    }
    result = json.loads((folder / "result.json").read_text()) | {"tcp": tcp}
    (folder / "result.json").write_text(json.dumps(result))
    found = figures(folder, with_tcp)
    told = [figure for name, figure in found.items() if name.startswith("tcp_")]
    assert told == [7, 5, 6, 761, 3]


def test_an_agent_that_qemu_did_not_wait_for_is_counted(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    assert figures(folder, PATCHED)["agent_late"] == Missing("no host agent runs there")
    told = [
        ("agent", "ready", {}),
        ("a", "VIRTIO_NET_STANDBY_FABRIC", {"outcome": "acknowledged"}),
        ("a", "VIRTIO_NET_STANDBY_FABRIC", {"outcome": "timed-out"}),
        ("a", "VIRTIO_NET_STANDBY_GATE", {"state": "withdrawn", "role": "source"}),
        ("b", "VIRTIO_NET_STANDBY_GATE", {"state": "withdrawn", "role": "destination"}),
    ]
    with (folder / "events.jsonl").open("a") as events:
        for who, name, data in told:
            events.write(json.dumps({"t": 0.0, "who": who, "event": name, "data": data}) + "\n")
    assert figures(folder, PATCHED)["agent_late"] == 2


def test_peak_memory_is_read_from_proc() -> None:
    status = Path("/proc/self/status").read_text()
    assert 0 < (peak_kib(status) or 0) < 1 << 30
    assert peak_kib("Name:\tpython\nState:\tZ (zombie)\n") is None


# The load


def test_processor_time_of_others_is_the_machines_less_that_of_the_run() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = f"cpu  {1 * ticks} {2 * ticks} {3 * ticks} 1000 1000 {4 * ticks} {5 * ticks} {6 * ticks} 0 0\ncpu0 1 1"
    assert busy_s(stat) == 21
    before, after = Usage(10.0, machine=100.0, children=50.0), Usage(20.0, 118.0, 60.0)
    assert others(before, after) == pytest.approx(0.8)
    assert others(before, Usage(20.0, 105.0, 60.0)) == 0


def test_a_loaded_machine_and_a_high_noise_floor_are_told(
    lab: Lab, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vnet_standby.bench.run.others", lambda *_: 0.21)
    result = run(a_plan(BOND), tmp_path / "bench", said)
    assert result["loaded"] == [
        "others used more than 10% of the machine during 1 of 1 runs, up to 10%"
    ]
    folder = tmp_path / "bench" / run_folder(BOND, 1)
    noisy = json.loads((folder / "result.json").read_text()) | {"noise_floor_ms": 20.1}
    (folder / "result.json").write_text(json.dumps(noisy))
    assert collect(a_plan(BOND), tmp_path / "bench")["loaded"][1] == (
        "the noise floor is above 20 ms (4 probe intervals) in 1 of 1 runs, up to 20 ms"
    )


def test_a_quiet_machine_is_not_called_loaded(
    lab: Lab, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vnet_standby.bench.run.others", lambda *_: 0.19)
    assert run(a_plan(BOND), tmp_path / "bench", said)["loaded"] == []


# The tables


def test_the_table_has_each_figure_and_links_to_its_records(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    result = run(a_plan(BOND, cost_kinds=("bond",)), tmp_path / "bench", said)
    text = markdown(result, "build/bench/x")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| [bond]")]
    link = f"[bond](build/bench/x/runs/{BOND.name})"
    assert [cell.strip() for cell in rows[0][:9]] == [
        link, "stock", "20", "0", "0", "20", "0", "0 / 0", "0 / 0",
    ]  # fmt: skip
    assert "| bond | 6,500 | 500 | 4,100 | 100 |" in text
    assert "`scripts/bench --preset quick`, begun 2026-01-01 12:00" in text


def test_what_was_not_measured_is_a_dash_with_its_reason_and_no_markup_from_outside(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    lab.behave(FAIL_BOND)
    text = markdown(run(a_plan(BOND), tmp_path / "bench", said), ".")
    row = next(line for line in text.splitlines() if line.startswith("| [bond]"))
    assert set(row.split("|")[3:-1]) == {" – "}  # noqa: RUF001
    assert r"- no answer from the guest; see \| its \<console\>: bond" in text


def test_another_qemu_than_a_kinds_own_is_named_and_what_holds_for_all_is_told_once(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    cells = BOND, Cell("bond", "mine"), VIRTIO
    text = markdown(run(a_plan(*cells), tmp_path / "bench", said), ".")
    assert "- no TCP stream in this cell: all" in text.splitlines()
    assert "- it has no primary: virtio" in text.splitlines()
    assert cell_name(asdict(cells[1])) == "bond, mine QEMU"


def test_what_most_cells_lack_is_told_of_the_others() -> None:
    lacks, has = {"x": {"not_measured": "no x"}}, {"x": {"median": 1.0}}
    cells = [
        {**asdict(cell), "figures": has if cell == BOND else lacks}
        for cell in (VIRTIO, BOND, PATCHED)
    ]
    assert reasons(cells, ["x"]) == {"no x": ["all but bond"]}
    assert reasons(cells[:2], ["x"]) == {"no x": ["virtio"]}


def test_a_readme_gets_the_tables_between_the_marks_again_and_again(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out, readme = tmp_path / "build" / "bench", tmp_path / "README.md"
    result = run(a_plan(BOND), out, said)
    nested = f"{BEGIN.format('nested')}\nanother bench\n{END.format('nested')}\n"
    readme.write_text(f"# Before\n\n{FLAT}\nearlier tables\n{FLAT_END}\n\nafter\n{nested}")
    put(result, out, readme)
    once = readme.read_text()
    assert "earlier tables" not in once
    assert f"(build/bench/runs/{BOND.name})" in once
    assert once.startswith(f"# Before\n\n{FLAT}\n")
    assert once.endswith(f"\n{FLAT_END}\n\nafter\n{nested}")
    put(result, out, readme)
    assert readme.read_text() == once


def test_each_topology_has_a_place_of_its_own_in_a_readme(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out, readme = tmp_path / "bench", tmp_path / "README.md"
    nested = replace(PATCHED, topology="nested", ram_mib=256)
    result = run(a_plan(BOND, nested, cost_kinds=("bond",)), out, said)
    begin, end = BEGIN.format("nested"), END.format("nested")
    readme.write_text(f"{FLAT}{FLAT_END}{begin}{end}")
    put(result, out, readme)
    flat, hosts = readme.read_text().split(FLAT_END)
    assert f"(bench/runs/{BOND.name})" in flat
    assert f"(bench/runs/{nested.name})" not in flat
    assert "guest instructions" in flat
    assert f"(bench/runs/{nested.name})" in hosts
    assert f"(bench/runs/{BOND.name})" not in hosts
    assert "guest instructions" not in hosts


@pytest.mark.parametrize("text", ["", FLAT, f"{FLAT_END}\n{FLAT}", f"{FLAT}{FLAT}{FLAT_END}"])
def test_a_readme_that_does_not_say_where_is_left_as_it_is(
    text: str, lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    result = run(a_plan(BOND), tmp_path / "bench", said)
    with pytest.raises(VnetStandbyError, match=r"put these two lines there"):
        put(result, tmp_path / "bench", readme)
    assert readme.read_text() == text


# The page


def test_the_page_shows_every_measure_and_its_links_lead_to_the_records(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out = tmp_path / "bench"
    result = run(a_plan(BOND, PATCHED, repeats=2, cost_kinds=("bond",)), out, said)
    text = (out / bench.PAGE).read_text()
    outline = Outline(text)
    for measure in result["measures"].values():
        assert measure["title"] in text
    assert set(outline.links) >= {
        f"{run_folder(cell, n)}/report.html" for cell in (BOND, PATCHED) for n in (1, 2)
    }
    assert [link for link in outline.links if not (out / link).is_file()] == []
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_the_gaps_of_a_cell_are_one_bar_of_its_causes(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out = tmp_path / "bench"
    run(a_plan(BOND), out, said)
    to_guest = plots((out / bench.PAGE).read_text())[0]
    bars = [e for e in to_guest.iter() if e.get("class") in {"failover", "blackout", "failback"}]
    assert [bar.get("class") for bar in bars] == ["failover", "blackout", "failback"]
    ends = [float(bar.get("x", 0)) + float(bar.get("width", 0)) for bar in bars]
    assert [float(bar.get("x", 0)) for bar in bars[1:]] == pytest.approx(ends[:-1], abs=0.2)
    assert "bond: failover 100 ms" in titles(to_guest)


def test_one_bar_that_dwarfs_the_others_is_cut(lab: Lab, tmp_path: Path, said: list[str]) -> None:
    out = tmp_path / "bench"
    run(a_plan(BOND, VIRTIO, PATCHED), out, said)
    result = read(out)
    result["cells"][0]["figures"]["gap_failover_to_guest_ms"]["median"] = 15_000.0
    to_guest = plots(page(result, out))[0]
    assert len([e for e in to_guest.iter() if e.get("class") == "cut"]) == 1
    labels = [e.text or "" for e in to_guest.iter() if e.tag.endswith("text")]
    assert len([text for text in labels if text.startswith("15,000 + ")]) == 1


def test_time_lines_begin_at_migrate_one_for_each_cell(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    out = tmp_path / "bench"
    run(a_plan(BOND, PATCHED), out, said)
    lines = plots((out / bench.PAGE).read_text())[2]
    told = titles(lines)
    assert told.count("STOP to RESUME, 100 ms") == 2
    assert told.count("20 lost to guest, +0.10 to +0.19 s") == 2
    assert "to guest by the primary, -3.00 to +0.10 s" in told


def test_a_page_shows_what_was_not_measured_as_that(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    lab.behave(FAIL_BOND)
    out = tmp_path / "bench"
    run(a_plan(BOND, cost_kinds=("bond",)), out, said)
    text = (out / bench.PAGE).read_text()
    assert "not measured: no answer from the guest; see | its &lt;console&gt;" in text
    assert f"{run_folder(BOND, 1)}/log.txt" in Outline(text).links


def test_what_grows_is_drawn_as_a_line_of_cells_that_differ_in_it_only(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    big = replace(PATCHED, ram_mib=2048)
    out = tmp_path / "bench"
    run(a_plan(PATCHED, big, BOND, replace(PATCHED, pairs=4), replace(big, tcp=True)), out, said)
    cells = read(out)["cells"]
    memory, pairs = growth.AXES
    assert [
        (curve.name, [cell["name"] for cell in curve.cells])
        for axis in (memory, pairs)
        for curve in growth.curves(cells, axis)
    ] == [
        ("vnet-standby, patched", [PATCHED.name, big.name]),
        ("vnet-standby, patched", [PATCHED.name, replace(PATCHED, pairs=4).name]),
    ]
    text = (out / bench.PAGE).read_text()
    assert "As memory grows (flat)" in text
    assert f"{run_folder(big, 1)}/report.html" in Outline(text).links
    told = [title for plot in plots(text) for title in titles(plot)]
    assert "vnet-standby, patched: 20 probes at 2,048" in told
    assert "vnet-standby, patched: 20 probes at 4" in told


def test_a_larger_cell_stands_beside_its_like_in_the_tables(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    big, many = replace(PATCHED, ram_mib=2048), replace(PATCHED, pairs=4)
    text = markdown(run(a_plan(PATCHED, big, many, BOND), tmp_path / "bench", said), ".")
    main, memory, pairs = re.split(r"^As .* (?:grows|are added):$", text, flags=re.MULTILINE)
    for cell in (big, many):
        assert cell.name not in main
    records = f"| [vnet-standby, patched](runs/{PATCHED.name}) | patched"
    assert f"{records} | 512 | 20 |" in memory
    assert f"{records} | 1 | 20 |" in pairs
    assert f"| [vnet-standby, patched](runs/{big.name}) | patched | 2,048 | 20 |" in memory
    assert f"| [vnet-standby, patched](runs/{many.name}) | patched | 4 | 20 |" in pairs


def test_standard_has_each_cell_once_and_lines_of_all_sizes() -> None:
    preset = PRESETS["standard"]
    cells = [asdict(cell) for cell in expand(preset.blocks, Wishes())]
    memory, pairs = growth.AXES
    sizes = {
        (curve.topology, curve.name): [cell["ram_mib"] for cell in curve.cells]
        for curve in growth.curves(cells, memory)
    }
    assert sizes == {
        ("flat", "net-failover"): [512, 1024, 2048],
        ("flat", "vnet-standby, patched"): [512, 1024, 2048],
        ("nested", "net-failover, nested"): [256, 1024],
        ("nested", "vnet-standby, patched, nested"): [256, 1024],
        ("nested", "net-failover, patched QEMU, nested"): [256, 1024],
    }
    for curve in growth.curves(cells, pairs):
        assert [cell["pairs"] for cell in curve.cells] == [1, 4, 16]


def test_a_line_that_was_not_measured_is_named_as_that(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    lab.behave(FAIL_BOND)
    out = tmp_path / "bench"
    cells = [replace(cell, ram_mib=ram) for cell in (BOND, PATCHED) for ram in (512, 1024)]
    run(a_plan(*cells), out, said)
    grown = [
        plot
        for plot in plots((out / bench.PAGE).read_text())
        if "against" in plot.get("aria-label", "")
    ]
    assert grown
    for plot in grown:
        labels = [e.text for e in plot.iter() if e.get("class") == "lane"]
        assert "not measured: bond" in labels
        assert len([e for e in plot.iter() if e.tag.endswith("circle")]) == 2


# Two results


def figure(low: float, high: float) -> dict[str, Any]:
    return {"median": (low + high) / 2, "min": low, "max": high, "values": []}


@pytest.mark.parametrize(
    ("a", "b", "noise", "expected"),
    [
        (figure(10, 20), figure(25, 30), 4.9, "worse"),
        (figure(10, 20), figure(25, 30), 5.0, "within noise"),
        (figure(25, 30), figure(10, 20), 4.9, "better"),
        (figure(10, 20), figure(15, 30), 0.0, "within noise"),
        (figure(5, 5), figure(0, 0), 4.0, "better"),
        (figure(5, 5), {"not_measured": "it failed"}, 0.0, "not measured"),
        ({"not_measured": "it failed"}, figure(5, 5), 0.0, "not measured"),
    ],
)
def test_figures_differ_if_their_ranges_are_apart_by_more_than_noise(
    a: dict[str, Any], b: dict[str, Any], noise: float, expected: str
) -> None:
    assert outcome(a, b, noise) == expected


def test_more_throughput_is_better() -> None:
    assert outcome(figure(1, 2), figure(3, 4), 0.0, "more") == "better"
    assert outcome(figure(3, 4), figure(1, 2), 0.0, "more") == "worse"


def test_noise_counts_in_the_unit_of_the_measure(lab: Lab, tmp_path: Path, said: list[str]) -> None:
    """A noise floor of 12 ms is 2.4 probes at 200 a second, 0.012 s, and nothing to instructions."""
    a = run(a_plan(BOND, cost_kinds=("bond",)), tmp_path / "bench", said)
    b = read(tmp_path / "bench")
    b["cells"][0]["figures"] |= {
        "noise_floor_ms": figure(12, 12),
        "lost_to_guest": figure(22.3, 22.3),
        "lost_failover_to_guest": figure(22.5, 22.5),
        "downtime_ms": figure(53, 53),
        "stop_to_resume_ms": figure(113, 113),
        "agent_peak_mib": figure(21, 21),
    }
    b["costs"]["kinds"]["bond"]["send_total"] = figure(6499, 6499)
    assert {(d.measure, d.outcome) for d in differences(a, b) if d.a != d.b} == {
        ("lost to guest", "within noise"),
        ("lost to guest in the failover", "worse"),
        ("downtime as QEMU reports it", "within noise"),
        ("STOP to RESUME, from outside", "worse"),
        ("peak memory of the host agent", "worse"),
        ("instructions to send a packet", "better"),
    }
    assert "B is" in comparison(a, b)


def test_a_result_against_itself_does_not_differ(lab: Lab, tmp_path: Path, said: list[str]) -> None:
    result = run(a_plan(BOND), tmp_path / "bench", said)
    assert "nothing differs beyond noise" in comparison(result, result)


def test_a_comparison_tells_of_another_ground_and_of_cells_that_one_lacks(
    lab: Lab, tmp_path: Path, said: list[str]
) -> None:
    a = run(a_plan(BOND, VIRTIO), tmp_path / "bench", said)
    b = {**a, "ground": {**a["ground"], "host kernel": "6.13"}, "cells": a["cells"][:1]}
    told = comparison(a, b).splitlines()
    assert "differs: host kernel: 6.12 | 6.13" in told
    assert told[-1] == "only in A: virtio"


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": 2}')
    with pytest.raises(VnetStandbyError, match=r"no result of a bench with schema 1"):
        read(tmp_path / "x.json")
    with pytest.raises(VnetStandbyError, match=r"no result of a bench"):
        read(tmp_path)
