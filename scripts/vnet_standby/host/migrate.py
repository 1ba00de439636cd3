# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole migration between two QEMUs: looked at before, watched, and rolled back if it does not succeed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.qmp import Event, GoneError, Monitor, RefusedError, connected

Side = Literal["source", "destination"]
Outcome = Literal["completed", "failed", "cancelled"]

_CAPABILITIES = ("return-path", "events")
"""return-path: the destination answers the gate by it; events: the states of the migration come as events."""
_END_STATES: dict[str, Outcome] = {
    "completed": "completed", "failed": "failed", "cancelled": "cancelled",
}  # fmt: skip
_ROLL_BACK_S = 30
_RESUME_S = 30
_PROGRESS_S = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """What one of the two QEMUs said; `t` is CLOCK_REALTIME of its host, in seconds."""

    t: float
    who: Side
    event: str
    data: Mapping[str, Any]


@dataclass
class Result:
    """How a migration went."""

    outcome: Outcome
    reason: str = ""
    """Why it is not completed."""
    notes: list[str] = field(default_factory=list)
    """What was found beforehand that costs frames."""
    seconds: float = 0
    downtime_ms: float | None = None
    """For which QEMU says that the guest stood still."""
    gate: str = ""
    """The gate's last state at the source; empty if there was none."""
    steps: list[Step] = field(default_factory=list)


async def migrate(
    source: str,
    destination: str,
    uri: str,
    say: Say,
    bandwidth_mib_s: int | None = None,
    limit_s: float | None = None,
) -> Result:
    """Migrate the VM at the QMP monitor `source` to the QEMU at `destination`, which listens at `uri` then.

    Raises `VnetStandbyError` if that can't begin. If this is cancelled, the migration is: the VM goes on at the source.
    """
    async with connected(source) as here, connected(destination) as there:
        notes = await _check(here, there)
        for note in notes:
            say(f"note: {note}")
        async with (
            _Watch(here, there, say).watching() as watch,
            _settings(here, there, bandwidth_mib_s),
        ):
            result = await _run(watch, uri, limit_s)
    result.notes, result.steps = notes, watch.steps
    return result


class _Watch:
    """What both QEMUs say while the migration is under way."""

    def __init__(self, source: Monitor, destination: Monitor, say: Say) -> None:
        self.monitors: dict[Side, Monitor] = {"source": source, "destination": destination}
        self.steps: list[Step] = []
        self.say = say
        self.began = time.time()
        self._gone: set[Side] = set()
        self._news = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator["_Watch"]:
        """Listen to both for as long as the context lasts."""
        tasks = [asyncio.create_task(self._listen(side)) for side in self.monitors]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def end_state(self) -> Outcome:
        """Wait for the migration's end; raises `VnetStandbyError` if the source is lost."""
        await self._wait(lambda: self.state in _END_STATES or "source" in self._gone)
        if self.state not in _END_STATES:
            raise VnetStandbyError(
                f"the source's QEMU went away; look at the destination whether the VM runs there: "
                f"{self.monitors['destination'].address}"
            )
        return _END_STATES[self.state]

    async def resumed(self) -> bool:
        """Wait until the guest runs at the destination; false if its QEMU has gone."""
        await self._wait(lambda: self._said("destination", "RESUME") or "destination" in self._gone)
        return "destination" not in self._gone

    @property
    def state(self) -> str:
        """The migration's at the source."""
        states = self._all("source", "MIGRATION")
        return states[-1].data["status"] if states else ""

    @property
    def gate(self) -> str:
        """The gate's at the source."""
        states = self._all("source", "VIRTIO_NET_STANDBY_GATE")
        return states[-1].data["state"] if states else ""

    def _all(self, who: Side, event: str) -> list[Step]:
        return [step for step in self.steps if step.who == who and step.event == event]

    def _said(self, who: Side, event: str) -> bool:
        return bool(self._all(who, event))

    async def _wait(self, true: Callable[[], bool]) -> None:
        async with self._news:
            await self._news.wait_for(true)

    async def _listen(self, side: Side) -> None:
        async for event in self.monitors[side].events():
            await self._note(side, event)
        async with self._news:
            self._gone.add(side)
            self._news.notify_all()

    async def _note(self, side: Side, event: Event) -> None:
        step = Step(event.t, side, event.name, event.data)
        if event.t >= self.began:  # not what has waited in the monitor since long ago
            details = " ".join(f"{key}={value}" for key, value in event.data.items())
            self.say(f"{event.t - self.began:7.3f} s  {side:11}  {event.name} {details}".rstrip())
        async with self._news:
            self.steps.append(step)
            self._news.notify_all()


