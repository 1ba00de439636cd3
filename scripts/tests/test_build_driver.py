# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest driver's build: which headers it needs, whether the result fits, what is said where it can't be built."""

import re
import subprocess
from pathlib import Path

import pytest

from vnet_standby.build import driver
from vnet_standby.build.apt import KERNEL_SUITES
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


def test_the_tools_of_older_releases_belong_to_the_series() -> None:
    assert driver.header_packages("6.1.0-50-amd64") == [
        "linux-headers-6.1.0-50-amd64",
        "linux-headers-6.1.0-50-common",
        "linux-kbuild-6.1",
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


def test_all_places_name_the_same_kernels() -> None:
    """Where a kernel was tried, its packages are found, there are patches, and Kbuild and DKMS take it."""
    series = set(KERNEL_SUITES)
    assert {path.name for path in driver._PATCHES.iterdir()} == series
    kbuild = (driver.GUEST_DRIVER_SOURCE / "Kbuild").read_text()
    accepted = re.search(r"\(filter \S+,(.*)\)", kbuild)
    assert accepted
    assert set(accepted[1].removesuffix("),").split()) == series
    settings = (driver.GUEST_DRIVER_SOURCE / "dkms.conf").read_text()
    wanted = re.search(r'^BUILD_EXCLUSIVE_KERNEL="(.*)"$', settings, re.M)
    assert wanted
    releases = ["6.1.0-50-amd64", "6.12.117+deb13-amd64", "7.3.4+deb13-amd64"]
    others = ["6.10.9-amd64", "6.13.1-amd64", "7.31.0-amd64", "16.1.0-amd64"]
    assert [r for r in [*releases, *others] if re.search(wanted[1], r)] == releases
    assert [driver.kernel_series(release) for release in releases] == list(KERNEL_SUITES)


@pytest.mark.parametrize("series", KERNEL_SUITES)
def test_the_patches_are_ordered_by_their_names(series: str) -> None:
    names = [path.name for path in driver.patches(series)]
    assert names
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


def test_a_patch_that_does_not_fit_is_named(tmp_path: Path) -> None:
    other = tmp_path / "virtio_net.c"
    other.write_text("/* of another kernel */\n")
    folder = tmp_path / "build"
    folder.mkdir()
    patches = driver.patches("6.12")
    with pytest.raises(VnetStandbyError, match=patches[0].name):
        driver._patch(other, patches, folder)
    assert other.read_text() == "/* of another kernel */\n"


def test_a_kernel_with_the_tree_that_it_was_built_in(tmp_path: Path) -> None:
    """Only a tree that has all: one of headers alone, or none, is no place to take virtio_net from."""
    modules = tmp_path / "kernel/lib/modules/6.12.1-own"
    modules.mkdir(parents=True)
    tree = tmp_path / "tree"
    (tree / "drivers/net").mkdir(parents=True)
    (modules / "build").symlink_to(tree)
    given = str(tmp_path / "kernel")
    for name in (".config", "Module.symvers", "drivers/net/virtio_net.c"):
        assert driver.built_tree(given, "6.12.1-own") is None
        (tree / name).touch()
    assert driver.built_tree(given, "6.12.1-own") == tree
    assert driver.built_tree(given, "6.12.1-other") is None
    assert driver.built_tree(None, "6.12.1-own") is None


def test_another_build_of_the_same_release_is_another_kernel(tmp_path: Path) -> None:
    for name in (".config", "Module.symvers"):
        (tmp_path / name).write_text("one")
    before = driver._key("6.12.1-own", tmp_path)
    assert driver._key("6.12.1-own", tmp_path) == before
    (tmp_path / ".config").write_text("another")
    assert driver._key("6.12.1-own", tmp_path) != before
