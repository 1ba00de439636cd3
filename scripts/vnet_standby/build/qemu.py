# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU, built from one source with the same flags: as it is (stock) and with the series (patched).

A third build has the series and the compiler's sanitizers; only the series' qtests run on it.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vnet_standby.build import packages
from vnet_standby.build.apt import archive_uri, private_apt
from vnet_standby.build.cache import Stamp, build_lock, digest, fresh_folder
from vnet_standby.build.commands import compiler_version, output, run
from vnet_standby.build.git import git
from vnet_standby.build.patches import BASE_REF, Series, put_on, read_series
from vnet_standby.build.progress import full_disk_named, require_space, run_logged, say
from vnet_standby.build.source import (
    DOWNLOADS,
    PATCHED_TREE,
    REPOSITORY,
    SOURCES,
    STOCK_TREE,
    QemuSource,
    check_out,
    qemu_source,
)
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import (
    BUILD,
    FIRMWARE,
    LOGS,
    QEMU_PATCHED,
    QEMU_SANITIZED,
    QEMU_STOCK,
    SERIES,
)

Variant = Literal["patched", "stock", "sanitized"]
BINARY = "qemu-system-x86_64"

FLAGS = (
    "--target-list=x86_64-softmmu",  # the only kind of guest here
    "--without-default-features",  # what the machine has installed must not decide what is built
    "--enable-tcg",  # where /dev/kvm is missing or useless
    "--enable-kvm",
    "--enable-vhost-kernel",  # both ways a standby's packets can leave the host
    "--enable-vhost-net",
    "--enable-vhost-user",
    "--enable-slirp",  # the virtio-net failover qtest is built only with it
    "--disable-docs",
    "--disable-tools",
    "--disable-install-blobs",  # firmware comes from packages, Debian's source has none
    "--disable-debug-info",  # a third less to write and link
    "--disable-werror",  # other compilers warn of other things; the series is checked for warnings apart
)

# the checks slow the tests down more than less optimisation does, and the compiler is done sooner
SANITIZER_FLAGS = ("--enable-asan", "--enable-ubsan", "--extra-cflags=-O1")

# what configure and meson take from the environment
_COMPILER_SETTINGS = ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "PKG_CONFIG_PATH")

FIRMWARE_PACKAGES = ("seabios", "ipxe-qemu", "qemu-system-data")
FIRMWARE_FILES = (
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
    "vgabios-stdvga.bin",
    "efi-e1000.rom",
    "efi-e1000e.rom",
    "efi-virtio.rom",
)
_FIRMWARE_FOLDERS = ("usr/share/seabios", "usr/share/qemu", "usr/lib/ipxe/qemu")

# where a QEMU that runs from its build folder looks for firmware first
_BUNDLE_FIRMWARE = Path("qemu-bundle/usr/local/share/qemu-firmware")
_FOLDERS: dict[Variant, Path] = {
    "patched": QEMU_PATCHED,
    "stock": QEMU_STOCK,
    "sanitized": QEMU_SANITIZED,
}
NO_SERIES = Series(SERIES, ())
_BUILT = ".vnet-standby-built"
_CONFIGURED = ".vnet-standby-configured"
_CONFIGURE_TIMEOUT_S = 900
_BUILD_TIMEOUT_S = 4 * 3600
_SPACE_MIB = 400  # a variant's objects and binary


def build_qemu(variant: Variant, source: str | None = None) -> Path:
    """Build a variant of QEMU, if it isn't there already, and return its binary.

    `source` is as for `qemu_source`. A run that was interrupted goes on where it was; a changed series or source
    rebuilds only what depends on the files that changed. The binary finds its firmware without `-L`.
    """
    refuse_spaces()
    with build_lock(), full_disk_named(BUILD):
        origin = qemu_source(source)
        build = QemuBuild(variant, origin)
        series = read_series() if variant == "patched" else NO_SERIES
        if not build.is_built(series):
            say(f"building {variant} QEMU {origin.version} from {origin.origin}")
            build.check_out(patched_commits(origin, series)[-1])
            build.ninja([BINARY])
            build.mark_built(series)
        return build.binary


