# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a bench's jobs one after the other, each as the command that a user would give, and records how each ended.

A job that ended, well or not, has its record and is not run again; one that was interrupted has none.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vnet_standby.bench.load import others, usage
from vnet_standby.bench.plan import COST_FOLDER, Job
from vnet_standby.build.cache import fresh_folder, write_atomically
from vnet_standby.errors import VnetStandbyError

PROGRAM = (sys.executable, "-m", "vnet_standby")

RECORD = "bench.json"
LOG = "log.txt"

_END_S = 120  # an interrupted lab ends its VMs, and writes what it has
_ERROR = "vnet-standby: error: "
_GUESS_S: Mapping[str, float] = {"flat": 45, "nested": 150, COST_FOLDER: 150}
"""How long a job takes on two processors without KVM, until there are measurements."""


@dataclass(frozen=True)
class Record:
    """How a job ended."""

    status: Literal["measured", "failed"]
    reason: str
    """Why it failed; empty if it did not."""
    command: str
    began: str
    elapsed_s: float
    others_cpus: float
    """How many processors were busy with something else meanwhile."""


def read_record(folder: Path) -> Record | None:
    """The record of the job that has this folder; None if the job has not ended yet."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise VnetStandbyError(
            f"{path} is damaged: {error}; remove {folder} and resume the bench"
        ) from error


def run_all(jobs: Sequence[Job], out: Path, say: Callable[[str], None]) -> None:
    """Run the jobs that have no record yet."""
    records = {job.folder: read_record(out / job.folder) for job in jobs}
    for number, job in enumerate(jobs, start=1):
        if records[job.folder]:
            continue
        say(f"[{number}/{len(jobs)}] {job.title} (about {_spoken(time_left(jobs, records))} left)")
        record = run_job(job, out)
        records[job.folder] = record
        if record.status == "failed":
            say(f"    not measured: {record.reason}")


def time_left(jobs: Sequence[Job], records: Mapping[str, Record | None]) -> float:
    """How long (s) the jobs without a record will take, if they take as long as those like them that have one."""
    took: dict[str, list[float]] = {}
    for job in jobs:
        if (record := records[job.folder]) and record.status == "measured":
            took.setdefault(_like(job), []).append(record.elapsed_s)
    usual = {**_GUESS_S, **{like: sum(times) / len(times) for like, times in took.items()}}
    return sum(usual[_like(job)] for job in jobs if not records[job.folder])


def _like(job: Job) -> str:
    """The kind of job, as far as that decides how long it takes."""
    return COST_FOLDER if job.folder == COST_FOLDER else Path(job.folder).parts[1].split("-")[0]


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def run_job(job: Job, out: Path) -> Record:
    """Run a job and record how it ended; what an interrupted try has left is removed first."""
    folder = fresh_folder(out / job.folder)
    before, began = usage(), time.strftime("%Y-%m-%d %H:%M:%S")
    reason = _run(job, folder)
    after = usage()
    if not reason and not (folder / job.yields).exists():
        reason = f"it left no {job.yields}"
    record = Record(
        status="failed" if reason else "measured",
        reason=reason,
        command=shlex.join(["vnet-standby", *job.arguments]),
        began=began,
        elapsed_s=round(after.at - before.at, 1),
        others_cpus=round(others(before, after), 2),
    )
    write_atomically(folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")
    return record


def _run(job: Job, folder: Path) -> str:
    """Run a job's command; return why it failed, empty if it did not."""
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            # no lab outlives a bench that was killed; Ctrl-C is for the bench, which ends the lab in order
            ["setpriv", "--pdeathsig", "TERM", *PROGRAM, *job.arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(job.limit_s)
        except subprocess.TimeoutExpired:
            return f"it had not ended after {job.limit_s} s"
        finally:
            _end(process)
    return _why((folder / LOG).read_text(errors="replace"), status) if status else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _why(said: str, status: int) -> str:
    lines = said.strip().splitlines()
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    if errors:
        return errors[-1]
    last = lines[-1] if lines else "nothing"
    return f"it ended with status {status}; its last words: {last}"
