# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver costs a packet, in guest instructions: the same on every machine, so that it can be asserted."""

from labtest import LabTest
from vnet_standby.lab.binaries import image_under_test
from vnet_standby.lab.cost import measure_cost

# of a datagram that a guest with bonding pays 560 more for, one with net_failover 1260
SEND_BOUND = 250
RECEIVE_BOUND = 300


class DriverCost(LabTest):
    """
    :avocado: tags=driver,cost
    """

    async def test_over_the_bare_primary(self) -> None:
        qemu = self.qemu()
        bare = await measure_cost("bare", qemu, image_under_test("virtio"))
        ours = await measure_cost("vnet-standby", qemu, image_under_test("vnet-standby"))
        self.log.info("bare: %s; vnet-standby: %s", bare, ours)
        self.assertLess(ours.send.over(bare.send).instructions, SEND_BOUND)
        self.assertLess(ours.receive.over(bare.receive).instructions, RECEIVE_BOUND)
