# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole functions in another form: how a patch becomes one number of the schemata.

Each function that a patched source has in another form stands in the schemata a second time, under a name with the
patch's number, and the original calls that one when the number is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from framework.common.errors import UsageError
from framework.mutants.syntax import Function, Source

Mark = Callable[[int], str]


@dataclass(frozen=True)
class Variant:
    """A changed source under a number: ``changed`` are its functions that differ, ``new`` those that only it has."""

    number: int
    changed: tuple[Function, ...]
    new: tuple[Function, ...]


def variant_of(number: int, name: str, original: Source, changed: Source) -> Variant:
    """What of a source's functions a changed one has otherwise.

    :raises UsageError: they differ outside of functions, or in a function's parameters, or not at all.
    """
    before = {function.name: function for function in original.functions()}
    after = {function.name: function for function in changed.functions()}
    differing = [after[each] for each in after if each in before and after[each].text != before[each].text]
    new = [after[each] for each in after if each not in before]
    if _around(original, set()) != _around(changed, {function.name for function in new}):
        raise UsageError(
            f"{name} changes something outside of functions", hint="put what it needs into a function's body"
        )
    for function in differing:
        if function.head != before[function.name].head:
            raise UsageError(f"{name} changes how {function.name} is called", hint="keep the function's parameters")
    if not differing:
        raise UsageError(f"{name} changes nothing")
    return Variant(number, tuple(differing), tuple(new))


def _around(source: Source, without: set[str]) -> str:
    """All text that is in no function, without its white space."""
    kept, at = [], 0
    for function in source.functions():
        kept.append(source.data[at : function.node.start_byte])
        if function.name not in without:
            kept.append(function.name.encode())
        at = function.node.end_byte
    kept.append(source.data[at:])
    return re.sub(r"\s+", " ", b" ".join(kept).decode(errors="replace"))


def declared(variants: Sequence[Variant]) -> str:
    """Declarations of all other forms, to stand before the source's first function."""
    heads = [_renamed(f, variant.number, f.head) for variant in variants for f in (*variant.new, *variant.changed)]
    return "".join(f"{head.strip()};\n" for head in heads)


def defined(variants: Sequence[Variant], mark: Mark) -> str:
    """The other forms of the changed functions, to stand behind all that the source defines."""
    parts = []
    for variant in variants:
        for function in (*variant.new, *variant.changed):
            text = _renamed(function, variant.number, function.text)
            for new in variant.new:
                text = re.sub(rf"\b{new.name}\b", f"{new.name}_{variant.number}", text)
            parts.append(f"{mark(variant.number)}{text}\n{mark(0)}")
    return "\n" + "".join(parts)


def dispatches(function: Function, variants: Sequence[Variant], body: str, mark: Mark) -> str:
    """A function's body with calls of its other forms before it."""
    mine = [variant for variant in variants if function.name in {changed.name for changed in variant.changed}]
    if not mine:
        return body
    arguments = ", ".join(function.parameters)
    lines = []
    for variant in mine:
        call = f"{function.name}_{variant.number}({arguments})"
        words = f"return {call};" if function.returns else f"{{ {call}; return; }}"
        lines.append(f"{mark(variant.number)}if ( medcheck_is({variant.number}) ) {words}\n{mark(0)}")
    return f"{{\n{''.join(lines)}{body}\n}}"


def _renamed(function: Function, number: int, text: str) -> str:
    """A function's text, or the beginning of it, under the name with a number."""
    at = function.name_at + len(function.name)
    return f"{text[:at]}_{number}{text[at:]}"
