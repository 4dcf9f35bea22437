# SPDX-License-Identifier: GPL-2.0-or-later
"""For every rule that can be checked one good and one bad trace, small enough to read, made with the simulator.

``EXAMPLES[rule]`` is an :class:`~mediator_ref.examples.mutate.Example`. Bad traces are judged without the list of known
deviations: what is listed must still be seen as what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from mediator_ref.examples import books, calls, entry, lifecycle, memory, rpc, stretches
from mediator_ref.examples.mutate import Example

EXAMPLES: Mapping[str, Example] = {
    example.rule: example
    for module in (entry, calls, memory, rpc, lifecycle, books, stretches)
    for example in (make() for make in module.EXAMPLES)
}
"""Examples by rule id."""

__all__ = ["EXAMPLES", "Example"]
