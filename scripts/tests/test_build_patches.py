# SPDX-License-Identifier: GPL-2.0-or-later
"""The series as files: applying, refreshing, and what is said when a patch doesn't fit. On a real, small git tree."""

import os
import subprocess
from pathlib import Path

import pytest

from vnet_standby.build import patches
from vnet_standby.errors import VnetStandbyError

LINES = [f"line {n}\n" for n in range(1, 41)]


def git(tree: Path, *words: str) -> str:
    """Git as an ordinary user of the tree runs it."""
    env = {**os.environ, "GIT_CONFIG_GLOBAL": str(tree.parent / "gitconfig")}
    return subprocess.run(
        ["git", *words], cwd=tree, env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


def change(tree: Path, line: int, text: str, subject: str) -> None:
    lines = (tree / "net.c").read_text().splitlines(keepends=True)
    lines[line - 1] = f"{text}\n"
    (tree / "net.c").write_text("".join(lines))
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", f"{subject}\n\nWhy {text}, with an umlaut: ü.")


def new_tree(tree: Path) -> Path:
    tree.mkdir()
    (tree.parent / "gitconfig").write_text("[user]\nname = Anna Ängström\nemail = a@example.org\n")
    git(tree, "init", "-q", "-b", "main")
    (tree / "net.c").write_text("".join(LINES))
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "base")
    return tree


@pytest.fixture
def developed(tmp_path: Path) -> Path:
    """A tree with two patches on its base, and a file that only the second one brings."""
    tree = new_tree(tmp_path / "developed")
    change(tree, 3, "first", "net: change a line")
    (tree / "new.c").write_text("new\n")
    change(
        tree,
        30,
        "second",
        "net: add a file, and a title that is much too long for a file's name of its own",
    )
    return tree


