# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a run's folder with a known truth, without a VM: who ran where, what went which way, what was lost."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from vnet_standby.traffic.capture import INBOUND, OUTBOUND, SniffedFrame, write_pcapng
from vnet_standby.traffic.probe import (
    GUEST_ADDRESS,
    GUEST_PORT,
    PEER_ADDRESS,
    PEER_PORT,
    Template,
    VnetProbe,
)

EPOCH_NS = 1_700_000_000 * 1_000_000_000
"""All times in tests are seconds after this."""
GUEST_BEHIND_NS = 3_217_000_123
"""How far the guest's clock lags behind the host's when a run begins."""
PORTS = {
    "a-standby": "standby",
    "a-primary": "primary",
    "b-standby": "standby",
    "b-primary": "primary",
}
NESTED_PORTS = {"a-uplink": "uplink", "b-uplink": "uplink"}
HOST_AHEAD_NS = 7_000_000_000
"""How far an emulated host's own clock is ahead."""
BRIDGE_S = 20e-6
"""What a frame needs from the peer to a port or back."""
NIC_S = 300e-6
"""What a frame needs from a port into the guest or back, unless a test says otherwise."""


@dataclass(frozen=True)
class Way:
    """What happens to one probe."""

    ports: tuple[str, ...]
    """The ports that see it."""
    arrives: bool = True
    delay: float = NIC_S
    """From the port to the guest's socket or back (s)."""
    copies: int = 1
    errno: int = 0


def lost(*ports: str) -> Way:
    """Seen by these ports and lost."""
    return Way(ports, arrives=False)


