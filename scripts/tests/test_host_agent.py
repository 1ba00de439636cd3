# SPDX-License-Identifier: GPL-2.0-or-later
"""The host agent on a real bridge with real taps; QEMU's part is played by a QMP server.

Each story runs as a process in a network namespace of its own: `python test_host_agent.py STORY FOLDER`.
"""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agent_machine import MAC, FakeVm, Tap, agent, make_bridge, pointed, until

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
