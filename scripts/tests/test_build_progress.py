# SPDX-License-Identifier: GPL-2.0-or-later
"""Long and short commands: what is shown, what is kept, and what a failure says."""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from vnet_standby.build import commands, progress
from vnet_standby.errors import VnetStandbyError


def shell(script: str, log: Path, timeout_s: float = 20) -> None:
    progress.run_logged(["sh", "-c", script], title="trying", log=log, timeout_s=timeout_s)


def test_output_goes_to_the_log_and_progress_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell("echo out; echo err >&2", tmp_path / "logs/x.log")
    assert (tmp_path / "logs/x.log").read_text() == "out\nerr\n"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "trying ...\ntrying: done (0:00)\n"


def test_failure_names_the_telling_line_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with pytest.raises(VnetStandbyError) as caught:
        shell("echo 'a.c:1:2: error: no semicolon'; echo 'ninja: build stopped'; exit 1", log)
    assert str(caught.value) == f"trying failed: a.c:1:2: error: no semicolon (log: {log})"


def test_missing_program_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match=r"^trying failed: no-such-tool is not installed$"):
        progress.run_logged(["no-such-tool"], title="trying", log=tmp_path / "x", timeout_s=1)


def test_full_disk_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match=r"^trying failed: the disk is full"):
        shell("echo 'as: error: x.o: No space left on device'; exit 1", tmp_path / "x.log")
    with (
        pytest.raises(VnetStandbyError, match=r"^the disk is full"),
        progress.full_disk_named(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(VnetStandbyError, match=r"^trying failed: no end after 0 s \(log: "):
        shell(f"sleep 60 & echo $$ $! > {pids}; wait", tmp_path / "x.log", timeout_s=0.2)
    assert all(not alive(int(pid)) for pid in pids.read_text().split())


def test_interrupt_ends_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            shell(f"sleep 60 & echo $$ $! > {pids}; wait", tmp_path / "x.log")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(not alive(int(pid)) for pid in pids.read_text().split())


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended may still wait to be reaped by its new parent."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_a_background_process_that_keeps_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    shell("setsid sleep 3 & echo started", tmp_path / "x.log")
    assert time.monotonic() - started < 2.5


def test_ninjas_steps_are_shown_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_QUIET_S", 0.1)
    shell("echo '[1/20] compiling'; sleep 0.3; echo '[12/20] compiling'; sleep 0.2", tmp_path / "x")
    assert "trying ... 0:00 [12/20]\n" in capsys.readouterr().err


def test_our_python_comes_first_in_path() -> None:
    folders = commands.environment()["PATH"].split(os.pathsep)
    assert folders[0] == str(Path(sys.executable).parent)
    assert folders[-1] == "/sbin"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cc1: all\nx.c:1:1: error: bad\nninja: error: stopped", "x.c:1:1: error: bad"),
        ("noise\n../meson.build:9:3: ERROR: Dependency not found\nmore", None),
        ("W: old\nE: Failed to fetch it  Temporary failure resolving\n", None),
        ("ok 1 /a\nnot ok 2 /b\nBail out! ERROR:t.c:5:f: assertion failed", None),
        ("fatal: not a git repository", "fatal: not a git repository"),
        ("only\nthis\n\n", "this"),
        ("", "it said nothing"),
    ],
)
def test_telling_line(text: str, line: str | None) -> None:
    expected = line or next(x for x in text.splitlines() if "ERROR:" in x or x.startswith("E: "))
    assert commands.telling_line(text) == expected


def test_short_command_failure() -> None:
    with pytest.raises(VnetStandbyError, match=r"^looking failed: fatal: x$"):
        commands.output(["sh", "-c", "echo 'fatal: x' >&2; exit 3"], what="looking")
    with pytest.raises(VnetStandbyError, match=r"^looking failed: no end after 0 s$"):
        commands.output(["sleep", "5"], what="looking", timeout_s=0.1)
