# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's source from wherever it comes, as one commit in a git repository of ours.

Every kind of source (folder, tarball, git URL, Debian's source package, the upstream release) is imported into
build/source/git as a parentless commit that is a function of the files alone. Two work trees with fixed places look
into it, `stock` and `patched`: they only ever get the files that differ written anew, so that a build in them stays
incremental across sources and series. Both are generated; edits in them are overwritten.
"""

import hashlib
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.build import packages
from vnet_standby.build.apt import archive_uri, private_apt
from vnet_standby.build.cache import (
    build_lock,
    digest,
    file_sha256,
    fresh_folder,
    write_atomically,
)
from vnet_standby.build.git import git, git_command, git_environment, git_try
from vnet_standby.build.progress import full_disk_named, require_space, run_logged, say
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD, LOGS

SOURCES = BUILD / "source"
DOWNLOADS = BUILD / "downloads"
REPOSITORY = SOURCES / "git"
STOCK_TREE = SOURCES / "stock"
PATCHED_TREE = SOURCES / "patched"

UPSTREAM_URL = "https://download.qemu.org/qemu-10.0.2.tar.xz"
UPSTREAM_SHA256 = "ef786f2398cb5184600f69aef4d5d691efd44576a3cff4126d38d4c6fec87759"

_IMPORTED = SOURCES / "imported.json"
_MARKS = ("VERSION", "configure", "meson.build", "hw/net/virtio-net.c")
# firmware sources are three quarters of a release's files and no part of the build; .pc is quilt's scratch
_LEFT_OUT = ("roms", ".pc")
_URL = re.compile(r"^(?:[a-z+]+://|[\w.-]+@[\w.-]+:)")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_FETCH_TIMEOUT_S = 1800
_STALL_S = 60
_SPACE_MIB = 1000  # a source unpacked, imported and checked out


@dataclass(frozen=True)
class QemuSource:
    """An imported source: `tree` is a git work tree whose HEAD is `commit`."""

    tree: Path
    commit: str
    identity: str  # git's hash of the files: equal for equal files, wherever they came from
    version: str
    origin: str  # for people


@dataclass(frozen=True)
class _Import:
    commit: str
    origin: str


def qemu_source(spec: str | None) -> QemuSource:
    """Import QEMU's source and check it out in `STOCK_TREE`.

    `spec` is a folder (as it is, with changes that aren't committed, without what git ignores), a tarball, a git URL
    with an optional `#branch-tag-or-commit`, or None for Debian's source package, and the upstream release where there
    is none. A source that was imported before needs no network, except a URL, whose branch may have moved.
    """
    with build_lock(), full_disk_named(SOURCES):
        _ensure_repository()
        imported = _import(spec)
        tree = check_out(STOCK_TREE, imported.commit)
        show = "reading the imported source"
        return QemuSource(
            tree=tree,
            commit=imported.commit,
            identity=git("rev-parse", f"{imported.commit}^{{tree}}", cwd=REPOSITORY, what=show),
            version=(tree / "VERSION").read_text().strip(),
            origin=imported.origin,
        )


def check_out(tree: Path, commit: str) -> Path:
    """Make `tree` a work tree of `REPOSITORY` at `commit`; files that stay the same keep their time stamps."""
    if not _is_ours(tree):
        _add_work_tree(tree, commit)
    what = f"checking out {tree.name}"
    head = git("rev-parse", "HEAD", cwd=tree, what=what)
    clean = git_try("diff-index", "--quiet", "HEAD", cwd=tree, what=what).returncode == 0
    if head != commit or not clean:
        git("checkout", "--quiet", "--force", "--detach", commit, cwd=tree, what=what)
        git("clean", "-dfq", cwd=tree, what=what)
    return tree


def _is_ours(tree: Path) -> bool:
    if not (tree / ".git").is_file():
        return False
    _remove_stale_locks(tree)
    common = git_try("rev-parse", "--git-common-dir", cwd=tree, what=f"looking at {tree.name}")
    # it isn't after the checkout was moved or copied: git writes absolute paths into work trees
    return common.returncode == 0 and Path(common.stdout.strip()).resolve() == REPOSITORY.resolve()


def _remove_stale_locks(tree: Path) -> None:
    # a killed git leaves its lock files; whoever is here holds the build lock, so nobody uses them
    for lock in (REPOSITORY / "worktrees" / tree.name).glob("*.lock"):
        lock.unlink()


def _add_work_tree(tree: Path, commit: str) -> None:
    what = f"making the work tree {tree.name}"
    shutil.rmtree(tree, ignore_errors=True)
    git("worktree", "prune", cwd=REPOSITORY, what=what)
    git("worktree", "add", "--no-checkout", "--detach", tree, commit, cwd=REPOSITORY, what=what)
    git("checkout", "--quiet", "--force", cwd=tree, what=what)


def _ensure_repository() -> None:
    if shutil.which("git") is None:
        packages.require("qemu")
    if not (REPOSITORY / "HEAD").is_file():
        fresh_folder(REPOSITORY)
        git("init", "--quiet", "--bare", cwd=REPOSITORY, what="making a repository for the source")


def _import(spec: str | None) -> _Import:
    if spec is None:
        return _default_source()
    if _URL.match(spec):
        return _from_url(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path.resolve())
    if path.is_file():
        return _from_tarball(path.resolve(), f"tarball {path}")
    raise VnetStandbyError(f"{spec}: no such folder, tarball or git URL")


def _default_source() -> _Import:
    known = _known("default")
    if known:
        return known
    packages.require("qemu")
    if archive_uri() is None:
        return _remember("default", _upstream_release())
    try:
        return _remember("default", _from_debian())
    except VnetStandbyError as problem:
        # some mirrors carry no sources
        say(f"Debian's source package can't be had ({problem}); trying the upstream release")
        try:
            return _remember("default", _upstream_release())
        except VnetStandbyError:
            raise problem from None


def _from_debian() -> _Import:
    require_space(SOURCES, _SPACE_MIB)
    tree = private_apt().source("qemu", DOWNLOADS)
    changelog = (tree / "debian" / "changelog").read_text(errors="replace")
    version = changelog.partition("(")[2].partition(")")[0]
    imported = _import_unpacked(tree, f"Debian's qemu {version}")
    shutil.rmtree(tree)
    return imported


def _upstream_release() -> _Import:
    tarball = DOWNLOADS / UPSTREAM_URL.rpartition("/")[2]
    if not tarball.exists():
        _download(UPSTREAM_URL, UPSTREAM_SHA256, tarball)
    return _from_tarball(tarball, f"upstream release {tarball.name}")


def _download(url: str, sha256: str, into: Path) -> None:
    say(f"downloading {into.name} ...")
    into.parent.mkdir(parents=True, exist_ok=True)
    draft = into.with_suffix(".part")
    total = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_STALL_S) as answer, draft.open("wb") as file:  # noqa: S310 - the address is ours
            while chunk := answer.read(1 << 20):
                total.update(chunk)
                file.write(chunk)
        if total.hexdigest() != sha256:
            raise VnetStandbyError(f"{url} is not what it was (SHA-256 {total.hexdigest()})")
        draft.replace(into)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as problem:
        raise VnetStandbyError(f"downloading {url} failed: {problem}") from None
    finally:
        draft.unlink(missing_ok=True)


def _from_tarball(tarball: Path, origin: str) -> _Import:
    key = f"tarball {file_sha256(tarball)}"
    known = _known(key)
    if known:
        return known
    require_space(SOURCES, _SPACE_MIB)
    unpacked = fresh_folder(SOURCES / "unpacked")
    try:
        run_logged(
            ["tar", "-xf", tarball, "-C", unpacked, "--no-same-owner"],
            title=f"unpacking {tarball.name}",
            log=LOGS / "unpack.log",
            timeout_s=600,
        )
        tops = list(unpacked.iterdir())
        tree = tops[0] if len(tops) == 1 and tops[0].is_dir() else unpacked
        _require_qemu(tree, str(tarball))
        return _remember(key, _import_unpacked(tree, origin))
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _from_folder(folder: Path) -> _Import:
    _require_qemu(folder, str(folder))
    if not (folder / ".git").exists():
        return _import_files(folder, f"folder {folder}", ignored_too=True)
    described = git_try(
        "describe", "--always", "--tags", "--dirty", cwd=folder, what=f"describing {folder}"
    )
    at = f" at {described.stdout.strip()}" if described.returncode == 0 else ""
    return _import_files(folder, f"git checkout {folder}{at}", ignored_too=False)


def _from_url(spec: str) -> _Import:
    url, _, ref = spec.partition("#")
    commit = ref if _COMMIT.match(ref) else _resolve(url, ref or "HEAD", spec)
    key = f"git {commit}"
    known = _known(key)
    if known:
        return known
    argv = git_command("fetch", "--depth=1", "--no-tags", "--progress", url, ref or "HEAD")
    run_logged(
        argv,
        title=f"fetching {spec}",
        log=LOGS / "fetch.log",
        cwd=REPOSITORY,
        env=git_environment(_network_settings()),
        timeout_s=_FETCH_TIMEOUT_S,
    )
    reading = "reading what was fetched"
    tree = git("rev-parse", "FETCH_HEAD^{tree}", cwd=REPOSITORY, what=reading)
    names = git("ls-tree", "-r", "--name-only", tree, cwd=REPOSITORY, what=reading).splitlines()
    _refuse_unless_qemu(lambda mark: mark in names, spec)
    return _remember(key, _commit(tree, f"{spec} ({commit[:12]})"))


def _resolve(url: str, ref: str, spec: str) -> str:
    """Return the commit that a branch or tag of a remote repository stands for."""
    what = f"asking {url} for {ref}"
    listing = git(
        "ls-remote", url, ref, f"{ref}^{{}}", cwd=REPOSITORY, what=what, env=_network_settings()
    )
    found = {name: commit for commit, name in (line.split("\t") for line in listing.splitlines())}
    if not found:
        raise VnetStandbyError(f"{spec}: the repository has no branch or tag {ref}")
    # an annotated tag has a second line, for the commit that it names
    peeled = [commit for name, commit in found.items() if name.endswith("^{}")]
    return (peeled or list(found.values()))[0]


def _network_settings() -> dict[str, str]:
    """Return what lets git use the user's proxies, keys and credentials, which a fetch may need."""
    own = ("GIT_ASKPASS", "GIT_CONFIG", "GIT_HTTP", "GIT_PROXY", "GIT_SSH", "GIT_SSL")
    users = {name: value for name, value in os.environ.items() if name.startswith(own)}
    return {"GIT_CONFIG_NOSYSTEM": "", "GIT_CONFIG_GLOBAL": "", **users}


def _require_qemu(tree: Path, name: str) -> None:
    _refuse_unless_qemu(lambda mark: (tree / mark).is_file(), name)


def _refuse_unless_qemu(has: Callable[[str], bool], name: str) -> None:
    absent = [mark for mark in _MARKS if not has(mark)]
    if absent:
        raise VnetStandbyError(f"{name} is not a QEMU source tree: no {', no '.join(absent)}")


def _import_unpacked(tree: Path, origin: str) -> _Import:
    say(f"importing {origin} ...")
    return _import_files(tree, origin, ignored_too=True)


def _import_files(folder: Path, origin: str, *, ignored_too: bool) -> _Import:
    """Commit the files of a folder to our repository; nothing is written to the folder.

    The index stays, one for each folder, so that the next import of it reads only what changed.
    """
    index = SOURCES / f"index-{digest(str(folder))[:12]}"
    index.with_name(f"{index.name}.lock").unlink(missing_ok=True)
    # meson's own downloads are repositories; git would record them as submodules, empty on checkout
    nested = [f"subprojects/{path.parent.name}" for path in folder.glob("subprojects/*/.git")]
    left_out = [f":(exclude){name}" for name in (*_LEFT_OUT, *nested)]
    force = ["--force"] if ignored_too else []
    where = (f"--git-dir={REPOSITORY}", f"--work-tree={folder}")
    env = {"GIT_INDEX_FILE": str(index)}
    what = f"importing {folder}"
    git(*where, "add", "--all", *force, "--", ".", *left_out, cwd=folder, what=what, env=env)
    tree = git(*where, "write-tree", cwd=folder, what=what, env=env)
    return _commit(tree, origin)


def _commit(tree: str, origin: str) -> _Import:
    """Commit a tree so that equal trees give equal commits, and keep it from being collected."""
    what = "recording the source"
    commit = git("commit-tree", "-m", "QEMU source", tree, cwd=REPOSITORY, what=what)
    git("update-ref", f"refs/sources/{tree}", commit, cwd=REPOSITORY, what=what)
    return _Import(commit, origin)


def _known(key: str) -> _Import | None:
    entry = _read_imported().get(key)
    if entry is None:
        return None
    known = _Import(entry["commit"], entry["origin"])
    there = git_try("cat-file", "-e", known.commit, cwd=REPOSITORY, what="looking for the source")
    return known if there.returncode == 0 else None


def _remember(key: str, imported: _Import) -> _Import:
    table = _read_imported()
    table[key] = {"commit": imported.commit, "origin": imported.origin}
    write_atomically(_IMPORTED, json.dumps(table, indent=1))
    return imported


def _read_imported() -> dict[str, dict[str, str]]:
    try:
        table: dict[str, dict[str, str]] = json.loads(_IMPORTED.read_text())
    except FileNotFoundError:
        return {}
    return table
