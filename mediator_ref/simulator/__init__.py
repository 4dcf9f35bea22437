# SPDX-License-Identifier: GPL-2.0-or-later
"""A board small enough to run in Python: machine memory, guests, a mediator and OP-TEE, producing real observations.

Hypothesis drives it, examples are made with it. The mediator here is written after the implementation and not after
the reference, so that the two check each other; with ``defects`` it behaves like the implementation with the listed
deviations.
"""
