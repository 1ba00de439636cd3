# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's agent, in private namespaces instead of a VM: what it observes, and the processes that it spawns."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vnet_standby.build.image import COMPILER_FLAGS
from vnet_standby.paths import GUEST_IMAGE_SOURCE

IN_NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]

# Puts a pseudo terminal where the agent looks for its virtio-serial port, a veth pair where a host has a tap.
STAGE = r"""
import os, pty, queue, re, socket, subprocess, sys, threading, time, tty
from pathlib import Path
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from vnet_standby.traffic.probe import GUEST_PORT, PEER_PORT, VnetProbe

def sh(command):
    subprocess.run(command, shell=True, check=True)

agent, stage = sys.argv[1], Path(sys.argv[2])
for folder in ("sys", "class/virtio-ports/vport0", "dev/pts"):
    (stage / folder).mkdir(parents=True)
lab, end = pty.openpty()
tty.setraw(end)
(stage / "class/virtio-ports/vport0/name").write_text("org.vnet-standby.agent\n")
(stage / "class/net").symlink_to(stage / "sys/class/net")
(stage / "dev/vport0").symlink_to(os.ttyname(end))
(stage / "dev/null").touch()
sh(f"mount -t sysfs sys {stage}/sys")
sh(f"mount --bind /dev/null {stage}/dev/null && mount --rbind /dev/pts {stage}/dev/pts")
sh("ip link set lo up && ip link add tap type veth peer name wire && ip link set tap up && ip link set wire up")
sh(f"mount --bind {stage}/class /sys/class && mount --rbind {stage}/dev /dev")

told, events = queue.Queue(), []

def listen():
    rest = b""
    while data := os.read(lab, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in map(bytes.decode, lines):
            (events.append if line.startswith("!") else told.put)(line)

def ask(command, tag="7"):
    os.write(lab, f"{tag} {command}\n".encode())
    lines = []
    while True:
        kind, _, data = told.get(timeout=10).removeprefix(tag + " ").partition(" ")
        if kind != "=":
            return lines, kind, data
        lines.append(data)

def event(pattern):
    for _ in range(100):
        found = [line for line in events if re.fullmatch(pattern, line)]
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} in {events}")

ADDRESSES = {"src": "192.0.2.1", "dst": "192.0.2.2"}
def frame(port, seq, kind=1, ip=None):
    return bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / (ip or IP(**ADDRESSES))
                 / UDP(sport=1234, dport=port, chksum=0) / VnetProbe(kind=kind, seq=seq) / bytes(26))

def link(name):
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((name, 0))
    return opened

running = subprocess.Popen([agent], stdout=subprocess.DEVNULL)
threading.Thread(target=listen, daemon=True).start()
lines, kind, _ = ask("hello")
assert kind == "ok" and lines == [os.uname().release]
"""

OBSERVE = r"""
_, kind, why = ask("observe nosuch")
assert kind == "error" and why == "cannot observe nosuch: No such device", why
assert ask("observed tap")[1:] == ("error", "tap is not observed")
assert ask("observe tap") == ([], "ok", "")
start = time.time_ns()
tap, wire = link("tap"), link("wire")
for seq in range(2000):
    tap.send(frame(GUEST_PORT, seq))  # the tap's way out is the guest's way in
    wire.send(frame(PEER_PORT, 5000 + seq))
    tap.send(frame(PEER_PORT, 9000 + seq))  # a copy that a bridge floods back
    wire.send(frame(GUEST_PORT, 9000 + seq))
for noise in (frame(GUEST_PORT, 9, kind=2), frame(GUEST_PORT, 9, ip=IPv6(src="::1", dst="::1")), frame(53, 9),
              frame(GUEST_PORT, 9)[:60], frame(GUEST_PORT, 9, ip=IP(**ADDRESSES, frag=3))):
    wire.send(noise)
    tap.send(noise)
tap.send(frame(GUEST_PORT, 0xfffffffe, ip=IP(**ADDRESSES, options=b"\x94\x04\x00\x00")))
lines, kind, why = ask("observed tap")
assert kind == "ok", why
seen = [(int(seq), way) for seq, way, _ in map(str.split, lines)]
assert sorted(seen) == sorted(
    [(seq, "to_guest") for seq in range(2000)] + [(5000 + seq, "from_guest") for seq in range(2000)]
    + [(0xfffffffe, "to_guest")]), seen[:9]
times = [int(line.split()[2]) for line in lines]
assert start <= min(times) and max(times) <= time.time_ns() and times == sorted(times)

assert ask("forget")[1] == "ok"
assert ask("observed tap") == ([], "ok", "")
sh("ip link set tap down && ip link set tap up")
tap.close()
tap = link("tap")
tap.send(frame(GUEST_PORT, 1))
assert [line.split()[0] for line in ask("observed tap")[0]] == ["1"]
sh("ip link delete tap && ip link add tap type veth peer name wire && ip link set tap up && ip link set wire up")
assert ask("observe tap") == ([], "ok", "")
link("tap").send(frame(GUEST_PORT, 2))
assert [line.split()[0] for line in ask("observed tap")[0]] == ["2"]
for number in range(7):
    sh(f"ip link add extra{number} type veth peer name other{number}")
    assert ask(f"observe extra{number}")[1] == "ok"
sh("ip link add extra7 type veth peer name other7")
assert "8 netdevs" in ask("observe extra7")[2]
"""

