# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for what only a living process can bring: each outcome has its name, and nothing is left running."""

import asyncio

import pytest

from vnet_standby.lab.waiting import ProcessExitedError, unless_ended


async def never() -> int:
    """What does not come."""
    await asyncio.Event().wait()
    raise AssertionError


async def at_once(value: int) -> int:
    """What is there already."""
    return value


def test_brings_what_was_waited_for() -> None:
    assert asyncio.run(unless_ended(at_once(7), never())) == 7


def test_counts_what_came_with_the_end() -> None:
    assert asyncio.run(unless_ended(at_once(7), at_once(1))) == 7


def test_names_the_end_of_the_process() -> None:
    with pytest.raises(ProcessExitedError, match="exit status 3") as caught:
        asyncio.run(unless_ended(never(), at_once(3), 5))
    assert caught.value.status == 3


def test_is_bounded() -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(unless_ended(never(), never(), 0.01))


def test_leaves_nothing_running() -> None:
    async def story() -> int:
        await unless_ended(at_once(0), never())
        return len(asyncio.all_tasks())

    assert asyncio.run(story()) == 1
