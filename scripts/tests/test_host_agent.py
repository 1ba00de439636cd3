# SPDX-License-Identifier: GPL-2.0-or-later
"""The host agent on a real bridge with real taps; QEMU's part is played by a QMP server.

Each story runs as a process in a network namespace of its own: `python test_host_agent.py STORY FOLDER`.
"""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agent_machine import MAC, FakeVm, RunningAgent, Tap, agent, make_bridge, pointed, until

from vnet_standby.host.frames import announcement, end_marker

IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--kill-child"]
PINNED = "static sticky"
MARKER, RARP = 0x88B5, 0x8035


async def story_follow(folder: Path) -> None:
    """The fabric follows the driver, the old path gets its marker, then QEMU is told."""
    make_bridge()
    taps = {name: Tap(name) for name in ("a-standby", "a-primary")}
    vm = FakeVm(folder, "a")
    await vm.start()
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready", vms=["a"])
        await vm.expect("fabric", device="standby0", datapath="standby", timeout=500, marks=True)
        assert pointed() == {"a-standby": PINNED}
        for to, left in (("primary", "standby"), ("standby", "primary"), ("primary", "standby")):
            vm.told.clear()
            await vm.switch(to)
            await running.expect("acknowledged", to=to)
            await vm.expect("fabric", datapath=to)
            assert pointed() == {f"a-{to}": PINNED}
            assert taps[f"a-{left}"].frames(MARKER) == [end_marker(MAC, left)]
            assert taps[f"a-{to}"].frames(MARKER) == []
            names = running.events()
            assert names[-4:] == ["told", "fabric-moved", "end-marker", "acknowledged"], names
        running.process.send_signal(signal.SIGTERM)
        assert await running.end() == 0
        await vm.expect("fabric", datapath="primary", timeout=0, marks=False)
        assert running.events()[-3:] == ["disarmed", "left", "stopped"]
        assert pointed() == {"a-primary": ""}


async def story_killed(folder: Path) -> None:
    """An agent that is killed leaves no entry that would stay forever; the next one takes over."""
    make_bridge()
    taps = {name: Tap(name) for name in ("a-standby", "a-primary")}
    vm = FakeVm(folder, "a")
    await vm.start()
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready")
        await vm.switch("primary")
        await running.expect("acknowledged")
        running.process.kill()
        await running.end()
        assert running.events()[-1] == "left"
        assert pointed() == {"a-primary": ""}
    taps["a-standby"].send(announcement(MAC))
    await until(lambda: "a-standby" in pointed(), "the bridge does not learn")
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready")
        assert pointed() == {"a-primary": PINNED}


async def story_gate(folder: Path) -> None:
    """Source and destination on one bridge: the MAC moves when the gate has closed, and stays moved."""
    _taps, source, destination = await two_vms(folder)
    async with agent("--folder", str(folder), "--uplink", "uplink") as running:
        await running.expect("ready", vms=["a", "b"])
        await destination.expect("gate", arm=True)
        assert queue_length("b-standby") == 16384
        assert pointed() == {"a-standby": PINNED}
        await close_gate(running, source, destination)
        assert pointed() == {"b-standby": PINNED}
        assert _taps["uplink"].frames(RARP) == [announcement(MAC)]
        for vm, role in ((source, "source"), (destination, "destination")):
            await vm.emit("VIRTIO_NET_STANDBY_GATE", id=7, role=role, state="passed")
            await running.expect("gate", role=role, state="passed")
        await move(source, destination)
        await destination.expect("fabric", datapath="standby", timeout=500)
        await source.stop()
        await running.expect("vm-ended", vm="a")
        assert pointed() == {"b-standby": PINNED}
        await destination.switch("primary")
        await running.expect("acknowledged", vm="b")
        assert pointed() == {"b-primary": PINNED}
        await until(lambda: queue_length("b-standby") == 1000, "the queue stays long")


