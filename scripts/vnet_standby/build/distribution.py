# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a distribution's user space: Debian's own packages, unpacked, and the lab's agent as a service.

Nothing is installed, so no package's script runs: systemd makes users and folders when the guest boots. What else the
scripts would do, as far as a guest without logins needs it, is in guest/distribution. All lives in an initramfs.
"""

import fnmatch
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vnet_standby.build import packages
from vnet_standby.build.apt import private_apt
from vnet_standby.build.cache import (
    Stamp,
    build_lock,
    digest,
    folder_digest,
    fresh_folder,
    write_atomically,
)
from vnet_standby.build.commands import output
from vnet_standby.build.driver import DRIVER, MODULES, Kind, build_driver
from vnet_standby.build.image import (
    GuestImage,
    archived,
    compile_program,
    guest_image,
    pick_modules,
)
from vnet_standby.build.progress import full_disk_named, say
from vnet_standby.build.source import DOWNLOADS
from vnet_standby.paths import (
    BUILD,
    DISTRIBUTION,
    GUEST_DISTRIBUTION_SOURCE,
    GUEST_DRIVER_SOURCE,
)

NetworkManagement = Literal["networkd", "network-manager"]
"""Who configures the guest's network, as it does by default: every Ethernet interface by DHCP."""

DRIVERS: dict[NetworkManagement, Kind] = {"networkd": "drop-in", "network-manager": "patched"}
"""The kind of the driver that each guest has if nobody asks for the other: each kind in one of them."""

_PICKED = DISTRIBUTION / "kernel"
_RULES = "70-vnet-standby.rules"

# What nobody reads in a guest without people, a good half of it all; the kernel unpacks what is left into memory.
_LEFT_OUT = (
    "usr/share/doc/*", "usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/lintian/*",
    "usr/share/bug/*", "usr/share/bash-completion/*", "usr/share/zsh/*", "usr/share/perl5/*",
    "usr/share/common-licenses/*", "usr/lib/*/gconv/*", "usr/lib/systemd/catalog/*",
    "usr/lib/udev/hwdb.d/*",  # the index of it, which a script of udev's makes, takes a minute under emulation
)  # fmt: skip


def distribution_image(
    management: NetworkManagement, driver: Kind, kernel: str | None = None
) -> GuestImage:
    """Build a guest with Debian's user space and this project's driver, if it isn't there already.

    The driver is installed as guest/driver/README.md tells a user to, beside the modules whose names it has. `kernel`
    is as for `guest_image`. Raises `VnetStandbyError` without a Debian archive.
    """
    with build_lock(), full_disk_named(BUILD):
        # the server that gives it addresses, too: where it runs there is no network to install it from
        packages.require("guest", "distribution")
        build_driver(kernel)
        small = guest_image(kernel)
        user_space = _user_space()
        own_part = _own_part(management, driver, kernel)
        image = DISTRIBUTION / f"{management}.cpio"
        stamp = Stamp(image.with_name(f".vnet-standby-{management}"))
        key = digest(own_part, _state(user_space))
        if not (stamp.matches(key) and image.exists()):
            stamp.clear()
            # the kernel unpacks one archive after the other (its buffer-format.rst on initramfs)
            write_atomically(image, user_space.read_bytes() + own_part)
            stamp.write(key)
        return GuestImage(small.kernel, image, small.version)


def _state(path: Path) -> str:
    state = path.stat()
    return f"{path} {state.st_size} {state.st_mtime_ns}"


def _user_space() -> Path:
    """Return an archive of what the guests share: all but the kernel's part and who configures the network."""
    image = DISTRIBUTION / "user-space.cpio"
    stamp = Stamp(DISTRIBUTION / ".vnet-standby-user-space")
    debs = _packages(package_names(GUEST_DISTRIBUTION_SOURCE / "packages"))
    sources = folder_digest(GUEST_DISTRIBUTION_SOURCE / "rootfs")
    key = digest(*(deb.name for deb in debs), sources, Path(__file__).read_bytes())
    if not (stamp.matches(key) and image.exists()):
        stamp.clear()
        say("building the user space of the Debian guests")
        root = fresh_folder(DISTRIBUTION / "root")
        try:
            _lay_out(root, debs)
            write_atomically(image, archived(root))
        finally:
            shutil.rmtree(root)
        stamp.write(key)
    return image


def package_names(path: Path) -> list[str]:
    """Read a list of packages: one a line, comments after #."""
    lines = path.read_text().splitlines()
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def _packages(wanted: Sequence[str]) -> list[Path]:
    """Return the .deb files of the wanted packages and of all that they depend on."""
    # what was downloaded first stays, so that results can be compared and nothing needs the network
    listed = DISTRIBUTION / "packages"
    asked = f"# {' '.join(wanted)}"
    known = listed.read_text().splitlines() if listed.exists() else []
    if known[:1] != [asked]:
        known = [asked, *private_apt().with_dependencies(wanted)]
        write_atomically(listed, "\n".join(known) + "\n")
    return private_apt().download(known[1:], DOWNLOADS)


def _lay_out(root: Path, debs: Sequence[Path]) -> None:
    for deb in debs:
        output(["dpkg-deb", "-x", deb, root], what=f"unpacking {deb.name}")
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    leave_out(root, _LEFT_OUT)
    shutil.copytree(GUEST_DISTRIBUTION_SOURCE / "rootfs", root, dirs_exist_ok=True, symlinks=True)


def leave_out(root: Path, patterns: Sequence[str]) -> None:
    """Remove the files below `root` whose paths match one of the patterns; * matches / too, as it does for dpkg."""
    for path in sorted(root.rglob("*"), reverse=True):
        name = str(path.relative_to(root))
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def _own_part(management: NetworkManagement, driver: Kind, kernel: str | None) -> bytes:
    """Return an archive of who configures the network, the kernel's modules, the driver and the agent."""
    picked = pick_modules(kernel, GUEST_DISTRIBUTION_SOURCE / "modules", _PICKED)
    root = fresh_folder(DISTRIBUTION / "own-root")
    try:
        shutil.copytree(
            GUEST_DISTRIBUTION_SOURCE / management / "rootfs",
            root,
            dirs_exist_ok=True,
            symlinks=True,
        )
        modules = root / "usr/lib/modules" / picked.release
        shutil.copytree(picked.root / "lib/modules" / picked.release, modules)
        # not in the archive: the guest has it already, and it is depmod's way to the modules
        (root / "lib").symlink_to("usr/lib")
        _install(GUEST_DRIVER_SOURCE / _RULES, root / "etc/udev/rules.d")
        for name in MODULES[driver]:
            _install(DRIVER / name, modules / "updates")
        output(["depmod", "-b", root, picked.release], what="listing the guest's modules")
        (root / "lib").unlink()
        compile_program("agent", root / "usr/sbin")
        return archived(root)
    finally:
        shutil.rmtree(root)


def _install(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / file.name)
