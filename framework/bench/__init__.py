# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurements of medcheck itself: what its parts can do on this machine."""