async def _run(watch: _Watch, uri: str, limit_s: float | None) -> Result:
    source, destination = watch.monitors["source"], watch.monitors["destination"]
    await _listen_at(destination, uri)
    progress = asyncio.create_task(_tell_progress(watch))
    reason = "by somebody else"
    try:
        await source.execute("migrate", uri=uri)
        async with asyncio.timeout(limit_s):
            outcome = await watch.end_state()
    except TimeoutError:
        reason = f"not done within {limit_s:g} s"
        outcome = await _roll_back(watch)
    except asyncio.CancelledError:
        reason = "interrupted"
        outcome = await _roll_back(watch)
    finally:
        progress.cancel()
    if outcome == "completed":
        await _require_resumed(watch)
    told = await source.ask("query-migrate") or {}
    return Result(
        outcome,
        reason=_reason(outcome, told, reason),
        seconds=round(time.time() - watch.began, 3),
        downtime_ms=told.get("downtime"),
        gate=watch.gate,
    )


def _reason(outcome: Outcome, told: Mapping[str, Any], cancelled: str) -> str:
    if outcome == "failed":
        return str(told.get("error-desc", "QEMU gives no reason"))
    return cancelled if outcome == "cancelled" else ""


async def _listen_at(destination: Monitor, uri: str) -> None:
    """Let the destination listen; one that was started with -incoming URI does already."""
    told = await destination.execute("query-migrate")
    if told.get("status") is None:
        await destination.execute("migrate-incoming", uri=uri)


async def _roll_back(watch: _Watch) -> Outcome:
    """Cancel; the migration may have been completed before that arrives."""
    watch.say("cancelling ...")
    try:
        async with asyncio.timeout(_ROLL_BACK_S):
            await watch.monitors["source"].execute("migrate_cancel")
            return await watch.end_state()
    except TimeoutError:
        raise VnetStandbyError(
            f"the migration is not cancelled within {_ROLL_BACK_S} s; look at the source: "
            f"{watch.monitors['source'].address}"
        ) from None


async def _require_resumed(watch: _Watch) -> None:
    destination = watch.monitors["destination"]
    try:
        async with asyncio.timeout(_RESUME_S):
            alive = await watch.resumed()
    except TimeoutError:
        status = await destination.ask("query-status") or {"status": "unknown"}
        raise VnetStandbyError(
            f"the migration is completed, but the guest does not run at the destination ({status['status']})"
        ) from None
    if not alive:
        raise VnetStandbyError(
            "the migration is completed, but the destination's QEMU went away; `cont` the guest at the source"
        )


async def _tell_progress(watch: _Watch) -> None:
    """Say how far it is, as long as nobody cancels this; QEMU has no event for that."""
    while True:
        await asyncio.sleep(_PROGRESS_S)
        with contextlib.suppress(GoneError):  # the events tell
            told = await watch.monitors["source"].ask("query-migrate") or {}
            if ram := told.get("ram"):
                left, total = ram["remaining"] >> 20, ram["total"] >> 20
                passed = time.time() - watch.began
                watch.say(f"{passed:7.3f} s  {told['status']}, {left} of {total} MiB to go")


# before it begins


async def _check(source: Monitor, destination: Monitor) -> list[str]:
    """Look whether it can succeed; return what will cost frames. Raises `VnetStandbyError` if it can't."""
    await _require_status(source, {"running", "paused"}, "is no VM that could be migrated")
    await _require_status(
        destination, {"inmigrate"}, "does not wait for a migration; start it with -incoming defer"
    )
    await _require_same(source, destination)
    notes = []
    for side, monitor in (("source", source), ("destination", destination)):
        told = await _pairs(monitor)
        for device, info in told.items():
            protocol = info.get("protocol")
            if protocol and not protocol["managed"]:
                notes.append(f"no host agent manages {device} at the {side}")
    return notes or await _note_protocol(source)


async def _note_protocol(source: Monitor) -> list[str]:
    said = await _pairs(source)
    return [
        f"{device} can't tell the guest when to change its datapath: "
        + ("the guest's driver does not know how" if info.get("protocol") else "x-standby-datapath is off")
        for device, info in said.items()
        if not (info.get("protocol") or {}).get("negotiated")
    ]  # fmt: skip


