# SPDX-License-Identifier: GPL-2.0-or-later
"""A patch series as files: the list that orders them, putting them on a tree, and writing them from a tree."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.build.cache import digest, write_atomically
from vnet_standby.build.git import git, git_try, require_work_tree
from vnet_standby.build.progress import say
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import SERIES

_NUMBER = re.compile(r"^\d{4}-")
_STOPPED_AT = re.compile(r"^Patch failed at (\d+) ", re.MULTILINE)
_HUNK_FAILED = re.compile(r"^error: patch failed: (?P<file>.+):(?P<line>\d+)$", re.MULTILINE)
_ERROR = re.compile(r"^(?:error|fatal): (?P<reason>.+)$", re.MULTILINE)

# Where the tree stood before the series; each work tree has its own.
BASE_REF = "refs/worktree/vnet-standby-base"

# Everything that git's settings, its version or the number of objects could otherwise change in a patch file.
_FORMAT = (
    "--zero-commit",
    "--no-signature",
    "--no-numbered",
    "--no-thread",
    "--no-cover-letter",
    "--no-base",
    "--no-notes",
    "--no-signoff",
    "--no-attach",
    "--no-from",
    "--no-encode-email-headers",
    "--subject-prefix=PATCH",
    "--suffix=.patch",
    "--start-number=1",
    "--abbrev=12",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--diff-algorithm=myers",
    "--no-indent-heuristic",
    "--find-renames",
    "--unified=3",
    "--inter-hunk-context=0",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--submodule=short",
    "--patch",
    "--stat=72",
    "--summary",
)


@dataclass(frozen=True)
class Series:
    """The patches of a folder, in order."""

    folder: Path
    names: tuple[str, ...]

    def paths(self) -> list[Path]:
        """Return the patch files in order."""
        return [self.folder / name for name in self.names]

    def identity(self) -> str:
        """Return a hash over names, order and contents."""
        return digest(*(part for path in self.paths() for part in (path.name, path.read_bytes())))


def read_series(folder: Path = SERIES) -> Series:
    """Read `folder`/series: a patch file's name a line, `#` starts a comment."""
    names = [name for _, name in _entries(_series_text(folder)) if name]
    for name in names:
        if not (folder / name).is_file():
            raise VnetStandbyError(f"{folder / 'series'} names {name}, which isn't there")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise VnetStandbyError(f"{folder / 'series'} names {min(repeated)} more than once")
    return Series(folder, tuple(names))


def _series_text(folder: Path) -> str:
    try:
        return (folder / "series").read_text()
    except FileNotFoundError:
        raise VnetStandbyError(f"no patch series in {folder}: there is no file 'series'") from None


def _entries(text: str) -> list[tuple[list[str], str]]:
    """Split a series file into (comment lines before it, patch name); the last name is empty when comments end it."""
    entries = []
    comments: list[str] = []
    for line in text.splitlines():
        name = line.partition("#")[0].strip()
        if name:
            entries.append(([*comments, *_end_of_line_comment(line)], name))
            comments = []
        else:
            comments.append(line)
    if comments:
        entries.append((comments, ""))
    return entries


def _end_of_line_comment(line: str) -> list[str]:
    comment = line.partition("#")[2]
    return [f"#{comment}"] if comment else []


def put_on(tree: Path, series: Series) -> str:
    """Put the series on the commit that `tree` is at, as git am would, and return the last patch's commit.

    The same series on the same commit gives the same commits everywhere. When a patch doesn't fit, the tree is as it
    was and the error names the patch and the hunk.
    """
    _refuse_am_in_progress(tree)
    head = git("rev-parse", "HEAD", cwd=tree, what="reading the tree's commit")
    git("update-ref", BASE_REF, head, cwd=tree, what="noting the tree's commit")
    if not series.names:
        return head
    done = False
    try:
        result = git_try(
            "am",
            "--quiet",
            "--committer-date-is-author-date",
            "--no-gpg-sign",
            *(path.resolve() for path in series.paths()),
            cwd=tree,
            what="applying the series",
        )
        done = result.returncode == 0
    finally:
        if not done:
            git_try("am", "--abort", cwd=tree, what="undoing a part of the series")
    if not done:
        raise VnetStandbyError(_explain(series, result.stdout + "\n" + result.stderr))
    return git("rev-parse", "HEAD", cwd=tree, what="reading the tree's commit")


def _refuse_am_in_progress(tree: Path) -> None:
    for name in ("rebase-apply", "rebase-merge"):
        state = git("rev-parse", "--git-path", name, cwd=tree, what="looking at the tree")
        if (tree / state).exists():
            raise VnetStandbyError(
                f"{tree} is in the middle of a git am or rebase; finish or abort that"
            )


