# SPDX-License-Identifier: GPL-2.0-or-later
"""Git as a build tool: the same result for everyone, whatever the user's settings, hooks and signing keys are."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from vnet_standby.build.commands import environment, output, run, telling_line
from vnet_standby.errors import VnetStandbyError

_IDENTITY = ("vnet-standby", "vnet-standby@localhost")
# the import of a source has no history to tell: one fixed date gives equal sources equal commits
_DATE = "2025-04-22T00:00:00+0000"

# given on the command line, where they win over any file
_SETTINGS = {
    "safe.directory": "*",  # a checkout may belong to another user than the one who builds
    "advice.detachedHead": "false",
    "advice.addEmbeddedRepo": "false",
    "am.keepcr": "false",
    "am.threeWay": "false",
    "apply.whitespace": "nowarn",
    "apply.ignoreWhitespace": "no",
    "commit.gpgSign": "false",
    "core.abbrev": "12",
    "core.autocrlf": "false",
    "core.compression": "0",  # a source tree is imported once and read from a disk at hand
    "core.fsmonitor": "false",
    "core.fsync": "none",
    "core.hooksPath": "/dev/null",
    "core.quotePath": "true",
    "gc.auto": "0",
}


def git_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for git: no variables of a git that may have called us, no system and user settings."""
    inherited = {name: "" for name in os.environ if name.startswith("GIT_")}
    env = environment(
        {
            **inherited,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": _IDENTITY[0],
            "GIT_AUTHOR_EMAIL": _IDENTITY[1],
            "GIT_AUTHOR_DATE": _DATE,
            "GIT_COMMITTER_NAME": _IDENTITY[0],
            "GIT_COMMITTER_EMAIL": _IDENTITY[1],
            "GIT_COMMITTER_DATE": _DATE,
            **(extra or {}),
        }
    )
    return {name: value for name, value in env.items() if value or not name.startswith("GIT_")}


def git_command(*arguments: str | Path) -> list[str]:
    """Return the command line for git with our settings."""
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    return ["git", *settings, *map(str, arguments)]


def git(
    *arguments: str | Path,
    cwd: Path,
    what: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_s: float = 300,
) -> str:
    """Run git in `cwd` and return its output without the last line's end; a failure names `what` was tried."""
    argv = git_command(*arguments)
    return output(
        argv, what=what, cwd=cwd, env=git_environment(env), stdin=stdin, timeout_s=timeout_s
    ).rstrip("\n")


def git_try(
    *arguments: str | Path, cwd: Path, what: str, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run git in `cwd`; the caller judges its exit status."""
    argv = git_command(*arguments)
    return run(argv, what=what, cwd=cwd, env=git_environment(), timeout_s=timeout_s)


def require_work_tree(tree: Path) -> None:
    """Refuse what isn't the top of a git work tree."""
    if not tree.is_dir():
        raise VnetStandbyError(f"{tree}: no such folder")
    result = git_try("rev-parse", "--show-prefix", cwd=tree, what="looking at the tree")
    if result.returncode != 0:
        raise VnetStandbyError(f"{tree} is not a git work tree: {telling_line(result.stderr)}")
    if result.stdout.strip():
        raise VnetStandbyError(f"{tree} is inside another git work tree; give that one's top")
