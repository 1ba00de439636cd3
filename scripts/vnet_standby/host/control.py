# SPDX-License-Identifier: GPL-2.0-or-later
"""One agent a network namespace: the socket that it is known by is its lock, and where it tells its status.

It is an abstract one: those belong to a network namespace, as bridges do, need no file, and end with their process.
"""

import asyncio
import errno
import json
import os
import socket
import struct
import time
from collections.abc import Callable

from vnet_standby.errors import VnetStandbyError

_NAME = "\0vnet-standby.host-agent"
_ANSWER_S = 2.0
_PREDECESSOR_S = 5.0
_RETRY_S = 0.05


def become_the_agent() -> socket.socket:
    """Take the lock; raises `VnetStandbyError` if another agent has it.

    The guard of one that was killed has it for a moment longer, while it puts the host in order: it is waited for.
    """
    deadline = time.monotonic() + _PREDECESSOR_S
    while True:
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(_NAME)
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise VnetStandbyError(f"the agent's socket: {error.strerror}") from error
        other = _ask()
        if other is not None or time.monotonic() > deadline:
            pid = other["pid"] if other else "unknown"
            raise VnetStandbyError(
                f"another agent (pid {pid}) manages this host; end it first, `--status` shows what it does"
            )
        time.sleep(_RETRY_S)  # nothing tells that an address is free again


def read_status() -> dict[str, object]:
    """What the agent of this host says; raises `VnetStandbyError` if there is none, or it does not answer."""
    status = _ask()
    if status is None:
        raise VnetStandbyError("no agent runs here (in this network namespace)")
    return status


async def serve_status(listener: socket.socket, status: Callable[[], object]) -> asyncio.Server:
    """Answer those who may know: root and the agent's own user."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        if _peer(peer)[1] in {0, os.geteuid()}:
            writer.write(json.dumps(status()).encode())
        else:
            writer.write(b'{"error": "not for this user; ask as root"}')
        writer.close()

    return await asyncio.start_unix_server(answer, sock=listener)


def _ask() -> dict[str, object] | None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_ANSWER_S)
        try:
            asking.connect(_NAME)
            pid, user = _peer(asking)
            said = b"".join(iter(lambda: asking.recv(65536), b""))
            answer: dict[str, object] = json.loads(said)
        except (OSError, ValueError):  # nobody, or one that is about to end
            return None
    if user not in {0, os.geteuid()}:
        raise VnetStandbyError(f"process {pid} of user {user} has the agent's socket; end it")
    if "error" in answer:
        raise VnetStandbyError(str(answer["error"]))
    return answer


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, user, _group = struct.unpack("3i", credentials)
    return pid, user
