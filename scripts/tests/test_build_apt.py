# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding Debian's archive among a machine's sources, and a private apt that uses no network without need."""

import re
from pathlib import Path

import pytest

from vnet_standby.build import apt
from vnet_standby.errors import VnetStandbyError


def chosen(listing: str) -> str | None:
    return apt.choose_archive(apt.parse_targets(listing))


def test_fetched_lists_name_their_origin() -> None:
    assert (
        chosen(
            "http://other.example/|bookworm|main|Other\n"
            "http://sec.example/debian-security/|bookworm-security|main|Debian\n"
            "http://mirror.example/d/|bookworm|main|Debian\n"
            "http://mirror.example/d/|bookworm-updates|main|Debian\n"
        )
        == "http://mirror.example/d/"
    )


def test_lists_that_were_never_fetched_have_no_origin() -> None:
    assert (
        chosen(
            "https://vendor.example/|bookworm|main|\n"
            "https://docker.example/linux/debian/|bookworm|stable|\n"
            "http://mirror.example/debian/|trixie|main|$(ORIGIN)\n"
        )
        == "http://mirror.example/debian/"
    )


def test_mirror_lists_and_suite_classes_count() -> None:
    assert chosen("mirror+file:/etc/apt/debian.list/|stable|main|\n")


@pytest.mark.parametrize(
    "listing",
    ["", "http://u.example/ubuntu/|noble|main|Ubuntu\n", "http://x.example/|bookworm|contrib|\n"],
)
def test_no_debian_archive(listing: str) -> None:
    assert chosen(listing) is None


def test_no_archive_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "archive_uri", lambda: None)
    with pytest.raises(VnetStandbyError, match=r"^no Debian archive among this machine's apt"):
        apt.Apt(tmp_path / "apt").update()


def test_missing_keyring_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "archive_uri", lambda: "http://mirror.example/debian/")
    monkeypatch.setattr(apt, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(VnetStandbyError, match=r"none.gpg is missing; install the package"):
        apt.Apt(tmp_path / "apt").update()


def test_what_is_there_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "run_logged", lambda *_, **__: pytest.fail("apt was run"))
    package = tmp_path / "busybox-static_1.37_amd64.deb"
    package.touch()
    (tmp_path / "busybox_1.37_amd64.deb").touch()
    assert apt.Apt(tmp_path / "apt").download(["busybox-static"], tmp_path) == [package]


def test_nothing_half_fetched_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, cwd: Path, **__: object) -> None:
        (cwd / "seabios_1_all.deb").write_text("half")
        raise VnetStandbyError("no network")

    monkeypatch.setattr(apt.Apt, "update", lambda self: None)
    monkeypatch.setattr(apt, "run_logged", broken)
    with pytest.raises(VnetStandbyError, match=r"no network"):
        apt.Apt(tmp_path / "apt").download(["seabios"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_kernel_has_an_apt_with_its_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sources(series: str) -> list[str]:
        private = apt.kernel_apt(series)
        private._configure(["deb"])
        lines = (private._root / "sources.list").read_text().splitlines()
        return [line.split("] ")[1] for line in lines]

    security = apt.IndexTarget("http://s.example/", "trixie-security", "main", "Debian")
    monkeypatch.setattr(apt, "BUILD", tmp_path)
    monkeypatch.setattr(apt, "KEYRING", tmp_path)
    monkeypatch.setattr(apt, "archive_uri", lambda: "http://m.example/")
    monkeypatch.setattr(apt, "_targets", lambda *_: [security])
    monkeypatch.setattr(apt.Apt, "_settings", lambda _self: "")
    assert sources("6.12") == ["http://m.example/ trixie main"]
    assert sources("6.1") == [
        "http://m.example/ trixie main",
        "http://m.example/ bookworm main",
        "http://s.example/ bookworm-security main",
    ]
    assert sources("7.3") == [
        "http://m.example/ trixie main",
        "http://m.example/ trixie-backports main",
    ]


def test_a_kernel_that_was_not_tried_is_named() -> None:
    with pytest.raises(VnetStandbyError, match=r"Linux 6\.6, but with 6\.1, 6\.12, 7\.3; use"):
        apt.kernel_apt("6.6")


def test_settings_take_over_how_to_reach_archives_and_no_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = (
        'Acquire::http::Proxy "http://proxy.example:3128";\n'
        'Acquire::Languages:: "de";\n'
        'APT::Update::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";\n'
        'Dir::Cache "var/cache/apt";\n'
    )
    monkeypatch.setattr(apt, "output", lambda *_, **__: dump)
    settings = apt.Apt(tmp_path)._settings()
    assert 'Acquire::http::Proxy "http://proxy.example:3128";' in settings
    assert "Post-Invoke" not in settings
    assert '"de"' not in settings
    folders = re.findall(r'^Dir::\S+ "(.*)";$', settings, flags=re.MULTILINE)
    assert folders
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)
