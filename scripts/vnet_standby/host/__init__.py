# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator needs on one host: its PFs and VFs, the pairs of its VMs, and the fabric of a MAC.

A program (`python3 -m vnet_standby.host --help`) and a library, which goes to production hosts alone: beside the
standard library it needs pyroute2 (netlink) and qemu.qmp (`pairs`, `agent`, `migrate`), and the right to use them:
CAP_NET_ADMIN, root's sysfs files, the VM's QMP socket; the agent CAP_NET_RAW, too.

    inventory   what is there                       `inventory(host)`
    assignment  a VF or NIC for a VM, and back      `assign(host, ...)`, `release(host, ...)`
    fabric      where frames for a MAC go           `steer(host, ...)`, `forget(host, ...)`
    pairs       standby and primary of a VM         `await pairs(monitor)`
    agent       the fabric follows the VMs          `run_agent(monitors, folder, ...)`
    migrate     a whole migration                   `await migrate(source, destination, uri, say)`

The agent consists of sessions, one a VM (session), which do to the host what is in `moves`; a guard, which clears up if
the agent dies (guard); the socket by which it is known (control); and its log (journal).

What changes the host does so in a `changes.Transaction`: it reports each change, and undoes all of them on an error or
interruption. All but `pairs` and `migrate` block and use an event loop of their own (pyroute2 does): an asyncio program
calls them in a thread.
"""
