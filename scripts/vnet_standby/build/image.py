# SPDX-License-Identifier: GPL-2.0-or-later
"""The small guest: a kernel, and an initramfs of busybox, the agent, and the kernel modules that the lab needs."""

import gzip
import lzma
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.build import packages
from vnet_standby.build.apt import kernel_apt, private_apt
from vnet_standby.build.cache import (
    Stamp,
    build_lock,
    digest,
    folder_digest,
    fresh_folder,
    write_atomically,
)
from vnet_standby.build.commands import compiler, output
from vnet_standby.build.progress import full_disk_named, run_logged, say
from vnet_standby.build.source import DOWNLOADS
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD, GUEST, GUEST_IMAGE_SOURCE, LOGS

_KERNEL = GUEST / "vmlinuz"
_INITRAMFS = GUEST / "initramfs.gz"
_PICKED = GUEST / "kernel"  # of the kernel's files, those that the image needs
_BUSYBOX = "busybox-static"
_FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin")
_PROGRAMS = ("agent", "cost", "gro", "xdp")
COMPILER_FLAGS = ("-std=gnu11", "-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror")
# the image is a function of its sources: no file in it is younger than the epoch
_TIME_STAMP = 0

# Documentation/arch/x86/boot.rst: the setup header's magic number, at offset 0x202 of a bzImage
_BOOT_MAGIC_AT, _BOOT_MAGIC = 0x202, b"HdrS"

# what modules_install writes beside the modules and depmod reads
_LISTS = ("modules.builtin", "modules.builtin.modinfo", "modules.order")

_SUFFIX = re.compile(r"\.ko(?:\.xz|\.gz|\.zst)?$")

# In Debian's newer kernel packages there is no kernel: it lies in packages of exactly the same version that they need.
_PART = re.compile(
    r"(?P<name>linux-(?:base|binary|modules)-(?P<series>\d+\.\d+)\S*) \(= (?P<version>\S+)\)"
)


@dataclass(frozen=True)
class GuestImage:
    """What a guest is booted from; `version` is the kernel's release, as uname -r says it."""

    kernel: Path
    initramfs: Path
    version: str


@dataclass(frozen=True)
class _Kernel:
    """A kernel in a folder: modules, and boot/vmlinuz-RELEASE or a vmlinuz among them."""

    image: Path
    modules: Path
    release: str


@dataclass(frozen=True)
class PickedModules:
    """Modules below `root`/lib/modules/`release`; `identity` changes with the kernel they come from and their list."""

    root: Path
    release: str
    identity: str


def guest_image(kernel: str | None = None) -> GuestImage:
    """Build the guest's kernel and initramfs, if they aren't there already.

    `kernel` is a linux-image .deb, or a folder with boot/vmlinuz-* and lib/modules/*; None takes Debian's.
    """
    with build_lock(), full_disk_named(BUILD):
        picked = pick_modules(kernel, GUEST_IMAGE_SOURCE / "modules", _PICKED)
        busybox = _busybox()
        sources = folder_digest(GUEST_IMAGE_SOURCE)
        code = Path(__file__).read_bytes()
        key = digest(picked.identity, sources, busybox.name, code)
        stamp = Stamp(GUEST / ".vnet-standby-built")
        if not (stamp.matches(key) and _INITRAMFS.exists()):
            stamp.clear()
            packages.require("guest")
            say(f"building the guest's image for Linux {picked.release}")
            _assemble(busybox, picked.release)
            stamp.write(key)
        return GuestImage(_KERNEL, _INITRAMFS, picked.release)


def _given(kernel: str | None) -> Path:
    """Return the .deb or the folder that the kernel comes from."""
    if kernel is None:
        # the kernel that was downloaded first stays, so that results can be compared and nothing needs the network
        there = sorted(DOWNLOADS.glob("linux-image-*-amd64_*.deb"))
        if there:
            return there[-1]
        apt = private_apt()
        return apt.download([apt.kernel_package()], DOWNLOADS)[0]
    path = Path(kernel).expanduser().resolve()
    if not path.exists():
        raise VnetStandbyError(f"{kernel}: no such kernel package or folder")
    if path.is_file() and path.suffix != ".deb":
        raise VnetStandbyError(
            f"{kernel} is neither a .deb nor a folder with boot/vmlinuz-* and lib/modules/*"
        )
    return path


def _identity(given: Path) -> str:
    """Return what tells one kernel from another without reading a hundred megabytes."""
    files = [given] if given.is_file() else [k.image for k in _kernels(given)]
    states = [(path, path.stat()) for path in files]
    return digest(*(f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in states))


