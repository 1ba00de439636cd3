# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver costs a packet, in guest instructions: the same on every machine, so that it can be asserted."""

from labtest import LabTest
from vnet_standby.lab.cost import CostGuest, measure_cost

# Bounds leave room for another compiler, which lays memory out otherwise, not for chance: there is none.
SEND_BOUND = 250
RECEIVE_BOUND: dict[CostGuest, int] = {"drop-in": 270, "patched": 90}


class DriverCost(LabTest):
    """
    :avocado: tags=driver,cost
    """

    timeout = 900  # nine boots under the instruction counter

    async def test_over_the_bare_primary(self) -> None:
        qemu = self.qemu()
        kernel = self.params.get("kernel", default=None)
        bare = await measure_cost("bare", qemu, kernel)
        self.log.info("bare: %s", bare)
        for kind, bound in RECEIVE_BOUND.items():
            ours = await measure_cost(kind, qemu, kernel)
            self.log.info("%s: %s", kind, ours)
            self.assertLess(ours.send.over(bare.send).instructions, SEND_BOUND, kind)
            self.assertLess(ours.receive.over(bare.receive).instructions, bound, kind)
