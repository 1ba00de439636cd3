# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes over rtnetlink: bridges and taps of a real kernel in a private namespace, VF messages made up."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from host_machine import MAC, link

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.network import Network, VfSettings

IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--kill-child"]

NETWORK = r"""
import subprocess, sys, time
from pathlib import Path
from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Transaction
from vnet_standby.host.fabric import find_fabric, forget, steer
from vnet_standby.host.host import Host
from vnet_standby.host.network import FdbEntry, open_network, steered
from vnet_standby.host.pci import PciBus

MAC = "52:54:00:76:6e:01"

def ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True)

ip("link add name br0 type bridge forward_delay 0")
ip("link add name up0 type veth peer name wire")
ip("link add name mv0 link wire type macvtap")
ip("tuntap add standby mode tap")
for name in ("up0", "standby"):
    ip(f"link set dev {name} up master br0")
ip("link set dev br0 up")
"""

BRIDGE = r"""
with open_network() as network:
    tap, up0 = network.link("standby"), network.link("up0")
    assert (tap.kind, up0.kind, network.link("br0").kind) == ("tun", "veth", "bridge")
    assert tap.promiscuous and tap.up and not tap.vlan_filtering
    assert network.bridge_entries(tap.mac)[0].kind == "local"
    assert network.bridge_entries(MAC) == []
    for port in (tap, up0, tap):
        network.write_entry(steered(MAC, port, None))
        assert network.bridge_entries(MAC) == [FdbEntry(MAC, port.index, None, "static", True)]
    ip("link set dev wire up")
    deadline = time.monotonic() + 10
    while "state forwarding" not in subprocess.check_output(["bridge", "link", "show", "dev", "up0"], text=True):
        assert time.monotonic() < deadline, "the port never forwards"
        time.sleep(0.01)  # rtnetlink tells of a port's state only when it is asked
    learnt = FdbEntry(MAC, up0.index, None, "dynamic", False)
    network.write_entry(learnt)
    assert network.bridge_entries(MAC) == [learnt]
    network.delete_entry(learnt)
    network.delete_entry(learnt)
    assert network.bridge_entries(MAC) == []
    network.add_own_filter(up0, MAC)
    network.add_own_filter(up0, MAC)
    assert network.own_filters(MAC) == {up0.index}
    network.remove_own_filter(up0, MAC)
    network.remove_own_filter(up0, MAC)
    assert network.own_filters(MAC) == set()
    assert network.vfs(up0) == {}
    ip("address add 192.0.2.9/24 dev wire")
    assert network.addresses(network.link("wire")) == ["192.0.2.9"]
    ip("link set dev wire down")
    network.set_up("wire")
    network.reread()
    assert network.link("wire").up
"""

STEER = r"""
with open_network() as network:
    host = Host(PciBus(Path("/nowhere")), network)
    tap, up0 = network.link("standby"), network.link("up0")
    for to, port in (("standby", tap), ("primary", up0)):
        for already in (False, True):
            with Transaction() as change:
                steer(host, change, find_fabric(host, MAC, "standby", uplink_name="up0"), to)
            assert bool(change.changed) != already, change.changed
            assert network.bridge_entries(MAC) == [steered(MAC, port, None)]
    with Transaction() as change:
        forget(host, change, MAC)
    assert network.bridge_entries(MAC) == []
    for name, reason in (("mv0", "is a macvtap"), ("wire", "is in no bridge")):
        try:
            find_fabric(host, MAC, name, uplink_name="up0")
        except VnetStandbyError as error:
            assert reason in str(error), error
        else:
            raise AssertionError(name)
"""

