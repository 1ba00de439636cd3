# SPDX-License-Identifier: GPL-2.0-or-later
"""The program: `vnet-standby`, or `python -m vnet_standby`."""

import asyncio
import signal
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> int:
    """Run the command line; Ctrl-C or SIGTERM ends it in one line, even while it is still being loaded."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from vnet_standby import cli  # noqa: PLC0415  # takes a second, in which people change their mind

        return cli.main()
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(
            "vnet-standby: interrupted; everything that was started has been ended", file=sys.stderr
        )
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
