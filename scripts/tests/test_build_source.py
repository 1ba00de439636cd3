# SPDX-License-Identifier: GPL-2.0-or-later
"""Importing a source from folders, tarballs and git; on a tree that has only QEMU's marks."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from vnet_standby.build import cache, source
from vnet_standby.errors import VnetStandbyError


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build = tmp_path / "build"
    sources = build / "source"
    monkeypatch.setattr(cache, "BUILD", build)
    monkeypatch.setattr(source, "LOGS", build / "logs")
    monkeypatch.setattr(source, "DOWNLOADS", build / "downloads")
    monkeypatch.setattr(source, "SOURCES", sources)
    monkeypatch.setattr(source, "REPOSITORY", sources / "git")
    monkeypatch.setattr(source, "STOCK_TREE", sources / "stock")
    monkeypatch.setattr(source, "PATCHED_TREE", sources / "patched")
    monkeypatch.setattr(source, "_IMPORTED", sources / "imported.json")
    return build


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A folder that looks like QEMU's source."""
    tree = tmp_path / "qemu-10.0.9"
    (tree / "hw/net").mkdir(parents=True)
    (tree / "subprojects/keycodemapdb").mkdir(parents=True)
    (tree / "VERSION").write_text("10.0.9\n")
    (tree / "meson.build").write_text("project('qemu')\n")
    (tree / "hw/net/virtio-net.c").write_text("int x;\n")
    (tree / "subprojects/.gitignore").write_text("/keycodemapdb\n")
    (tree / "subprojects/keycodemapdb/meson.build").write_text("map\n")
    (tree / "configure").write_text("#!/bin/sh\n")
    (tree / "configure").chmod(0o755)
    return tree


def git(tree: Path, *words: str) -> str:
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *settings, *words], cwd=tree, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit_all(tree: Path) -> Path:
    if not (tree / ".git").exists():
        git(tree, "init", "-q", "-b", "main")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "x")
    return tree


def tar(tree: Path) -> Path:
    tarball = tree.parent / "qemu.tar.xz"
    subprocess.run(["tar", "-C", tree.parent, "-cJf", tarball, tree.name], check=True)
    return tarball


def state(tree: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in tree.rglob("*"))


def test_a_folder_is_imported_as_it_is_and_left_alone(qemu: Path) -> None:
    before = state(qemu)
    imported = source.qemu_source(str(qemu))
    assert imported.version == "10.0.9"
    assert imported.origin == f"folder {qemu}"
    assert git(imported.tree, "rev-parse", "HEAD") == imported.commit
    assert git(imported.tree, "rev-parse", "HEAD^{tree}") == imported.identity
    assert (imported.tree / "configure").stat().st_mode & 0o111
    assert (imported.tree / "subprojects/keycodemapdb/meson.build").exists()
    assert state(qemu) == before


def test_equal_files_are_the_same_source_wherever_they_come_from(qemu: Path) -> None:
    tarball = tar(qemu)
    from_folder = source.qemu_source(str(qemu))
    from_tarball = source.qemu_source(str(tarball))
    assert from_tarball.commit == from_folder.commit
    assert from_tarball.identity == from_folder.identity
    assert from_tarball.origin == f"tarball {tarball}"


