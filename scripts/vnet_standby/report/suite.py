# SPDX-License-Identifier: GPL-2.0-or-later
"""What avocado jobs found, as a table that fits a terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vnet_standby.errors import VnetStandbyError

_PASSED = {"PASS", "WARN"}
_SKIPPED = {"SKIP", "CANCEL"}
_NAME_WIDTH = 58
_REASON_WIDTH = 90


def summary(jobs: Sequence[Path]) -> str:
    """A line a test, then the count of passed, failed and skipped ones.

    `jobs` are avocado jobs' results folders. Raises `VnetStandbyError` if one of them has no results in it.
    """
    tests = [test for job in jobs for test in _tests(job)]
    lines = [line for test in tests for line in _lines(test)]
    statuses = [test["status"] for test in tests]
    passed = sum(status in _PASSED for status in statuses)
    skipped = sum(status in _SKIPPED for status in statuses)
    failed = len(statuses) - passed - skipped
    lines += [f"results: {job.resolve() / 'results.html'}" for job in jobs]
    return "\n".join([*lines, f"{passed} passed, {failed} failed, {skipped} skipped"])


def _tests(job: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads((job / "results.json").read_text())["tests"])
    except (OSError, ValueError, KeyError) as error:
        raise VnetStandbyError(
            f"no results of avocado in {job}: {error}; see its job.log"
        ) from error


def _lines(test: dict[str, Any]) -> list[str]:
    name = test["id"].split("-", 1)[1].removeprefix("avocado-tests/")
    lines = [
        f"  {name:{_NAME_WIDTH}.{_NAME_WIDTH}} {test['status']:9} {float(test['time_elapsed']):6.1f} s"
    ]
    if test["status"] not in _PASSED:
        reason = str(test.get("fail_reason") or "no reason given").splitlines()[0]
        lines += [f"      {reason[:_REASON_WIDTH]}", f"      {test['logdir']}"]
    return lines
