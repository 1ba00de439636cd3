# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's work for one VM: a table of its pairs, and what each of QEMU's events makes it do."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host import moves
from vnet_standby.host.changes import Transaction
from vnet_standby.host.fabric import Fabric, find_pair_fabric, loosen, park, where
from vnet_standby.host.guard import Ward
from vnet_standby.host.host import Host
from vnet_standby.host.inventory import vf_macs
from vnet_standby.host.journal import Journal, ms
from vnet_standby.host.mac import alias
from vnet_standby.host.network import Datapath
from vnet_standby.host.pairs import Nic, Pair, pairs_of
from vnet_standby.host.qmp import Event, GoneError, Monitor, RefusedError

T = TypeVar("T")
P = ParamSpec("P")

ACKNOWLEDGE_MS = 500
"""How long QEMU waits for the acknowledgement of a change."""

_LATE_MS = 50.0
"""An event of that age may not be true any more: this process, or the whole host, has had no time."""

_SETTLED_S = 5.0
"""After that long a VM that uses its primary has read what waited in its tap."""

Phase = Literal["running", "incoming", "away"]
"""Whether the guest is here, is yet to come, or has gone to another QEMU."""

_ATTACH = "attach"
"""Why the fabric moves if it is no event of QEMU's: the agent finds that it is not where the driver is."""

_AWAY = {"finish-migrate", "postmigrate"}
"""Run states in which the guest has stopped here to go on at the destination."""
_LEAVING = {"device", "postcopy-active"}
"""The same as states of the migration; the destination has them, too, but before its guest runs."""


