# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for something that only a living process can bring."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class ProcessExitedError(Exception):
    """The process has ended before it brought what was waited for."""

    def __init__(self, status: int) -> None:
        """`status` is its exit status."""
        super().__init__(f"exit status {status}")
        self.status = status


async def unless_ended(
    waiting: Awaitable[T], end: Awaitable[int], seconds: float | None = None
) -> T:
    """Wait for `waiting` until `end`, which gives a process's exit status, or the time (s) is over.

    Raises `ProcessExitedError` or `TimeoutError`; what came at the same moment counts.
    """
    wanted, ended = asyncio.ensure_future(waiting), asyncio.ensure_future(end)
    try:
        done, _ = await asyncio.wait(
            {wanted, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if wanted in done:
            return wanted.result()
        if ended in done:
            raise ProcessExitedError(ended.result())
        raise TimeoutError
    finally:
        for task in (wanted, ended):
            task.cancel()
        await asyncio.gather(wanted, ended, return_exceptions=True)