def refuse_changes(tree: Path) -> None:
    """Refuse a tree whose tracked files have changes that aren't committed."""
    git_try("update-index", "-q", "--refresh", cwd=tree, what="looking at the tree")
    changed = git("diff-index", "--name-only", "HEAD", cwd=tree, what="looking at the tree")
    if changed:
        raise VnetStandbyError(
            f"{tree} has changes that aren't committed ({changed.splitlines()[0]}); "
            "commit them or set them aside"
        )


def _explain(series: Series, said: str) -> str:
    """Return what git am's complaint means for the series: which patch, which file, which hunk."""
    stopped = _STOPPED_AT.search(said)
    if not stopped:
        error = _ERROR.search(said)
        reason = error["reason"] if error else said.strip().rpartition("\n")[2]
        return f"the series doesn't apply: {reason}"
    patch = series.paths()[int(stopped[1]) - 1]
    return f"the series doesn't fit this tree: {patch.name}: {_reason(patch, said)}"


def _reason(patch: Path, said: str) -> str:
    failed = _HUNK_FAILED.search(said)
    if failed:
        hunk = _hunk(patch.read_text(errors="replace"), failed["file"], int(failed["line"]))
        return f"{failed['file']}, hunk {hunk}"
    error = _ERROR.search(said)
    return error["reason"] if error else "git am refuses it"


def _hunk(patch: str, file: str, line: int) -> str:
    """Return the header of the hunk that git says starts at `line` of `file`."""
    of_file = re.split(r"^diff --git ", patch, flags=re.MULTILINE)[1:]
    for text in of_file:
        if f" b/{file}" in text.partition("\n")[0]:
            found = re.search(rf"^@@ -{line}(?:,\d+)? .*$", text, flags=re.MULTILINE)
            if found:
                return found[0]
    return f"at line {line}"


def apply(tree: Path, folder: Path = SERIES) -> str:
    """Apply the series to the user's own git tree and return the commit of its last patch."""
    require_work_tree(tree)
    refuse_changes(tree)
    series = read_series(folder)
    commit = put_on(tree, series)
    say(f"applied {len(series.names)} patches to {tree}; it is at {commit[:12]} now")
    return commit


def refresh(tree: Path, base: str | None = None, folder: Path = SERIES) -> tuple[str, ...]:
    """Write the commits of `tree` since `base` as the series and return the patch files' names.

    `base` is where `apply` found the tree when it isn't given. The same commits give the same bytes; patch files that
    no commit stands for any more go away, and comments in the series file stay with their patch.
    """
    require_work_tree(tree)
    refuse_changes(tree)
    base = base or BASE_REF
    if git_try(
        "cat-file", "-e", f"{base}^{{commit}}", cwd=tree, what="looking for the base"
    ).returncode:
        raise VnetStandbyError(
            f"{tree} doesn't know the commit that the series starts from; give it with --base"
            if base == BASE_REF
            else f"{tree} has no commit {base}"
        )
    if not git("rev-list", "--max-count=1", f"{base}..HEAD", cwd=tree, what="looking for patches"):
        raise VnetStandbyError(
            f"{tree} has no commit above {base}: nothing to export; apply the series first, or give another --base"
        )
    merges = git("rev-list", "--merges", f"{base}..HEAD", cwd=tree, what="looking for merges")
    if merges:
        raise VnetStandbyError(
            f"{merges.split()[0][:12]} is a merge; a series is a straight line of commits"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".refresh-") as scratch:
        git(
            "format-patch",
            *_FORMAT,
            "--output-directory",
            Path(scratch).resolve(),
            f"{base}..HEAD",
            cwd=tree,
            what="writing the series",
        )
        return _replace_patches(folder, Path(scratch))


def _replace_patches(folder: Path, exported: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in exported.iterdir())
    old = (folder / "series").read_text() if (folder / "series").exists() else ""
    for name in names:
        content = (exported / name).read_bytes()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            write_atomically(folder / name, content)
    write_atomically(folder / "series", rewrite_series(old, names))
    for path in folder.glob("[0-9][0-9][0-9][0-9]-*.patch"):
        if path.name not in names:
            path.unlink()
            say(f"removed {path.name}")
    return tuple(names)


def rewrite_series(old: str, names: list[str]) -> str:
    """Return a series file with `names`: the head of the old one, and each patch's comments, whatever its number."""
    entries = _entries(old)
    head: list[str] = []
    if entries:
        first, name = entries[0]
        # what ends with an empty line speaks about the whole series, the rest about the first patch
        end = max((i + 1 for i, line in enumerate(first) if not line.strip()), default=0)
        head = first[:end] if name else first
        entries[0] = (first[end:] if name else [], name)
    comments = {_NUMBER.sub("", name): lines for lines, name in entries}
    lines = list(head)
    for name in names:
        lines += [*comments.get(_NUMBER.sub("", name), []), name]
    if len(entries) > 1 and not entries[-1][1]:
        lines += entries[-1][0]
    return "".join(f"{line}\n" for line in lines)
