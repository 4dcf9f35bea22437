# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that no person wrote, run against the mediator and judged by the reference."""