def refuse_spaces() -> None:
    """Refuse a checkout where QEMU's configure wouldn't work."""
    if any(letter.isspace() for letter in str(BUILD)):
        raise VnetStandbyError(
            f"QEMU can't be built in a folder with a space in its path ({BUILD}); move the checkout"
        )


class QemuBuild:
    """A variant's build folder, at a fixed place, and the work tree that it builds."""

    def __init__(self, variant: Variant, source: QemuSource) -> None:
        self._variant = variant
        self._source = source
        self.folder = _FOLDERS[variant]
        self.tree = STOCK_TREE if variant == "stock" else PATCHED_TREE
        self._flags = (*FLAGS, *(SANITIZER_FLAGS if variant == "sanitized" else ()))
        self.binary = self.folder / BINARY
        self._built = Stamp(self.folder / _BUILT)

    def is_built(self, series: Series) -> bool:
        """Tell whether the binary is there and made from this source and series, with today's flags and compiler."""
        return self._built.matches(self.key(series)) and self.binary.exists()

    def mark_built(self, series: Series) -> None:
        """Say that what is in the folder is complete and made from the source with `series` on it."""
        self._built.write(self.key(series))

    def adopt(self, other: "QemuBuild") -> None:
        """Take the binary that another build has made of the same commit, with the same flags."""
        fresh_folder(self.folder)
        shutil.copy2(other.binary, self.binary)
        self._link_firmware()

    def key(self, series: Series) -> str:
        """Return a hash over all that goes into the binary."""
        return digest(self._source.identity, series.identity(), self._configuration())

    def check_out(self, commit: str) -> None:
        """Make the tree ready to be built at `commit`; the binary doesn't count as built until marked so."""
        self._built.clear()
        check_out(self.tree, commit)
        git(
            "update-ref",
            BASE_REF,
            self._source.commit,
            cwd=self.tree,
            what="noting the series' base",
        )
        if not self.is_configured():
            self._configure()

    def ninja(self, targets: Sequence[str], title: str = "") -> str:
        """Build targets and return the compiler's output."""
        log = LOGS / f"build-{self.folder.name}.log"
        run_logged(
            ["ninja", "-C", self.folder, "-j", str(len(os.sched_getaffinity(0))), *targets],
            title=title or f"compiling {self._variant} QEMU",
            log=log,
            timeout_s=_BUILD_TIMEOUT_S,
        )
        return log.read_text(errors="replace")

    def is_configured(self) -> bool:
        """Tell whether the folder is configured with today's flags and compiler, for this version of QEMU."""
        return Stamp(self.folder / _CONFIGURED).matches(self._configuration())

    def has_target(self, target: str) -> bool:
        """Tell whether the configured build knows a target."""
        query = run(["ninja", "-C", self.folder, "-t", "query", target], what="asking ninja")
        return query.returncode == 0

    def changed(self, before: str, after: str) -> list[str]:
        """Return the files that are new or differ at the second of two commits."""
        difference = ("diff", "--name-only", "--diff-filter=AM", before, after)
        return git(*difference, cwd=self.tree, what="listing what a patch changes").splitlines()

    def objects(self, files: Sequence[str]) -> list[str]:
        """Return ninja's names of the objects that are made from these files of the tree."""
        output(["ninja", "-C", self.folder, "build.ninja"], what="reading the build description")
        commands = json.loads((self.folder / "compile_commands.json").read_text())
        wanted = {os.path.relpath(self.tree / file, self.folder) for file in files}
        return sorted({entry["output"] for entry in commands if entry["file"] in wanted})

    def _configuration(self) -> str:
        """Return a hash over what decides how the folder is configured."""
        settings = [f"{name}={os.environ.get(name, '')}" for name in _COMPILER_SETTINGS]
        python = (sys.executable, sys.version)
        return digest(
            *self._flags,
            compiler_version(),
            *settings,
            *python,
            str(self.folder),
            self._source.version,
        )

    def _configure(self) -> None:
        packages.require("qemu")
        require_space(BUILD, _SPACE_MIB)
        fresh_folder(self.folder)
        # meson fetches its subprojects only for a git checkout, which has none; releases carry them
        complete = (self.tree / "subprojects/keycodemapdb/meson.build").exists()
        run_logged(
            [
                self.tree / "configure",
                f"--python={sys.executable}",
                "--disable-download" if complete else "--enable-download",
                *self._flags,
            ],
            title=f"configuring {self._variant} QEMU",
            log=LOGS / f"configure-{self.folder.name}.log",
            cwd=self.folder,
            timeout_s=_CONFIGURE_TIMEOUT_S,
        )
        self._link_firmware()
        Stamp(self.folder / _CONFIGURED).write(self._configuration())

    def _link_firmware(self) -> None:
        link = self.folder / _BUNDLE_FIRMWARE
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(firmware(), link.parent))


