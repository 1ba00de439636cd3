# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands have."""

import argparse
from collections.abc import Callable


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add what our own builds are made from."""
    parser.add_argument(
        "--qemu-source",
        metavar="DIR|TARBALL|GIT",
        help="QEMU to patch and build (Debian's source package 10.0)",
    )
    parser.add_argument(
        "--kernel",
        metavar="DEB|DIR",
        help="the guest's kernel: a linux-image package, or a folder with boot/vmlinuz-* and lib/modules "
        "(Debian's 6.12; the guest driver takes those in guest/driver/README.md)",
    )


def number(low: int, high: int) -> Callable[[str], int]:
    """An option's type: an integer within these bounds."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not within {low} to {high}")
        return value

    parse.__name__ = "number"  # argparse names it in its message for what is no number
    return parse
