# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel for the guest that checks itself (KASAN, lockdep, kmemleak, ...), from Debian's source.

guest/kernel/debug.config says what is in it. The folder is one that `guest_image` takes; modules_install links the tree
that it was built in beside the modules, and the guest driver is built there.
"""

import os
import re
import shlex
import shutil
from pathlib import Path

from vnet_standby.build import packages
from vnet_standby.build.apt import private_apt
from vnet_standby.build.cache import Stamp, build_lock, digest, fresh_folder
from vnet_standby.build.commands import compiler, compiler_version, output
from vnet_standby.build.progress import full_disk_named, require_space, run_logged, say
from vnet_standby.build.qemu import refuse_spaces
from vnet_standby.build.source import DOWNLOADS
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD, GUEST_KERNEL_SOURCE, KERNEL, LOGS

CHECKED = "-debug"
"""How the release of such a kernel ends."""

_SOURCE = "linux-source-6.12"
_CONFIG = GUEST_KERNEL_SOURCE / "debug.config"
_TREE = KERNEL / _SOURCE
_SPACE_MIB = 3000
_UNPACK_S = 600
_COMPILE_S = 7200

_SETTING = re.compile(r"^CONFIG_\w+=.*$", re.MULTILINE)


def build_kernel() -> Path:
    """Build the kernel, if it isn't there already; return the folder with boot/vmlinuz-* and lib/modules."""
    refuse_spaces()
    with build_lock(), full_disk_named(BUILD):
        source = private_apt().download([_SOURCE], DOWNLOADS)[0]
        stamp = Stamp(KERNEL / ".vnet-standby-built")
        key = _key(source)
        if not stamp.matches(key):
            stamp.clear()
            packages.require("kernel")
            _unpack(source)
            _configure()
            _compile()
            _install()
            stamp.write(key)
        return KERNEL


def _key(source: Path) -> str:
    code = Path(__file__).read_bytes()
    command = shlex.join(compiler())
    return digest(source.name, _CONFIG.read_bytes(), command, compiler_version(), code)


def _unpack(source: Path) -> None:
    """Unpack the tree; one that was unpacked before stays, with all that was compiled in it."""
    stamp = Stamp(KERNEL / ".vnet-standby-unpacked")
    if stamp.matches(source.name):
        return
    stamp.clear()
    fresh_folder(KERNEL)
    require_space(KERNEL, _SPACE_MIB)
    package = fresh_folder(KERNEL / "package")
    output(
        ["dpkg-deb", "-x", source, package], what=f"unpacking {source.name}", timeout_s=_UNPACK_S
    )
    run_logged(
        ["tar", "-xf", package / f"usr/src/{_SOURCE}.tar.xz", "-C", KERNEL, "--no-same-owner"],
        title=f"unpacking {source.name}",
        log=LOGS / "unpack.log",
        timeout_s=_UNPACK_S,
    )
    shutil.rmtree(package)
    stamp.write(source.name)


def _configure() -> None:
    output(
        [*_make(), f"KCONFIG_ALLCONFIG={_CONFIG}", "allnoconfig"],
        what="configuring the kernel",
        timeout_s=_UNPACK_S,
    )
    ignored = missing_settings(_CONFIG.read_text(), (_TREE / ".config").read_text())
    if ignored:
        raise VnetStandbyError(
            f"the kernel does not take {', '.join(ignored)} of {_CONFIG}: what it depends on is missing there"
        )


def missing_settings(wanted: str, configured: str) -> list[str]:
    """Return the settings of a fragment that a .config does not have; kconfig drops what it can't have silently."""
    there = set(_SETTING.findall(configured))
    return [setting for setting in _SETTING.findall(wanted) if setting not in there]


def _compile() -> None:
    jobs = len(os.sched_getaffinity(0))
    run_logged(
        ["nice", *_make(), f"-j{jobs}", "bzImage", "modules"],
        title="compiling the guest's kernel",
        log=LOGS / "build-kernel.log",
        timeout_s=_COMPILE_S,
    )


def _install() -> None:
    """Lay it out as a distribution does."""
    what = "installing the guest's kernel"
    release = output([*_make(), "--silent", "kernelrelease"], what=what).strip()
    boot = fresh_folder(KERNEL / "boot")
    fresh_folder(KERNEL / "lib")
    output([*_make(), f"INSTALL_MOD_PATH={KERNEL}", "modules_install"], what=what)
    shutil.copyfile(_TREE / "arch/x86/boot/bzImage", boot / f"vmlinuz-{release}")
    say(f"the guest's kernel is Linux {release}")


def _make() -> list[str]:
    return ["make", "-C", str(_TREE), f"CC={shlex.join(compiler())}"]
