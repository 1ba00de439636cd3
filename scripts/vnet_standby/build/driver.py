# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest driver, built for the guest's kernel against its distribution's headers, and the image that has it.

It comes in two kinds from the same source: the drop-in takes net_failover's place beside the kernel's own virtio_net;
the patched pair is virtio_net, with the patches in guest/driver/patches, and vnet_standby.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import Literal

from vnet_standby.build import packages
from vnet_standby.build.apt import archive_uri, kernel_apt
from vnet_standby.build.cache import (
    Stamp,
    build_lock,
    digest,
    fresh_folder,
    write_atomically,
)
from vnet_standby.build.commands import compiler, compiler_version, output
from vnet_standby.build.image import GuestImage, guest_image, packed
from vnet_standby.build.kernel_source import kernel_file
from vnet_standby.build.progress import full_disk_named, run_logged, say
from vnet_standby.build.qemu import refuse_spaces
from vnet_standby.build.source import DOWNLOADS
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD, GUEST, GUEST_DRIVER_SOURCE, HEADERS, LOGS

Kind = Literal["drop-in", "patched"]

MODULES: dict[Kind, tuple[str, ...]] = {
    "drop-in": ("net_failover.ko",),
    "patched": ("vnet_standby.ko", "virtio_net.ko"),
}
DRIVER = GUEST / "driver"

_IMAGE = GUEST / "initramfs-vnet-standby.gz"
_BUILD_FOLDER = DRIVER / "build"
_PATCHED_FILE = "drivers/net/virtio_net.c"
_PATCHES = GUEST_DRIVER_SOURCE / "patches"
_TREE_STATE = (".config", "Module.symvers")  # what tells one build of a release from another
_SYMBOLS = ("net_failover_create", "net_failover_destroy")
_TIMEOUT_S = 600

# 6.12.107+deb13-amd64, 6.1.0-50-amd64: what all flavours share, its series, and the flavour
_RELEASE = re.compile(r"^((\d+\.\d+)\S*?)-((?:cloud-|rt-)*amd64)$")

# Debian's kernel tools are built for its own release; they get the libraries of that release with them, or newer ones.
_LIBRARIES = ("libc6", "libelf1t64", "zlib1g", "libzstd1")
_LIBRARY_FOLDER = Path("usr/lib/x86_64-linux-gnu")
# the second, where the first is, only starts that
_OBJTOOLS = ("tools/objtool/objtool.real-x86", "tools/objtool/objtool")
_MODPOST = "scripts/mod/modpost.real-lsb-64"

# The kernel is compiled by another gcc than the machine's, perhaps a newer one.
_OVERRIDES = (
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",  # an option of gcc 14; without it the older -falign-functions is used
    "CONFIG_DEBUG_INFO_BTF_MODULES=",  # needs the kernel's own pahole
)


def build_driver(kernel: str | None = None) -> list[Path]:
    """Build both kinds of the driver for the guest's kernel, if they aren't there already; return the modules.

    `kernel` is as for `guest_image`; it has to be one whose headers and source Debian's archive has, or a folder with
    the tree that it was built in. Raises `VnetStandbyError` if it is another, or if a module would not fit the kernel.
    """
    refuse_spaces()
    with build_lock(), full_disk_named(BUILD):
        image = guest_image(kernel)
        modules = [DRIVER / name for names in MODULES.values() for name in names]
        stamp = Stamp(DRIVER / ".vnet-standby-built")
        tree = built_tree(kernel, image.version)
        key = _key(image.version, tree)
        if not (stamp.matches(key) and all(module.exists() for module in modules)):
            stamp.clear()
            packages.require("driver")
            headers = tree or kernel_headers(image.version)
            virtio_net = tree / _PATCHED_FILE if tree else kernel_file(image.kernel, _PATCHED_FILE)
            say(f"building the guest driver for Linux {image.version}")
            for kind in MODULES:
                _build(kind, headers, virtio_net, kernel_series(image.version))
            stamp.write(key)
        return modules


