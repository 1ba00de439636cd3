# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that checks itself: what its configuration may not lose silently."""

from vnet_standby.build import kernel


def test_a_setting_that_the_kernel_drops_is_noticed() -> None:
    wanted = "# comment\nCONFIG_KASAN=y\nCONFIG_E1000E=m\n"
    assert kernel.missing_settings(wanted, "CONFIG_E1000E=m\nCONFIG_KASAN=y\nCONFIG_PCI=y\n") == []
    dropped = "# CONFIG_KASAN is not set\nCONFIG_E1000E=y\n"
    assert kernel.missing_settings(wanted, dropped) == ["CONFIG_KASAN=y", "CONFIG_E1000E=m"]


def test_the_guest_has_all_its_modules() -> None:
    """Those that Debian's kernel has as modules: the tests load and unload them."""
    settings = (kernel.GUEST_KERNEL_SOURCE / "debug.config").read_text().splitlines()
    for name in ("VIRTIO_NET", "NET_FAILOVER", "E1000", "E1000E", "IGB", "IGBVF", "BONDING"):
        assert f"CONFIG_{name}=m" in settings


def test_its_release_tells_what_it_is() -> None:
    settings = (kernel.GUEST_KERNEL_SOURCE / "debug.config").read_text().splitlines()
    assert f'CONFIG_LOCALVERSION="{kernel.CHECKED}"' in settings
