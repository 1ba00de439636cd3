# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes: sending, capturing, and judging what was lost and why."""
