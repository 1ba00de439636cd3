# SPDX-License-Identifier: GPL-2.0-or-later
"""The flat topology: a Linux bridge with the peer and the taps of two hosts.

    peer ---- peer-br --[ br0 ]-- a-standby, a-primary, b-standby, b-primary

The hosts are called a and b; each has a tap for the VM's standby and, where the VM has one, for its primary. The two
hosts share one bridge, so what the bridge learns is what a switch between real hosts would learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyroute2 import AsyncIPRoute, NetlinkError

from vnet_standby.errors import VnetStandbyError
from vnet_standby.traffic.probe import PEER_ADDRESS

Host = Literal["a", "b"]
Datapath = Literal["standby", "primary"]

BRIDGE = "br0"
PEER = "peer"
PEER_MAC = "02:00:00:00:00:01"
PREFIX_LENGTH = 24

# Without it the bridge's own interface would answer, too, when the guest asks for the peer's address.
_ANSWER_ON_OWN_INTERFACE_ONLY = ("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")


@dataclass(frozen=True)
class Port:
    """A tap of the bridge: which host's, and which datapath's."""

    host: Host
    datapath: Datapath

    @property
    def name(self) -> str:
        """The tap's interface name."""
        return f"{self.host}-{self.datapath}"


async def create_network(ports: Sequence[Port]) -> None:
    """Create bridge, peer and taps in the current network namespace, all up.

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
            await ip.addr(
                "add", index=await _index(ip, PEER), address=PEER_ADDRESS, prefixlen=PREFIX_LENGTH
            )
            for port in ports:
                await _add(ip, port.name, kind="tuntap", mode="tap")
                await _up(ip, port.name, master=await _index(ip, BRIDGE))
            await _up(ip, BRIDGE)
        except (NetlinkError, OSError) as error:
            raise VnetStandbyError(
                f"the lab's network can't be made: {error}; the kernel needs bridge, veth and tun"
            ) from error


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
