# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's own network namespace: nothing it does reaches the machine's network."""

import ctypes
import errno
import os
from pathlib import Path

from vnet_standby.errors import VnetStandbyError

# linux/sched.h; os.unshare() comes with Python 3.12 only
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

_TUN = Path("/dev/net/tun")


def enter_private_network() -> None:
    """Move the calling thread, and all it starts from now on, into a new and empty network namespace.

    Root gets a network namespace; anyone else gets a user namespace around it. The kernel removes the namespace, with
    every interface in it, when its last process ends.

    Raises `VnetStandbyError` where the kernel or the machine's settings don't allow it.
    """
    if not os.access(_TUN, os.R_OK | os.W_OK):
        state = "is not accessible to this user" if _TUN.exists() else "does not exist"
        raise VnetStandbyError(
            f"{_TUN} {state}; the lab's taps need it: "
            + (
                "run `chmod 666 /dev/net/tun` as root"
                if _TUN.exists()
                else "run `modprobe tun` as root"
            )
        )
    if os.geteuid() == 0:
        _unshare(_CLONE_NEWNET)
        return
    user, group = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text(
        "deny"
    )  # user_namespaces(7): before gid_map, without privileges
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EINVAL and flags & _CLONE_NEWUSER:
        raise VnetStandbyError(
            "a process with threads can't enter a user namespace; start it inside one: "
            "`unshare --user --map-root-user COMMAND`"
        )
    raise VnetStandbyError(
        f"no private network namespace ({os.strerror(code)}); run as root, or allow user namespaces: "
        "`sysctl user.max_user_namespaces=10000` (and kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0 where they exist)"
    )