VLANS = r"""
ip("link set dev br0 type bridge vlan_filtering 1")
for name, vlan in (("standby", 20), ("up0", 20), ("up0", 30)):
    subprocess.run(["bridge", "vlan", "add", "dev", name, "vid", str(vlan)], check=True)
with open_network() as network:
    host = Host(PciBus(Path("/nowhere")), network)
    assert network.link("br0").vlan_filtering
    assert network.vlans(network.link("standby")) == (1, 20)
    for to in ("standby", "primary"):
        with Transaction() as change:
            steer(host, change, find_fabric(host, MAC, "standby", uplink_name="up0"), to)
        port = network.link("standby" if to == "standby" else "up0")
        found = {entry.vlan: entry for entry in network.bridge_entries(MAC)}
        assert found == {vlan: steered(MAC, port, vlan) for vlan in (1, 20)}, found
"""

UNPRIVILEGED = r"""
with open_network() as network:
    up0 = network.link("up0")
    import ctypes
    drop = ctypes.CDLL(None).capset
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert drop(header, (ctypes.c_uint32 * 6)()) == 0
    for refused in (lambda: network.add_own_filter(up0, MAC), lambda: network.set_up("up0")):
        try:
            refused()
        except VnetStandbyError as error:
            assert "CAP_NET_ADMIN" in str(error), error
        else:
            raise AssertionError("not refused")
"""


@pytest.fixture(scope="module")
def namespace() -> None:
    probing = subprocess.run(
        [*IN_NAMESPACE, sys.executable, "-c", NETWORK], capture_output=True, text=True, check=False
    )
    if probing.returncode:
        last = probing.stderr.strip().splitlines()[-1]
        pytest.skip(f"no private network namespace with a bridge, tap and macvtap: {last}")


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("story", [BRIDGE, STEER, UNPRIVILEGED])
def test_on_a_real_kernel(story: str) -> None:
    done = run_in_namespace(story)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("namespace")
def test_on_a_real_vlan_aware_bridge() -> None:
    done = run_in_namespace(VLANS)
    if "vlan_filtering" in done.stderr and "not supported" in done.stderr.lower():
        pytest.skip("this kernel has no VLAN-aware bridges")
    assert done.returncode == 0, done.stderr


def run_in_namespace(story: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*IN_NAMESPACE, sys.executable, "-c", NETWORK + story],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Attributes(dict[str, Any]):
    """A message as pyroute2 hands it out."""

    def get_attr(self, name: str) -> Any:  # noqa: D102  # as in pyroute2
        return self.get(name)

    def get_attrs(self, name: str) -> Any:  # noqa: D102  # as in pyroute2
        return self.get(name, [])


def test_vf_settings_are_read_and_set() -> None:
    unsigned = 0xFFFFFFFF  # what the kernel writes where the driver does not tell
    sent: list[dict[str, Any]] = []
    infos = [
        Attributes(
            IFLA_VF_MAC={"vf": index, "mac": mac},
            IFLA_VF_TRUST={"vf": index, "trust": trust},
            IFLA_VF_SPOOFCHK={"vf": index, "spoofchk": spoof_check},
        )
        for index, mac, trust, spoof_check in (
            (0, MAC, 1, 0),
            (1, "00:00:00:00:00:00", unsigned, unsigned),
        )
    ]
    message = Attributes(IFLA_VFINFO_LIST=Attributes(IFLA_VF_INFO=infos))
    ip = SimpleNamespace(
        get_links=lambda _index, ext_mask: [message], link=lambda _do, **what: sent.append(what)
    )
    network, pf = Network(ip), link(2, "eth0")
    assert network.vfs(pf) == {
        0: VfSettings(0, MAC, True, False),
        1: VfSettings(1, "00:00:00:00:00:00", None, None),
    }
    network.set_vf_mac(pf, 1, MAC)
    network.set_vf_trust(pf, 1, True)
    assert sent == [
        {"index": 2, "vf": {"vf": 1, "mac": MAC}},
        {"index": 2, "vf": {"vf": 1, "trust": 1}},
    ]


def test_a_pf_without_vf_settings_says_so() -> None:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415  # slow to load

    def refuse(*_: object, **__: object) -> None:
        raise NetlinkError(95)

    with pytest.raises(VnetStandbyError, match=r"trust of VF 0 of eth0: .*operation not supported"):
        Network(SimpleNamespace(link=refuse)).set_vf_trust(link(2, "eth0"), 0, True)
