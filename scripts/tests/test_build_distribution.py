# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian guests: which packages they have, and what of them is left out."""

from pathlib import Path
from typing import get_args

import pytest

from vnet_standby.build import distribution
from vnet_standby.build.apt import parse_plan
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import GUEST_DISTRIBUTION_SOURCE


class FakeApt:
    """An apt that knows what everything depends on, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def with_dependencies(self, wanted: list[str]) -> list[str]:
        """What `Apt.with_dependencies` would say."""
        self.asked += 1
        return ["libc6", *wanted]

    def download(self, names: list[str], into: Path) -> list[Path]:
        """What `Apt.download` would leave."""
        return [into / f"{name}_1_amd64.deb" for name in names]


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApt:
    fake = FakeApt()
    monkeypatch.setattr(distribution, "private_apt", lambda: fake)
    monkeypatch.setattr(distribution, "DISTRIBUTION", tmp_path)
    return fake


def test_a_simulated_installation_is_read() -> None:
    plan = "Inst gcc-14-base (14.2.0-19 Debian:13.1/stable [amd64])\nInst libc6 (2.41 [amd64]) []\nConf libc6 (2.41)\n"
    assert parse_plan(plan) == ["gcc-14-base", "libc6"]


def test_every_guest_has_packages_and_files() -> None:
    for management in get_args(distribution.NetworkManagement):
        assert (GUEST_DISTRIBUTION_SOURCE / management / "rootfs/etc").is_dir()
    assert "udev" in distribution.package_names(GUEST_DISTRIBUTION_SOURCE / "packages")


def test_nothing_names_a_nic() -> None:
    for path in GUEST_DISTRIBUTION_SOURCE.rglob("rootfs/etc/**/*"):
        if path.is_file() and not path.is_symlink():
            named = [name for name in ("enp", "eth0", "52:54:00") if name in path.read_text()]
            assert named == [], path


def test_dependencies_are_asked_for_once(apt: FakeApt) -> None:
    first = distribution._packages(["udev"])
    assert [deb.name for deb in first] == ["libc6_1_amd64.deb", "udev_1_amd64.deb"]
    assert distribution._packages(["udev"]) == first
    assert apt.asked == 1


def test_another_list_is_another_question(apt: FakeApt) -> None:
    distribution._packages(["udev"])
    distribution._packages(["udev", "kmod"])
    assert apt.asked == 2


def test_no_archive_is_said(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_wanted: list[str]) -> list[str]:
        raise VnetStandbyError("no Debian archive among this machine's apt sources; add one")

    monkeypatch.setattr(apt, "with_dependencies", refuse)
    with pytest.raises(VnetStandbyError, match="no Debian archive"):
        distribution._packages(["udev"])
    assert not (distribution.DISTRIBUTION / "packages").exists()


def test_what_is_left_out_goes_with_its_folders(tmp_path: Path) -> None:
    for name in ("usr/share/doc/a/b/copyright", "usr/share/dbus-1/a.conf", "usr/lib/x/gconv/c.so"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "usr/share/doc/a/link").symlink_to("/nowhere")
    distribution.leave_out(tmp_path, ("usr/share/doc/*", "usr/lib/*/gconv/*"))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"usr/share/dbus-1/a.conf"}
    assert not (tmp_path / "usr/share/doc/a").exists()
