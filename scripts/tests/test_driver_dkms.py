# SPDX-License-Identifier: GPL-2.0-or-later
"""What the DKMS package checks itself: a module whose symbols don't fit must not be installed."""

import os
import subprocess
from pathlib import Path

from vnet_standby.paths import GUEST_DRIVER_SOURCE

KERNEL = "0x11111111\tnet_failover_create\tdrivers/net/net_failover\tEXPORT_SYMBOL_GPL\t\n"
KERNEL += "0x22222222\tnet_failover_destroy\tdrivers/net/net_failover\tEXPORT_SYMBOL_GPL\t\n"


def check(folder: Path, built: str) -> subprocess.CompletedProcess[str]:
    (folder / "kernel").mkdir()
    (folder / "kernel/Module.symvers").write_text(KERNEL)
    (folder / "Module.symvers").write_text(built)
    script = GUEST_DRIVER_SOURCE / "check-symbols"
    return subprocess.run(
        [script, "kernel"], cwd=folder, capture_output=True, text=True, check=False, timeout=10
    )


def test_symbols_that_fit(tmp_path: Path) -> None:
    assert check(tmp_path, KERNEL).returncode == 0


def test_a_symbol_with_another_crc(tmp_path: Path) -> None:
    done = check(tmp_path, KERNEL.replace("0x22222222", "0x33333333"))
    assert done.returncode == 1
    assert "net_failover_destroy does not fit" in done.stderr


def test_a_symbol_that_is_missing(tmp_path: Path) -> None:
    assert check(tmp_path, "").returncode == 1


def test_dkms_can_run_what_its_settings_name() -> None:
    settings = (GUEST_DRIVER_SOURCE / "dkms.conf").read_text()
    for name in ("check-symbols", "rebuild-initramfs"):
        assert name in settings
        assert os.access(GUEST_DRIVER_SOURCE / name, os.X_OK)