def _build(kind: Kind, headers: Path, virtio_net: Path, series: str) -> None:
    folder = fresh_folder(_BUILD_FOLDER / kind)
    for source in _sources():
        shutil.copyfile(source, folder / source.name)
    if kind == "patched":
        _patch(virtio_net, patches(series), folder)
    _compile(headers, folder, kind)
    if kind == "drop-in":
        _check_symbols(headers, folder / "Module.symvers")
    for name in MODULES[kind]:
        output(
            ["strip", "--strip-debug", "-o", DRIVER / name, folder / name],
            what="stripping the driver",
        )


def _patch(virtio_net: Path, series: list[Path], folder: Path) -> None:
    """Put the patched file into a folder; a patch that doesn't fit to the line is an error."""
    target = folder / virtio_net.name
    shutil.copyfile(virtio_net, target)
    for patch in series:
        output(
            ["patch", "--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "-i", patch, target],
            what=f"applying {patch.name} to the kernel's {_PATCHED_FILE}",
        )  # fmt: skip


def driver_image(kernel: str | None = None) -> GuestImage:
    """Build the guest's image with the driver in it; `kernel` is as for `build_driver`.

    Both kinds stand beside the kernel's own modules, in `updates`; guest/image/init loads the one that it is asked for.
    """
    with build_lock(), full_disk_named(BUILD):
        modules = build_driver(kernel)
        image = guest_image(kernel)
        stamp = Stamp(GUEST / ".vnet-standby-driver-image")
        plain = image.initramfs.read_bytes()
        key = digest(plain, *(module.read_bytes() for module in modules), image.version)
        if not (stamp.matches(key) and _IMAGE.exists()):
            stamp.clear()
            # the kernel unpacks one archive after the other (its buffer-format.rst on initramfs)
            write_atomically(_IMAGE, plain + _archive(modules, image.version))
            stamp.write(key)
        return GuestImage(image.kernel, _IMAGE, image.version)


def _archive(modules: list[Path], release: str) -> bytes:
    root = fresh_folder(GUEST / "driver-root")
    try:
        folder = root / "lib/modules" / release / "updates"
        folder.mkdir(parents=True)
        for module in modules:
            shutil.copyfile(module, folder / module.name)
        return packed(root)
    finally:
        shutil.rmtree(root)


def kernel_series(release: str) -> str:
    """Return the series (6.12) that a kernel's release belongs to."""
    return ".".join(release.split(".")[:2])


def header_packages(release: str) -> list[str]:
    """Return the names of the packages that a module for a Debian kernel is built with."""
    match = _RELEASE.match(release)
    if not match:
        raise VnetStandbyError(
            f"no headers for Linux {release}: the guest driver is built for Debian's amd64 kernels, or in the tree of "
            f"a kernel's folder (lib/modules/{release}/build); use one of those"
        )
    base, series, flavour = match.groups()
    common = f"{base}-common-rt" if flavour.startswith("rt-") else f"{base}-common"
    # before releases named the Debian that they are for, the tools had no number of their own
    tools = base if "+" in base else series
    return [f"linux-headers-{release}", f"linux-headers-{common}", f"linux-kbuild-{tools}"]


def built_tree(kernel: str | None, release: str) -> Path | None:
    """Return the tree that a folder's kernel was built in, sources and all, where modules_install has left a link."""
    if kernel is None:
        return None
    tree = Path(kernel).expanduser().resolve() / "lib/modules" / release / "build"
    complete = all((tree / name).is_file() for name in (*_TREE_STATE, _PATCHED_FILE))
    return tree.resolve() if complete else None


def _key(release: str, tree: Path | None) -> str:
    """Return a hash over all that goes into the modules."""
    kernel = [(tree / name).read_bytes() for name in _TREE_STATE] if tree else []
    code = Path(__file__).read_bytes()
    sources = [
        part
        for path in [*_sources(), *patches(kernel_series(release))]
        for part in (path.name, path.read_bytes())
    ]
    return digest(release, *kernel, *sources, shlex.join(compiler()), compiler_version(), code)


def _sources() -> list[Path]:
    return [GUEST_DRIVER_SOURCE / "Kbuild", *sorted(GUEST_DRIVER_SOURCE.glob("*.[ch]"))]


def patches(series: str) -> list[Path]:
    """Return the patches to the virtio_net of a kernel series, in order."""
    return sorted((_PATCHES / series).glob("*.patch"))


def kernel_headers(release: str) -> Path:
    """Return the folder to build modules in, unpacked from the kernel's header packages."""
    wanted = header_packages(release)
    folder = HEADERS / "usr/src" / wanted[0]
    stamp = Stamp(HEADERS / ".vnet-standby-unpacked")
    key = digest(*wanted, Path(__file__).read_bytes(), str(HEADERS))
    if stamp.matches(key) and folder.exists():
        return folder
    if archive_uri() is None:
        raise VnetStandbyError(
            f"no Debian archive among this machine's apt sources, so no headers for Linux {release}; add one"
        )
    stamp.clear()
    fresh_folder(HEADERS)
    apt = kernel_apt(kernel_series(release))
    for package in apt.download([*wanted, *_LIBRARIES], DOWNLOADS):
        output(["dpkg-deb", "-x", package, HEADERS], what=f"unpacking {package.name}")
    # the packages' own lines name the place where they would be installed
    makefile = (folder / "Makefile").read_text()
    write_atomically(folder / "Makefile", makefile.replace("/usr/src/", f"{HEADERS}/usr/src/"))
    tools = HEADERS / "usr/lib" / wanted[2]
    objtool = next(tools / name for name in _OBJTOOLS if (tools / name).exists())
    for tool in (objtool, tools / _MODPOST):
        _bring_libraries(tool)
    stamp.write(key)
    return folder


def _bring_libraries(tool: Path) -> None:
    """Let a program run with the libraries that were unpacked beside it, whatever the machine's are."""
    program = tool.with_name(f"{tool.name}.elf")
    tool.rename(program)
    libraries = HEADERS / _LIBRARY_FOLDER
    loader = libraries / "ld-linux-x86-64.so.2"
    command = shlex.join([str(loader), "--library-path", str(libraries), str(program)])
    write_atomically(tool, f'#!/bin/sh\nexec {command} "$@"\n')
    tool.chmod(0o755)


def _compile(headers: Path, folder: Path, kind: Kind) -> None:
    run_logged(
        [
            "make",
            "-C",
            headers,
            f"M={folder}",
            f"CC={shlex.join(compiler())}",
            *_OVERRIDES,
            "W=1",
            "KCFLAGS=-Werror",
            "modules",
        ],
        title=f"compiling the guest driver ({kind})",
        log=LOGS / f"build-driver-{kind}.log",
        timeout_s=_TIMEOUT_S,
    )


def parse_symbols(text: str) -> dict[str, str]:
    """Return the CRC of each symbol in a Module.symvers (CRC, symbol, module, how exported, name space)."""
    fields = [line.split("\t") for line in text.splitlines()]
    return {symbol: crc for crc, symbol, *_ in fields}


def misfits(kernel: dict[str, str], built: dict[str, str]) -> list[str]:
    """Return the exported symbols whose CRC differs from the kernel's; its virtio_net would refuse such a module."""
    return [name for name in _SYMBOLS if built.get(name) != kernel.get(name)]


def _check_symbols(headers: Path, built: Path) -> None:
    kernel = parse_symbols((headers / "Module.symvers").read_text())
    if wrong := misfits(kernel, parse_symbols(built.read_text())):
        raise VnetStandbyError(
            f"the driver's {', '.join(wrong)} would not fit this kernel's virtio_net: the CRCs differ; compare the "
            "includes of guest/driver/drop_in.c with those of the kernel's drivers/net/net_failover.c"
        )
