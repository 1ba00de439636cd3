# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent did and when: JSON lines, for machines that put them on a time axis and people who grep."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vnet_standby.errors import VnetStandbyError


class Journal:
    """A stream of records {"t": seconds of CLOCK_REALTIME, "who": "agent", "event": NAME, "data": {...}}."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream

    def __call__(self, event: str, *, t: float | None = None, **data: object) -> None:
        """Write a record; `t` is when the step was done (now), data["ms"] how long it took."""
        record = {
            "t": time.time() if t is None else t,
            "who": "agent",
            "event": event,
            "data": {key: value for key, value in data.items() if value is not None},
        }
        print(json.dumps(record), file=self._stream, flush=True)


@contextlib.contextmanager
def open_journal(path: Path | None) -> Iterator[Journal]:
    """A journal at the end of a file, or on stdout."""
    if path is None:
        yield Journal()
        return
    try:
        stream = path.open("a")
    except OSError as error:
        raise VnetStandbyError(f"{path} can't be written: {error.strerror}") from error
    with stream:
        yield Journal(stream)


def ms(seconds: float) -> float:
    """A duration for a record."""
    return round(seconds * 1e3, 3)