def test_a_tarball_is_unpacked_once(qemu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = tar(qemu)
    first = source.qemu_source(str(tarball))
    monkeypatch.setattr(source, "run_logged", lambda *_, **__: pytest.fail("unpacked again"))
    assert source.qemu_source(str(tarball)) == first


def test_a_git_checkout_is_imported_with_its_changes_and_without_what_git_ignores(
    qemu: Path,
) -> None:
    commit_all(qemu)
    clean = source.qemu_source(str(qemu))
    assert not (clean.tree / "subprojects/keycodemapdb").exists()
    (qemu / "hw/net/virtio-net.c").write_text("int changed;\n")
    (qemu / "hw/net/new.c").write_text("int added;\n")
    status, index = git(qemu, "status", "--porcelain"), (qemu / ".git/index").read_bytes()
    changed = source.qemu_source(str(qemu))
    assert changed.identity != clean.identity
    assert changed.origin.endswith("-dirty")
    assert (changed.tree / "hw/net/virtio-net.c").read_text() == "int changed;\n"
    assert (changed.tree / "hw/net/new.c").exists()
    assert (qemu / ".git/index").read_bytes() == index
    assert git(qemu, "status", "--porcelain") == status


def test_another_source_rewrites_only_what_differs(qemu: Path) -> None:
    tree = source.qemu_source(str(qemu)).tree
    before = {path: path.stat().st_mtime_ns for path in (tree / "configure", tree / "meson.build")}
    (qemu / "meson.build").write_text("project('other')\n")
    source.qemu_source(str(qemu))
    assert (tree / "configure").stat().st_mtime_ns == before[tree / "configure"]
    assert (tree / "meson.build").stat().st_mtime_ns != before[tree / "meson.build"]


def test_edits_and_crashes_in_the_generated_tree_are_mended(qemu: Path) -> None:
    imported = source.qemu_source(str(qemu))
    (imported.tree / "meson.build").write_text("edited\n")
    (imported.tree / "configure").unlink()
    (source.REPOSITORY / "worktrees/stock/index.lock").touch()
    source.qemu_source(str(qemu))
    assert (imported.tree / "meson.build").read_text() == "project('qemu')\n"
    assert (imported.tree / "configure").exists()


def test_a_moved_build_folder_is_made_anew(
    qemu: Path, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.qemu_source(str(qemu))
    moved = build.rename(build.with_name("moved"))
    for name, path in {"SOURCES": "", "REPOSITORY": "git", "STOCK_TREE": "stock"}.items():
        monkeypatch.setattr(source, name, moved / "source" / path)
    monkeypatch.setattr(source, "_IMPORTED", moved / "source/imported.json")
    monkeypatch.setattr(cache, "BUILD", moved)
    tree = source.qemu_source(str(qemu)).tree
    assert tree == moved / "source/stock"
    assert git(tree, "status", "--porcelain") == ""


def test_a_git_url_with_branch_tag_or_commit(qemu: Path, tmp_path: Path) -> None:
    commit_all(qemu)
    git(qemu, "tag", "-a", "-m", "x", "v10.0.9")
    (qemu / "VERSION").write_text("10.0.50\n")
    commit_all(qemu)
    url = f"file://{qemu}"
    assert source.qemu_source(url).version == "10.0.50"
    assert source.qemu_source(f"{url}#main").version == "10.0.50"
    tagged = source.qemu_source(f"{url}#v10.0.9")
    assert tagged.version == "10.0.9"
    commit = git(qemu, "rev-parse", "v10.0.9^{commit}")
    assert tagged.origin == f"{url}#v10.0.9 ({commit[:12]})"
    qemu.rename(tmp_path / "gone")
    assert source.qemu_source(f"{url}#{commit}").identity == tagged.identity


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no-such", "^no-such: no such folder, tarball or git URL$"),
        ("file:///no-such-repository", "^asking file:///no-such-repository for HEAD failed: fatal"),
    ],
)
def test_what_is_not_there(spec: str, message: str) -> None:
    with pytest.raises(VnetStandbyError, match=message):
        source.qemu_source(spec)


def test_a_branch_that_is_not_there(qemu: Path) -> None:
    commit_all(qemu)
    with pytest.raises(VnetStandbyError, match=r"#nope: the repository has no branch or tag nope$"):
        source.qemu_source(f"file://{qemu}#nope")


def test_what_is_not_qemu(qemu: Path, tmp_path: Path) -> None:
    (qemu / "VERSION").unlink()
    complaint = "is not a QEMU source tree: no VERSION$"
    with pytest.raises(VnetStandbyError, match=complaint):
        source.qemu_source(str(qemu))
    with pytest.raises(VnetStandbyError, match=complaint):
        source.qemu_source(str(tar(qemu)))
    commit_all(qemu)
    with pytest.raises(VnetStandbyError, match=complaint):
        source.qemu_source(f"file://{qemu}")
    (tmp_path / "text").write_text("no tarball")
    with pytest.raises(VnetStandbyError, match=r"^unpacking text failed: .*not look like a tar"):
        source.qemu_source(str(tmp_path / "text"))


def test_the_upstream_release_is_known_by_its_checksum(
    qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tarball = tar(qemu)
    monkeypatch.setattr(source, "archive_uri", lambda: None)
    monkeypatch.setattr(source, "UPSTREAM_URL", f"file://{tarball}")
    with pytest.raises(VnetStandbyError, match=r"is not what it was"):
        source.qemu_source(None)
    assert not list((source.DOWNLOADS).iterdir())
    sha256 = hashlib.sha256(tarball.read_bytes()).hexdigest()
    monkeypatch.setattr(source, "UPSTREAM_SHA256", sha256)
    imported = source.qemu_source(None)
    assert imported.origin == "upstream release qemu.tar.xz"
    os.unlink(tarball)
    assert source.qemu_source(None) == imported


def test_without_debians_source_the_first_problem_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network() -> source._Import:
        raise VnetStandbyError("fetching Debian's package lists failed")

    monkeypatch.setattr(source, "archive_uri", lambda: "http://mirror.example/debian/")
    monkeypatch.setattr(source, "_from_debian", no_network)
    monkeypatch.setattr(source, "UPSTREAM_URL", f"file://{tmp_path}/none.tar.xz")
    with pytest.raises(VnetStandbyError, match=r"^fetching Debian's package lists failed$"):
        source.qemu_source(None)
