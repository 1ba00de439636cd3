# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of an avocado job."""

import json
from pathlib import Path

import pytest

from vnet_standby.errors import VnetStandbyError
from vnet_standby.report.suite import summary


def job(folder: Path, *statuses: str) -> Path:
    tests = [
        {"id": f"{i}-avocado-tests/test_x.py:X.test_{i}", "status": status, "time_elapsed": 1.5,
         "fail_reason": "went\nwrong", "logdir": "/logs"}
        for i, status in enumerate(statuses, start=1)
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"tests": tests}))
    return folder


def test_counts_by_outcome(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    job(first, "PASS", "ERROR", "CANCEL")
    job(second, "FAIL", "INTERRUPTED", "SKIP")
    text = summary([first, second])
    assert text.splitlines()[-1] == "1 passed, 3 failed, 2 skipped"
    assert all(len(line) <= 100 for line in text.splitlines() if "results" not in line)
    assert text.count("went") == 5


def test_a_job_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match="no results of avocado"):
        summary([tmp_path])