def _wanted_modules(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise VnetStandbyError(f"{path} is missing: it lists an image's kernel modules") from None
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def pick_modules(kernel: str | None, listed: Path, into: Path) -> PickedModules:
    """Put the modules that the file `listed` names, with what they depend on, into `into`; and the kernel in place.

    `kernel` is as for `guest_image`.
    """
    given = _given(kernel)
    wanted = _wanted_modules(listed)
    stamp = Stamp(into.with_name(f".vnet-standby-{into.name}"))
    identity = digest(_identity(given), *wanted, Path(__file__).read_bytes())
    if not (stamp.matches(identity) and _KERNEL.exists() and into.exists()):
        stamp.clear()
        packages.require("guest")
        with ExitStack() as stack:
            root = given
            if given.is_file():
                root = fresh_folder(BUILD / ".kernel")
                stack.callback(shutil.rmtree, root)
                _unpack(given, root)
                for part in _parts(given):
                    _unpack(part, root)
            _pick_from(_newest_kernel(root, given), wanted, into)
        stamp.write(identity)
    return PickedModules(into, next((into / "lib/modules").iterdir()).name, identity)


def _parts(package: Path) -> list[Path]:
    """Return the packages that hold the kernel of an empty kernel package: those beside it, or else Debian's."""
    depends = output(["dpkg-deb", "-f", package, "Depends"], what=f"reading {package.name}")
    parts = []
    for match in _PART.finditer(depends):
        name, version = match["name"], match["version"]
        there = [*_package(name, version, package.parent), *_package(name, version, DOWNLOADS)]
        if not there:
            apt = kernel_apt(match["series"])
            there = [apt.download_version(name, version, DOWNLOADS)]
        parts.append(there[0])
    return parts


def _package(name: str, version: str, folder: Path) -> list[Path]:
    return list(folder.glob(f"{name}_{version}_*.deb"))


def _unpack(package: Path, into: Path) -> None:
    run_logged(
        ["dpkg-deb", "-x", package, into],
        title=f"unpacking {package.name}",
        log=LOGS / "unpack.log",
        timeout_s=600,
    )


def _kernels(root: Path) -> list[_Kernel]:
    """Return the kernels below a folder that have both an image and modules."""
    found = []
    for image in (root / "boot").glob("vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        for modules in (root / "usr/lib/modules" / release, root / "lib/modules" / release):
            if modules.is_dir():
                found.append(_Kernel(image, modules, release))
                break
    for image in (root / "usr/lib/modules").glob("*/vmlinuz"):
        found.append(_Kernel(image, image.parent, image.parent.name))
    return found


def _newest_kernel(root: Path, given: Path) -> _Kernel:
    kernels = _kernels(root)
    if not kernels:
        raise VnetStandbyError(
            f"{given} has no kernel: boot/vmlinuz-RELEASE with its modules in lib/modules/RELEASE is needed"
        )
    return max(kernels, key=lambda kernel: _release_order(kernel.release))


def _release_order(release: str) -> list[tuple[int, str]]:
    """Order releases as people do: 6.12.9 before 6.12.10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.findall(r"\d+|[^\d]+", release)
    ]


def _pick_from(kernel: _Kernel, wanted: list[str], picked: Path) -> None:
    image = _read_boot_image(kernel.image)
    for name in _LISTS:
        if not (kernel.modules / name).is_file():
            raise VnetStandbyError(
                f"{kernel.modules / name} is missing; was it made by modules_install?"
            )
    builtin = (kernel.modules / "modules.builtin").read_text().splitlines()
    files = with_dependencies(wanted, _dependencies(kernel), builtin, kernel.release)
    into = fresh_folder(picked) / "lib/modules" / kernel.release
    for file in files:
        target = into / _SUFFIX.sub(".ko", file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_decompressed(kernel.modules / file))
    for name in _LISTS:
        shutil.copyfile(kernel.modules / name, into / name)
    _depmod(picked, into)
    write_atomically(_KERNEL, image)


def _read_boot_image(path: Path) -> bytes:
    try:
        image = path.read_bytes()
    except OSError as problem:
        raise VnetStandbyError(f"the kernel {path} can't be read: {problem.strerror}") from None
    if image[_BOOT_MAGIC_AT : _BOOT_MAGIC_AT + len(_BOOT_MAGIC)] != _BOOT_MAGIC:
        raise VnetStandbyError(f"{path} is not an x86 Linux kernel image")
    return image


def _dependencies(kernel: _Kernel) -> dict[str, list[str]]:
    """Return modules.dep of a kernel; it is made anew because a package comes without one."""
    with tempfile.TemporaryDirectory() as base:
        return parse_dependencies(_depmod(Path(base), kernel.modules, "--dry-run"))


def _depmod(base: Path, modules: Path, *options: str) -> str:
    """Run depmod on a folder of modules as if `base` were the file system's root."""
    # which of the two places depmod looks at differs from distribution to distribution
    place = base / "lib/modules"
    place.mkdir(parents=True, exist_ok=True)
    usr = base / "usr"
    usr.mkdir()
    (usr / "lib").symlink_to("../lib")
    if not (place / modules.name).exists():
        (place / modules.name).symlink_to(modules)
    listing = output(
        ["depmod", *options, "-b", base, modules.name], what="listing the kernel's modules"
    )
    shutil.rmtree(usr)
    return listing


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """Read modules.dep: each module's file, relative to the release's folder, and the files that it needs."""
    dependencies = {}
    for line in text.splitlines():
        if line.startswith("#"):  # a dry run of depmod prints its other files after this one
            break
        file, _, needs = line.partition(":")
        dependencies[file] = needs.split()
    return dependencies


def with_dependencies(
    wanted: Iterable[str],
    dependencies: Mapping[str, list[str]],
    builtin: Iterable[str],
    release: str,
) -> list[str]:
    """Return the files of the wanted modules and of all that they need; what is built into the kernel needs none."""
    by_name = {_module_name(file): file for file in dependencies}
    built_in = {_module_name(file) for file in builtin}
    files: set[str] = set()
    for name in wanted:
        file = by_name.get(_module_name(name))
        if file:
            files.update([file, *dependencies[file]])
        elif _module_name(name) not in built_in:
            raise VnetStandbyError(
                f"Linux {release} has no module {name}, which an image of the lab asks for"
            )
    return sorted(files)


def _module_name(file: str) -> str:
    """Return a module's name as the kernel has it: without path and suffix, with underscores."""
    return _SUFFIX.sub("", file.rpartition("/")[2]).replace("-", "_")


def _decompressed(path: Path) -> bytes:
    """Return a module's content, whatever the distribution compressed it with."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        raise VnetStandbyError(f"{path} is compressed with zstd; unpack it (unzstd) and run again")
    return data


def _busybox() -> Path:
    return private_apt().download([_BUSYBOX], DOWNLOADS)[0]


def _assemble(busybox: Path, release: str) -> None:
    """Lay the image's files out and pack them."""
    root = fresh_folder(GUEST / "root")
    try:
        for folder in _FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        _copy_sources(root)
        for program in _PROGRAMS:
            compile_program(program, root / "sbin")
        shutil.copytree(_PICKED / "lib/modules" / release, root / "lib/modules" / release)
        # last, because its links point out of this folder as long as it isn't a guest's root
        _install_busybox(busybox, root)
        write_atomically(_INITRAMFS, packed(root))
    finally:
        shutil.rmtree(root)


def _install_busybox(package: Path, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=GUEST) as unpacked:
        output(["dpkg-deb", "-x", package, unpacked], what=f"unpacking {package.name}")
        found = [path for path in Path(unpacked).rglob("busybox") if path.is_file()]
        binary = next((path for path in found if path.parent.name == "bin"), None)
        if binary is None:
            raise VnetStandbyError(f"{package} has no busybox in it")
        shutil.copyfile(binary, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    applets = output([root / "bin/busybox", "--list-full"], what="listing busybox's commands")
    for applet in applets.split():
        link = root / applet
        link.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to("/bin/busybox")


def _copy_sources(root: Path) -> None:
    """Copy the image's own files: init, and the tree `rootfs` as it is."""
    init = GUEST_IMAGE_SOURCE / "init"
    if not init.is_file():
        raise VnetStandbyError(f"{init} is missing: it is the guest's first process")
    rootfs = GUEST_IMAGE_SOURCE / "rootfs"
    if rootfs.is_dir():
        shutil.copytree(rootfs, root, dirs_exist_ok=True, symlinks=True)
    shutil.copyfile(init, root / "init")
    (root / "init").chmod(0o755)


def compile_program(program: str, folder: Path) -> None:
    """Compile one of guest/image's programs, for any guest, into a folder; make that if it isn't there."""
    folder.mkdir(parents=True, exist_ok=True)
    source = GUEST_IMAGE_SOURCE / f"{program}.c"
    output(
        [*compiler(), *COMPILER_FLAGS, "-o", folder / program, source],
        what=f"compiling the guest's {program}",
    )


def _settle(root: Path) -> None:
    """Make modes and time stamps independent of who builds, and when."""
    for path in [root, *sorted(root.rglob("*"))]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        os.utime(path, (_TIME_STAMP, _TIME_STAMP), follow_symlinks=False)


def packed(root: Path) -> bytes:
    """Return a folder as a cpio archive in gzip's format, as the kernel unpacks it over its root; root's, undated.

    It is stored as it is: to decompress it takes software emulation half a second of each boot.
    """
    return gzip.compress(archived(root), 0, mtime=_TIME_STAMP)


def archived(root: Path) -> bytes:
    """Return a folder as `packed` does, without gzip's frame."""
    _settle(root)
    names = [".", *sorted(str(path.relative_to(root)) for path in root.rglob("*"))]
    archive = GUEST / ".initramfs.cpio"
    pack = ["cpio", "--create", "--format=newc", "--null", "--quiet", "--reproducible"]
    try:
        output(
            [*pack, "--owner=+0:+0", f"--file={archive}"],
            what="packing the guest's initramfs",
            cwd=root,
            stdin="".join(f"{name}\0" for name in names).encode(),
        )
        return archive.read_bytes()
    finally:
        archive.unlink(missing_ok=True)