class Workshop(Protocol):
    """Where a session gets at the host; the sessions share it."""

    journal: Journal
    uplinks: tuple[str, ...]

    async def on_host(
        self, work: Callable[Concatenate[Host, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do something that blocks, one at a time."""

    def port(self, vm: str, device: str) -> str:
        """The netdev that the operator has named for a device; empty if none."""

    def wards_changed(self) -> None:
        """Tell the guard what is to be put in order if the agent dies."""


@dataclass
class ManagedPair:
    """A pair of the VM, and what the agent has made of it."""

    device: str
    """What QMP calls the standby: its ID, or its QOM path."""
    path: str
    mac: str
    fabric: Fabric | None = None
    ward: Ward | None = None
    unarmed: str = "not looked at yet"
    """Why the agent leaves it alone; empty if it does not."""
    negotiated: bool = False
    datapath: Datapath = "standby"
    """The driver's."""
    delivered: Datapath | None = None
    """The fabric's, as the agent knows it."""
    last: dict[str, object] = field(default_factory=dict)
    """The last move."""


class Session:
    """One VM, as long as it is connected."""

    def __init__(self, vm: str, monitor: Monitor, workshop: Workshop) -> None:
        self.vm = vm
        self.phase: Phase = "running"
        self.pairs: dict[str, ManagedPair] = {}
        self.gate = ""
        self._monitor = monitor
        self._shop = workshop
        self._stale: dict[str, bool] = {}
        self._taken: list[moves.Taken] = []
        self._queues: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def wards(self) -> list[Ward]:
        """What has to be put in order if nobody manages this VM's pairs any more."""
        pointed = (pair for pair in self.pairs.values() if pair.delivered and not pair.unarmed)
        expected = self.phase == "incoming"
        return [replace(pair.ward, expected=expected) for pair in pointed if pair.ward]

    def status(self) -> list[dict[str, object]]:
        """A row a pair."""
        return [
            {
                "vm": self.vm, "device": pair.device, "mac": pair.mac, "phase": self.phase,
                "state": pair.unarmed or "armed", "negotiated": pair.negotiated,
                "datapath": pair.datapath, "fabric": pair.delivered,
                "standby": pair.fabric.tap.name if pair.fabric else None,
                "primary": _primary_name(pair.fabric), "gate": self.gate, "last": pair.last,
            }
            for pair in self.pairs.values()
        ]  # fmt: skip

    async def attach(self) -> None:
        """Find the VM's pairs and arm those that can be."""
        status = (await self._monitor.execute("query-status"))["status"]
        self.phase = (
            "incoming" if status == "inmigrate" else "away" if status in _AWAY else "running"
        )
        await self._arm()
        await self._bring_in_line(self._paths())
        if self.phase == "incoming":
            await self._arm_gate()

    async def follow_events(self) -> None:
        """Do what the events ask for, until the VM ends."""
        async for event in self._monitor.events():
            try:
                if handler := _HANDLERS.get(event.name):
                    await handler(self, event)
                if self._monitor.quiet:  # a VM with many pairs says this of each, in a burst
                    await self._look_at_stale()
            except GoneError:
                continue  # the events end, too
            except VnetStandbyError as error:
                self._say("failed", step=event.name, reason=str(error))

    async def ended(self) -> None:
        """The VM is gone: give its MACs back to where they came from, or up."""
        await self._cancel_tasks()
        self._say("vm-ended", phase=self.phase)
        if self._taken:
            await self._give_back("the VM has ended")
        elif self.phase != "incoming":
            await self._leave_all(to_wire=False)
        await self._shorten_queues()

    async def disarm(self) -> None:
        """Tell QEMU not to wait for this agent any more; the guard does the rest."""
        await self._cancel_tasks()
        for pair, _ in self._armed():
            await self._tell_nobody_manages(pair)
        if self.phase == "incoming":
            await self._monitor.ask("x-virtio-net-standby-gate", arm=False)
            await self._shorten_queues()
        self._say("disarmed")

    # the pairs, and what is behind them

    async def _look_at_stale(self) -> None:
        """Look anew at the pairs of which QEMU has said that something has changed."""
        if not self._stale:
            return
        stale, self._stale = self._stale, {}
        await self._arm(stale)
        await self._bring_in_line([path for path, negotiated in stale.items() if negotiated])

    async def _arm(self, paths: Collection[str] = ()) -> None:
        """Look at all pairs anew, or at those with these QOM paths, and arm them."""
        try:
            told = await self._monitor.execute("query-virtio-net-standby")
        except RefusedError as error:
            if not error.unknown:
                raise
            self._say("not-armed", reason="this QEMU does not have the standby datapath protocol")
            return
        macs = await self._shop.on_host(vf_macs)
        found = {pair.standby.id: pair for pair in await pairs_of(self._monitor, macs)}
        await self._shop.on_host(_reread)
        before = self.pairs
        self.pairs = {
            name: pair for name, pair in before.items() if paths and pair.path not in paths
        }
        for info in told:
            if paths and info["path"] not in paths:
                continue
            device = info.get("device") or info["path"].removesuffix("/virtio-backend")
            pair = before.get(device) or ManagedPair(device, info["path"], info["mac"].lower())
            self.pairs[device] = pair
            await self._arm_pair(pair, info, found.get(device))
        if not told:
            self._say("not-armed", reason="the VM has no pair")
        self._shop.wards_changed()

    async def _arm_pair(
        self, pair: ManagedPair, info: Mapping[str, Any], found: Pair | None
    ) -> None:
        was = pair.unarmed
        try:
            await self._try_to_arm(pair, info, found)
        except GoneError:
            raise
        except VnetStandbyError as error:
            pair.unarmed, pair.fabric, pair.ward = str(error), None, None
        if pair.unarmed and pair.unarmed != was:
            self._say("not-armed", pair, reason=pair.unarmed)

    async def _try_to_arm(
        self, pair: ManagedPair, info: Mapping[str, Any], found: Pair | None
    ) -> None:
        protocol = info.get("protocol")
        if protocol is None:
            raise VnetStandbyError("the device does not offer the protocol (x-standby-datapath=on)")
        ward = self._ward(pair, found)
        fabric = await self._shop.on_host(_find, ward)
        _require_identity(fabric, protocol.get("primary-mac"))
        pair.fabric, pair.ward = fabric, ward
        pair.negotiated = protocol["negotiated"]
        pair.datapath = protocol["datapath"] if pair.negotiated else "standby"
        at = await self._shop.on_host(where, fabric)
        await self._acknowledge(pair, fabric, at or pair.datapath)
        if pair.unarmed:
            limit = fabric.driver.limit or None if fabric.driver else None
            self._say(
                "armed",
                pair,
                fabric=at,
                negotiated=pair.negotiated,
                marks=_marks(fabric),
                limit=limit,
            )
        pair.unarmed = ""

    async def _bring_in_line(self, paths: Collection[str]) -> None:
        """Let the host be as the devices with these QOM paths say it is."""
        for pair, fabric in self._armed():
            if pair.path not in paths:
                continue
            try:
                await self._bring_pair_in_line(pair, fabric)
            except GoneError:
                raise
            except VnetStandbyError as error:
                await self._tell_nobody_manages(pair)
                pair.unarmed, pair.fabric, pair.ward = str(error), None, None
                self._say("not-armed", pair, reason=pair.unarmed)
        self._shop.wards_changed()

    async def _bring_pair_in_line(self, pair: ManagedPair, fabric: Fabric) -> None:
        if self.phase == "incoming":
            await self._shop.on_host(_changing, park, fabric)
        elif self.phase == "running" and pair.negotiated:
            await self._follow(pair, fabric, pair.datapath, _ATTACH)
        elif self.phase == "running":
            await self._let_learn(pair, fabric)

    def _ward(self, pair: ManagedPair, found: Pair | None) -> Ward:
        if found is None:
            raise VnetStandbyError(f"QEMU knows no device {pair.device}; it was removed meanwhile")
        tap = self._port(found.standby)
        primary = found.primary
        if primary is None:
            return Ward(pair.mac, tap)
        if primary.host_address and not self._shop.port(self.vm, primary.id):
            return Ward(pair.mac, tap, address=primary.host_address)
        return Ward(pair.mac, tap, primary_tap=self._port(primary))

    def _port(self, nic: Nic) -> str:
        """The host's netdev behind a NIC of the VM."""
        if named := self._shop.port(self.vm, nic.id):
            return named
        if nic.backend != "tap":
            raise VnetStandbyError(
                f"not supported: {nic.id} has the netdev {nic.backend or 'none'}, only tap is"
            )
        if not nic.ifname:
            raise VnetStandbyError(
                f"which tap {nic.id} has is not known: QEMU was given it open; "
                f"name it with --port {self.vm}/{nic.id}=TAP"
            )
        return nic.ifname

    # moving

    async def _follow(self, pair: ManagedPair, fabric: Fabric, to: Datapath, cause: str) -> None:
        """Move the fabric, mark the old path's end, acknowledge."""
        mark = cause != _ATTACH and _marks(fabric)
        pair.delivered = to  # first, so that the guard knows of it whatever happens next
        self._shop.wards_changed()
        moved = await self._shop.on_host(moves.follow, fabric, to, mark=mark)
        if moved.changed or cause != _ATTACH:
            took = ms(moved.moved - moved.began)
            self._say("fabric-moved", pair, t=moved.moved, to=to, ms=took, changed=moved.changed)
        if moved.marked:
            took = ms(moved.marked - moved.moved)
            self._say("end-marker", pair, t=moved.marked, ms=took, left=_other(to))
        elif moved.unmarked:
            self._say("no-end-marker", pair, left=_other(to), reason=moved.unmarked)
        began = time.time()
        await self._acknowledge(pair, fabric, to)
        if cause != _ATTACH:
            self._say("acknowledged", pair, to=to, ms=ms(time.time() - began))
            pair.last = {
                "to": to,
                "cause": cause,
                "t": moved.began,
                "ms": ms(time.time() - moved.began),
            }
        if to == "primary" and fabric.tap.name in self._queues:
            self._later(_SETTLED_S, partial(self._shorten_idle_queue, pair, fabric.tap.name))

    async def _acknowledge(self, pair: ManagedPair, fabric: Fabric, at: Datapath) -> None:
        await self._monitor.execute(
            "x-virtio-net-standby-fabric",
            device=pair.device, datapath=at, timeout=ACKNOWLEDGE_MS, marks=_marks(fabric),
        )  # fmt: skip

    async def _tell_nobody_manages(self, pair: ManagedPair) -> None:
        await self._monitor.ask(
            "x-virtio-net-standby-fabric",
            device=pair.device, datapath=pair.delivered or pair.datapath, timeout=0, marks=False,
        )  # fmt: skip

    async def _let_learn(self, pair: ManagedPair, fabric: Fabric) -> None:
        """There is no driver that would say where it receives: let the host find out by itself."""
        changed = await self._shop.on_host(_changing, loosen, fabric, fabric.tap)
        pair.delivered = None
        if changed:
            self._say("fabric-loosened", pair, changed=changed)

    async def _leave_all(self, *, to_wire: bool) -> None:
        for pair, fabric in self._armed():
            uplinks = self._shop.uplinks
            changed = await self._shop.on_host(moves.leave, fabric, uplinks, to_wire=to_wire)
            pair.delivered = None
            if changed:
                self._say("fabric-left", pair, changed=changed)
        self._shop.wards_changed()

    # events

    async def _on_datapath(self, event: Event) -> None:
        pair = self._pair_of(event)
        to, cause = event.data["datapath"], event.data["cause"]
        self._say(
            "told",
            pair,
            to=to,
            cause=cause,
            forced=event.data["forced"],
            ms=ms(time.time() - event.t),
        )
        pair.datapath = to
        if self.phase != "running":
            return
        if pair.fabric and pair.fabric.uplink is None and to == "primary":
            self._stale.setdefault(pair.path, False)  # the primary has come since
            await self._look_at_stale()
        if pair.unarmed or pair.fabric is None:
            return
        if cause == "reset":
            await self._let_learn(pair, pair.fabric)
            await self._acknowledge(pair, pair.fabric, "standby")
        else:
            await self._follow(pair, pair.fabric, to, cause)

    async def _on_negotiated(self, event: Event) -> None:
        self._stale[event.data["path"]] = True

    async def _on_primary(self, event: Event) -> None:
        if event.data["change"] == "exposed" and self.phase == "running":
            self._stale.setdefault(event.data["path"], False)

    async def _on_deleted(self, _event: Event) -> None:
        if self.phase == "running":
            await self._arm()

    async def _on_fabric(self, event: Event) -> None:
        self._say(
            "outcome",
            self._pair_of(event),
            at=event.data["datapath"],
            outcome=event.data["outcome"],
        )

    async def _on_stop(self, _event: Event) -> None:
        status = (await self._monitor.execute("query-status"))["status"]
        if status in _AWAY:
            await self._go_away()

    async def _on_migration(self, event: Event) -> None:
        # these events come if management wants them (capability events), and long before an answer about the status
        if event.data["status"] in _LEAVING:
            await self._go_away()

    async def _go_away(self) -> None:
        if self.phase == "running":
            self.phase = "away"
            await self._leave_all(to_wire=False)

    async def _on_resume(self, _event: Event) -> None:
        before, self.phase = self.phase, "running"
        if before == "running":
            return
        if not self._taken:  # there was no gate; first of all, because QEMU is slow to answer now
            await self._take_all()
        self._taken.clear()
        await self._arm()
        await self._bring_in_line(self._paths())

    async def _on_gate(self, event: Event) -> None:
        number, state = event.data["id"], event.data["state"]
        role = event.data["role"]
        self.gate = f"{role}: {state}"
        reason, took = event.data.get("reason"), ms(time.time() - event.t)
        self._say("gate", id=number, role=role, state=state, reason=reason, ms=took)
        if role == "destination" and state == "closed":
            await self._on_closed_gate(number, late=took > _LATE_MS)
        elif role == "destination" and state == "withdrawn":
            await self._give_back("the gate was withdrawn")
        elif role == "source":
            await self._on_gate_of_source(state)

    async def _on_closed_gate(self, number: int, *, late: bool) -> None:
        # what the fabric gives to a guest that does not come after all is lost
        if late and not await self._gate_is_closed(number):
            self._say("gate-missed", id=number)
            return
        await self._take_all()
        began = time.time()
        try:
            await self._monitor.execute("x-virtio-net-standby-gate-answer", id=number)
        except RefusedError as error:
            await self._give_back(str(error))
            return
        self._say("gate-answered", id=number, ms=ms(time.time() - began))

    async def _gate_is_closed(self, number: int) -> bool:
        gate = await self._monitor.execute("x-query-virtio-net-standby-gate")
        return (gate.get("id"), gate.get("state")) == (number, "closed")

    async def _on_gate_of_source(self, state: str) -> None:
        if state == "answered":
            await self._leave_all(to_wire=True)
        elif state == "withdrawn":
            self.phase = "running"  # the gate may have passed, and the rest of the migration failed
            await self._take_all()
            self._taken.clear()
        elif state == "passed":
            self.phase = "away"

    # the gate

    async def _arm_gate(self) -> None:
        armed = self._armed()
        if not armed:
            return
        for _, fabric in armed:
            before = await self._shop.on_host(moves.lengthen_queue, fabric.tap)
            self._queues[fabric.tap.name] = before
        try:
            await self._monitor.execute("x-virtio-net-standby-gate", arm=True)
        except RefusedError as error:
            self._say("gate-not-armed", reason=str(error))
            return
        self.gate = "destination: armed"
        self._say("gate-armed", queue=moves.QUEUE_LENGTH)

    async def _take_all(self) -> None:
        for pair, fabric in self._armed():
            taken = await self._shop.on_host(moves.take, fabric, self._shop.uplinks)
            self._taken.append(taken)
            pair.delivered = "standby"
            changed = [change.what for change in taken.done]
            took = ms(taken.moved - taken.began)
            self._say("fabric-taken", pair, t=taken.moved, ms=took, changed=changed)
            if taken.announced_on:
                self._say("announced", pair, ports=taken.announced_on)
        self._shop.wards_changed()

    async def _give_back(self, why: str) -> None:
        taken, self._taken = self._taken, []
        for one in taken:
            failed = await self._shop.on_host(moves.give_back, one)
            self._say("fabric-given-back", mac=one.fabric.mac, reason=why, failed=failed or None)
        for pair in self.pairs.values():
            pair.delivered = None
        self._shop.wards_changed()

    async def _shorten_queues(self) -> None:
        for name in list(self._queues):
            await self._shorten_queue(name)

    async def _shorten_queue(self, tap: str) -> None:
        await self._shop.on_host(moves.restore_queue, tap, self._queues.pop(tap))

    async def _shorten_idle_queue(self, pair: ManagedPair, tap: str) -> None:
        # sch_generic.c, dev_qdisc_change_tx_queue_len(): what comes meanwhile is dropped, so nothing may come
        if pair.delivered == "primary" and tap in self._queues:
            await self._shorten_queue(tap)

    # helpers

    def _paths(self) -> list[str]:
        return [pair.path for pair in self.pairs.values()]

    def _armed(self) -> list[tuple[ManagedPair, Fabric]]:
        pairs = self.pairs.values()
        return [(pair, pair.fabric) for pair in pairs if pair.fabric and not pair.unarmed]

    def _pair_of(self, event: Event) -> ManagedPair:
        for pair in self.pairs.values():
            if event.data.get("device") == pair.device or event.data["path"] == pair.path:
                return pair
        raise VnetStandbyError(f"an event of an unknown pair: {event.data['path']}")

    def _later(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            await work()

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _say(self, event: str, pair: ManagedPair | None = None, **data: Any) -> None:
        if pair:
            data = {"device": pair.device, "mac": pair.mac, **data}
        self._shop.journal(event, vm=self.vm, **data)


def _reread(host: Host) -> None:
    host.network.reread()


def _find(host: Host, ward: Ward) -> Fabric:
    return find_pair_fabric(host, ward.mac, ward.tap_name, ward.primary_tap, ward.address)


def _changing(
    host: Host,
    what: Callable[Concatenate[Host, Transaction, P], None],
    *args: P.args,
    **kwargs: P.kwargs,
) -> list[str]:
    """Change the host as a whole or not at all; return what was changed."""
    with Transaction() as change:
        what(host, change, *args, **kwargs)
    return change.changed


def _require_identity(fabric: Fabric, identity: str | None) -> None:
    """A VF whose filter is to move needs another address in the guest than the pair's."""
    if not (fabric.vf and fabric.driver and fabric.driver.flips):
        return
    if (identity or "").lower() != alias(fabric.mac):
        raise VnetStandbyError(
            f"not supported: the guest knows {fabric.vf.name} by {identity or 'the MAC of the pair'}; "
            f"start the VM with x-standby-primary-mac={alias(fabric.mac)}"
        )


def _marks(fabric: Fabric) -> bool:
    """Whether each old path can be ended with a marker; a primary that isn't known yet may be one where that works."""
    return fabric.uplink is None or fabric.last_on("primary") is not None


def _primary_name(fabric: Fabric | None) -> str | None:
    if fabric is None or fabric.uplink is None:
        return None
    return fabric.vf.name if fabric.vf else fabric.uplink.name


def _other(datapath: Datapath) -> Datapath:
    return "primary" if datapath == "standby" else "standby"


_HANDLERS: dict[str, Callable[[Session, Event], Awaitable[None]]] = {
    "VIRTIO_NET_STANDBY_DATAPATH": Session._on_datapath,
    "VIRTIO_NET_STANDBY_FABRIC": Session._on_fabric,
    "VIRTIO_NET_STANDBY_GATE": Session._on_gate,
    "VIRTIO_NET_STANDBY_NEGOTIATED": Session._on_negotiated,
    "VIRTIO_NET_STANDBY_PRIMARY": Session._on_primary,
    "DEVICE_DELETED": Session._on_deleted,
    "MIGRATION": Session._on_migration,
    "STOP": Session._on_stop,
    "RESUME": Session._on_resume,
}
