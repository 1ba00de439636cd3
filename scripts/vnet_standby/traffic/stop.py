# SPDX-License-Identifier: GPL-2.0-or-later
"""How the traffic programs are told to end: SIGTERM, SIGINT, or the end of standard input."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final


class Stop:
    """Turns the ways to end a program into file descriptors for select().

    End of standard input counts, so that a program dies with the parent that holds the other end of the pipe;
    started with /dev/null as standard input it ends at once.
    """

    def __init__(self) -> None:
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._stdin = sys.stdin.fileno()
        self.fds: Final = (self._woken, self._stdin)

    def requested(self, readable: Sequence[object]) -> bool:
        """Whether what select() found readable means the end; anything that is typed is thrown away."""
        if self._woken in readable:
            return True
        return self._stdin in readable and os.read(self._stdin, 4096) == b""
