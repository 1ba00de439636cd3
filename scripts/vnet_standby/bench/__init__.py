# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison: many measured migrations, kinds of guests side by side, as one result."""
