# SPDX-License-Identifier: GPL-2.0-or-later
"""Missing packages: one line for users, an installation for root."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vnet_standby.build import packages
from vnet_standby.errors import VnetStandbyError

Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """A function that says which packages dpkg shall know as installed."""

    def say(*names: str, root: bool = False) -> None:
        listing = "".join(f"ii  {name}\n" for name in names) + "un  pkgconf\n"
        result = subprocess.CompletedProcess([], 1, listing, "no packages found matching x")
        monkeypatch.setattr(packages, "run", lambda *_, **__: result)
        monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/bin/tool")
        monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)

    return say


def test_all_there_means_nothing_to_do(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "run_logged", lambda *_, **__: pytest.fail("apt was run"))
    installed(*packages.PACKAGES["guest"])
    packages.require("guest")


def test_users_get_all_missing_packages_in_one_line(installed: Installed) -> None:
    installed("git", "gcc", "libc6-dev", "perl", "xz-utils", "dpkg-dev", "debian-archive-keyring")
    with pytest.raises(VnetStandbyError) as caught:
        packages.require("qemu")
    names = "pkgconf libglib2.0-dev zlib1g-dev libfdt-dev libslirp-dev"
    assert str(caught.value) == (
        f"packages are missing: {names}; "
        f"install them: sudo apt-get install --no-install-recommends {names}"
    )


def test_several_jobs_name_each_package_once(installed: Installed) -> None:
    installed("git", "libc6-dev")
    with pytest.raises(VnetStandbyError) as caught:
        packages.require("qemu", "guest")
    assert str(caught.value).count(" gcc") == 2  # once as missing, once in the command
    assert " cpio" in str(caught.value)


def test_root_installs_and_refreshes_old_lists(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(root=True)
    calls: list[str] = []

    def apt_get(argv: list[str], **_: object) -> None:
        calls.append(argv[1])
        if calls.count("install") == 1 and argv[1] == "install":
            raise VnetStandbyError("404")

    monkeypatch.setattr(packages, "run_logged", apt_get)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(["x_Packages"]))
    packages.require("lab")
    assert calls == ["install", "update", "install"]


def test_systems_without_dpkg_name_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(VnetStandbyError, match=r"^commands are missing: cc cpio depmod;"):
        packages.require("guest")
