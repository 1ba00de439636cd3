# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of the machine others used while a run was measured, exactly: all that was used less what the run used."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Usage:
    """Processor time (s) up to a moment."""

    at: float
    machine: float
    """Of everything on this machine; what the hypervisor below it took counts as well."""
    children: float
    """Of the processes that this one has started and that have ended, and theirs."""


def usage() -> Usage:
    """The processor time used until now."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Usage(time.monotonic(), busy_s(_STAT.read_text()), ended.ru_utime + ended.ru_stime)


def busy_s(stat: str) -> float:
    """Return the time that all processors were busy, from proc_stat(5): user nice system idle iowait irq softirq steal.

    The guest's time, which follows, is in user already.
    """
    user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, stat.split()[1:9])
    return (user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK")


def others(before: Usage, after: Usage) -> float:
    """How many processors, on average, were busy with something else between two moments."""
    foreign = (after.machine - before.machine) - (after.children - before.children)
    return max(foreign, 0.0) / (after.at - before.at)
