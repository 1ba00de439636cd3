# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run uses: a QEMU, one of our builds or the user's, and the image of the guest."""

from pathlib import Path

from vnet_standby.build.driver import driver_image
from vnet_standby.build.image import GuestImage, guest_image
from vnet_standby.build.qemu import build_qemu, firmware
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.command import QemuBinary, ask, inspect_qemu
from vnet_standby.lab.scenario import GuestKind


def qemu_under_test(wanted: str, source: str | None = None) -> QemuBinary:
    """Find the QEMU that `wanted` names: patched, stock (both built if they are missing), or a binary's path.

    `source` is where our builds come from, see `build.source`. Raises `VnetStandbyError` if there is no such QEMU.
    """
    match wanted:
        case "patched" | "stock":
            path = build_qemu(wanted, source)
        case _:
            path = Path(wanted).resolve()
            if not path.is_file():
                raise VnetStandbyError(
                    f"no such QEMU: {wanted}; give patched, stock or the path of a binary"
                )
    return inspect_qemu(path, None if _has_firmware(path) else firmware())


def image_under_test(guest: GuestKind, kernel: str | None = None) -> GuestImage:
    """Return what a kind of guest boots, built if it is missing; `kernel` is as for `guest_image`.

    Only a vnet-standby guest has this project's driver in its image: the others stay as stock Linux has them.
    """
    return driver_image(kernel) if guest == "vnet-standby" else guest_image(kernel)


def _has_firmware(path: Path) -> bool:
    """Whether a QEMU finds its own BIOS; one built from Debian's source does not, unless it is installed."""
    folders = ask(path, "-L", "help").splitlines()
    return any((Path(folder) / "bios-256k.bin").exists() for folder in folders)
