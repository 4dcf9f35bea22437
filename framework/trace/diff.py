# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparison of two traces by their calls' content, not by times or addresses.

Each domain's calls become signatures: function, command, parameter types and sizes, results, and the RPCs
that OP-TEE asked for. Foreign interrupts are left out: how often a call is interrupted is chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from framework.trace.calls import Call, fold
from framework.trace.event import Event
from framework.trace.show import command_name, rpc_name
from mediator_ref import abi
from mediator_ref.describe import describe_attr, describe_return, function_name

_EXACT_LIMIT = 5000
_PAIRS_LIMIT = 4_000_000
_CONTEXT = 3


def signature(call: Call) -> str:
    """One line that two runs of the same program share."""
    parts = [function_name(call.fid)]
    page = call.argument() if call.fid == abi.CALL_WITH_ARG else None
    if page is not None:
        arg = abi.decode_arg(page)
        sizes = (
            f"{describe_attr(p.attr)}:{p.b:#x}" if p.type in abi.TMEM_TYPES else describe_attr(p.attr)
            for p in arg.params
        )
        parts += [command_name(call) or "", f"func={arg.func:#x}", f"[{', '.join(sizes)}]"]
    rpcs = [name for exchange in call.exchanges if (name := rpc_name(exchange)) and name != "FOREIGN_INTR"]
    if rpcs:
        parts.append(f"rpcs={'; '.join(rpcs)}")
    end = call.end
    if end is None:
        parts.append("unfinished")
    else:
        parts.append(f"=> {describe_return(end.regs[0])}")
        result = call.result() if page is not None else None
        if result is not None:
            parts.append(f"ret={abi.decode_arg(result).ret:#x}")
    return " ".join(part for part in parts if part)


def by_domain(events: Iterable[Event]) -> dict[int | None, list[str]]:
    """The signatures of each domain's calls in the order in which they began."""
    calls = [item for item in fold(events) if isinstance(item, Call) and item.start.is_tee]
    found: dict[int | None, list[str]] = {}
    for call in sorted(calls, key=lambda one: one.start.seq):
        found.setdefault(call.start.domain, []).append(signature(call))
    return found


def diff(left: Iterable[Event], right: Iterable[Event]) -> Iterator[str]:
    """Lines that say where the traces differ, as a unified diff per domain; none when they agree."""
    a, b = by_domain(left), by_domain(right)
    for domain in sorted(a.keys() | b.keys(), key=lambda d: -1 if d is None else d):
        mine, theirs = a.get(domain, []), b.get(domain, [])
        if mine == theirs:
            continue
        name = "unknown domain" if domain is None else f"domain {domain}"
        yield f"{name}: {len(mine)} calls against {len(theirs)}"
        yield from (_edits(mine, theirs) if _is_quick(mine, theirs) else _first_difference(mine, theirs))


def _is_quick(mine: list[str], theirs: list[str]) -> bool:
    """Whether an exact diff ends soon: it looks at every pair of equal lines, again for each difference."""
    one, other = Counter(mine), Counter(theirs)
    pairs = sum(count * other[line] for line, count in one.items())
    return max(len(mine), len(theirs)) <= _EXACT_LIMIT and pairs <= _PAIRS_LIMIT


def _edits(mine: list[str], theirs: list[str]) -> Iterator[str]:
    for group in SequenceMatcher(None, mine, theirs, autojunk=False).get_grouped_opcodes(_CONTEXT):
        yield f"@@ call {group[0][1] + 1} against call {group[0][3] + 1} @@"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from (f"  {line}" for line in mine[i1:i2])
            else:
                yield from (f"- {line}" for line in mine[i1:i2])
                yield from (f"+ {line}" for line in theirs[j1:j2])


def _first_difference(mine: list[str], theirs: list[str]) -> Iterator[str]:
    """Yield lines that show where two long traces part, and what follows; an exact diff would take too long."""
    at = next((i for i, (x, y) in enumerate(zip(mine, theirs, strict=False)) if x != y), min(len(mine), len(theirs)))
    yield f"@@ they part at call {at + 1} @@"
    yield from (f"  {line}" for line in mine[max(0, at - _CONTEXT) : at])
    yield from (f"- {line}" for line in mine[at : at + _CONTEXT])
    yield from (f"+ {line}" for line in theirs[at : at + _CONTEXT])
