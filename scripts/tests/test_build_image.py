# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's image: which modules go in, and what is said about kernels that can't be used."""

import gzip
import lzma
from pathlib import Path

import pytest

from vnet_standby.build import cache, image, packages
from vnet_standby.errors import VnetStandbyError

RELEASE = "6.12.1-test"
DEPENDENCIES = image.parse_dependencies(
    "kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz\n"
    "kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz\n"
    "kernel/net/core/failover.ko.xz:\n"
    "kernel/drivers/net/snd-dummy.ko:\n"
    "# Aliases extracted from modules themselves.\n"
    "alias x: y\n"
)
BUILTIN = ["kernel/drivers/virtio/virtio_pci.ko", "kernel/net/ipv4/tcp-cubic.ko"]


def files(*wanted: str) -> list[str]:
    return image.with_dependencies(wanted, DEPENDENCIES, BUILTIN, RELEASE)


def test_a_dry_runs_other_tables_are_not_dependencies() -> None:
    assert len(DEPENDENCIES) == 4


def test_modules_come_with_all_that_they_need() -> None:
    assert files("virtio_net") == [
        "kernel/drivers/net/net_failover.ko.xz",
        "kernel/drivers/net/virtio_net.ko.xz",
        "kernel/net/core/failover.ko.xz",
    ]
    assert files("failover", "net_failover") == files("net_failover")


def test_dash_and_underscore_are_the_same_to_the_kernel() -> None:
    assert files("snd_dummy") == files("snd-dummy") == ["kernel/drivers/net/snd-dummy.ko"]


def test_what_is_built_in_needs_no_file() -> None:
    assert files("virtio_pci", "tcp_cubic") == []


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(VnetStandbyError, match=f"^Linux {RELEASE} has no module e1000f, which"):
        files("virtio_net", "e1000f")


def test_modules_are_unpacked(tmp_path: Path) -> None:
    packed = {"a.ko": b"elf", "b.ko.xz": lzma.compress(b"elf"), "c.ko.gz": gzip.compress(b"elf")}
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        assert image._decompressed(tmp_path / name) == b"elf"
    (tmp_path / "d.ko.zst").write_bytes(b"x")
    with pytest.raises(VnetStandbyError, match=r"compressed with zstd"):
        image._decompressed(tmp_path / "d.ko.zst")


def test_releases_are_ordered_as_people_do() -> None:
    releases = ["6.12.10+deb13-amd64", "6.9.3-amd64", "6.12.9+deb13-amd64", "6.12.9-rc1"]
    assert sorted(releases, key=image._release_order)[-1] == "6.12.10+deb13-amd64"
    assert sorted(releases, key=image._release_order)[0] == "6.9.3-amd64"


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build = tmp_path / "build"
    monkeypatch.setattr(cache, "BUILD", build)
    monkeypatch.setattr(image, "BUILD", build)
    monkeypatch.setattr(image, "LOGS", build / "logs")
    monkeypatch.setattr(image, "GUEST", build / "guest")
    monkeypatch.setattr(image, "_KERNEL", build / "guest/vmlinuz")
    monkeypatch.setattr(image, "_PICKED", build / "guest/kernel")
    monkeypatch.setattr(packages, "require", lambda job: None)
    return build


def kernel_folder(root: Path, magic: bytes = b"HdrS", release: str = RELEASE) -> Path:
    (root / "boot").mkdir(parents=True, exist_ok=True)
    (root / "boot" / f"vmlinuz-{release}").write_bytes(b"\0" * 0x202 + magic)
    modules = root / "lib/modules" / release
    modules.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        (modules / name).write_text("kernel/a.ko\n" if name == "modules.builtin" else "")
    return root


def complaint(kernel: Path) -> str:
    with pytest.raises(VnetStandbyError) as caught:
        image.guest_image(str(kernel))
    return str(caught.value)


def test_kernels_that_cannot_be_used(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none").endswith("no such kernel package or folder")
    (tmp_path / "text").write_text("x")
    assert "is neither a .deb nor a folder" in complaint(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    assert "has no kernel: boot/vmlinuz-RELEASE" in complaint(tmp_path / "empty")
    (tmp_path / "bad.deb").write_text("x")
    assert complaint(tmp_path / "bad.deb").startswith("unpacking bad.deb failed: dpkg-deb: error")
    other = kernel_folder(tmp_path / "other", magic=b"none")
    assert complaint(other).endswith(f"vmlinuz-{RELEASE} is not an x86 Linux kernel image")
    lost = kernel_folder(tmp_path / "lost")
    (lost / "lib/modules" / RELEASE / "modules.builtin").unlink()
    assert "was it made by modules_install?" in complaint(lost)


def test_an_image_among_the_modules_is_found(tmp_path: Path) -> None:
    modules = tmp_path / "usr/lib/modules/7.3.4+deb13-amd64"
    modules.mkdir(parents=True)
    (modules / "vmlinuz").touch()
    kernel = image._newest_kernel(tmp_path, tmp_path)
    assert (kernel.image, kernel.release) == (modules / "vmlinuz", "7.3.4+deb13-amd64")


def test_the_parts_of_an_empty_kernel_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beside it are taken, the others fetched, of exactly its version; what is not the kernel's is left out."""
    release, version = "7.3.4+deb13-amd64", "7.3.4-1~bpo13+1"
    needs = [f"linux-{part}-{release} (= {version})" for part in ("binary", "modules")]
    depends = ", ".join(["dracut | initramfs-tools (>= 0.120)", *needs])
    beside = tmp_path / f"linux-modules-{release}_{version}_amd64.deb"
    beside.touch()
    (tmp_path / f"linux-binary-{release}_7.3.4-1_amd64.deb").touch()
    monkeypatch.setattr(image, "output", lambda *_arguments, **_options: depends)
    monkeypatch.setattr(image, "DOWNLOADS", tmp_path / "downloads")
    fetched = []

    class FakeApt:
        def download_version(self, package: str, version: str, into: Path) -> Path:
            fetched.append((package, version, into))
            return into / "fetched.deb"

    monkeypatch.setattr(image, "kernel_apt", lambda series: FakeApt() if series == "7.3" else None)
    parts = image._parts(tmp_path / f"linux-image-{release}_{version}_amd64.deb")
    assert parts == [tmp_path / "downloads/fetched.deb", beside]
    assert fetched == [(f"linux-binary-{release}", version, tmp_path / "downloads")]


def test_the_newest_kernel_with_modules_is_taken(tmp_path: Path) -> None:
    root = kernel_folder(tmp_path / "k", release="6.9.1")
    kernel_folder(root, release="6.12.1")
    (root / "boot/vmlinuz-6.13.1").touch()
    assert image._newest_kernel(root, root).release == "6.12.1"
