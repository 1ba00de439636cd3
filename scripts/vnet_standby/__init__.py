# SPDX-License-Identifier: GPL-2.0-or-later
"""Live migration of VMs with an SR-IOV NIC and a virtio-net standby: build, lab, traffic, report."""
