# SPDX-License-Identifier: GPL-2.0-or-later
"""Checking the series: style, warnings, tests; with stand-ins for checkpatch and the compiler."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from vnet_standby.build import series
from vnet_standby.build.patches import Series
from vnet_standby.build.qemu import QemuBuild
from vnet_standby.errors import VnetStandbyError


def checkpatch(tmp_path: Path, report: str) -> Path:
    """A tree whose checkpatch prints a report."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/checkpatch.pl").write_text(f'print "{report}";\n')
    return tmp_path


def test_style_warnings_are_shown_and_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = checkpatch(tmp_path, r"WARNING: long\ntotal: 0 errors, 1 warnings, 9 lines checked\n")
    series._check_style(tree, Path("0001-a.patch"))
    assert capsys.readouterr().err == (
        "checkpatch: 0001-a.patch: no errors, 1 warnings\n  WARNING: long\n"
    )


def test_style_errors_name_the_patch(tmp_path: Path) -> None:
    tree = checkpatch(tmp_path, r"ERROR: tab\ntotal: 1 errors, 0 warnings, 9 lines checked\n")
    with pytest.raises(VnetStandbyError, match=r"^checkpatch: 0001-a.patch: 1 errors.*ERROR: tab$"):
        series._check_style(tree, Path("0001-a.patch"))


def test_no_verdict_is_no_pass(tmp_path: Path) -> None:
    tree = checkpatch(tmp_path, "")
    with pytest.raises(VnetStandbyError, match=r"^checkpatch gave no verdict on 0001-a.patch"):
        series._check_style(tree, Path("0001-a.patch"))


class Build(QemuBuild):
    """A build folder without a compiler: it says what it is told to at each commit."""

    def __init__(self, folder: Path, said: dict[str, str]) -> None:
        self.folder = folder
        self.binary = folder / "qemu-system-x86_64"
        self.said = said
        self.whole: dict[str, str] = {}
        self.did: list[str] = []

    def check_out(self, commit: str) -> None:  # noqa: D102 - as in the class that it stands for
        self.did.append(commit)

    def ninja(self, targets: Sequence[str], title: str = "") -> str:  # noqa: D102
        said = self.said if targets[0].endswith(".o") or self.did[-1] == "base" else self.whole
        return said.get(self.did[-1], "")

    def has_target(self, target: str) -> bool:  # noqa: D102
        return False

    def changed(self, before: str, after: str) -> list[str]:  # noqa: D102
        return [f"hw/{after}.c"]

    def objects(self, files: Sequence[str]) -> list[str]:  # noqa: D102
        return [f"{file}.o" for file in files]

    def adopt(self, other: QemuBuild) -> None:  # noqa: D102
        self.did.append("adopted")

    def is_built(self, series: Series) -> bool:  # noqa: D102
        return "built" in self.did

    def mark_built(self, series: Series) -> None:  # noqa: D102
        self.did.append("built")


PATCHES = Series(Path("x"), ("0001-a.patch", "0002-b.patch"))


def test_every_patch_is_compiled_and_the_last_one_stays(tmp_path: Path) -> None:
    own = "hw/old.c:1:2: warning: the source's own [-Wx]\n"
    build = Build(tmp_path, {"base": own})
    stock = Build(tmp_path, {})
    series._compile_each(build, stock, PATCHES, ["base", "a", "b"])
    assert build.did == ["base", "a", "b", "built"]
    assert stock.did == ["adopted", "built"]
    series._compile_each(build, stock, PATCHES, ["base", "a", "b"])
    assert stock.did == ["adopted", "built"]


def test_a_warning_is_a_fault_of_its_patch(tmp_path: Path) -> None:
    build = Build(tmp_path, {"b": "[1/2] x\n../hw/net/n.c:7:9: warning: unused [-Wx]\n"})
    with pytest.raises(VnetStandbyError, match=r"^0002-b.patch brings a compiler warning: \.\./hw"):
        series._compile_each(build, Build(tmp_path, {}), PATCHES, ["base", "a", "b"])
    assert "built" not in build.did


def test_the_sources_own_warnings_are_nobodys_fault(tmp_path: Path) -> None:
    build = Build(tmp_path, {})
    build.whole["b"] = "[9/9] x\nhw/old.c:1:2: warning: the source's own [-Wx]\n"
    series._compile_each(build, Build(tmp_path, {}), PATCHES, ["base", "a", "b"])
    build.whole["b"] += "../hw/b.c:3:2: warning: seen only with all of the series [-Wx]\n"
    with pytest.raises(VnetStandbyError, match=r"^the series brings a compiler warning: \.\./hw/b"):
        series._compile_each(build, Build(tmp_path, {}), PATCHES, ["base", "a", "b"])
