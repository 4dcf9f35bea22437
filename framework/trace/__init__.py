# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces of boards: the QEMU plugin that records every SMC, the trace file, its readers and the lock-step consumer.

Knows nothing of right or wrong (that is :mod:`framework.conformance`) and nothing of guests.
"""
