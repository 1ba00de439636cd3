# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of an emulated host: what goes in, and how it is laid out for the kernel."""

import shutil
import sys
from pathlib import Path

import pytest

from vnet_standby.build import host_image
from vnet_standby.errors import VnetStandbyError


def test_an_uncompressed_archive_starts_at_a_multiple_of_four(tmp_path: Path) -> None:
    base, image = tmp_path / "base", tmp_path / "image"
    for size in range(4, 8):
        base.write_bytes(b"x" * size)
        host_image._write_image(image, base, b"070701")
        content = image.read_bytes()
        assert content.startswith(b"x" * size)
        assert content.index(b"070701") % 4 == 0
        assert content[size : content.index(b"070701")].strip(b"\0") == b""


@pytest.mark.skipif(not shutil.which("ldd"), reason="no ldd on this machine")
def test_the_libraries_of_a_program_are_found() -> None:
    libraries = host_image._libraries(Path(sys.executable).resolve())
    assert any(library.name.startswith("libc.so") for library in libraries)
    assert any(library.name.startswith("ld-linux") for library in libraries)
    assert all(library.is_absolute() for library in libraries)


def test_a_program_that_misses_a_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "\tlibfoo.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n"
    monkeypatch.setattr(host_image, "output", lambda *_, **__: said)
    with pytest.raises(VnetStandbyError, match=r"qemu can't run here: libfoo\.so\.1 => not found"):
        host_image._libraries(tmp_path / "qemu")


def test_only_what_goes_to_production_hosts_goes_in() -> None:
    names = {path.name for path in host_image._project_files()}
    assert {"__init__.py", "errors.py", "__main__.py", "fabric.py"} <= names
    folders = {path.parent.name for path in host_image._project_files()}
    assert folders == {"vnet_standby", "host"}


def test_a_machine_without_iproute2_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_image.shutil, "which", lambda *_, **__: None)
    with pytest.raises(VnetStandbyError, match=r"ip and bridge missing; install .* iproute2"):
        host_image._tools()


def test_programs_are_told_from_other_files(tmp_path: Path) -> None:
    for name, content in {"elf": b"\x7fELF...", "text": b"#!/bin/sh\n", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
    assert [path.name for path in sorted(tmp_path.iterdir()) if host_image._is_elf(path)] == ["elf"]
