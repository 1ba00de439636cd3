# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a run as files in a folder."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vnet_standby.errors import VnetStandbyError
from vnet_standby.report.html import page
from vnet_standby.report.result import EVENTS, result_json
from vnet_standby.report.terminal import timeline
from vnet_standby.traffic.verdict import Verdict


@dataclass(frozen=True)
class Report:
    """The files that make up a report."""

    html: Path
    result: Path
    timeline: Path


def write(run_dir: Path, verdict: Verdict, out: Path) -> Report:
    """Write report.html, result.json and timeline.txt of the run recorded in `run_dir` to `out`.

    The result names its events as a file beside it: they are copied if `out` is another folder.
    Raises VnetStandbyError if a record can't be read, OSError if a file can't be written.
    """
    run, events = read_run(run_dir), read_events(run_dir)
    report = Report(out / "report.html", out / "result.json", out / "timeline.txt")
    texts = {
        report.html: page(verdict, events, run),
        report.result: result_json(verdict, run),
        report.timeline: timeline(verdict, events, run),
    }
    out.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    if not out.samefile(run_dir):
        shutil.copyfile(run_dir / EVENTS, out / EVENTS)
    return report


def read_run(run_dir: Path) -> dict[str, Any]:
    """Read run.json; raises VnetStandbyError if it is missing or damaged."""
    run = _parsed(run_dir / "run.json", _text(run_dir / "run.json"))
    return dict(run)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Read events.jsonl; raises VnetStandbyError if it is missing or damaged."""
    path = run_dir / EVENTS
    return [dict(_parsed(path, line)) for line in _text(path).split("\n") if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"can't read the run's record {path}: {error}; measure again"
        raise VnetStandbyError(message) from error


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"the run's record {path} is damaged: {error}; measure again"
        raise VnetStandbyError(message) from error
