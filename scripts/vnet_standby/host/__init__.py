# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator needs on one host: its PFs and VFs, the pairs of its VMs, and the fabric of a MAC.

A program (`python3 -m vnet_standby.host --help`) and a library, which goes to production hosts alone: beside the
standard library it needs pyroute2 (netlink) and qemu.qmp (only for `pairs`), and the right to use them: CAP_NET_ADMIN,
root's sysfs files, the VM's QMP socket.

    inventory   what is there                       `inventory(host)`
    assignment  a VF or NIC for a VM, and back      `assign(host, ...)`, `release(host, ...)`
    fabric      where frames for a MAC go           `steer(host, ...)`, `forget(host, ...)`
    pairs       standby and primary of a VM         `await pairs(monitor)`

What changes the host does so in a `changes.Transaction`: it reports each change, and undoes all of them on an error or
interruption. All but `pairs` block and use an event loop of their own (pyroute2 does): an asyncio program calls them in
a thread.
"""
