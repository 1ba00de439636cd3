# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder in which QMP sockets come and go."""

import asyncio
import ctypes
import os
from pathlib import Path

from vnet_standby.errors import VnetStandbyError

_IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x80, 0x100, 0x200  # linux/inotify.h


class Folder:
    """Tells of its sockets, and when it changes; open until `close`."""

    def __init__(self, path: Path) -> None:
        """Raises `VnetStandbyError` if there is no such folder, or it can't be read."""
        # pyroute2 is there anyway, and the standard library has no inotify
        from pyroute2.inotify.inotify_fd import Inotify  # noqa: PLC0415  # slow to load

        self.path = path
        self.sockets()
        self._changed = asyncio.Event()
        self._inotify = Inotify(libc=ctypes.CDLL(None, use_errno=True), path=[])
        self._inotify.bind()
        self._inotify.register_path(str(path), _IN_MOVED_TO | _IN_CREATE | _IN_DELETE)
        asyncio.get_running_loop().add_reader(self._inotify.fd, self._read)

    def sockets(self) -> dict[Path, int]:
        """The sockets in it, each with the time when it was made: another one is another VM's."""
        try:
            return {
                path: path.lstat().st_mtime_ns for path in self.path.iterdir() if path.is_socket()
            }
        except FileNotFoundError:
            if self.path.is_dir():  # a socket that went away meanwhile
                return self.sockets()
            raise VnetStandbyError(f"no such folder: {self.path}; make it first") from None
        except OSError as error:
            raise VnetStandbyError(f"{self.path} can't be read: {error.strerror}") from error

    async def change(self) -> None:
        """Wait until something has come or gone since the last call."""
        await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._inotify.fd)
        self._inotify.close()

    def _read(self) -> None:
        os.read(self._inotify.fd, 65536)
        self._changed.set()
