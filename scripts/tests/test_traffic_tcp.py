# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP stream: what it notes against a receiver of this machine, and what such notes tell."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from bench_runs import MIGRATE, RESUME, a_run
from traffic_run import EPOCH_NS

from vnet_standby.errors import VnetStandbyError
from vnet_standby.report.terminal import timeline
from vnet_standby.report.write import read_events, read_run
from vnet_standby.traffic import tcp
from vnet_standby.traffic.analysis import judge
from vnet_standby.traffic.tcp import Sample

MIB = 1 << 20
S = 1_000_000_000


def steady(
    start_s: float, end_s: float, mib_s: float, acked: int = 0, retransmitted: int = 0
) -> list[Sample]:
    """A sample every 10 ms; one segment was sent again for nothing, if any was."""
    doubled = min(retransmitted, 1)
    number = round((end_s - start_s) * 100)
    return [
        Sample(
            round((start_s + n / 100) * S),
            acked + round(n / 100 * mib_s * MIB),
            retransmitted,
            doubled,
        )
        for n in range(number + 1)
    ]


def test_what_a_stream_achieves_before_through_and_after_the_migration() -> None:
    """Slow at first, which does not count; 8 MiB/s; at 10 s migrate; 2 s of nothing; the guest resumes at 20 s."""
    slow = steady(0, 1, 1)
    fast = steady(1, 12, 8, MIB)
    after = steady(14, 24, 8, fast[-1].acked_bytes, retransmitted=5)
    late = steady(25.01, 40, 2, after[-1].acked_bytes, retransmitted=9)
    samples = [*slow, *fast[1:], *after, *late]
    got = tcp.throughput(samples, migrate_ns=10 * S, resume_ns=20 * S)
    assert got is not None
    assert got.before_mib_s == pytest.approx(8)
    assert got.through_mib_s == pytest.approx(8 * 8 / 10)
    assert got.after_mib_s == pytest.approx(8)
    assert got.longest_stall_ms == pytest.approx(2010)
    assert got.retransmitted == 5
    assert got.doubled == 1


def test_a_stall_that_never_ends_counts() -> None:
    samples = [*steady(0, 11, 8), *steady(11.01, 25, 0, 11 * 8 * MIB)]
    got = tcp.throughput(samples, migrate_ns=10 * S, resume_ns=20 * S)
    assert got is not None
    assert got.longest_stall_ms == pytest.approx(14_000)


@pytest.mark.parametrize("samples", [[], steady(0, 5, 8), steady(0, 19, 8), steady(9.5, 30, 8)])
def test_too_little_of_a_stream_is_not_judged(samples: list[Sample]) -> None:
    assert tcp.throughput(samples, migrate_ns=10 * S, resume_ns=20 * S) is None


def test_what_is_written_is_read_again_and_nothing_else(tmp_path: Path) -> None:
    assert tcp.read(tmp_path) is None
    samples = [Sample(1, 2, 0, 0), Sample(3, 4, 5, 6)]
    tcp.write(tmp_path, samples)
    assert tcp.read(tmp_path) == samples
    (tmp_path / tcp.RECORD).write_text("host_ns,acked_bytes,retransmitted,doubled\n1,2,3,\n")
    with pytest.raises(VnetStandbyError, match=r"tcp.csv is malformed"):
        tcp.read(tmp_path)


def test_a_runs_judgement_has_its_stream(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert judge(run).tcp is None
    start = EPOCH_NS / S
    tcp.write(run, steady(start, start + MIGRATE + RESUME + 2, 8))
    found = judge(run)
    assert found.tcp is not None
    assert found.tcp.through_mib_s == pytest.approx(8, rel=1e-3)
    told = timeline(found, read_events(run), read_run(run))
    assert "TCP to guest     8.0 MiB/s before, 8.0 through, 8.0 after; longest stall" in told
    assert "0 retransmissions" in told


class StopAfter:
    """Ends a stream when the receiver has had enough."""

    def __init__(self) -> None:
        self.readable, self.enough = os.pipe()
        self.fds = (self.readable,)

    def requested(self, readable: list[object]) -> bool:
        """Whether the receiver has had enough."""
        return self.readable in readable


def test_the_stream_notes_what_the_receiver_has_acknowledged() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stop, received = StopAfter(), []

    def receive() -> None:
        end, _ = listener.accept()
        with end:
            until = time.monotonic() + 0.1
            while sum(received) < 4 * MIB or time.monotonic() < until:
                received.append(len(end.recv(MIB)))
            os.write(stop.enough, b"x")
            while end.recv(MIB):
                pass

    receiver = threading.Thread(target=receive)
    receiver.start()
    with tcp.connect(listener.getsockname(), 1000) as connection:
        samples = tcp.stream(connection, stop)  # type: ignore[arg-type]
        last = tcp.sample(connection)
    receiver.join(10)
    listener.close()
    assert not receiver.is_alive()
    acked = [sample.acked_bytes for sample in samples]
    assert acked == sorted(acked)
    assert 0 < acked[-1] <= last.acked_bytes
    assert len(set(acked)) > 2
    assert last.acked_bytes >= 4 * MIB - MIB
    assert last.retransmitted == 0
    assert last.doubled == 0


def test_a_guest_that_does_not_listen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    monkeypatch.setattr(tcp, "_CONNECT_S", 0.2)
    with pytest.raises(VnetStandbyError, match=r"does not take a TCP connection within 0.2 s"):
        tcp.connect(address, 8)
