# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated host of the nested topology: the guest's image, and over it what a host needs to run a VM itself.

That is the QEMU under test, this machine's Python and iproute2 with the libraries that they load here, the project's
own `vnet_standby.host`, and the nested VM's kernel and initramfs. Everything lives in an initramfs: an emulated host
has no disk.
"""

import compileall
import py_compile
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pyroute2
import qemu.qmp

import vnet_standby
from vnet_standby.build import packages
from vnet_standby.build.cache import Stamp, build_lock, digest, folder_digest, fresh_folder
from vnet_standby.build.commands import environment, output
from vnet_standby.build.image import GuestImage, archived, guest_image, pick_modules
from vnet_standby.build.progress import full_disk_named, say
from vnet_standby.build.qemu import firmware
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD, GUEST_HOST_SOURCE, HOST

# where things are in the emulated host
QEMU_FOLDER = Path("/opt/qemu")
GUEST_FOLDER = Path("/opt/guest")
IPROUTE2 = Path("/opt/iproute2")  # busybox's shell prefers its own ip wherever PATH may point
PYTHON = Path("/opt/python/bin/python3")
_PACKAGES_FOLDER = Path("/opt/vnet-standby")

PYTHON_COMMAND = f"PYTHONHOME={PYTHON.parents[1]} PYTHONPATH={_PACKAGES_FOLDER} {PYTHON}"
"""What a shell in the emulated host runs Python with; it finds `vnet_standby.host`, pyroute2 and qemu.qmp."""

_TOOLS = ("ip", "bridge")
_LDD_PATH = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")

# parts of the standard library that nothing on a host imports, two thirds of its size
_STDLIB_LEFT_OUT = (
    "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "site-packages", "dist-packages",
    "pydoc_data", "distutils", "__pycache__", "config-*", "*.a", "_tkinter*", "_dbm*", "_gdbm*",
    "_curses*", "readline*", "_test*", "_ctypes_test*", "_codecs_*", "_bz2*", "_lzma*", "_crypt*", "nis*",
)  # fmt: skip


def host_image(qemu_binary: Path, guest: GuestImage, kernel: str | None = None) -> GuestImage:
    """Build the image of an emulated host that runs `guest` in `qemu_binary`, if it isn't there already.

    `kernel` is the host's own, as for `guest_image`. Raises `VnetStandbyError` if the machine lacks a part of it.
    """
    with build_lock(), full_disk_named(BUILD):
        base = guest_image(kernel)
        picked = pick_modules(kernel, GUEST_HOST_SOURCE / "modules", HOST / "kernel")
        name = f"{qemu_binary.parent.name}-{guest.initramfs.name.removesuffix('.gz')}"
        image = HOST / f"{name}.cpio"
        stamp = Stamp(HOST / f".vnet-standby-{name}")
        key = _key(qemu_binary, guest, base, picked.identity)
        if not (stamp.matches(key) and image.exists()):
            stamp.clear()
            packages.require("nested")
            say(f"building the image of the emulated hosts ({name})")
            root = fresh_folder(HOST / "root")
            try:
                _assemble(root, qemu_binary, guest, picked.root)
                _write_image(image, base.initramfs, archived(root))
            finally:
                shutil.rmtree(root)
            stamp.write(key)
        return GuestImage(base.kernel, image, base.version)


def _key(qemu_binary: Path, guest: GuestImage, base: GuestImage, modules: str) -> str:
    """Return a hash over all that goes into the image."""
    files = (qemu_binary, guest.kernel, guest.initramfs, base.initramfs)
    states = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return digest(
        *states,
        modules,
        sys.version,
        pyroute2.__version__,
        folder_digest(GUEST_HOST_SOURCE),
        *_project_texts(),
        Path(__file__).read_bytes(),
    )


def _project_files() -> list[Path]:
    """Return the project's files that a production host gets: `vnet_standby.host` and what it imports of ours."""
    package = Path(vnet_standby.__file__).parent
    return [
        package / "__init__.py",
        package / "errors.py",
        *sorted((package / "host").rglob("*.py")),
    ]


def _project_texts() -> list[bytes]:
    return [path.read_bytes() for path in _project_files()]


