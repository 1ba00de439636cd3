# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run showed: terminal timeline, HTML page, JSON result."""
