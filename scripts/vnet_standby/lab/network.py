# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's network: a Linux bridge with the peer and the ports of two hosts, called a and b.

    flat:    peer ---- peer-br --[ br0 ]-- a-standby, a-primary, b-standby, b-primary
    nested:  peer ---- peer-br --[ br0 ]-- a-uplink, a-nic, b-uplink, b-nic
             the lab (an address of the bridge itself) --[ mgmt ]-- a-mgmt, b-mgmt

Flat, each host is a QEMU on this machine and has a tap for the VM's standby and, where the VM has one, for its primary.
Nested, each host is an emulated machine; its ports are the wires of its NICs. The two hosts share one bridge, so what
the bridge learns is what a switch between real hosts would learn.
"""

from collections.abc import Sequence
from pathlib import Path

from pyroute2 import AsyncIPRoute, NetlinkError

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.probe import PEER_ADDRESS

BRIDGE = "br0"
MANAGEMENT = "mgmt"
MANAGEMENT_ADDRESS = "198.51.100.1"  # RFC 5737, TEST-NET-2
PEER = "peer"
PEER_MAC = "02:00:00:00:00:01"
PREFIX_LENGTH = 24

# Without it the bridge's own interface would answer, too, when the guest asks for the peer's address.
_ANSWER_ON_OWN_INTERFACE_ONLY = ("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")


async def create_network(taps: Sequence[str], management: Sequence[str] = ()) -> None:
    """Create bridge, peer and taps in the current network namespace, all up; a second bridge if it has any taps.

    They vanish with the namespace, so nothing has to be removed. Raises `VnetStandbyError` if the kernel lacks one of
    them.
    """
    async with AsyncIPRoute() as ip:
        try:
            setting, value = _ANSWER_ON_OWN_INTERFACE_ONLY
            Path(setting).write_text(value)
            await _up(ip, "lo")  # the migration stream's way
            await _add(ip, BRIDGE, kind="bridge", br_forward_delay=0)
            await _add(ip, PEER, kind="veth", peer={"ifname": f"{PEER}-br"}, address=PEER_MAC)
            await _up(ip, f"{PEER}-br", master=await _index(ip, BRIDGE))
            await _up(ip, PEER)
            await _address(ip, PEER, PEER_ADDRESS)
            await _add_taps(ip, taps, BRIDGE)
            await _up(ip, BRIDGE)
            if management:
                await _add(ip, MANAGEMENT, kind="bridge", br_forward_delay=0)
                await _add_taps(ip, management, MANAGEMENT)
                await _up(ip, MANAGEMENT)
                await _address(ip, MANAGEMENT, MANAGEMENT_ADDRESS)
        except (NetlinkError, OSError) as error:
            raise VnetStandbyError(
                f"the lab's network can't be made: {error}; the kernel needs bridge, veth and tun"
            ) from error


async def create_tap(name: str) -> None:
    """Create a tap in the current network namespace, up, with nobody behind it.

    Raises `VnetStandbyError` if the kernel lacks it.
    """
    async with AsyncIPRoute() as ip:
        try:
            await _add_tap(ip, name)
        except (NetlinkError, OSError) as error:
            raise VnetStandbyError(
                f"the tap {name} can't be made: {error}; the kernel needs tun"
            ) from error


async def _add_taps(ip: AsyncIPRoute, taps: Sequence[str], bridge: str) -> None:
    for tap in taps:
        await _add_tap(ip, tap, master=await _index(ip, bridge))


async def _add_tap(ip: AsyncIPRoute, name: str, **attributes: object) -> None:
    await _add(ip, name, kind="tuntap", mode="tap")
    await _up(ip, name, **attributes)


async def _address(ip: AsyncIPRoute, name: str, address: str) -> None:
    await ip.addr("add", index=await _index(ip, name), address=address, prefixlen=PREFIX_LENGTH)


async def _add(ip: AsyncIPRoute, name: str, **attributes: object) -> None:
    await ip.link("add", ifname=name, **attributes)


async def _up(ip: AsyncIPRoute, name: str, **attributes: object) -> None:
    await ip.link("set", index=await _index(ip, name), state="up", **attributes)


async def _index(ip: AsyncIPRoute, name: str) -> int:
    found = await ip.link_lookup(ifname=name)
    if not found:
        raise VnetStandbyError(f"interface {name} is not there after it was made; look at dmesg")
    index: int = found[0]
    return index
