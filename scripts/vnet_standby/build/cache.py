# SPDX-License-Identifier: GPL-2.0-or-later
"""What was built from what, so that nothing is built twice, and one run at a time in the build folder."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vnet_standby.build.progress import full_disk_named, say
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD

LOCK_WAIT_S = 1800


def digest(*parts: str | bytes) -> str:
    """Return one hash over all parts; where one part ends and the next begins counts."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Return a hash over the names, executable bits and contents of all files below `folder`."""
    parts: list[str | bytes] = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)))
        if path.is_symlink():
            parts.append(os.readlink(path))
        elif path.is_file():
            parts += [path.read_bytes(), str(os.access(path, os.X_OK))]
    return digest(*parts)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader, or a run after a crash, sees the old or the new content and nothing between."""
    with full_disk_named(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(data.encode() if isinstance(data, str) else data)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def fresh_folder(folder: Path) -> Path:
    """Return `folder`, made anew and empty."""
    if folder.exists():
        shutil.rmtree(folder)
    with full_disk_named(folder.parent):
        folder.mkdir(parents=True)
    return folder


class Stamp:
    """A file that says from what its neighbours were made; written last, removed before they change."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def matches(self, key: str) -> bool:
        """Tell whether the neighbours were made, completely, from what `key` stands for."""
        try:
            return self._path.read_text() == key
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Say that the neighbours are about to change."""
        self._path.unlink(missing_ok=True)

    def write(self, key: str) -> None:
        """Say that the neighbours are complete."""
        write_atomically(self._path, key)


class _Lock:
    depth = 0


@contextmanager
def build_lock(wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the build folder for this process; nested use is fine, another process waits, but not for ever."""
    if _Lock.depth:
        _Lock.depth += 1
        try:
            yield
        finally:
            _Lock.depth -= 1
        return
    lock = _open_lock()
    try:
        _acquire(lock, wait_s)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        _Lock.depth = 1
        yield
    finally:
        _Lock.depth = 0
        os.close(lock)


def _open_lock() -> int:
    with full_disk_named(BUILD):
        try:
            BUILD.mkdir(parents=True, exist_ok=True)
            return os.open(BUILD / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            raise VnetStandbyError(
                f"{BUILD} can't be written by this user; remove it, or use a checkout of your own"
            ) from None


def _acquire(lock: int, wait_s: float) -> None:
    # flock(2) has no timeout of its own, and an alarm would belong to the whole process: poll
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode() or "unknown"
            if time.monotonic() > deadline:
                raise VnetStandbyError(
                    f"another run (process {holder}) has held {BUILD} for {wait_s:.0f} s; end it or wait"
                ) from None
            if not told:
                say(f"waiting for another run that is building (process {holder}) ...")
                told = True
            time.sleep(0.2)
        else:
            return
