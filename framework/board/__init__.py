# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual boards: their description, device tree, QEMU process, consoles, monitor, and the proof that they
are gone."""
