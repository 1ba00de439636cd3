# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest driver's build: which headers it needs, whether the result fits, what is said where it can't be built."""

import subprocess
from pathlib import Path

import pytest

from vnet_standby.build import driver
from vnet_standby.errors import VnetStandbyError

KERNEL = driver.parse_symbols(
    "0xa3931c06\tnet_failover_create\tdrivers/net/net_failover\tEXPORT_SYMBOL_GPL\t\n"
    "0xe165e8da\tnet_failover_destroy\tdrivers/net/net_failover\tEXPORT_SYMBOL_GPL\t\n"
    "0x00000001\tregister_netdevice\tvmlinux\tEXPORT_SYMBOL\t\n"
)


def test_headers_of_a_debian_kernel() -> None:
    assert driver.header_packages("6.12.107+deb13-amd64") == [
        "linux-headers-6.12.107+deb13-amd64",
        "linux-headers-6.12.107+deb13-common",
        "linux-kbuild-6.12.107+deb13",
    ]


def test_flavours_share_headers_but_for_the_real_time_ones() -> None:
    assert driver.header_packages("6.1.0-49-cloud-amd64")[1] == "linux-headers-6.1.0-49-common"
    assert driver.header_packages("6.1.0-49-rt-amd64")[1] == "linux-headers-6.1.0-49-common-rt"


@pytest.mark.parametrize("release", ["6.12.1", "6.12.1-arm64", "amd64", "6.8.0-31-generic"])
def test_other_kernels_are_refused(release: str) -> None:
    with pytest.raises(VnetStandbyError, match="Debian's amd64 kernels"):
        driver.header_packages(release)


def test_a_module_with_the_kernels_crcs_fits() -> None:
    built = {name: crc for name, crc in KERNEL.items() if name.startswith("net_failover")}
    assert driver.misfits(KERNEL, built) == []


def test_another_crc_or_a_missing_symbol_does_not_fit() -> None:
    assert driver.misfits(KERNEL, {"net_failover_create": "0xa3931c06"}) == ["net_failover_destroy"]
    assert driver.misfits(KERNEL, {**KERNEL, "net_failover_create": "0x1"}) == [
        "net_failover_create"
    ]


def test_a_kernel_without_net_failover_fits_nothing() -> None:
    built = {name: KERNEL[name] for name in ("net_failover_create", "net_failover_destroy")}
    assert driver.misfits({}, built) == ["net_failover_create", "net_failover_destroy"]


def test_the_symbols_are_exported_from_a_file_with_the_kernels_includes() -> None:
    """The CRCs hang on this list; a build without the kernel's headers can't notice that it has changed."""
    text = (driver.GUEST_DRIVER_SOURCE / "drop_in.c").read_text()
    includes = [
        line.split("<")[1].rstrip(">") for line in text.splitlines() if "#include <" in line
    ]
    assert includes == [
        "linux/netdevice.h", "linux/etherdevice.h", "linux/ethtool.h", "linux/module.h",
        "linux/slab.h", "linux/netpoll.h", "linux/rtnetlink.h", "linux/if_vlan.h", "linux/pci.h",
        "net/sch_generic.h", "uapi/linux/if_arp.h", "net/net_failover.h",
    ]  # fmt: skip


def test_a_tool_runs_with_the_libraries_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "HEADERS", tmp_path)
    loader = tmp_path / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    loader.chmod(0o755)
    tool = tmp_path / "tool"
    tool.write_text("an ELF file")
    driver._bring_libraries(tool)
    done = subprocess.run([tool, "two words"], capture_output=True, text=True, check=True)
    libraries = str(loader.parent)
    assert done.stdout.splitlines() == [
        "--library-path",
        libraries,
        f"{tool}.elf",
        "two words",
    ]


def test_the_patches_are_ordered_by_their_names() -> None:
    names = [path.name for path in driver.patches()]
    assert names
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


def test_a_patch_that_does_not_fit_is_named(tmp_path: Path) -> None:
    other = tmp_path / "virtio_net.c"
    other.write_text("/* of another kernel */\n")
    folder = tmp_path / "build"
    folder.mkdir()
    with pytest.raises(VnetStandbyError, match=driver.patches()[0].name):
        driver._patch(other, folder)
    assert other.read_text() == "/* of another kernel */\n"
