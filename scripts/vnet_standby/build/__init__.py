# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch sources, apply the patch series, build QEMU and the guest."""