def _assemble(root: Path, qemu_binary: Path, guest: GuestImage, modules: Path) -> None:
    shutil.copytree(modules / "lib/modules", root / "lib/modules")
    shutil.copy(GUEST_HOST_SOURCE / "init", root / "init")
    programs = [qemu_binary, Path(sys.executable).resolve(), *_tools()]
    _copy_python(root)
    programs += sorted(_inside(root, PYTHON.parents[1]).rglob("*.so"))
    _copy_libraries(root, programs)
    _copy_qemu(root, qemu_binary)
    _strip(root)
    for tool in _tools():
        _copy(tool, _inside(root, IPROUTE2) / tool.name)
    _copy(guest.kernel, _inside(root, GUEST_FOLDER) / "vmlinuz")
    _copy(guest.initramfs, _inside(root, GUEST_FOLDER) / "initramfs.gz")


def _inside(root: Path, place: Path) -> Path:
    return root / place.relative_to("/")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _tools() -> list[Path]:
    path = environment()["PATH"]
    found = {tool: shutil.which(tool, path=path) for tool in _TOOLS}
    if absent := [tool for tool, place in found.items() if place is None]:
        raise VnetStandbyError(f"{' and '.join(absent)} missing; install the package iproute2")
    return [Path(place).resolve() for place in found.values() if place]


def _copy_python(root: Path) -> None:
    """Copy the interpreter, its standard library and the packages that a host needs, compiled."""
    _copy(Path(sys.executable).resolve(), _inside(root, PYTHON))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = _inside(root, PYTHON.parents[1]) / "lib" / version
    left_out = shutil.ignore_patterns(*_STDLIB_LEFT_OUT)
    shutil.copytree(
        sysconfig.get_path("stdlib"), library, ignore=left_out, ignore_dangling_symlinks=True
    )
    own = _inside(root, _PACKAGES_FOLDER)
    for module in (pyroute2, qemu.qmp):
        folder = Path(str(module.__file__)).parent
        shutil.copytree(folder, own / Path(*module.__name__.split(".")), ignore=left_out)
    package = Path(vnet_standby.__file__).parent
    for file in _project_files():
        _copy(file, own / "vnet_standby" / file.relative_to(package))
    for folder in (library, own):
        _compile_python(folder)


def _compile_python(folder: Path) -> None:
    # "unchecked": an image's files have no times of their own to be checked against
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(folder, quiet=2, invalidation_mode=unchecked):
        raise VnetStandbyError(f"Python files in {folder} can't be compiled; look at them")


def _copy_libraries(root: Path, programs: Iterable[Path]) -> None:
    """Copy the shared libraries that the programs load on this machine, to the same places."""
    libraries = {library for program in programs for library in _libraries(program)}
    for library in sorted(libraries):
        _copy(library, _inside(root, library))


def _libraries(program: Path) -> list[Path]:
    said = output(["ldd", program], what=f"listing the libraries of {program.name}")
    if "not found" in said:
        missing = next(line.strip() for line in said.splitlines() if "not found" in line)
        raise VnetStandbyError(f"{program} can't run here: {missing}")
    return [Path(path) for path in _LDD_PATH.findall(said)]


def _copy_qemu(root: Path, qemu_binary: Path) -> None:
    target = _inside(root, QEMU_FOLDER) / "bin" / qemu_binary.name
    _copy(qemu_binary, target)
    shutil.copytree(firmware(), _inside(root, QEMU_FOLDER) / "firmware")


def _strip(root: Path) -> None:
    """Take the symbols out of programs and libraries; the kernel unpacks them into memory."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    programs = [path for path in files if path.suffix != ".ko" and _is_elf(path)]
    output(["strip", "--strip-unneeded", *programs], what="stripping the hosts' programs")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _write_image(image: Path, base: Path, archive: bytes) -> None:
    """Put one archive behind the other, as the kernel unpacks them (its buffer-format.rst on initramfs)."""
    first = base.read_bytes()
    # an archive that isn't compressed starts at a multiple of four
    image.write_bytes(first + bytes(-len(first) % 4) + archive)
