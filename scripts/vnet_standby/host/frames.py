# SPDX-License-Identifier: GPL-2.0-or-later
"""The frames that a host sends for a guest: end markers and announcements."""

import errno
import os
import socket

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.network import PRIVILEGE, Datapath, Link

_MINIMUM = 60  # bytes without the frame check sequence: IEEE 802.3
_BROADCAST = "ff:ff:ff:ff:ff:ff"

# the spec draft in qemu-patches/spec, "End marker"
_MARKER_TYPE = 0x88B5
_MARKER_MAGIC = b"VNSM"
_MARKER_SOURCE = (
    "02:00:56:4e:53:4d"  # no station's: frames that leave by a port teach a bridge nothing
)
_LEFT: dict[Datapath, int] = {"standby": 0, "primary": 1}

_RARP_TYPE = 0x8035  # RFC 903, as all that follows
_RARP_HEADER = bytes.fromhex("0001 0800 06 04 0003")  # Ethernet, IPv4, reverse request
_VLAN_TYPE = 0x8100  # IEEE 802.1Q


def end_marker(mac: str, left: Datapath) -> bytes:
    """The last frame on a path that is left; `mac` is the address by which that path is reached."""
    return _frame(mac, _MARKER_SOURCE, _MARKER_TYPE, _MARKER_MAGIC + bytes([_LEFT[left]]))


def announcement(mac: str, vlan: int | None = None) -> bytes:
    """A RARP request, as QEMU announces a guest: switches learn from it where `mac` is; stations ignore it."""
    own = _bytes(mac)
    payload = _RARP_HEADER + own + bytes(4) + own + bytes(4)
    if vlan is None:
        return _frame(_BROADCAST, mac, _RARP_TYPE, payload)
    tag = vlan.to_bytes(2, "big") + _RARP_TYPE.to_bytes(2, "big")
    return _frame(_BROADCAST, mac, _VLAN_TYPE, tag + payload)


class Outlet:
    """A way to send frames out of a netdev, behind those that wait there already; open until `close`."""

    def __init__(self, link: Link) -> None:
        """Raises `VnetStandbyError` if this user must not, or the netdev is gone."""
        self._link = link
        try:
            # protocol 0: it receives nothing
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._socket.setblocking(False)
            self._socket.bind((link.name, 0))
        except OSError as error:
            raise self._failed("opening a packet socket on", error) from error

    def send(self, frame: bytes) -> None:
        """Send a frame; raises `VnetStandbyError` if the netdev does not take it."""
        try:
            self._socket.send(frame)
        except OSError as error:
            raise self._failed("sending a frame on", error) from error

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _failed(self, what: str, error: OSError) -> VnetStandbyError:
        reason = PRIVILEGE if error.errno == errno.EPERM else os.strerror(error.errno or 0)
        return VnetStandbyError(f"{what} {self._link.name}: {reason}")


def _frame(destination: str, source: str, kind: int, payload: bytes) -> bytes:
    header = _bytes(destination) + _bytes(source) + kind.to_bytes(2, "big")
    return (header + payload).ljust(_MINIMUM, b"\0")


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
