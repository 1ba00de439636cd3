# SPDX-License-Identifier: GPL-2.0-or-later
"""standby=on: QEMU offers the feature and reports the outcome; management owns the primary. Needs the series."""

from labtest import LabTest

NEGOTIATED = "VIRTIO_NET_STANDBY_NEGOTIATED"


class Standby(LabTest):
    """
    :avocado: tags=standby,parallel
    """

    async def test_migration(self) -> None:
        """
        :avocado: tags=quick
        """
        self.require_standby_property()
        async with self.lab(owner="management") as lab:
            await lab.start_vm()
            accepted = [event.data.get("accepted") for event in lab.events.seen(
                lambda event: event.who == "a" and event.event == NEGOTIATED
            )]  # fmt: skip
            self.assertEqual(accepted, [True])
            await lab.start_traffic()
            await lab.migrate()
            await lab.stop_traffic()
            unplugs = lab.events.seen(lambda event: event.event == "UNPLUG_PRIMARY")
            loaded = lab.events.seen(lambda event: event.who == "b" and event.event == NEGOTIATED)
        self.assertEqual(unplugs, [], "QEMU must leave management's primary alone")
        self.assertEqual(loaded, [], "loading a migrated device is no negotiation")
        verdict = self.judge()
        self.assert_sound(verdict)
        self.assert_persists(verdict)
        self.assertEqual(self.route(verdict, "from_guest")[0], "a-primary")
        self.assertEqual(self.route(verdict, "from_guest")[-1], "b-primary")