async def story_gate_withdrawn(folder: Path) -> None:
    """A gate that is withdrawn undoes all; so does a destination that dies behind a closed gate."""
    taps, source, destination = await two_vms(folder)
    async with agent("--folder", str(folder), "--uplink", "uplink") as running:
        await running.expect("ready")
        await close_gate(running, source, destination)
        await destination.emit(
            "VIRTIO_NET_STANDBY_GATE", id=7, role="destination", state="withdrawn"
        )
        await running.expect("fabric-given-back")
        assert pointed() == {"a-standby": PINNED}
        taps["uplink"].frames(RARP)
        await source.emit("VIRTIO_NET_STANDBY_GATE", id=7, role="source", state="withdrawn")
        await running.expect("announced", vm="a")
        assert taps["uplink"].frames(RARP) == [announcement(MAC)]
        await close_gate(running, source, destination)
        await destination.stop()
        await running.expect("fabric-given-back")
        assert pointed() == {"a-standby": PINNED}
        await until(lambda: queue_length("b-standby") == 1000, "the queue stays long")


async def story_gate_withdrawn_late(folder: Path) -> None:
    """The gate may be withdrawn after it has passed, and the answer may come too late."""
    _taps, source, destination = await two_vms(folder)
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready")
        await close_gate(running, source, destination)
        for state in ("passed", "withdrawn"):
            for vm, role in ((destination, "destination"), (source, "source")):
                await vm.emit("VIRTIO_NET_STANDBY_GATE", id=7, role=role, state=state, reason="x")
                await running.expect("gate", role=role, state=state)
        await running.expect("fabric-taken", vm="a")
        assert pointed() == {"a-standby": PINNED}
        destination.refuses.add("x-virtio-net-standby-gate-answer")
        await destination.emit("VIRTIO_NET_STANDBY_GATE", id=8, role="destination", state="closed")
        await running.expect("fabric-given-back")
        assert pointed() == {"a-standby": PINNED}


async def story_gate_seen_late(folder: Path) -> None:
    """An agent that has had no time asks whether the gate is still closed before it moves anything."""
    _taps, _source, destination = await two_vms(folder)
    closed = {"role": "destination", "state": "closed"}
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready")
        destination.gate = {"id": 7, "state": "withdrawn"}
        await destination.emit("VIRTIO_NET_STANDBY_GATE", age_s=1, id=7, **closed)
        await running.expect("gate-missed", id=7)
        assert pointed() == {"a-standby": PINNED}
        destination.gate = {"id": 8, "state": "closed"}
        await destination.emit("VIRTIO_NET_STANDBY_GATE", age_s=1, id=8, **closed)
        await running.expect("gate-answered", id=8)
        assert pointed() == {"b-standby": PINNED}


async def story_killed_at_the_gate(folder: Path) -> None:
    """Nobody knows whether the guest will come, so nothing points at its tap only."""
    _taps, source, destination = await two_vms(folder)
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready")
        await close_gate(running, source, destination)
        running.process.kill()
        await running.end()
        assert pointed() == {}


async def story_no_gate(folder: Path) -> None:
    """Without a gate the MAC is given up when the guest stops, and taken when it runs again."""
    taps, source, destination = await two_vms(folder)
    async with agent("--folder", str(folder), "--uplink", "uplink") as running:
        await running.expect("ready")
        source.status = "finish-migrate"
        await source.emit("STOP")
        await running.expect("fabric-left", vm="a")
        assert pointed() == {}
        await move(source, destination)
        await running.expect("announced", vm="b")
        assert pointed() == {"b-standby": PINNED}
        assert taps["uplink"].frames(RARP) == [announcement(MAC)]


async def story_failed_late(folder: Path) -> None:
    """A source that has given its MAC up takes it back when it goes on."""
    _taps, source, _destination = await two_vms(folder)
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready")
        source.status = "finish-migrate"
        await source.emit("STOP")
        await running.expect("fabric-left", vm="a")
        source.status = "running"
        await source.emit("RESUME")
        await running.expect("fabric-taken", vm="a")
        assert pointed() == {"a-standby": PINNED}


