# SPDX-License-Identifier: GPL-2.0-or-later
"""Which accelerator to use, found out by booting: a /dev/kvm that opens is no proof that a kernel runs on it."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Literal

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.command import QemuBinary, machine_arguments
from vnet_standby.lab.events import EventLog
from vnet_standby.lab.vm import Vm, local, running_vm

Accelerator = Literal["kvm", "tcg"]

_KVM = Path("/dev/kvm")
_TRIAL_S = 15  # a guest that takes longer under KVM would be faster without
_TRIAL_RAM_MIB = 256


async def choose_accelerator(
    qemu: QemuBinary, kernel: Path, initramfs: Path, cache: Path
) -> Accelerator:
    """KVM if the guest boots with it, else software emulation.

    The answer is kept in the file `cache` for the same QEMU and kernel, until the machine is booted anew.
    """
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "tcg"
    key = _key(qemu, kernel)
    known = _read(cache)
    if key in known:
        return "kvm" if known[key] == "kvm" else "tcg"
    chosen: Accelerator = "kvm" if await _boots_with_kvm(qemu, kernel, initramfs) else "tcg"
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({**known, key: chosen}, indent=1))
    return chosen


async def _boots_with_kvm(qemu: QemuBinary, kernel: Path, initramfs: Path) -> bool:
    arguments = [
        *machine_arguments(qemu, "kvm", _TRIAL_RAM_MIB, "acpi"),
        "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", "console=ttyS0 panic=-1", "-no-reboot",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vnet-standby-") as logs:
        try:
            trial = Vm("kvm-trial", EventLog(), Path(logs))
            async with running_vm(trial, arguments, local(qemu.path)) as vm:
                await vm.bounded(vm.agent.wait_alive(), _TRIAL_S, "booting with KVM")
        except VnetStandbyError:  # whatever stopped it, KVM is not usable for this guest
            return False
    return True


def _key(qemu: QemuBinary, kernel: Path) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    parts = [boot]
    for path in (qemu.path, kernel):
        stat = path.stat()
        parts += [str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _read(cache: Path) -> dict[str, str]:
    if not cache.exists():
        return {}
    try:
        content = json.loads(cache.read_text())
    except ValueError:  # cut short by a full disk or a power loss: find out again
        return {}
    return content if isinstance(content, dict) else {}
