# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as a story: start the VM, start the traffic, migrate, stop, and there are its records.

async with Lab(scenario, topology, run) as lab:
await lab.start_vm()
await lab.start_traffic()
await lab.migrate()
await lab.stop_traffic()
verdict = judge(run)
"""

import asyncio
import contextlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab import traffic
from vnet_standby.lab.agent import Link
from vnet_standby.lab.command import PRIMARY_ID, twin_device, write_boot_settings
from vnet_standby.lab.events import Event, EventLog
from vnet_standby.lab.namespace import enter_private_network
from vnet_standby.lab.network import PEER
from vnet_standby.lab.scenario import MAC, Host, Scenario
from vnet_standby.lab.topology import Topology
from vnet_standby.lab.vm import Vm, running_vm

BOOT_S = 120
REACHABLE_S = 30
RESET_S = 30
UNPLUG_S = 30  # native PCIe hotplug waits 5 s on the attention button (PCIe base spec 6.7.1.5) before it ejects
MIGRATION_S = 300
QUIET_S = 3.0  # the noise floor is measured before the migration
BACK_S = 6.0  # the slowest primary seen (e1000: 2 s of link-up time) and some more
AFTERMATH_S = 3.0  # QEMU's announcements take 0.8 s, TAIL_PROBES of avocado-tests 1 s
_END_STATES = ("completed", "failed", "cancelled")


class Lab:
    """One VM that moves between hosts a and b of a topology."""

    def __init__(self, scenario: Scenario, topology: Topology, run: Path) -> None:
        """`run` is the folder for records and logs."""
        self.scenario = scenario
        self.run = run
        self.events = EventLog()
        self.topology = topology
        self.kernel_reports: list[str] = []
        """What the kernels of the VMs that have ended found wrong with themselves: lines of their consoles."""
        self._commands: dict[str, str] = {}
        self._running: Vm | None = None
        self._destination: Vm | None = None
        self._mark = 0  # number of the first event of the migration under way
        self._vms: dict[Host, contextlib.AsyncExitStack] = {}
        self._samples: list[tuple[int, int]] = []
        self._stack = contextlib.AsyncExitStack()
        self._capture: asyncio.subprocess.Process | None = None
        self._sender: asyncio.subprocess.Process | None = None
        self._tcp: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Enter a private network namespace and build the topology in it."""
        if self.scenario.needs_series:
            self._require_series()
        self.run.mkdir(parents=True, exist_ok=True)
        enter_private_network()
        try:
            await self.topology.create(self.events, self.run)
        except BaseException:
            await self.topology.close()
            self.write_records()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process; the namespace goes with them. What was recorded until now is written."""
        for host in list(self._vms):
            await self._end(host)
        await self._stack.aclose()
        await self.topology.close()
        self.write_records()

    @property
    def vm(self) -> Vm:
        """The QEMU in which the guest runs now."""
        assert self._running is not None, "start_vm() comes first"
        return self._running

    async def start_vm(self, host: Host = "a") -> None:
        """Boot the VM on a host and wait until the peer reaches it and its primary carries the traffic."""
        await self.boot_vm(host)
        if self.scenario.primary_on(host):
            await self.wait_primary()
        if not await traffic.wait_reachable(REACHABLE_S):
            raise VnetStandbyError(
                f"the guest does not answer on the network within {REACHABLE_S} s"
                f"{self.vm.console_tail()}"
            )

    async def boot_vm(self, host: Host = "a", seconds: float = BOOT_S) -> None:
        """Boot the VM on a host and wait until its agent is there, whatever its NICs do."""
        self._running = await self._launch(host, incoming=False)
        await self.vm.bounded(self.vm.agent.wait_alive(), seconds, f"booting the guest on {host}")

    async def wait_primary(self, seconds: float = REACHABLE_S) -> None:
        """Wait until the guest has its primaries enslaved and with carrier."""
        driver = self.scenario.driver_on(self._here())

        def ready(links: Sequence[Link]) -> bool:
            enslaved = [link for link in links if link.driver == driver and link.master]
            return sum(link.carrier for link in enslaved) >= self.scenario.pairs

        await self.wait_links(ready, "the guest enslaving its primary", seconds)

    async def wait_links(
        self, wanted: Callable[[Sequence[Link]], bool], what: str, seconds: float = REACHABLE_S
    ) -> None:
        """Wait until the guest's netdevs are as wanted; `what` names that for the error when they never are."""

        async def changed() -> None:
            while True:
                since = len(self.events)
                if wanted(list((await self.vm.agent.links()).values())):
                    return
                await self.events.wait(lambda event: event.who == "guest", since)

        await self.vm.bounded(changed(), seconds, what)

    async def expect_guest(self, event: str, seconds: float, since: int = 0) -> Event:
        """Wait for the guest to tell of a change, e.g. "gone", recorded as number `since` or later."""

        def wanted(told: Event) -> bool:
            return told.who == "guest" and told.event == event

        waiting = self.events.wait(wanted, since)
        return await self.vm.bounded(waiting, seconds, f"waiting for {event} in the guest")

    async def reset(self, **settings: str) -> None:
        """Reset the VM and wait until it has booted with these settings of guest/image/init, overriding its own.

        Needs a scenario with `resettable`.
        """
        write_boot_settings(self.run, settings)
        since = len(self.events)
        await self.vm.execute("system_reset")
        await self.vm.expect("RESET", RESET_S, since)
        self.vm.agent.forget_alive()
        await self.vm.bounded(self.vm.agent.wait_alive(), BOOT_S, "booting after a reset")

    async def unplug_primary(self) -> None:
        """Ask the guest to give its primary back, as management does, and wait until it has."""
        await self.vm.unplug(PRIMARY_ID, UNPLUG_S)

    async def plug_primary(self) -> None:
        """Plug the primary that the VM's host has, as management does, and wait until the guest has it enslaved."""
        primary = self.topology.primary(self._here(), incoming=False)
        assert primary is not None, "the scenario has no primary there"
        await self.vm.plug(primary)
        await self.wait_primary()

    async def plug_twin(self) -> None:
        """Plug a second NIC with the pair's MAC into the spare port, wait until the guest has it."""
        before = len(await self.vm.agent.links())
        await self.vm.plug(twin_device())
        await self.wait_links(lambda links: len(links) > before, "the guest finding a second NIC")

    async def start_traffic(self) -> None:
        """Start capture and streams, and let them run undisturbed for the noise floor."""
        interfaces = [PEER, *self.topology.ports]
        self._capture = await self._stack.enter_async_context(
            traffic.helper("capture", *traffic.capture_arguments(self.run, interfaces))
        )
        await traffic.wait_ready(self._capture, "the capture")
        await self.topology.start_recording()
        agent = self.vm.agent
        await agent.ask("forget")
        await self._lab_event("traffic-start")
        rate_hz = 0 if self.scenario.traffic == "from-guest" else self.scenario.rate_hz
        self._sender = await self._stack.enter_async_context(
            traffic.helper("sender", *traffic.sender_arguments(MAC, rate_hz))
        )
        await traffic.start_guest_stream(agent, self.scenario.rate_hz)
        if self.scenario.tcp_mib_s:
            self._tcp = await self._stack.enter_async_context(
                traffic.tcp_stream(agent, self.run, self.scenario.tcp_mib_s)
            )
        await asyncio.sleep(QUIET_S)
        if self.scenario.traffic == "to-guest":
            await traffic.silence_guest(agent)
            await self._lab_event("guest-silent")

    async def stop_traffic(self) -> None:
        """Stop the streams, let the last probes arrive and write the records."""
        assert self._capture is not None, "start_traffic() comes first"
        assert self._sender is not None, "start_traffic() comes first"
        if self._tcp:
            await traffic.finish(self._tcp, "the TCP stream")
        await self.vm.agent.ask("silence")
        await traffic.finish(self._sender, "the sender")
        # An echo is behind all probes of its path; where the path is broken there is nothing to wait for.
        await traffic.wait_reachable(1)
        await self._lab_event("traffic-stop")
        await traffic.finish(self._capture, "the capture")
        await traffic.write_guest_records(
            self.vm.agent, self._samples + self.vm.agent.clock_samples, self.run
        )
        await self.topology.write_records(self.run)
        self.write_records()

    async def migrate(self) -> dict[str, Any]:
        """Migrate to the other host, wait out the aftermath, return the source's query-migrate."""
        await self.begin_migration()
        return await self.finish_migration()

    async def start_destination(self) -> None:
        """Start the QEMU that the guest will move to; it listens for the migration then."""
        self._destination = await self._launch(self._other(), incoming=True)
        await self._set_up(self.vm, self._destination)

    async def begin_migration(self) -> None:
        """Start the migration, and the destination if it isn't there; return as soon as it has begun."""
        if self._destination is None:
            await self.start_destination()
        assert self._destination is not None
        source = self.vm
        self._mark = len(self.events)
        await self._lab_event("migrate", {"from": source.name, "to": self._destination.name})
        if self.scenario.managed and self.scenario.primary_on(self._here()):
            await source.unplug(PRIMARY_ID, UNPLUG_S)
        await source.execute("migrate", uri=self.topology.migration_uri(self._other()))

    async def wait_status(self, *statuses: str, seconds: float = MIGRATION_S) -> str:
        """Wait until the migration under way has one of these states, return it."""
        source = self.vm

        def wanted(event: Event) -> bool:
            return (
                event.who == source.name
                and event.event == "MIGRATION"
                and event.data.get("status") in statuses
            )

        event = await source.bounded(
            self.events.wait(wanted, self._mark),
            seconds,
            f"migration status {' or '.join(statuses)}",
        )
        return str(event.data["status"])

    async def finish_migration(self) -> dict[str, Any]:
        """Wait for the end of a migration that is under way; the guest runs on the destination then."""
        source, destination = self.vm, self._destination
        assert destination is not None, "begin_migration() comes first"
        status = await self.wait_status(*_END_STATES)
        result: dict[str, Any] = await source.execute("query-migrate")
        await self._lab_event("migrated", result)
        if status != "completed":
            reason = result.get("error-desc", "no reason given")
            raise VnetStandbyError(
                f"migration {status}: {reason}; the guest goes on at {source.name}, see {destination.stderr}"
            )
        await destination.expect("RESUME", BOOT_S, self._mark)
        self._samples += source.agent.clock_samples
        self._running, self._destination = destination, None
        await self._plug_managed(incoming=True)
        await self._aftermath()
        return result

    async def end_source(self) -> None:
        """End the QEMU that the last migration left behind; what it had of its host is free then."""
        await self._end(self._other())

    async def cancel_migration(self) -> None:
        """Cancel the migration under way; the guest goes on at the source."""
        await self._lab_event("cancel")
        await self.vm.execute("migrate_cancel")
        await self._stay("cancelled")

    async def kill_destination(self) -> None:
        """Let the destination crash in the migration under way."""
        assert self._destination is not None, "begin_migration() comes first"
        await self._destination.kill()

    async def failed_migration(self) -> str:
        """Wait until the migration under way has failed, return the reason; the guest goes on at the source."""
        return await self._stay("failed")

    def write_records(self) -> None:
        """Write events.jsonl and run.json as far as they are known."""
        self.events.write(self.run / "events.jsonl")
        scenario = asdict(self.scenario)
        binaries = self.topology.binaries
        known = self.topology.facts()
        facts = {
            **scenario,
            "mac": MAC,
            "ports": dict(self.topology.ports),
            "commands": self._commands,
            **known,
            "versions": {
                **{f"qemu on {host}": binary.version for host, binary in binaries.items()},
                "machine": binaries["a"].machine,
                **known["versions"],
                "host kernel": platform.release(),
                "python": platform.python_version(),
            },
        }
        (self.run / "run.json").write_text(json.dumps(facts, indent=1) + "\n")

    async def _launch(self, host: Host, *, incoming: bool) -> Vm:
        await self._end(host)  # a source that was left behind by an earlier migration
        if self.scenario.resettable:
            write_boot_settings(self.run, {})
        arguments = self.topology.vm_arguments(host, self.run, incoming=incoming)
        if incoming:
            arguments += ["-incoming", "defer"]
        stack = contextlib.AsyncExitStack()
        self._vms[host] = stack
        vm = self.topology.vm(host, self.events, self.run)
        stack.callback(lambda: self.kernel_reports.extend(vm.kernel_reports()))
        await stack.enter_async_context(running_vm(vm, arguments, self.topology.launch(host)))
        self._commands[host] = vm.command
        return vm

    async def _stay(self, status: str) -> str:
        """Wait for the migration to end like this, give a managed primary back, wait out the aftermath.

        Returns the reason that QEMU gives, if any.
        """
        ended = await self.wait_status(*_END_STATES)
        if ended != status:
            raise VnetStandbyError(f"the migration from {self.vm.name} is {ended}, not {status}")
        result: dict[str, Any] = await self.vm.execute("query-migrate")
        await self._lab_event("migrated", result)
        await self._end(self._other())
        self._destination = None
        await self._plug_managed(incoming=False)
        await self._aftermath()
        return str(result.get("error-desc", ""))

    async def _aftermath(self) -> None:
        """Give the guest time to use its primaries again, if it does, and the traffic time to find them."""
        driver = self.scenario.driver_on(self._here())
        back: set[object] = set()

        def all_back(event: Event) -> bool:
            link = event.data
            told = event.who == "guest" and event.event == "link"
            if told and link["driver"] == driver and link["master"] and link["carrier"] == "1":
                back.add(link["name"])
            return len(back) == self.scenario.pairs

        if driver:
            # a guest that gets none, or has had it all the time, tells nothing
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACK_S):
                    await self.events.wait(all_back, len(self.events))
        await asyncio.sleep(AFTERMATH_S)

    async def _plug_managed(self, *, incoming: bool) -> None:
        """Give the VM the primary of the host that it is on now, where that is management's task."""
        primary = self.topology.primary(self._here(), incoming=incoming)
        if self.scenario.managed and primary:
            await self.vm.plug(primary)

    async def _end(self, host: Host) -> None:
        stack = self._vms.pop(host, None)
        if stack:
            await stack.aclose()

    async def _set_up(self, source: Vm, destination: Vm) -> None:
        # the destination answers the source at the switchover only where there is a way back
        wanted = ["events", *(["return-path"] if self.topology.protocol else [])]
        capabilities = [{"capability": name, "state": True} for name in wanted]
        for vm in (source, destination):
            await vm.execute("migrate-set-capabilities", capabilities=capabilities)
        await source.execute(
            "migrate-set-parameters", **{"max-bandwidth": self.scenario.bandwidth_mib_s << 20}
        )
        uri = self.topology.migration_uri(self._other())
        await destination.execute("migrate-incoming", uri=uri)

    def _here(self) -> Host:
        return "a" if self.vm.name == "a" else "b"

    def _other(self) -> Host:
        return "b" if self.vm.name == "a" else "a"

    async def _lab_event(self, event: str, data: dict[str, Any] | None = None) -> None:
        await self.events.add("lab", event, data or {})

    def _require_series(self) -> None:
        for host, binary in self.topology.binaries.items():
            if not binary.has_standby_property:
                raise VnetStandbyError(
                    f"{binary.path} (host {host}) has no virtio-net property standby; use the patched QEMU"
                )
