# SPDX-License-Identifier: GPL-2.0-or-later
"""What the PF drivers' embedded switches stand, as their sources say (Linux 6.12.117)."""

from dataclasses import dataclass

from vnet_standby.errors import VnetStandbyError


@dataclass(frozen=True)
class PfDriver:
    """How frames for a MAC can be moved between a running VF and its PF."""

    name: str
    flips: bool
    """The VF's administrative MAC may change while a guest drives the VF."""
    own_filters: bool
    """While the VF does not have the MAC, the PF may take it as a further address of its own (`bridge fdb`: self):
    frames that other VFs send there have a match in the embedded switch then, which else may put them on the wire."""
    link_state: bool
    """The PF can take a VF's link down, so that a guest leaves it by itself."""
    limit: str
    """Where nothing is moved in the embedded switch: why, and what decides instead."""
    sources: tuple[str, ...]
    """Below drivers/net/ethernet in the kernel's sources."""


_ROWS = (
    PfDriver(
        "igb",
        flips=True,
        own_filters=True,
        link_state=False,
        limit="",
        sources=(
            "intel/igb/igb_main.c:9726-9742 igb_ndo_set_vf_mac(): writes the receive address, no VF reset; the "
            "'Reload the VF driver' in the log is about the VF's own idea of its MAC",
            "intel/igb/igb_main.c igb_ndo_fdb_add(): refuses what no receive address register is left for",
            "intel/igb/igb_main.c igb_netdev_ops: has no ndo_set_vf_link_state",
        ),
    ),
    PfDriver(
        "ixgbe",
        flips=True,
        own_filters=True,
        link_state=True,
        limit="",
        sources=(
            "intel/ixgbe/ixgbe_sriov.c:775 ixgbe_set_vf_mac(): deletes the old filter, then adds the new one; in "
            "between a promiscuous PF has the frames",
            "intel/ixgbe/ixgbe_main.c ixgbe_ndo_fdb_add(): refuses what no receive address register is left for",
        ),
    ),
    PfDriver(
        "i40e",
        flips=False,
        own_filters=False,
        link_state=True,
        limit="i40e resets a VF when its MAC changes, so the VF keeps it: frames from the wire go to the VF until it "
        "is released",
        sources=("intel/i40e/i40e_virtchnl_pf.c:4499 i40e_ndo_set_vf_mac(): i40e_vc_reset_vf()",),
    ),
    PfDriver(
        "ice",
        flips=False,
        own_filters=False,
        link_state=True,
        limit="ice resets a VF when its MAC changes, so the VF keeps it: frames from the wire go to the VF until it "
        "is released",
        sources=("intel/ice/ice_sriov.c:1482 __ice_set_vf_mac(): ice_reset_vf()",),
    ),
    PfDriver(
        "mlx5_core",
        flips=False,
        own_filters=False,
        link_state=True,
        limit="mlx5 forwards by the unicast addresses that the VF itself asks for: frames from the wire go to the VF "
        "until the guest removes the MAC there, or the VF is released",
        sources=(
            "mellanox/mlx5/core/eswitch.c:1976 mlx5_esw_set_vport_mac_locked(): vport context and ACL only",
            "mellanox/mlx5/core/eswitch.c:731: the FDB follows the vport's unicast list",
        ),
    ),
)

DRIVERS = {row.name: row for row in _ROWS}
"""By the name that sysfs shows for the driver of the PF."""


def pf_driver(name: str) -> PfDriver:
    """Return what is known of a PF's driver; raises `VnetStandbyError` if that is nothing."""
    if name not in DRIVERS:
        raise VnetStandbyError(
            f"not supported: nothing is known of how PFs with the driver {name or '(none)'} move a MAC; "
            f"known are {', '.join(DRIVERS)}"
        )
    return DRIVERS[name]