async def story_reset(folder: Path) -> None:
    """After a reset there may be another driver, so nothing is pinned until one says where it receives."""
    make_bridge()
    _taps = [Tap(name) for name in ("a-standby", "a-primary")]
    vm = FakeVm(folder, "a")
    await vm.start()
    async with agent(str(vm.path)) as running:
        await running.expect("ready", vms=["a"])
        await vm.switch("primary")
        await running.expect("acknowledged")
        await vm.switch("standby", "reset")
        await running.expect("fabric-loosened")
        assert pointed() == {"a-standby": ""}
        await vm.switch("primary")
        await running.expect("acknowledged", to="primary")
        await vm.stop()
        await running.expect("fabric-left")
        assert pointed() == {}
        assert await running.end() == 0


async def story_come_and_go(folder: Path) -> None:
    """VMs are found when their socket appears, and again when another VM has it."""
    make_bridge()
    _taps = [Tap(name) for name in ("a-standby", "a-primary")]
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready", vms=[])
        for _ in range(2):
            vm = FakeVm(folder, "a")
            await vm.start()
            await running.expect("armed", vm="a")
            await vm.stop()
            await running.expect("vm-ended", vm="a")


async def story_a_primary_that_comes_later(folder: Path) -> None:
    """A primary that management plugs is found when the driver uses it."""
    make_bridge()
    _taps = [Tap(name) for name in ("a-standby", "a-primary")]
    vm = FakeVm(folder, "a")
    vm.primary = False
    await vm.start()
    async with agent(str(vm.path)) as running:
        await running.expect("ready")
        vm.primary = True
        await vm.switch("primary")
        await running.expect("acknowledged", to="primary")
        assert pointed() == {"a-primary": PINNED}


async def story_status_and_lock(folder: Path) -> None:
    """One agent a host, which tells what it does."""
    make_bridge()
    _taps = [Tap(name) for name in ("a-standby", "a-primary")]
    vm = FakeVm(folder, "a")
    await vm.start()
    assert run("--status").stderr == "error: no agent runs here (in this network namespace)\n"
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready")
        second = await asyncio.to_thread(run, str(vm.path))
        assert second.returncode == 1
        assert f"another agent (pid {running.process.pid}) manages this host" in second.stderr
        await vm.switch("primary")
        await running.expect("acknowledged")
        (pair,) = json.loads((await asyncio.to_thread(run, "--status", "--json")).stdout)["pairs"]
        assert (pair["fabric"], pair["primary"], pair["state"]) == ("primary", "a-primary", "armed")
        heading, row = (await asyncio.to_thread(run, "--status")).stdout.splitlines()
        assert heading.startswith("VM  STANDBY ")
        assert "to primary (driver)" in row


async def story_not_supported(folder: Path) -> None:
    """What can't be pointed is named, and the VM is left as it was."""
    make_bridge()
    _taps = [Tap("a-standby", bridge=""), Tap("b-standby"), Tap("b-primary", bridge="")]
    wanted = {
        "a": "not supported: a-standby is in no bridge",
        "b": "not supported: b-primary is in no bridge",
        "c": "not supported: standby0 has the netdev vhost-user, only tap is",
        "d": "name it with --port d/standby0=TAP",
        "e": "no netdev e-standby here",
        "f": "the device does not offer the protocol (x-standby-datapath=on)",
        "g": "this QEMU does not have the standby datapath protocol",
    }
    vms = {name: FakeVm(folder, name) for name in wanted}
    vms["c"].netdevs["net-standby"] = "vhost-user,id=x"
    vms["d"].netdevs["net-standby"] = "tap,fd=7"
    vms["f"].protocol = None
    vms["g"].refuses.add("query-virtio-net-standby")
    for vm in vms.values():
        await vm.start()
    async with agent("--folder", str(folder)) as running:
        await running.expect("ready", vms=sorted(wanted))
        for name, reason in wanted.items():
            told = [record["data"]["reason"] for record in running.records
                    if record["event"] == "not-armed" and record["data"]["vm"] == name]  # fmt: skip
            assert len(told) == 1, told
            assert reason in told[0], told
            assert vms[name].told == []
        assert pointed() == {}