async def _require_status(monitor: Monitor, wanted: set[str], otherwise: str) -> None:
    status = (await monitor.execute("query-status"))["status"]
    if status not in wanted:
        raise VnetStandbyError(f"the QEMU at {monitor.address} {otherwise} (its state: {status})")


async def _require_same(source: Monitor, destination: Monitor) -> None:
    """Compare what QEMU shows of both; raises `VnetStandbyError` if the destination can't take the VM."""
    here, there = await _description(source), await _description(destination)
    for what, ours in here.items():
        if ours != there[what]:
            raise VnetStandbyError(f"the VMs differ: {_difference(what, ours, there[what])}")


def _difference(what: str, here: object, there: object) -> str:
    if not (isinstance(here, dict) and isinstance(there, dict)):
        return f"{what} is {here} at the source, {there} at the destination"
    name = next(key for key in sorted({*here, *there}) if here.get(key) != there.get(key))
    ours, theirs = here.get(name, "not there"), there.get(name, "not there")
    return f"{what} {name} is {ours} at the source, {theirs} at the destination"


async def _description(vm: Monitor) -> dict[str, object]:
    memory = await vm.ask("query-memory-size-summary") or {}
    return {
        "the machine": await vm.text("/machine", "type"),
        "RAM (bytes)": memory.get("base-memory"),
        "the number of CPUs": len(await vm.ask("query-cpus-fast") or ()),
        "the standby": {
            device: f"{info['mac']}, {'with' if info.get('protocol') else 'without'} x-standby-datapath"
            for device, info in (await _pairs(vm)).items()
        },
        "the device": await _devices(vm),
    }


async def _devices(vm: Monitor) -> dict[str, str]:
    """The devices that move, by ID or place: not the primaries, which each host has its own of."""
    found = {}
    for container in ("/machine/peripheral", "/machine/peripheral-anon"):
        for child in await vm.ask("qom-list", path=container) or ():
            path, kind = f"{container}/{child['name']}", child["type"]
            if not kind.startswith("child<") or kind.startswith("child<vfio-pci"):
                continue
            if not await vm.text(path, "failover_pair_id"):
                found[child["name"]] = kind.removeprefix("child<").removesuffix(">")
    return found


async def _pairs(vm: Monitor) -> dict[str, dict[str, Any]]:
    """What QEMU tells of its standbys; nothing if it is one without the project's series."""
    try:
        told = await vm.execute("query-virtio-net-standby")
    except RefusedError as error:
        if not error.unknown:
            raise
        return {}
    return {info.get("device") or info["path"]: info for info in told}


@contextlib.asynccontextmanager
async def _settings(
    source: Monitor, destination: Monitor, bandwidth_mib_s: int | None
) -> AsyncIterator[None]:
    """Capabilities and limit for this migration; both sides have their own again afterwards, if they are there."""
    before = [(vm, await _capabilities(vm)) for vm in (source, destination)]
    limit = (await source.execute("query-migrate-parameters"))["max-bandwidth"]
    try:
        for vm, _ in before:
            await _set_capabilities(vm, dict.fromkeys(_CAPABILITIES, True))
        if bandwidth_mib_s:
            await source.execute(
                "migrate-set-parameters", **{"max-bandwidth": bandwidth_mib_s << 20}
            )
        yield
    finally:
        with contextlib.suppress(GoneError, RefusedError):
            await source.execute("migrate-set-parameters", **{"max-bandwidth": limit})
        for vm, states in before:
            with contextlib.suppress(GoneError, RefusedError):
                await _set_capabilities(vm, states)


async def _capabilities(vm: Monitor) -> dict[str, bool]:
    told = await vm.execute("query-migrate-capabilities")
    states = {one["capability"]: one["state"] for one in told}
    return {name: states[name] for name in _CAPABILITIES}


async def _set_capabilities(vm: Monitor, states: Mapping[str, bool]) -> None:
    wanted = [{"capability": name, "state": state} for name, state in states.items()]
    await vm.execute("migrate-set-capabilities", capabilities=wanted)


def outcome_line(result: Result) -> str:
    """How it went, in a line."""
    if result.outcome != "completed":
        return f"{result.outcome}: {result.reason}; the guest goes on at the source"
    gate = f", gate {result.gate}" if result.gate else ", no gate"
    return f"completed in {result.seconds:.1f} s, the guest stood still for {result.downtime_ms} ms{gate}"
