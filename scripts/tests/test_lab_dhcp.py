# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's DHCP server: what it writes down, and what is said when it does not come up."""

import asyncio
from pathlib import Path

import pytest

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab import dhcp

LEASES = """\
1795411335 52:54:00:76:6e:01 192.0.2.3 guest ff:5d:e2:6c:15:00:02
1795411335 52:54:00:76:6e:01 192.0.2.2 * ff:56:50:4d:98:00:02
"""


def start(run: Path, script: str) -> None:
    """Run the server with a shell script in dnsmasq's place."""

    async def story() -> None:
        async with dhcp.dhcp_server(run):
            pass

    folder = run / "bin"
    folder.mkdir()
    (folder / "dnsmasq").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "dnsmasq").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin")
        asyncio.run(story())


def test_clients_with_one_mac_are_told_apart() -> None:
    first, second = dhcp.parse_leases(LEASES)
    assert first.mac == second.mac
    assert (first.address, second.address) == ("192.0.2.3", "192.0.2.2")
    assert first.client != second.client


def test_no_file_means_no_lease(tmp_path: Path) -> None:
    assert dhcp.DhcpServer(tmp_path / "leases").leases() == []


def test_leases_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "dhcp-leases").write_text(LEASES)
    start(tmp_path, "echo dnsmasq: started, version 2 >&2; exec sleep 60")
    assert not (tmp_path / "dhcp-leases").exists()
    assert "started" in (tmp_path / "dhcp.log").read_text()


def test_a_server_that_exits_is_named(tmp_path: Path) -> None:
    with pytest.raises(VnetStandbyError, match="DHCP server exits with status 2"):
        start(tmp_path, "echo dnsmasq: unknown interface peer >&2; exit 2")


def test_a_server_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dhcp, "_READY_S", 0.2)
    with pytest.raises(VnetStandbyError, match="not ready within"):
        start(tmp_path, "exec sleep 60")
