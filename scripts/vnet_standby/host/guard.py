# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's last will: however it ends, no bridge keeps an entry that nobody would move any more.

A process of its own, which does nothing until the agent has ended, be it by SIGKILL. Then it lets the bridges learn
again where the MACs are, and leaves to the VFs what their guests may be using (see `fabric.loosen`).
It has the agent's lock until it is done, so that a new agent does not come in its way.
"""

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host.changes import Transaction
from vnet_standby.host.fabric import find_pair_fabric, hand_over, loosen
from vnet_standby.host.host import Host, this_host


@dataclass(frozen=True)
class Ward:
    """A MAC that the agent has pointed somewhere; what `find_pair_fabric` wants to know."""

    mac: str
    tap_name: str
    primary_tap: str = ""
    address: str = ""
    expected: bool = False
    """The VM is yet to come, so the MAC may have to go on elsewhere: nothing of it stays here."""


Log = Callable[..., None]


class Guard:
    """The agent's end of it."""

    def __init__(self, log: Log) -> None:
        """Start the process; call this before there are threads."""
        import pyroute2  # noqa: F401, PLC0415  # once for both, and before it is urgent

        end, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._pipe)
            _keep_watch(end, log)
        os.close(end)
        self._wards: Sequence[Ward] = ()

    def set(self, wards: Sequence[Ward]) -> None:
        """Say what is to be put in order; raises `VnetStandbyError` if the process is gone."""
        if wards == self._wards:
            return
        self._wards = tuple(wards)
        line = json.dumps([asdict(ward) for ward in wards]) + "\n"
        try:
            os.write(self._pipe, line.encode())
        except OSError as error:
            raise VnetStandbyError(f"the agent's guard is gone: {error.strerror}") from error

    def finish(self) -> None:
        """Have it done now, and wait for it."""
        os.close(self._pipe)
        os.waitpid(self._pid, 0)


def _keep_watch(pipe: int, log: Log) -> NoReturn:
    """Be the process; does not return."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    last, rest = b"[]", b""
    while more := os.read(pipe, 65536):
        *lines, rest = (rest + more).split(b"\n")
        last = lines[-1] if lines else last
    status = 1
    try:
        status = _put_all_in_order([Ward(**ward) for ward in json.loads(last)], log)
    except BaseException as error:  # nothing of it may get into the agent's copy above
        log("failed", step="leaving", reason=f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def _put_all_in_order(wards: Sequence[Ward], log: Log) -> int:
    status = 0
    with this_host() as host:
        for ward in wards:
            try:
                log("left", mac=ward.mac, changed=put_in_order(host, ward))
            except VnetStandbyError as error:
                log("failed", mac=ward.mac, step="leaving", reason=str(error))
                status = 1
    return status


def put_in_order(host: Host, ward: Ward) -> list[str]:
    """Let a MAC's fabric work without an agent; return what was changed."""
    host.network.reread()
    if all(link.name != ward.tap_name for link in host.network.links().values()):
        return []  # the VM has ended, too, and took its tap and the bridge's entries along
    fabric = find_pair_fabric(host, ward.mac, ward.tap_name, ward.primary_tap, ward.address)
    with Transaction() as change:
        if ward.expected:
            hand_over(host, change, fabric, None)
        else:
            loosen(host, change, fabric)
    return change.changed
