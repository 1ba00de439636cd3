# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages that each job needs: installed for root, named in one line for everybody else."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vnet_standby.build.commands import environment, run
from vnet_standby.build.progress import run_logged
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import LOGS

# Names that Debian 12 and 13 share. What apt-get or dpkg themselves depend on isn't listed.
PACKAGES: dict[str, tuple[str, ...]] = {
    "qemu": (
        "git",
        "gcc",
        "libc6-dev",
        "pkgconf",
        "libglib2.0-dev",
        "zlib1g-dev",
        "libfdt-dev",
        "libslirp-dev",  # -netdev user; without it QEMU doesn't build the virtio-net failover qtest
        "dpkg-dev",  # unpacks Debian's source package
        "xz-utils",
        "perl",  # QEMU's checkpatch
        "debian-archive-keyring",
    ),
    "guest": (
        "gcc",
        "libc6-dev",
        "linux-libc-dev",
        "cpio",
        "kmod",
        "debian-archive-keyring",
    ),
    "driver": ("gcc", "make", "patch", "perl", "kmod", "debian-archive-keyring"),
    "kernel": (
        "gcc",
        "libc6-dev",
        "make",
        "flex",
        "bison",
        "bc",
        "libelf-dev",
        "xz-utils",
        "kmod",
        "debian-archive-keyring",
    ),
    "lab": ("util-linux",),
    "distribution": ("dnsmasq-base",),
    "nested": ("iproute2", "binutils", "libc-bin"),
}

# Where there is no dpkg to ask: the commands that stand for the packages.
_COMMANDS: dict[str, tuple[str, ...]] = {
    "qemu": ("git", "cc", "pkg-config", "xz", "perl"),
    "guest": ("cc", "cpio", "depmod"),
    "driver": ("cc", "make", "patch", "perl", "modinfo"),
    "kernel": ("cc", "make", "flex", "bison", "bc", "xz", "depmod"),
    "lab": ("setpriv", "unshare"),
    "distribution": ("dnsmasq",),
    "nested": ("ip", "bridge", "strip", "ldd"),
}

_INSTALL_TIMEOUT_S = 1800


def require(*jobs: str) -> None:
    """Make sure that what the jobs (keys of `PACKAGES`) need is installed.

    Root gets what is missing through apt-get; anyone else gets one error with the command to give.
    """
    if shutil.which("dpkg-query") is None:
        _require_commands(jobs)
        return
    absent = missing(_united(PACKAGES, jobs))
    if not absent:
        return
    if os.geteuid() != 0:
        raise VnetStandbyError(
            f"packages are missing: {' '.join(absent)}; "
            f"install them: sudo apt-get install --no-install-recommends {' '.join(absent)}"
        )
    _install(absent)


def missing(names: tuple[str, ...]) -> list[str]:
    """Return which of the packages aren't installed."""
    # its exit status only says that some name is unknown, which is the question itself
    listing = run(
        ["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n", *names],
        what="asking dpkg for installed packages",
    ).stdout
    installed = {line.split()[-1] for line in listing.splitlines() if line.startswith("ii")}
    return [name for name in names if name not in installed]


def _united(table: dict[str, tuple[str, ...]], jobs: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for job in jobs for name in table[job]))


def _require_commands(jobs: Sequence[str]) -> None:
    path = environment()["PATH"]
    absent = [name for name in _united(_COMMANDS, jobs) if shutil.which(name, path=path) is None]
    if absent:
        raise VnetStandbyError(
            f"commands are missing: {' '.join(absent)}; install them with this system's package manager"
        )


def _install(names: list[str]) -> None:
    install = [
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *names,
    ]
    if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        _apt_get(["apt-get", "update"], "refreshing the package lists")
    try:
        _apt_get(install, f"installing {' '.join(names)}")
    except VnetStandbyError:
        # old lists name versions that the mirror no longer has
        _apt_get(["apt-get", "update"], "refreshing the package lists")
        _apt_get(install, f"installing {' '.join(names)}")


def _apt_get(argv: list[str], title: str) -> None:
    run_logged(
        argv,
        title=title,
        log=LOGS / "packages.log",
        env=environment({"DEBIAN_FRONTEND": "noninteractive"}),
        timeout_s=_INSTALL_TIMEOUT_S,
    )
