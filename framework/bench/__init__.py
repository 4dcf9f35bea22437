# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks of medcheck's own parts on this machine."""
