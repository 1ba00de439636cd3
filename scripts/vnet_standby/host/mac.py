# SPDX-License-Identifier: GPL-2.0-or-later
"""MAC addresses, and the alias under which a VF waits while its pair's MAC is steered elsewhere."""

import re

from vnet_standby.errors import VnetStandbyError

ZERO = "00:00:00:00:00:00"
"""What a PF's driver takes as "no administrative MAC"."""

_FORM = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")

# IEEE 802-2014, 8.2.2: the first byte's lowest bits; 802c: the two above them select a quadrant of the local addresses
_GROUP = 0x01
_LOCAL = 0x02
_QUADRANT = 0x0C
_ALIAS = 0x80


def parse_mac(text: str) -> str:
    """Return the MAC of one station, in lower case; raises `VnetStandbyError` if `text` is none."""
    mac = text.lower()
    if not _FORM.fullmatch(mac):
        raise VnetStandbyError(f"{text} is no MAC address; give six bytes as in 52:54:00:12:34:56")
    if mac == ZERO or _first_byte(mac) & _GROUP:
        raise VnetStandbyError(f"{mac} is no address of a single NIC; give a unicast MAC")
    return mac


def alias(mac: str) -> str:
    """Return the address that a VF has while frames for `mac` are to go elsewhere.

    It is a locally administered one and differs in the first byte only: that makes moving a filter from one to the
    other a single register write on igb (RAL holds bytes 0 to 3, RAH stays as it is).
    """
    first = (_first_byte(mac) ^ _ALIAS) & ~_QUADRANT | _LOCAL
    return f"{first:02x}{mac[2:]}"


def is_for(filtered: str, mac: str) -> bool:
    """Whether a VF with this address belongs to the pair with this MAC."""
    return filtered in {mac, alias(mac)}


def _first_byte(mac: str) -> int:
    return int(mac[:2], 16)
