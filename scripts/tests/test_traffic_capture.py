# SPDX-License-Identifier: GPL-2.0-or-later
"""Sender and capture: the file, the filter, and both on a real bridge in a private network namespace."""

import ctypes
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils import PcapNgReader

from vnet_standby.traffic import capture, sender
from vnet_standby.traffic.capture import FILTER, INBOUND, OUTBOUND, SO_ATTACH_FILTER, SniffedFrame
from vnet_standby.traffic.probe import GUEST_PORT, PEER_PORT, Template, VnetProbe, parse
from vnet_standby.traffic.records import read_frames

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def test_capture_file_keeps_times_interfaces_and_directions(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    frame = bytes(Template(*MACS).patch(5, 6))
    written = [
        (1_700_000_000_000_001_000, SniffedFrame(frame, "peer", OUTBOUND)),
        (1_700_000_000_123_456_000, SniffedFrame(frame + b"odd", "a-standby", INBOUND)),
        (1_700_000_001_999_999_000, SniffedFrame(frame, "peer", INBOUND)),
    ]
    capture.write_pcapng(path, written)
    read = list(read_frames(path))
    assert [entry[1:] for entry in read] == [
        (frame.sniffed_on, frame.direction == OUTBOUND, frame) for _, frame in written
    ]
    for (read_ns, *_), (written_ns, _) in zip(read, written, strict=True):
        assert abs(read_ns - written_ns) <= 1000
    with PcapNgReader(str(path)) as packets:
        assert [packet[VnetProbe].seq for packet in packets] == [5, 5, 5]


def test_empty_capture_is_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    capture.write_pcapng(path, [])
    assert list(read_frames(path)) == []


TO_GUEST = UDP(sport=PEER_PORT, dport=GUEST_PORT)
TO_PEER = UDP(sport=GUEST_PORT, dport=PEER_PORT)


@pytest.mark.parametrize(
    ("packet", "kept"),
    [
        (Ether() / IP() / TO_GUEST / VnetProbe(), True),
        (Ether() / IP() / TO_PEER / VnetProbe(), True),
        (Ether() / IP(options=[IPOption(b"\x94\x04\x00\x00")]) / TO_PEER / VnetProbe(), True),
        (Ether() / IP() / UDP(sport=PEER_PORT, dport=53) / VnetProbe(), False),
        (Ether() / IP() / TCP(dport=PEER_PORT), False),
        (Ether() / IP(frag=3) / TO_PEER / VnetProbe(), False),
        (Ether() / IPv6() / TO_PEER / VnetProbe(), False),
        (Ether() / ARP(), False),
        (Ether(), False),
    ],
    ids=lambda value: value.summary() if isinstance(value, Packet) else "",
)
def test_filter_keeps_probes_only(packet: Packet, kept: bool) -> None:
    # the kernel runs socket filters on AF_UNIX datagrams too, so no privilege and no interface is needed
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        program = ctypes.create_string_buffer(FILTER, len(FILTER))
        ours.setsockopt(
            socket.SOL_SOCKET,
            SO_ATTACH_FILTER,
            struct.pack("@HP", len(FILTER) // 8, ctypes.addressof(program)),
        )
        ours.setblocking(False)
        try:
            theirs.send(bytes(packet))
            assert ours.recv(2048) == bytes(packet)
            seen = True
        except (BlockingIOError, PermissionError):  # what a filter rejects
            seen = False
    assert seen == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "-1"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--rate", "10", "--size", "3"], "--size"),
        (["--rate", "10", "--size", "9000"], "--size"),
    ],
)
def test_sender_refuses_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--interface", "peer", "--source-mac", MACS[0], "--destination-mac", MACS[1]]
    with pytest.raises(SystemExit):
        sender.parse_arguments(fixed + arguments)
    assert message in capsys.readouterr().err


def program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"vnet_standby.traffic.{name}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_capture_says_that_the_folder_is_missing(tmp_path: Path) -> None:
    done = program("capture", "--output", str(tmp_path / "no"), "--interface", "lo")
    assert done.returncode == 1
    assert "no such folder" in done.stderr
    assert done.stderr.count("\n") == 1


IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--kill-child"]

LIVE = r"""
import json, socket, subprocess, sys, time
from pathlib import Path
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from vnet_standby.traffic.probe import GUEST_PORT, PEER_PORT, VnetProbe

def ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True)

def program(name, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "vnet_standby.traffic." + name, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

ip("link add name bridge0 type bridge mcast_snooping 0")
ip("link set dev bridge0 up")
for end, mac in (("peer", "02:00:00:00:00:01"), ("guest", "02:00:00:00:00:02"), ("other", "02:00:00:00:00:03")):
    port = {"peer": "peer-br", "guest": "a-primary", "other": "a-standby"}[end]
    ip(f"link add name {end} type veth peer name {port}")
    ip(f"link set dev {end} address {mac} up")
    ip(f"link set dev {port} master bridge0 up")
ip("link set dev lo up")
ip("address add 192.0.2.1/24 dev peer")
ip("link add name b-primary type veth peer name gone")
ip("link set dev b-primary up")

folder = sys.argv[1]
missing = program("capture", "--output", folder, "--interface", "nosuch")
missing.communicate(timeout=10)
assert missing.returncode == 1

names = ["peer", "a-primary", "a-standby", "b-primary"]
capture = program("capture", "--output", folder, *(word for name in names for word in ("--interface", name)))
assert capture.stdout.readline() == "ready\n"
ip("link delete dev b-primary")

back = bytearray(bytes(Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
    / IP(src="192.0.2.2", dst="192.0.2.1") / UDP(sport=GUEST_PORT, dport=PEER_PORT, chksum=0) / VnetProbe()))
guest = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
guest.bind(("guest", 0))
guest.send(back)  # the bridge learns the guest's port
time.sleep(0.2)
sender = program("sender", "--interface", "peer", "--source-mac", "02:00:00:00:00:01",
    "--destination-mac", "02:00:00:00:00:02", "--rate", "1000")
end = time.monotonic() + 2.5
seq = 1
while time.monotonic() < end:
    back[50:54] = seq.to_bytes(4, "big")
    guest.send(back)
    seq += 1
    time.sleep(0.001)
out, _ = sender.communicate(timeout=10)  # closes its standard input
assert sender.returncode == 0
capture.communicate(timeout=10)
assert capture.returncode == 0
(Path(folder) / "sent.json").write_text(json.dumps({"guest": seq, **json.loads(out)}))
"""


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """The folder that sender and capture leave after 2.5 s at 1000/s each way over a bridge."""
    probing = subprocess.run(
        [*IN_NAMESPACE, "ip", "link", "add", "name", "probe0", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probing.returncode:
        pytest.skip(f"no private network namespace with a bridge: {probing.stderr.strip()}")
    done = subprocess.run(
        [*IN_NAMESPACE, sys.executable, "-c", LIVE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_on_a_real_bridge_every_frame_is_seen_where_it_went(live: Path) -> None:
    told = json.loads((live / "sent.json").read_text())
    counts = json.loads((live / "capture.json").read_text())
    assert {name: count["dropped"] for name, count in counts.items()} == dict.fromkeys(counts, 0)
    assert counts["b-primary"]["went_down"] == 1

    numbers: dict[tuple[str, bool], list[int]] = {}
    times = []
    for time_ns, interface, outbound, frame in read_frames(live / "capture.pcapng"):
        probe = parse(frame)
        assert probe is not None
        # a port sends what the peer sent; the first frame from the guest may be flooded
        assert probe.to_guest == outbound or interface in {"peer", "a-standby"}
        assert interface != "peer" or probe.to_guest == outbound
        numbers.setdefault((interface, outbound), []).append(probe.seq)
        times.append(time_ns)
    assert times == sorted(times)
    assert numbers["peer", True] == list(range(told["sent"]))
    assert numbers["a-primary", True] == list(range(told["sent"]))
    assert numbers["a-primary", False] == list(range(told["guest"]))
    assert numbers["peer", False] == list(range(told["guest"]))
    # 2.5 s less the start of the interpreter; on a busy machine late, but none left out
    assert told["sent"] > 800
    assert told["skipped"] == 0
