# SPDX-License-Identifier: GPL-2.0-or-later
"""The program: `python3 -m vnet_standby.host`."""

import signal
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> int:
    """Run the command line; Ctrl-C or SIGTERM ends it in one line, with the host as it was."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from vnet_standby.host import cli  # noqa: PLC0415  # takes a moment, in which people change their mind

        return cli.main()
    except KeyboardInterrupt:
        print("error: interrupted; the host is as it was", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
