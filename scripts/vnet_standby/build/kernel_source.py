# SPDX-License-Identifier: GPL-2.0-or-later
"""One file of a Debian kernel's source, of exactly the version that a kernel image was built from."""

import re
import struct
import tarfile
import tempfile
from pathlib import Path

from vnet_standby.build.apt import kernel_apt
from vnet_standby.build.cache import write_atomically
from vnet_standby.build.commands import output
from vnet_standby.build.progress import require_space, say
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD

_CACHE = BUILD / "kernel-source"
_SPACE_MIB = 400  # the package and the archive in it, both gone afterwards

# Documentation/arch/x86/boot.rst: where a bzImage has the place of its version, counted from the setup header
_VERSION_AT, _HEADER = 0x20E, 0x200
_HEAD_BYTES = 0x10000

# 6.12.107+deb13-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-08-29)
_BANNER = re.compile(r"^(?P<series>\d+\.\d+)\S* .* Debian (?P<package>\d\S*) \(")


def package_version(image: Path) -> tuple[str, str]:
    """Return the series (6.12) and the Debian package's version (6.12.107-1) that a kernel image says it has."""
    with image.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    (place,) = struct.unpack_from("<H", head, _VERSION_AT)
    banner = head[place + _HEADER :].partition(b"\0")[0].decode(errors="replace")
    match = _BANNER.match(banner)
    if not match:
        raise VnetStandbyError(
            f"{image} names no Debian package that it was built from, but {banner[:120]!r}: the patched virtio_net "
            "needs the source of exactly that kernel; use one of Debian's"
        )
    return match["series"], match["package"]


def kernel_file(image: Path, name: str) -> Path:
    """Return a file of the source that a kernel image was built from; only the first time it is fetched.

    `name` is its path in the source tree. Raises `VnetStandbyError` if Debian's archive no longer has that version: a
    module of another one may compile, and then misread the kernel's structures.
    """
    series, version = package_version(image)
    cached = _CACHE / version / name
    if not cached.exists():
        require_space(BUILD, _SPACE_MIB)
        with tempfile.TemporaryDirectory(dir=BUILD, prefix=".kernel-source-") as folder:
            package = kernel_apt(series).download_version(
                f"linux-source-{series}", version, Path(folder)
            )
            say(f"taking {name} out of {package.name}")
            write_atomically(cached, _taken_out(package, f"linux-source-{series}", name))
    return cached


def _taken_out(package: Path, tree: str, name: str) -> bytes:
    output(
        ["dpkg-deb", "-x", package, package.parent],
        what=f"unpacking {package.name}",
        timeout_s=600,
    )
    # as a stream: unpacked, it is 1.4 GB
    with tarfile.open(package.parent / f"usr/src/{tree}.tar.xz", "r|xz") as archive:
        for member in archive:
            if member.name == f"{tree}/{name}" and (file := archive.extractfile(member)):
                return file.read()
    raise VnetStandbyError(f"{package.name} has no {name}")
