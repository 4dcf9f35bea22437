# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutation testing of the mediator: one Xen that holds every mutant, and what kills which."""
