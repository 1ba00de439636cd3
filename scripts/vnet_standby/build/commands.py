# SPDX-License-Identifier: GPL-2.0-or-later
"""Running other programs: the environment they get, and short commands whose output is wanted."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vnet_standby.errors import VnetStandbyError


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for the tools that a build calls.

    Messages are in English because some are read by us; this Python's own folder (meson, ninja) comes first in PATH;
    the system folders come last because Debian leaves them out for ordinary users (depmod lives there).
    """
    path = os.environ.get("PATH", os.defpath)
    return {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), path, "/usr/sbin", "/sbin"]),
        **(extra or {}),
    }


def compiler() -> list[str]:
    """Return the command of the C compiler: the user's, if CC names one."""
    return os.environ.get("CC", "cc").split()


def compiler_version() -> str:
    """Return what the C compiler says that it is."""
    return output([*compiler(), "--version"], what="asking the compiler's version")


def output(
    argv: Sequence[str | Path],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_s: float = 120,
) -> str:
    """Run a short command and return its standard output; a failure is an error that starts with `what`."""
    result = run(argv, what=what, cwd=cwd, env=env, stdin=stdin, timeout_s=timeout_s)
    if result.returncode != 0:
        raise failure(what, result.stderr + result.stdout)
    return result.stdout


def run(
    argv: Sequence[str | Path],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a short command whose exit status the caller judges; only not running at all is an error."""
    try:
        result = subprocess.run(
            [str(word) for word in argv],
            cwd=cwd,
            env=environment() if env is None else env,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise VnetStandbyError(f"{what} failed: {argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise VnetStandbyError(f"{what} failed: no end after {timeout_s:.0f} s") from None
    return subprocess.CompletedProcess(
        result.args,
        result.returncode,
        result.stdout.decode(errors="replace"),
        result.stderr.decode(errors="replace"),
    )


def failure(what: str, text: str, note: str = "") -> VnetStandbyError:
    """Return the error for a command that failed after it said `text`."""
    if any(mark in text for mark in ("No space left on device", "Disk quota exceeded")):
        return VnetStandbyError(f"{what} failed: the disk is full; free some space and run again")
    return VnetStandbyError(f"{what} failed: {telling_line(text)}{note}")


# in order of how much a line of the kind says; the first such line counts, later ones are mostly its consequences
_TELLING = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(?:.*[: ])?error: .*$",
        r"^.*undefined reference.*$",
        r"^(?:Bail out! )?ERROR:.*$",  # a failed assertion of glib's test harness
        r"^not ok .*$",
        r"^(?:.* )?(?:E|ERROR|Error|fatal): .*$",
        r"^FAILED: .*$",
    )
)


def telling_line(text: str) -> str:
    """Return the one line of a failed command's output that says most about why."""
    for pattern in _TELLING:
        if match := pattern.search(text):
            return match[0].strip()
    lines = [line.strip() for line in text.splitlines() if "due to previous errors" not in line]
    return next((line for line in reversed(lines) if line), "it said nothing")
