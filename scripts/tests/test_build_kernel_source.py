# SPDX-License-Identifier: GPL-2.0-or-later
"""Which source a kernel image was built from, and what is said where the archive lacks it."""

import io
import struct
import tarfile
from pathlib import Path

import pytest

from vnet_standby.build import apt, kernel_source
from vnet_standby.errors import VnetStandbyError

DEBIAN = "6.12.107+deb13-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-08-29)"


def image(folder: Path, banner: str) -> Path:
    """The head of a bzImage: all that is read of it."""
    path = folder / "vmlinuz"
    head = bytearray(0x1000)
    struct.pack_into("<H", head, 0x20E, 0x800)
    head[0xA00 : 0xA00 + len(banner)] = banner.encode()
    path.write_bytes(head)
    return path


def test_a_debian_kernel_names_its_package(tmp_path: Path) -> None:
    assert kernel_source.package_version(image(tmp_path, DEBIAN)) == ("6.12", "6.12.107-1")


def test_a_backport_and_a_security_update(tmp_path: Path) -> None:
    banner = "6.1.0-49-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP Debian 6.1.170-1~deb11u2 (2026-01-01)"
    assert kernel_source.package_version(image(tmp_path, banner)) == ("6.1", "6.1.170-1~deb11u2")


@pytest.mark.parametrize("banner", ["", "6.12.1 (me@here) #1 SMP Sun Nov 22 12:00:00 UTC 2026"])
def test_another_kernel_is_refused(tmp_path: Path, banner: str) -> None:
    with pytest.raises(VnetStandbyError, match="names no Debian package"):
        kernel_source.package_version(image(tmp_path, banner))


def test_a_cached_file_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_source, "_CACHE", tmp_path)
    cached = tmp_path / "6.12.107-1/drivers/net/virtio_net.c"
    cached.parent.mkdir(parents=True)
    cached.write_text("...")
    assert kernel_source.kernel_file(image(tmp_path, DEBIAN), "drivers/net/virtio_net.c") == cached


def test_a_version_that_the_archive_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = apt.Apt(tmp_path)
    monkeypatch.setattr(apt.Apt, "update", lambda _self: None)
    listing = (
        "linux-source-6.12 | 6.12.94-1 | http://mirror.example/debian trixie/main amd64 Packages\n"
    )
    monkeypatch.setattr(apt, "output", lambda *_arguments, **_options: listing)
    with pytest.raises(VnetStandbyError, match=r"has linux-source-6\.12 6\.12\.94-1, not 6\.12\.1"):
        private.download_version("linux-source-6.12", "6.12.107-1", tmp_path)


def test_one_file_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_source, "output", lambda *_arguments, **_options: "")
    packed = tmp_path / "usr/src/tree.tar.xz"
    packed.parent.mkdir(parents=True)
    with tarfile.open(packed, "w:xz") as archive:
        for name in ("tree/a.c", "tree/b.c"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    package = tmp_path / "package.deb"
    assert kernel_source._taken_out(package, "tree", "b.c") == b"tree/b.c"
    with pytest.raises(VnetStandbyError, match=r"package\.deb has no c\.c"):
        kernel_source._taken_out(package, "tree", "c.c")
