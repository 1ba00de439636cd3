# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe: its scapy layer, the template that the sender patches, and a fast parser for captured frames."""

import struct
from typing import Any, Final, NamedTuple

from scapy.config import conf
from scapy.fields import ByteEnumField, ByteField, IntField, LongField, ShortField, XIntField
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, bind_layers

PEER_PORT: Final = 47000
GUEST_PORT: Final = 47001
PEER_ADDRESS: Final = "192.0.2.1"
GUEST_ADDRESS: Final = "192.0.2.2"

MAGIC: Final = 0x564E5342
"""The letters VNSB."""
NUMBERED: Final = 1
ECHO_REQUEST: Final = 2
ECHO_REPLY: Final = 3

DEFAULT_SIZE: Final = 46
"""UDP payload in bytes; with Ethernet, IPv4 and UDP headers the frame has 88."""
MAX_SIZE: Final = 1472
"""What an Ethernet MTU of 1500 leaves for the UDP payload."""

_PAYLOAD = struct.Struct("!IBBHIQ")
_PATCH = struct.Struct("!IQ")
_PATCH_OFFSET = 8
"""Where seq begins in the payload; t_ns follows it."""
_OUTER = struct.Struct("!12xHB5xHxB")
"""Ethertype, IPv4 version and header length, fragment field, protocol."""
_INNER = struct.Struct("!2xH4xIBBHIQ")
"""UDP destination port, then the payload."""

MIN_SIZE: Final = _PAYLOAD.size


class VnetProbe(Packet):
    """The UDP payload of a probe; what follows `t_ns` is padding."""

    name = "vnet-standby probe"
    fields_desc = [  # noqa: RUF012 (scapy's metaclass wants a plain list)
        XIntField("magic", MAGIC),
        ByteEnumField(
            "kind",
            NUMBERED,
            {NUMBERED: "numbered", ECHO_REQUEST: "echo-request", ECHO_REPLY: "echo-reply"},
        ),
        ByteField("flags", 0),
        ShortField("pad", 0),
        IntField("seq", 0),
        LongField("t_ns", 0),
    ]

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_args: Any, **_kwargs: Any) -> type[Packet]:
        """Leave other traffic on the probe's ports alone (called by scapy before it dissects)."""
        if _pkt is not None and (len(_pkt) < MIN_SIZE or _pkt[:4] != MAGIC.to_bytes(4, "big")):
            return conf.raw_layer
        return cls


bind_layers(UDP, VnetProbe, dport=PEER_PORT)
bind_layers(UDP, VnetProbe, dport=GUEST_PORT)


class Probe(NamedTuple):
    """What a frame on the wire says of its probe."""

    to_guest: bool
    kind: int
    seq: int
    t_ns: int
    """The sender's CLOCK_REALTIME at sending, ns."""


class Template:
    """A numbered to_guest frame, built once by scapy, of which only seq and time change.

    The UDP checksum is 0, "none", which RFC 768 allows over IPv4, so that nothing else depends on those two.
    """

    def __init__(self, source_mac: str, destination_mac: str, size: int = DEFAULT_SIZE) -> None:
        """Build the frame from the peer to the guest; `size` is the UDP payload in bytes."""
        headers = (
            Ether(src=source_mac, dst=destination_mac)
            / IP(src=PEER_ADDRESS, dst=GUEST_ADDRESS, flags="DF")
            / UDP(sport=PEER_PORT, dport=GUEST_PORT, chksum=0)
        )
        self.frame = bytearray(bytes(headers / VnetProbe() / bytes(size - MIN_SIZE)))
        self._offset = len(self.frame) - size + _PATCH_OFFSET

    def patch(self, seq: int, t_ns: int) -> bytearray:
        """Number and date the frame; the same buffer is returned each time."""
        _PATCH.pack_into(self.frame, self._offset, seq, t_ns)
        return self.frame


def parse(frame: bytes) -> Probe | None:
    """Read a captured Ethernet frame; None if it is no probe. Agrees with `VnetProbe`, several times faster."""
    if len(frame) < _OUTER.size:
        return None
    ethertype, version, fragment, protocol = _OUTER.unpack_from(frame)
    if ethertype != 0x0800 or version >> 4 != 4 or fragment & 0x1FFF or protocol != 17:
        return None
    udp = 14 + (version & 0x0F) * 4
    if len(frame) < udp + _INNER.size:
        return None
    port, magic, kind, _flags, _pad, seq, t_ns = _INNER.unpack_from(frame, udp)
    if magic != MAGIC or port not in {PEER_PORT, GUEST_PORT}:
        return None
    return Probe(port == GUEST_PORT, kind, seq, t_ns)
