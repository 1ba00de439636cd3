# SPDX-License-Identifier: GPL-2.0-or-later
"""The one exception that users see."""


class VnetStandbyError(Exception):
    """Something the user can act on.

    The message is one line: what is wrong, then what to do. The command line prints it without a traceback and exits
    with status 1.
    """
