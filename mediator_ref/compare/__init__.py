# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparison of what has to follow (:mod:`mediator_ref.spec`) with what was observed: verdicts.

The only place that passes, fails, or says "not checked". It follows the call: :mod:`entry` takes the events,
the other modules compare what belongs to the modules of the specification that have their names.
"""