@pytest.fixture
def folder(tmp_path: Path, developed: Path) -> Path:
    folder = tmp_path / "v10.0"
    patches.refresh(developed, "main~2", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_apply_and_refresh_give_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    before = contents(folder)
    tree = new_tree(tmp_path / "fresh")
    patches.apply(tree, folder)
    assert patches.refresh(tree, None, folder) == patches.read_series(folder).names
    assert contents(folder) == before
    assert len(before) == 3


def test_equal_input_gives_equal_commits_despite_the_users_settings(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_tree(tmp_path / "one")
    subprocess.run(["git", "clone", "-q", one, tmp_path / "two"], check=True)
    two = tmp_path / "two"
    for setting in (
        "commit.gpgSign=true",
        "core.abbrev=5",
        "am.threeWay=true",
        "format.signOff=true",
    ):
        git(two, "config", *setting.split("="))
    for setting in ("diff.noprefix=true", "diff.algorithm=patience", "user.name=Someone"):
        git(two, "config", *setting.split("="))
    hook = two / ".git/hooks/applypatch-msg"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    first = patches.apply(one, folder)
    before = contents(folder)
    monkeypatch.setenv("GIT_COMMITTER_NAME", "Someone")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert patches.apply(two, folder) == first
    patches.refresh(two, None, folder)
    assert contents(folder) == before


def test_a_patch_that_does_not_fit_is_named_with_its_hunk_and_changes_nothing(
    tmp_path: Path, folder: Path
) -> None:
    tree = new_tree(tmp_path / "other")
    change(tree, 31, "someone else's", "net: other")
    head = git(tree, "rev-parse", "HEAD")
    with pytest.raises(VnetStandbyError) as caught:
        patches.apply(tree, folder)
    name = patches.read_series(folder).names[1]
    assert name.startswith("0002-net-add-a-file")
    assert str(caught.value) == (
        f"the series doesn't fit this tree: {name}: net.c, hunk @@ -27,7 +27,7 @@ line 26"
    )
    assert git(tree, "rev-parse", "HEAD") == head
    assert git(tree, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(tree, "status", "--porcelain") == ""
    assert not (tree / ".git/rebase-apply").exists()


def test_a_file_that_is_in_the_way_is_named(tmp_path: Path, folder: Path) -> None:
    tree = new_tree(tmp_path / "other")
    (tree / "new.c").write_text("mine\n")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "mine")
    with pytest.raises(VnetStandbyError, match=r"0002-.*: new.c: already exists in index$"):
        patches.apply(tree, folder)


def test_a_broken_patch_is_named(tmp_path: Path, folder: Path) -> None:
    first = folder / patches.read_series(folder).names[0]
    first.write_text(first.read_text().replace(" line 2\n", ""))
    with pytest.raises(
        VnetStandbyError, match=r"^the series doesn't fit this tree: 0001-.*corrupt"
    ):
        patches.apply(new_tree(tmp_path / "other"), folder)


def test_changes_that_are_not_committed_are_refused(tmp_path: Path, folder: Path) -> None:
    tree = new_tree(tmp_path / "other")
    (tree / "net.c").write_text("mine\n")
    with pytest.raises(VnetStandbyError, match=r"changes that aren't committed \(net.c\)"):
        patches.apply(tree, folder)
    assert (tree / "net.c").read_text() == "mine\n"


def test_what_is_not_a_tree_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(VnetStandbyError, match=r"no such folder$"):
        patches.apply(tmp_path / "none", folder)
    (tmp_path / "plain").mkdir()
    with pytest.raises(VnetStandbyError, match=r"plain is not a git work tree: fatal: "):
        patches.apply(tmp_path / "plain", folder)


def test_an_am_in_progress_is_left_alone(tmp_path: Path, folder: Path) -> None:
    tree = new_tree(tmp_path / "other")
    (tree / ".git/rebase-apply").mkdir()
    with pytest.raises(VnetStandbyError, match=r"in the middle of a git am"):
        patches.apply(tree, folder)
    assert (tree / ".git/rebase-apply").exists()


def test_refresh_removes_old_patches_and_keeps_comments(developed: Path, folder: Path) -> None:
    first, second = patches.read_series(folder).names
    (folder / "series").write_text(
        f"# the series\n\n# status of the first\n{first}\n# status of the second\n{second}\n# end\n"
    )
    git(developed, "reset", "-q", "--hard", "main~1")
    change(developed, 20, "between", "net: another one")
    names = patches.refresh(developed, "main~2", folder)
    assert names == (first, "0002-net-another-one.patch")
    assert (folder / "series").read_text() == (
        f"# the series\n\n# status of the first\n{first}\n0002-net-another-one.patch\n# end\n"
    )
    assert sorted(contents(folder)) == sorted([*names, "series"])


def test_refresh_needs_to_know_the_base(developed: Path, tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match=r"give it with --base$"):
        patches.refresh(developed, None, tmp_path / "x")
    with pytest.raises(VnetStandbyError, match=r"has no commit nonsense$"):
        patches.refresh(developed, "nonsense", tmp_path / "x")


def test_refresh_from_a_tree_without_the_series_keeps_the_series(
    developed: Path, folder: Path
) -> None:
    before = contents(folder)
    with pytest.raises(VnetStandbyError, match="nothing to export"):
        patches.refresh(developed, "HEAD", folder)
    assert contents(folder) == before


def test_comments_follow_a_patch_to_its_new_number() -> None:
    old = "# all\n\n# about a\n0001-a.patch\n# about b\n0002-b.patch # sent\n"
    assert patches.rewrite_series(old, ["0001-b.patch", "0002-a.patch"]) == (
        "# all\n\n# about b\n# sent\n0001-b.patch\n# about a\n0002-a.patch\n"
    )
    assert patches.rewrite_series("", ["0001-a.patch"]) == "0001-a.patch\n"
    assert patches.rewrite_series("# all\n", ["0001-a.patch"]) == "# all\n0001-a.patch\n"


def test_reading_a_series(tmp_path: Path) -> None:
    (tmp_path / "0001-a.patch").write_text("a")
    (tmp_path / "series").write_text("# head\n\n 0001-a.patch  # note\n")
    series = patches.read_series(tmp_path)
    assert series.names == ("0001-a.patch",)
    identity = series.identity()
    (tmp_path / "0001-a.patch").write_text("b")
    assert series.identity() != identity


def test_reading_a_series_with_faults(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match=r"^no patch series in "):
        patches.read_series(tmp_path)
    (tmp_path / "series").write_text("0001-a.patch\n")
    with pytest.raises(VnetStandbyError, match=r"names 0001-a.patch, which isn't there$"):
        patches.read_series(tmp_path)
    (tmp_path / "0001-a.patch").touch()
    (tmp_path / "series").write_text("0001-a.patch\n0001-a.patch\n")
    with pytest.raises(VnetStandbyError, match=r"more than once$"):
        patches.read_series(tmp_path)