DROPS = r"""
assert ask("observe tap")[1] == "ok"
running.send_signal(19)  # SIGSTOP: a host too busy to run its agent
tap = link("tap")
data = frame(GUEST_PORT, 3) + bytes(1300)
for _ in range(60_000):
    tap.send(data)
running.send_signal(18)
lines, kind, why = ask("observed tap")
assert kind == "error" and "the kernel dropped" in why, (len(lines), kind, why)
assert len(lines) + int(why.split()[3]) == 60_000
assert ask("forget")[1] == "ok"
assert ask("observed tap") == ([], "ok", "")
"""

SPAWN = r"""
log = Path("/tmp/spawned-by-test.log")
name = log.stem
try:
    assert ask(f"spawn {name} sleep 100")[1] == "ok"
    assert ask(f"spawn {name} sleep 100")[2] == f"{name} is running already"
    assert ask("kill nobody")[2] == "no spawned process is called nobody"
    for bad in ("", "name", "../x true", "x" * 32 + " true", "name "):
        assert ask(f"spawn {bad}")[2].startswith("spawn wants a name"), bad
    assert ask(f"term {name}")[1] == "ok"
    event(rf"! exited {name} status=143 pid=\d+")
    events.clear()
    assert ask(f"spawn {name} sh -c 'echo out; echo err >&2; sleep 100 & exit 3'")[1] == "ok"
    event(rf"! exited {name} status=3 pid=\d+")
    assert log.read_text() == "out\nerr\n"
    events.clear()
    assert ask(f"spawn {name} /nosuch/qemu -m 1")[1] == "ok"
    event(rf"! exited {name} status=127 pid=\d+")
    assert "not found" in log.read_text()
    events.clear()

    # a signal reaches the command at once: the answer to spawn means that it has its session
    for _ in range(20):
        assert ask(f"spawn {name} sleep 100")[1] == "ok"
        assert ask(f"kill {name}")[1] == "ok"
        event(rf"! exited {name} status=137 pid=\d+")
        events.clear()

    # commands that are run keep their own status beside those that are spawned
    assert ask(f"spawn {name} sleep 0.05")[1] == "ok"
    for _ in range(30):
        assert ask("run echo one; echo two >&2; exit 4") == (["one", "two"], "error", "exit 4")
        assert ask("run true") == ([], "ok", "")
    assert ask("run exec >&- 2>&-; sleep 0.3; exit 5")[2] == "exit 5"
    event(rf"! exited {name} status=0 pid=\d+")
    assert ask("run printf %05000d 0") == (["0" * 5000], "ok", "")
    assert ask("run yes | head -n 2") == (["y", "y"], "ok", "")  # SIGPIPE as usual
    assert ask("nonsense")[2] == "unknown command nonsense"
    zombies = ask(f"run ps -o stat= --ppid {running.pid} | grep -c Z; true")[0]
    assert zombies == ["0"], zombies
finally:
    log.unlink(missing_ok=True)
"""

END = r"""
assert running.poll() is None  # it ends with its namespace
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent, compiled as for the guest but for its time."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    binary = tmp_path_factory.mktemp("agent") / "agent"
    subprocess.run(
        ["cc", *COMPILER_FLAGS, "-o", binary, GUEST_IMAGE_SOURCE / "agent.c"],
        check=True,
        timeout=60,
    )
    return binary


@pytest.mark.parametrize("act", [OBSERVE, DROPS, SPAWN], ids=["observe", "drops", "spawn"])
def test_agent(agent: Path, tmp_path: Path, act: str) -> None:
    probing = subprocess.run(
        [*IN_NAMESPACES, "mount", "-t", "sysfs", "sys", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if probing.returncode:
        pytest.skip(f"no private network and mount namespaces: {probing.stderr.strip()}")
    done = subprocess.run(
        [*IN_NAMESPACES, sys.executable, "-c", STAGE + act + END, str(agent), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