async def story_bad_input(folder: Path) -> None:
    """One clear error each."""
    make_bridge()
    for arguments, message in (
        ((), "which VMs? give their QMP sockets, or --folder"),
        ((str(folder / "none"),), "no such QMP socket"),
        (("--folder", str(folder / "none")), "no such folder"),
        (("--folder", str(folder), "--log", "/nowhere/log"), "/nowhere/log can't be written"),
    ):
        done = run(*arguments)
        assert done.returncode == 1, done
        assert done.stderr.startswith(f"error: {message}") or message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    drop_capabilities = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command = [
        *drop_capabilities,
        sys.executable,
        "-m",
        "vnet_standby.host",
        "agent",
        "--folder",
        "/",
    ]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False
    )
    assert "needs CAP_NET_ADMIN and CAP_NET_RAW; run it as root" in done.stderr, done.stderr


async def two_vms(folder: Path) -> tuple[dict[str, Tap], FakeVm, FakeVm]:
    """A VM that runs, and a QEMU that waits for it, on one bridge with a way out."""
    make_bridge()
    names = ("a-standby", "a-primary", "b-standby", "b-primary", "uplink")
    taps = {name: Tap(name) for name in names}
    source, destination = FakeVm(folder, "a"), FakeVm(folder, "b", "inmigrate")
    await source.start()
    await destination.start()
    return taps, source, destination


async def close_gate(running: RunningAgent, source: FakeVm, destination: FakeVm) -> None:
    """Both QEMUs close the gate; it is answered."""
    for vm, role in ((source, "source"), (destination, "destination")):
        await vm.emit("VIRTIO_NET_STANDBY_GATE", id=7, role=role, state="closed")
    await destination.expect("gate-answer", id=7)
    await running.expect("gate-answered", id=7)
    for vm, role in ((source, "source"), (destination, "destination")):
        await vm.emit("VIRTIO_NET_STANDBY_GATE", id=7, role=role, state="answered")
        await running.expect("gate", role=role, state="answered")


async def move(source: FakeVm, destination: FakeVm) -> None:
    """The guest stops here and runs there."""
    if source.status != "finish-migrate":
        source.status = "finish-migrate"
        await source.emit("STOP")
    source.status, destination.status = "postmigrate", "running"
    assert destination.protocol is not None
    destination.protocol["negotiated"] = True
    destination.told.clear()
    await destination.emit("RESUME")


def queue_length(tap: str) -> int:
    """How many frames may wait in it."""
    said = subprocess.run(
        ["ip", "-j", "link", "show", "dev", tap], capture_output=True, text=True, check=True
    )
    return int(json.loads(said.stdout)[0]["txqlen"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """An agent's command line that ends by itself."""
    command = [sys.executable, "-m", "vnet_standby.host", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


STORIES = {name: story for name, story in globals().items() if name.startswith("story_")}


@pytest.fixture(scope="module")
def namespace() -> None:
    command = "ip link add br0 type bridge && ip tuntap add t mode tap"
    probing = subprocess.run(
        [*IN_NAMESPACE, "sh", "-c", command], capture_output=True, text=True, check=False
    )
    if probing.returncode:
        last = probing.stderr.strip().splitlines()[-1]
        pytest.skip(f"no private network namespace with a bridge and taps: {last}")


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("story", STORIES)
def test_agent(story: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*IN_NAMESPACE, sys.executable, __file__, story, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    asyncio.run(STORIES[sys.argv[1]](Path(sys.argv[2])))
