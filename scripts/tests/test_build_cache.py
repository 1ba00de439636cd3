# SPDX-License-Identifier: GPL-2.0-or-later
"""Content hashes, stamps, and one run at a time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vnet_standby.build import cache
from vnet_standby.errors import VnetStandbyError


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "BUILD", tmp_path)
    return tmp_path


def test_digest_knows_where_a_part_ends() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("a") == cache.digest(b"a")


def test_folder_digest_sees_contents_names_and_modes(tmp_path: Path) -> None:
    file = tmp_path / "x"
    seen = set()
    for change in (
        lambda: file.write_text("1"),
        lambda: file.write_text("2"),
        lambda: file.chmod(0o755),
        lambda: file.rename(tmp_path / "y"),
    ):
        change()
        seen.add(cache.folder_digest(tmp_path))
    assert len(seen) == 4


def test_stamp(tmp_path: Path) -> None:
    stamp = cache.Stamp(tmp_path / "stamp")
    assert not stamp.matches("key")
    stamp.write("key")
    assert stamp.matches("key")
    assert not stamp.matches("other")
    stamp.clear()
    assert not stamp.matches("key")


def test_lock_nests() -> None:
    with cache.build_lock(), cache.build_lock():
        pass
    with cache.build_lock():
        pass


def test_a_build_folder_of_another_user_is_one_clear_line(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    complaint = r"can't be written by this user; remove it"
    with pytest.raises(VnetStandbyError, match=complaint), cache.build_lock():
        pytest.fail("the lock can't be opened")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_another_run_is_named_and_the_wait_is_bounded(
    holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    complaint = rf"^another run \(process {holder.pid}\) has held"
    with pytest.raises(VnetStandbyError, match=complaint), cache.build_lock(wait_s=0.3):
        pytest.fail("the lock is held by another process")
    assert f"waiting for another run that is building (process {holder.pid})" in (
        capsys.readouterr().err
    )


def test_the_lock_is_taken_once_the_other_run_ends(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    with cache.build_lock(wait_s=10):
        pass
