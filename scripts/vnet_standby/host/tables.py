# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands found, as text for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vnet_standby.host.inventory import Nic, VirtualFunction
from vnet_standby.host.pairs import Nic as VmNic
from vnet_standby.host.pairs import Pair

_HEADINGS = (
    "NIC", "PCI ADDRESS", "DRIVER", "GROUP", "MAC", "LINK", "BRIDGE", "TRUST", "SPOOF CHECK", "IN USE BY",
)  # fmt: skip


_AGENT_KEYS = ("vm", "device", "mac", "phase", "datapath", "fabric", "standby", "primary", "gate")
_AGENT_HEADINGS = (
    "VM", "STANDBY", "MAC", "GUEST", "DRIVER ON", "FABRIC ON", "TAP", "PRIMARY", "GATE", "LAST MOVE", "STATE",
)  # fmt: skip


def nic_table(nics: Iterable[Nic]) -> str:
    """A row a NIC, the VFs of a PF indented below it."""
    rows: list[Sequence[str]] = [_HEADINGS]
    for nic in nics:
        rows.append(_nic_row(nic))
        rows.extend(_vf_row(vf) for vf in nic.vfs)
    return columns(rows)


def pair_text(pairs: Iterable[Pair]) -> str:
    """A paragraph a pair."""
    return "\n".join(_pair_lines(pair) for pair in pairs)


def agent_table(status: Mapping[str, Any]) -> str:
    """A row a pair that the agent knows."""
    rows: list[Sequence[str]] = [_AGENT_HEADINGS]
    for pair in status["pairs"]:
        last = pair["last"]
        moved = f"to {last['to']} ({last['cause']}), {last['ms']:.1f} ms" if last else ""
        rows.append([*(pair[key] or "" for key in _AGENT_KEYS), moved, pair["state"]])
    if len(rows) == 1:
        return f"agent {status['pid']}: {len(status['vms'])} VMs, no pair"
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of the same length; columns that have nothing but a heading are left out."""
    kept = [index for index, _ in enumerate(rows[0]) if any(row[index] for row in rows[1:])]
    widths = {index: max(len(row[index]) for row in rows) for index in kept}
    lines = ("  ".join((row[i] or "-").ljust(widths[i]) for i in kept) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _nic_row(nic: Nic) -> Sequence[str]:
    name = nic.netdev or "(no netdev)"
    if nic.total_vfs:
        name += f", {len(nic.vfs)} of {nic.total_vfs} VFs"
    link = _link(nic) if nic.netdev else ""
    used = nic.used_by
    return (
        name, nic.address, nic.driver, nic.iommu_group, nic.mac, link, nic.bridge, "", "", used,
    )  # fmt: skip


def _vf_row(vf: VirtualFunction) -> Sequence[str]:
    name = f"  VF {vf.index}" + (f", {vf.netdev}" if vf.netdev else "")
    trust, spoof_check = (_switch(setting) for setting in (vf.trust, vf.spoof_check))
    return (
        name, vf.address, vf.driver, vf.iommu_group, vf.mac, "", "", trust, spoof_check, vf.used_by,
    )  # fmt: skip


def _link(nic: Nic) -> str:
    if not nic.up:
        return "down"
    return "up" if nic.carrier else "no carrier"


def _switch(setting: bool | None) -> str:
    return {True: "on", False: "off", None: ""}[setting]


def _pair_lines(pair: Pair) -> str:
    accepted = {True: "accepted by the guest", False: "not accepted by the guest", None: ""}
    details = [f"{pair.made_by}=on", accepted[pair.negotiated]]
    lines = [f"standby {_vm_nic(pair.standby)}  {', '.join(filter(None, details))}"]
    if pair.primary:
        lines.append(f"primary {_vm_nic(pair.primary)}  plugged")
    else:
        lines.append("primary hidden, or there is none")
    return "\n".join(lines)


def _vm_nic(nic: VmNic) -> str:
    peer = f"netdev {nic.netdev}" if nic.netdev else ""
    if nic.backend:
        peer += f" ({' '.join(filter(None, (nic.backend, nic.ifname)))})"
    host = f"host {nic.host_address}" if nic.host_address else ""
    return "  ".join(filter(None, (nic.id, nic.type, nic.mac, peer, host)))
