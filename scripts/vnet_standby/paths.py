# SPDX-License-Identifier: GPL-2.0-or-later
"""Where things are in a checkout; everything that is generated lives below `BUILD`."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
BUILD = REPO / "build"

SERIES = REPO / "qemu-patches" / "v10.0"
GUEST_IMAGE_SOURCE = REPO / "guest" / "image"
GUEST_DRIVER_SOURCE = REPO / "guest" / "driver"
GUEST_DISTRIBUTION_SOURCE = REPO / "guest" / "distribution"
GUEST_HOST_SOURCE = REPO / "guest" / "host"
GUEST_KERNEL_SOURCE = REPO / "guest" / "kernel"

QEMU_PATCHED = BUILD / "qemu"
QEMU_STOCK = BUILD / "qemu-stock"
QEMU_SANITIZED = BUILD / "qemu-sanitized"
GUEST = BUILD / "guest"
HOST = BUILD / "host"
DISTRIBUTION = BUILD / "distribution"
HEADERS = BUILD / "headers"
KERNEL = BUILD / "kernel"
FIRMWARE = BUILD / "firmware"
LOGS = BUILD / "logs"
