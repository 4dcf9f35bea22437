# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutant schemata: one source that holds every mutant, each behind a switch that is a number in memory.

``medcheck_mutant`` is 0 for the source as it was. A switch that is reached leaves a mark in ``medcheck_reached``, so
a run without any mutant tells which of them it could have met. Source: Untch, Offutt, Harrold, "Mutation analysis using
mutant schemata" (1993).
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tree_sitter import Node

from framework.mutants.mutation import Mutation
from framework.mutants.syntax import Source
from framework.mutants.variants import Variant, declared, defined, dispatches

SWITCH, REACHED = "medcheck_mutant", "medcheck_reached"
"""Names of the symbols in Xen: an unsigned int, and a byte for each number."""

_SWITCHES = """\
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wreturn-type"
#pragma GCC diagnostic ignored "-Wunused-function"
#ifdef MEDCHECK_ALONE
static inline __attribute__((__always_inline__)) _Bool medcheck_is(unsigned int number)
{
    return number == MEDCHECK_NUMBER;
}
#else
extern volatile unsigned int medcheck_mutant;
extern unsigned char medcheck_reached[];
volatile unsigned int medcheck_mutant __attribute__((__section__(".data"))) = 0;
unsigned char medcheck_reached[%d] __attribute__((__section__(".data"))) = { 0 };
static __attribute__((__noinline__)) _Bool medcheck_is(unsigned int number)
{
    medcheck_reached[number] = 1;
    return medcheck_mutant == number;
}
#endif
"""


@dataclass
class Schemata:
    """The rendered source; ``lines`` are the first lines of the parts of it that belong to one number each."""

    text: str
    numbers: range
    lines: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def owner(self, line: int) -> int:
        """The number of the mutant whose text stands in this line; 0 for the source as it was."""
        at = bisect.bisect_right(self.lines, line) - 1
        return self.owners[at] if at >= 0 else 0

    def near(self, line: int) -> set[int]:
        """The numbers of the mutants that a complaint about a line of the source as it was may be about: those of the
        statement that begins there, and the last one before."""
        if self.owner(line):
            return set()
        at = bisect.bisect_right(self.lines, line) - 1
        text = self.text.split("\n")
        end = next((i for i in range(line, len(text)) if text[i - 1].rstrip().endswith(";")), line)
        last = bisect.bisect_right(self.lines, end + 1)
        return set(self.owners[max(at - 1, 0) : last]) - {0}


def render(source: Source, mutations: Mapping[int, Mutation], variants: Sequence[Variant] = ()) -> Schemata:
    """``source`` with these mutations by number, and with whole functions of ``variants``.

    Each mutant's text stands in lines of its own, so that a compiler's complaint names it.
    """
    return _Renderer(source, mutations, variants).render()


class _Renderer:
    def __init__(self, source: Source, mutations: Mapping[int, Mutation], variants: Sequence[Variant]) -> None:
        self._source = source
        self._variants = variants
        self._here: dict[tuple[int, int, bool], list[tuple[int, Mutation]]] = {}
        for number, mutation in mutations.items():
            key = (mutation.start, mutation.end, mutation.original.rstrip().endswith((";", "}")))
            self._here.setdefault(key, []).append((number, mutation))
        self._size = max([*mutations, *(variant.number for variant in variants), 0]) + 1
        self._marks: dict[str, int] = {}

    def render(self) -> Schemata:
        data = self._source.data
        parts = [_SWITCHES % self._size]
        names = {function.name: function for function in self._source.functions()}
        at = next(iter(names.values())).node.start_byte
        parts += [data[:at].decode(), declared(self._variants)]
        for function in names.values():
            parts.append(data[at : function.body.start_byte].decode())
            body = self._text(function.body)
            parts.append(dispatches(function, self._variants, body, self._mark))
            at = function.body.end_byte
        parts += [data[at:].decode(), defined(self._variants, self._mark)]
        return self._finish("".join(parts))

    def _mark(self, number: int) -> str:
        """A line's end after which the text is that of a mutant (or, with 0, the source's again)."""
        return f"/*@{number}@*/\n"

    def _finish(self, text: str) -> Schemata:
        lines, owners = [], []
        for count, line in enumerate(text.split("\n"), start=1):
            if "/*@" in line:
                lines.append(count + 1)
                owners.append(int(line.rpartition("/*@")[2].partition("@")[0]))
        return Schemata(text, range(self._size), lines, owners)

    def _text(self, node: Node) -> str:
        return self._wrapped(node, self._unchanged(node))

    def _unchanged(self, node: Node) -> str:
        """The node's text with the switches inside it."""
        data, parts, at = self._source.data, [], node.start_byte
        for child in node.children:
            parts.append(data[at : child.start_byte].decode())
            parts.append(self._text(child))
            at = child.end_byte
        parts.append(data[at : node.end_byte].decode())
        return "".join(parts)

    def _wrapped(self, node: Node, text: str) -> str:
        statement = node.type.endswith("_statement") and node.type != "compound_statement"
        mine = self._here.pop((node.start_byte, node.end_byte, statement), None)
        if mine is None:
            return text
        if not statement:
            options = "".join(
                f"medcheck_is({number}) ? {self._mark(number)}({mutation.replacement}) : {self._mark(0)}"
                for number, mutation in mine
            )
            return f"({options}({text}))"
        options = "".join(
            f"if ( medcheck_is({number}) ) {{ {self._mark(number)}{mutation.replacement} {self._mark(0)}}} else "
            for number, mutation in mine
        )
        return f"{{ {options}{{ {text} }} }}"
