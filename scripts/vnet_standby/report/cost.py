# SPDX-License-Identifier: GPL-2.0-or-later
"""A table of what a packet costs inside the guest."""

from collections.abc import Mapping

from vnet_standby.lab.cost import Cost, CostGuest, GuestCost


def cost_table(costs: Mapping[CostGuest, GuestCost]) -> str:
    """Return a line a kind of guest: what it takes over the bare primary, and interrupts a packet in brackets.

    The costs must have the bare primary's.
    """
    bare = costs["bare"]
    lines = [f"{'instructions a packet':<22}{'sending':<26}{'receiving':<26}".rstrip()]
    for guest, cost in costs.items():
        if guest == "bare":
            cells = [_absolute(cost.send), _absolute(cost.receive)]
        else:
            cells = [_difference(cost.send, bare.send), _difference(cost.receive, bare.receive)]
        lines.append("".join([f"{guest:<22}", *(f"{cell:<26}" for cell in cells)]).rstrip())
    return "\n".join(lines)


def _absolute(cost: Cost) -> str:
    return f"{cost.instructions:.0f} [{cost.interrupts:.3f}]"


def _difference(cost: Cost, bare: Cost) -> str:
    more = cost.over(bare).instructions
    return f"{more:+.0f} ({more / bare.instructions:+.1%}) [{cost.interrupts:.3f}]"