def patched_commits(source: QemuSource, series: Series) -> list[str]:
    """Return the commits of the source and, in order, of each patch of the series on it.

    The patches are put on in a work tree without files, where git am checks out only what it changes: the tree that is
    built keeps the time stamps of everything else.
    """
    what = "applying the series"
    scratch = SOURCES / "applying"
    with build_lock():
        _remove_work_tree(scratch)
        add = ("worktree", "add", "--no-checkout", "--detach", scratch, source.commit)
        git(*add, cwd=REPOSITORY, what=what)
        try:
            git("read-tree", "HEAD", cwd=scratch, what=what)
            last = put_on(scratch, series)
        finally:
            _remove_work_tree(scratch)
        git("update-ref", "refs/patched/last", last, cwd=REPOSITORY, what=what)
        between = ("rev-list", "--reverse", f"{source.commit}..{last}")
        return [source.commit, *git(*between, cwd=REPOSITORY, what=what).split()]


def _remove_work_tree(tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    git("worktree", "prune", cwd=REPOSITORY, what="removing a work tree")


def firmware() -> Path:
    """Return the folder with the firmware that QEMU loads for x86 machines and their NICs; made when it isn't there."""
    with build_lock(), full_disk_named(BUILD):
        if not all((FIRMWARE / name).is_file() for name in FIRMWARE_FILES):
            draft = fresh_folder(BUILD / ".firmware")
            try:
                _collect_firmware(draft)
                shutil.rmtree(FIRMWARE, ignore_errors=True)
                draft.replace(FIRMWARE)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return FIRMWARE


def _collect_firmware(into: Path) -> None:
    if archive_uri() is None:
        # a release or a git checkout carries the files that Debian leaves out
        _copy_firmware([STOCK_TREE / "pc-bios"], into)
    else:
        unpacked = fresh_folder(BUILD / ".firmware-packages")
        try:
            for package in private_apt().download(FIRMWARE_PACKAGES, DOWNLOADS):
                output(["dpkg-deb", "-x", package, unpacked], what=f"unpacking {package.name}")
            _copy_firmware([unpacked / folder for folder in _FIRMWARE_FOLDERS], into)
        finally:
            shutil.rmtree(unpacked)
    absent = [name for name in FIRMWARE_FILES if not (into / name).is_file()]
    if absent:
        raise VnetStandbyError(
            f"firmware is missing: {' '.join(absent)}; it comes from {', '.join(FIRMWARE_PACKAGES)}"
        )


def _copy_firmware(folders: Sequence[Path], into: Path) -> None:
    for folder in folders:
        for path in folder.glob("*"):
            if path.name in FIRMWARE_FILES:
                shutil.copyfile(path, into / path.name)
