# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe: scapy's view and the fast parser's must be the same."""

import random

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from vnet_standby.traffic.probe import (
    DEFAULT_SIZE,
    ECHO_REPLY,
    ECHO_REQUEST,
    GUEST_PORT,
    MAX_SIZE,
    MIN_SIZE,
    NUMBERED,
    PEER_PORT,
    Probe,
    Template,
    VnetProbe,
    parse,
)

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def by_scapy(frame: bytes) -> Probe | None:
    """What scapy's layers make of a frame."""
    packet = Ether(frame)
    if VnetProbe not in packet:
        return None
    probe = packet[VnetProbe]
    return Probe(packet[UDP].dport == GUEST_PORT, probe.kind, probe.seq, probe.t_ns)


@pytest.mark.parametrize("size", [MIN_SIZE, DEFAULT_SIZE, MAX_SIZE])
def test_template_is_a_valid_frame_whatever_is_patched_in(size: int) -> None:
    template = Template(*MACS, size)
    assert len(template.frame) == 42 + size
    for seq, t_ns in [(0, 0), (1, 1_700_000_000_123_456_789), (2**32 - 1, 2**64 - 1)]:
        frame = bytes(template.patch(seq, t_ns))
        assert by_scapy(frame) == parse(frame) == Probe(True, NUMBERED, seq, t_ns)
        packet = Ether(frame)
        assert (packet.src, packet.dst) == MACS
        assert packet[UDP].chksum == 0
        checksum = packet[IP].chksum
        del packet[IP].chksum
        assert Ether(bytes(packet))[IP].chksum == checksum


@pytest.mark.parametrize("seed", range(5))
def test_parser_agrees_with_scapy_on_probes(seed: int) -> None:
    choose = random.Random(seed)  # noqa: S311
    for _ in range(40):
        layers = (
            Ether()
            / IP(options=choose.choice([[], [IPOption(b"\x94\x04\x00\x00")]]))
            / UDP(sport=choose.randrange(65536), dport=choose.choice([GUEST_PORT, PEER_PORT]))
            / VnetProbe(
                kind=choose.choice([NUMBERED, ECHO_REQUEST, ECHO_REPLY]),
                seq=choose.randrange(2**32),
                t_ns=choose.randrange(2**64),
            )
            / bytes(choose.randrange(60))
        )
        frame = bytes(layers)
        assert parse(frame) == by_scapy(frame)
        assert parse(frame) is not None


UDP_PROBE = UDP(sport=1, dport=PEER_PORT) / VnetProbe()


@pytest.mark.parametrize(
    "packet",
    [
        Ether() / ARP(),
        Ether() / IPv6() / UDP_PROBE,
        Ether() / IP() / TCP(dport=PEER_PORT) / bytes(40),
        Ether() / IP(frag=3) / UDP_PROBE,
        Ether() / IP() / UDP(dport=53) / VnetProbe(),
        Ether() / IP() / UDP(dport=PEER_PORT) / VnetProbe(magic=1),
        Ether() / IP() / UDP(dport=PEER_PORT) / bytes(VnetProbe())[:-1],
        Ether() / IP() / UDP(dport=PEER_PORT),
    ],
    ids=lambda packet: packet.summary(),
)
def test_parser_leaves_other_traffic_alone(packet: Packet) -> None:
    assert parse(bytes(packet)) is None


def test_parser_survives_every_cut() -> None:
    frame = bytes(Template(*MACS, MIN_SIZE).frame)
    assert [parse(frame[:length]) for length in range(len(frame))] == [None] * len(frame)