@dataclass
class Run:
    """A run in the making; write() leaves the folder."""

    folder: Path
    rate: float = 200
    guest: str = "net-failover"
    traffic: str = "both"
    ports: dict[str, str] = field(default_factory=lambda: dict(PORTS))
    events: list[dict[str, Any]] = field(default_factory=list)
    stretches: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 1e6)])
    """When the guest runs."""
    drift_ppm: float = 0
    sampled: Callable[[float], bool] = lambda _t: True
    """At which times the agent gets to send samples of its clock."""
    frames: list[tuple[int, SniffedFrame]] = field(default_factory=list)
    received: list[tuple[int, int]] = field(default_factory=list)
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    taps: dict[str, list[tuple[int, str, int]]] = field(default_factory=dict)
    """What the standbys' taps in emulated hosts carried; a host that is not in it is none."""
    more: dict[str, Any] = field(default_factory=dict)
    """What else is in run.json."""

    def event(self, t: float, who: str, name: str, **data: Any) -> None:
        """Note an event; underscores in the names of data become dashes."""
        named = {key.rstrip("_").replace("_", "-"): value for key, value in data.items()}
        self.events.append({"t": EPOCH_NS / 1e9 + t, "who": who, "event": name, "data": named})

    def migration(
        self, start: float, stop: float, resume: float, *, way: str = "ab", eject: float = 0.25
    ) -> None:
        """A migration that completes, with QEMU's failover if the guest has a primary."""
        source, destination = way[0], way[1]
        self.event(start, "lab", "migrate", from_=source, to=destination)
        self.event(start + 0.001, source, "MIGRATION", status="setup")
        if self.guest == "net-failover":
            self.event(start + 0.002, source, "UNPLUG_PRIMARY", device_id="primary0")
            self.event(start + 0.003, source, "MIGRATION", status="wait-unplug")
        self.event(start + eject, source, "MIGRATION", status="active")
        self.event(stop, source, "STOP")
        self.event(stop + 0.001, source, "MIGRATION", status="completed")
        if self.guest == "net-failover":
            self.event(resume - 0.001, destination, "FAILOVER_NEGOTIATED", device_id="standby0")
        self.event(resume, destination, "RESUME")
        report = {
            "status": "completed",
            "total-time": round((resume - start) * 1e3),
            "downtime": 42,
        }
        self.events.append(
            {"t": EPOCH_NS / 1e9 + resume, "who": "lab", "event": "migrated", "data": report}
        )
        self.pause(stop, resume)

    def pause(self, stop: float, resume: float) -> None:
        """The guest stands still from `stop` to `resume`."""
        start, end = self.stretches.pop()
        self.stretches += [(start, stop), (resume, end)]

    def guest_ns(self, t: float) -> int:
        """What the guest's clock shows at host time t, at which the guest must run."""
        assert any(start <= t < end for start, end in self.stretches), (
            f"the guest is stopped at {t}"
        )
        stood = 0.0
        for (_, stop), (resume, _) in zip(self.stretches, self.stretches[1:], strict=False):
            if resume <= t:
                stood += resume - stop
        return EPOCH_NS - GUEST_BEHIND_NS + round((t - stood) * (1e9 + self.drift_ppm * 1e3))

    def to_guest(self, way: Callable[[float], Way], start: float, end: float) -> None:
        """The peer's stream from `start` to `end`; what arrives at a stopped guest is held until it runs."""
        arrivals = []
        for seq, t in enumerate(self._slots(start, end)):
            self._saw("peer", OUTBOUND, t, _to_guest(seq))
            here = way(t)
            for port in here.ports:
                self._carried(port, OUTBOUND, t + BRIDGE_S, seq)
            if here.arrives:
                arrivals += [(self._running(t + BRIDGE_S + here.delay), seq)] * here.copies
        for t, seq in sorted(arrivals):
            self.received.append((seq, self.guest_ns(t)))

    def from_guest(self, way: Callable[[float], Way], start: float, end: float) -> None:
        """The guest's stream; while it is stopped it sends nothing."""
        seq = 0
        for t in self._slots(start, end):
            if not any(begin <= t < stop for begin, stop in self.stretches):
                continue
            here = way(t)
            self.sent.append((seq, self.guest_ns(t), here.errno))
            for port in here.ports:
                self._carried(port, INBOUND, t + here.delay, seq)
            if here.arrives:
                for _ in range(here.copies):
                    self._saw("peer", INBOUND, t + here.delay + BRIDGE_S, _from_guest(seq))
            seq += 1

    def write(self) -> Path:
        """Write the folder and return it."""
        self.folder.mkdir(exist_ok=True)
        about = {
            "rate_hz": self.rate,
            "traffic": self.traffic,
            "guest": self.guest,
            "ports": self.ports,
            **self.more,
        }
        (self.folder / "run.json").write_text(json.dumps(about))
        self.events.sort(key=lambda event: float(event["t"]))
        (self.folder / "events.jsonl").write_text(
            "".join(json.dumps(event) + "\n" for event in self.events)
        )
        self.frames.sort(key=lambda frame: frame[0])
        write_pcapng(self.folder / "capture.pcapng", self.frames)
        kept = dict.fromkeys(["peer", *self.ports], 0)
        for _, frame in self.frames:
            kept[frame.sniffed_on] += 1
        counts = {
            name: {"kept": count, "dropped": self.dropped.get(name, 0)}
            for name, count in kept.items()
        }
        (self.folder / "capture.json").write_text(json.dumps(counts))
        for host, rows in self.taps.items():
            _csv(self.folder / f"{host}-tap.csv", "seq,direction,host_ns", rows)
        _csv(self.folder / "guest-received.csv", "seq,guest_ns", self.received)
        _csv(self.folder / "guest-sent.csv", "seq,guest_ns,errno", self.sent)
        _csv(self.folder / "guest-clock.csv", "host_ns,guest_ns", self._clock_samples())
        return self.folder

    def _running(self, t: float) -> float:
        """That time or, if the guest is stopped then, a moment after it runs again."""
        return next((max(t, start + NIC_S) for start, stop in self.stretches if t < stop))

    def _slots(self, start: float, end: float) -> list[float]:
        return [start + number / self.rate for number in range(round((end - start) * self.rate))]

    def _carried(self, port: str, direction: int, t: float, seq: int) -> None:
        """A port carries a probe; in an emulated host only its tap, called HOST-tap where the frame gets no further."""
        to_guest = direction == OUTBOUND
        host, _, name = port.partition("-")
        if host in self.taps and name in {"standby", "tap"}:
            way = "to_guest" if to_guest else "from_guest"
            self.taps[host].append((seq, way, EPOCH_NS + HOST_AHEAD_NS + round(t * 1e9)))
        if name == "tap":
            return
        wire = port if port in self.ports else f"{host}-uplink"
        self._saw(wire, direction, t, (_to_guest if to_guest else _from_guest)(seq))

    def _saw(self, interface: str, direction: int, t: float, frame: bytes) -> None:
        self.frames.append((EPOCH_NS + round(t * 1e9), SniffedFrame(frame, interface, direction)))

    def _clock_samples(self) -> list[tuple[int, int]]:
        """Ten a second; the host gets each up to 2 ms late."""
        late = random.Random(7)  # noqa: S311 (no secret)
        last = max((time_ns for time_ns, _ in self.frames), default=EPOCH_NS)
        samples = []
        for number in range((last - EPOCH_NS) // 100_000_000):
            t = number / 10
            if self.sampled(t) and any(start <= t < end for start, end in self.stretches):
                host_ns = EPOCH_NS + round(t * 1e9) + late.randrange(400_000, 2_000_000)
                samples.append((host_ns, self.guest_ns(t)))
        return samples


def nested(folder: Path, guest: str = "net-failover", traffic: str = "both", **more: Any) -> Run:
    """A run on emulated hosts: their PFs' wires are captured, and their standbys' taps."""
    clocks = {"a": {"error_ms": 0.31}, "b": {"error_ms": 0.45}}
    return Run(
        folder,
        guest=guest,
        traffic=traffic,
        ports=dict(NESTED_PORTS),
        taps={"a": [], "b": []},
        more={"topology": "nested", "primary": "vf", "clocks": clocks, **more},
    )


_OUT = Template("02:00:00:00:00:01", "02:00:00:00:00:02")
_BACK = bytes(
    Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
    / IP(src=GUEST_ADDRESS, dst=PEER_ADDRESS)
    / UDP(sport=GUEST_PORT, dport=PEER_PORT, chksum=0)
    / VnetProbe()
    / bytes(26)
)


def _to_guest(seq: int) -> bytes:
    return bytes(_OUT.patch(seq, 0))


def _from_guest(seq: int) -> bytes:
    return _BACK[:50] + seq.to_bytes(4, "big") + _BACK[54:]


def _csv(path: Path, header: str, rows: Iterable[tuple[int | str, ...]]) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
