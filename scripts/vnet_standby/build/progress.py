# SPDX-License-Identifier: GPL-2.0-or-later
"""Long commands: progress for whoever waits, the whole output in a log, one clear line when one fails."""

import errno
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vnet_standby.build.commands import environment, failure
from vnet_standby.errors import VnetStandbyError

_NINJA = re.compile(rb"^\[(\d+)/(\d+)\]", re.MULTILINE)
_QUIET_S = 15
_QUIET_SHARE = 0.1
_QUIET_SHARE_S = 5  # ten percent can be a matter of moments
_TICK_S = 0.5
_GRACE_S = 5


def say(text: str) -> None:
    """Print a line of progress. It goes to standard error, which leaves standard output to results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn a full disk while files are written below `folder` into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise VnetStandbyError(
            f"the disk is full (writing below {folder}); free some space and run again"
        ) from error


def require_space(folder: Path, mib: int) -> None:
    """Refuse to begin what can't end: some tools, apt among them, wait for ever on a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free >> 20
    if free < mib:
        raise VnetStandbyError(
            f"the disk is nearly full: {free} MiB are free below {folder}, {mib} are needed; "
            "free some space and run again"
        )


class _Display:
    """How far a command is: one line rewritten in place on a terminal, now and then a line of its own elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        # a test runner may have put a stream of its own there, which knows no terminal
        self._tty = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
        self._said_at = self._started
        self._said_share = 0.0
        self._steps: tuple[int, int] | None = None
        if not self._tty:
            say(f"{title} ...")

    def feed(self, chunk: bytes) -> None:
        for match in _NINJA.finditer(chunk):
            self._steps = int(match[1]), int(match[2])

    def tick(self) -> None:
        if self._tty:
            # a line that wraps couldn't be rewritten
            line = self._line()[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            return
        now = time.monotonic()
        share = self._steps[0] / max(1, self._steps[1]) if self._steps else 0.0
        due = now - self._said_at >= _QUIET_S or (
            share - self._said_share >= _QUIET_SHARE and now - self._said_at >= _QUIET_SHARE_S
        )
        if due:
            self._said_at, self._said_share = now, share
            say(self._line())

    def close(self, outcome: str) -> None:
        print("\r\033[K" if self._tty else "", end="", file=sys.stderr)
        say(f"{self._title}: {outcome} ({self._elapsed()})")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes}:{seconds:02d}"

    def _line(self) -> str:
        steps = f" [{self._steps[0]}/{self._steps[1]}]" if self._steps else ""
        return f"{self._title} ... {self._elapsed()}{steps}"


def run_logged(
    argv: Sequence[str | Path],
    *,
    title: str,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float,
) -> None:
    """Run a long command with its output in `log`, showing progress under `title`.

    The command gets a process group of its own, which is ended as a whole on a timeout and on Ctrl-C. A failure is one
    line: what failed, the most telling line of the output, where the rest is.
    """
    with full_disk_named(log.parent):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            status = _run(argv, title, sink, cwd, env, timeout_s)
    if status != 0:
        raise failure(title, log.read_text(errors="replace"), f" (log: {log})")


def _run(
    argv: Sequence[str | Path],
    title: str,
    sink: IO[bytes],
    cwd: Path | None,
    env: Mapping[str, str] | None,
    timeout_s: float,
) -> int:
    display = _Display(title)
    try:
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            env=environment() if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError:
        display.close("failed")
        raise VnetStandbyError(f"{title} failed: {argv[0]} is not installed") from None
    outcome = "stopped"
    try:
        status = _follow(process, display, sink, timeout_s)
        outcome = "done" if status == 0 else "failed"
    except TimeoutError:
        outcome = "failed"
        raise VnetStandbyError(
            f"{title} failed: no end after {timeout_s:.0f} s (log: {sink.name})"
        ) from None
    finally:
        if outcome != "done":
            _end_group(process)
        if process.stdout is not None:
            process.stdout.close()
        display.close(outcome)
    return status


def _follow(
    process: subprocess.Popen[bytes], display: _Display, sink: IO[bytes], timeout_s: float
) -> int:
    """Copy the output to `sink` until the process ends; what it left in the background doesn't count."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_TICK_S):
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                sink.write(chunk)
                display.feed(chunk)
                if not chunk:
                    break
            elif process.poll() is not None:
                break
            display.tick()
            if time.monotonic() > deadline:
                raise TimeoutError
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started; the group can outlive its leader."""
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
