# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory: a private network, QEMU processes, a guest that answers."""
