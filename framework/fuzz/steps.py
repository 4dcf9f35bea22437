# SPDX-License-Identifier: GPL-2.0-or-later
"""The language of fuzz programs: steps and parameters as plain data, from one table.

A step is a mapping such as ``{"do": "call", "command": "REGISTER_SHM", "params": [{"is": "tmem", "pages": 3}]}``. It
names nothing that is known only while it runs: sessions, calls that wait, cookies and pages are counted, so that each
list of steps is a program. A field that has its simplest value is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from framework.common.errors import UsageError
from mediator_ref.abi import FUNCTIONS, U64, Attr, Handling, MsgCmd

Step: TypeAlias = Mapping[str, Any]
"""A step (its kind under ``do``) or a parameter (its kind under ``is``)."""

MOST_STEPS = 400
"""Steps of a program at most, also of one that repeats what led to a finding."""


@dataclass(frozen=True)
class OneOf:
    """One of some words or numbers, the simplest first."""

    choices: tuple[str | int, ...]

    @property
    def simplest(self) -> str | int:
        """The value that is left out."""
        return self.choices[0]

    def fits(self, value: object) -> bool:
        """Whether a value is one of them."""
        return any(value == choice and type(value) is type(choice) for choice in self.choices)


@dataclass(frozen=True)
class Number:
    """A number of 64 bits, usually one of some that find boundaries."""

    usual: tuple[int, ...] = (
        0, 1, 2, 8, 0x3E7, 0x3E8, 0xFFF, 0x1000, 0x1001, 0x40000000, 0x7FFFFFFF, 1 << 31, (1 << 32) - 1, 1 << 32,
        1 << 63, U64,
    )  # fmt: skip

    @property
    def simplest(self) -> int:
        """The value that is left out."""
        return self.usual[0]

    def fits(self, value: object) -> bool:
        """Whether a value is one."""
        return type(value) is int and 0 <= value <= U64


@dataclass(frozen=True)
class Several:
    """A list of at most ``most`` steps or parameters of these ``kinds`` of a table."""

    table: str
    kinds: tuple[str, ...]
    most: int

    @property
    def simplest(self) -> list[Step]:
        """The value that is left out."""
        return []

    def fits(self, value: object) -> bool:
        """Whether a value is such a list; :func:`check` looks into it."""
        return isinstance(value, list | tuple) and len(value) <= self.most


Field: TypeAlias = OneOf | Number | Several


@dataclass(frozen=True)
class Kind:
    """One row: what a step does, or a parameter is, and its fields. ``weight``: how often it is drawn; ``needs``:
    checkpoints on which alone it makes sense."""

    text: str
    fields: Mapping[str, Field] = field(default_factory=dict)
    weight: int = 1
    needs: tuple[str, ...] = ()


CONDUIT = OneOf(("hvc", "smc"))
COOKIE = OneOf(tuple(range(7)))
"""By its number: 0 to 3 are cookies that differ in the lower half, 4 is 0 with another upper half, 5 is zero, 6 is
the highest number."""
DIRECTION = OneOf(("inout", "in", "out"))
ADDRESS = OneOf(("page", "misaligned", "half a page on", "unmapped", "shared info", "above", "null"))
"""Where an address leads that the mediator takes: to a page of the guest's own, or somewhere else."""
PARK = OneOf((0, 1, 2, 3, 4))
"""At which request of OP-TEE a call is left waiting, counted from 1; 0: it is driven to its end."""
PAGE = OneOf((0, 1, 2))
THREAD = OneOf(("own", "next", "highest"))

_ATTR = Number((0, *map(int, Attr), 0x4, 0x8, 0xC, 0x101, 0x103, 0x201, 0x209, 0x20A, 0x20B, 0x10209, 0x20B | 1 << 32))
_PARAMS = Several("parameters", ("value", "tmem", "rmem", "none", "raw"), 6)
_COUNT = OneOf(("right", "one more", "one less", "none", "127", "128", "highest"))

PARAMETERS: Mapping[str, Kind] = MappingProxyType({
    "value": Kind("three numbers", {
        "direction": DIRECTION, "meta": OneOf((0, 1)), "a": Number(), "b": Number(), "c": Number()}, 2),
    "tmem": Kind("memory by its page list", {
        "direction": DIRECTION, "pages": OneOf((1, 2, 3, 8, 0, 16, 128, 129, 130, 511, 512, 513)), "at": PAGE,
        "offset": OneOf((0, 8, 0x10, 0xFF8, 0xFFF)), "cookie": COOKIE,
        "size": OneOf(("all", "zero", "one", "one more", "half", "highest")),
        "list": OneOf(("good", "contiguous", "null", "unmapped", "shared info", "loop", "its own data", "meta")),
        "entry": OneOf(("page", "misaligned", "half a page on", "unmapped", "shared info", "above", "null", "again")),
        "which": OneOf((0, 1, 2, 511)),
    }, 4),
    "rmem": Kind("registered memory", {"direction": DIRECTION, "cookie": COOKIE, "a": Number(), "b": Number()}, 1),
    "none": Kind("no parameter"),
    "raw": Kind("any words", {"attr": _ATTR, "a": Number(), "b": Number(), "c": Number()}),
})  # fmt: skip
"""Kinds of parameters of a message."""

_FAST = tuple(row.name for row in FUNCTIONS.values() if row.handling not in (Handling.STANDARD, Handling.RESUME))
_DRIVEN = ("fast", "call", "resume")

STEPS: Mapping[str, Kind] = MappingProxyType({
    "call": Kind("a standard call with a message", {
        "command": OneOf(("INVOKE_COMMAND", "OPEN_SESSION", "REGISTER_SHM", "UNREGISTER_SHM", "CLOSE_SESSION", "CANCEL",
                          "DO_BOTTOM_HALF", "STOP_ASYNC_NOTIF", "8", "highest")),
        "ta": OneOf(("tests", "missing", "none")), "func": OneOf((1, 0, 10, 2, 0xFFFF)),
        "session": OneOf(("open", "zero", "highest")), "params": _PARAMS, "count": _COUNT, "page": PAGE,
        "address": ADDRESS, "fill": OneOf((0, U64)), "park": PARK, "conduit": CONDUIT,
    }, 8),
    "resume": Kind("the return from a request of OP-TEE's", {
        "call": OneOf((0, 1, 2)),
        "answer": OneOf(("own", "page", "memory", "error", "success", "as it is", "params", "nothing")),
        "page": PAGE, "address": ADDRESS, "cookie": COOKIE, "params": _PARAMS, "count": _COUNT, "thread": THREAD,
        "request": OneOf(("own", "zero", "other")), "park": PARK, "conduit": CONDUIT,
    }, 5),
    "fast": Kind("a fast call", {
        "function": OneOf((*_FAST, "unknown", "SMC64", "standard", "another owner")),
        "x1": Number(), "x2": Number(), "x3": Number(), "x7": Number(), "upper": OneOf((0, 1, U64 >> 32)),
        "conduit": CONDUIT,
    }, 3),
    "write": Kind("a change of memory that the mediator has seen or will see", {
        "where": OneOf(("argument", "request", "list", "data")), "page": PAGE,
        "offset": OneOf((0, 4, 8, 0x14, 0x18, 0x1C, 0x20, 0x28, 0x30, 0x38, 0x40, 0x58, 0xFF8)), "value": Number(),
    }, 2),
    "give back": Kind("a page of RAM goes back to Xen", {
        "where": OneOf(("data", "argument", "request")), "page": PAGE}),
    "together": Kind("two steps at once, the second on another virtual CPU", {
        "first": Several("steps", _DRIVEN, 1), "second": Several("steps", _DRIVEN, 1)}, 8, ("probe_smp",)),
    "reset": Kind("calls that wait are completed, memory and sessions released"),
})  # fmt: skip
"""Kinds of steps. Each may have a ``domain``: 0, or 1 where there are two."""

DOMAINS: Mapping[str, int] = MappingProxyType({"probe": 1, "probe_smp": 1, "probe_pair": 2})
"""Checkpoints that programs are for, and how many domains each has."""

COMMANDS: Mapping[str, int] = MappingProxyType({"8": 8, "highest": 0xFFFFFFFF} | {cmd.name: int(cmd) for cmd in MsgCmd})

TABLES: Mapping[str, Mapping[str, Kind]] = MappingProxyType({"steps": STEPS, "parameters": PARAMETERS})
TAGS: Mapping[str, str] = MappingProxyType({"steps": "do", "parameters": "is"})


def fields_of(table: str, kind: str) -> dict[str, Field]:
    """The fields of a kind, in their order."""
    own: dict[str, Field] = dict(TABLES[table][kind].fields)
    return {**own, "domain": OneOf((0, 1))} if table == "steps" else own


def value_of(step: Step, name: str, table: str = "steps") -> Any:
    """A field's value; the simplest where it is left out."""
    if name in step:
        return step[name]
    return fields_of(table, step[TAGS[table]])[name].simplest


def short(step: Step, table: str = "steps") -> dict[str, Any]:
    """The step without the fields that have their simplest value, also in what is inside it."""
    tag = TAGS[table]
    found: dict[str, Any] = {tag: step[tag]}
    for name, rule in fields_of(table, step[tag]).items():
        value = step.get(name, rule.simplest)
        if isinstance(rule, Several):
            value = [short(inner, rule.table) for inner in value]
        if value != rule.simplest:
            found[name] = value
    return found


def check(steps: object, table: str = "steps", most: int = MOST_STEPS) -> None:
    """Raise UsageError unless this is a list of steps, or parameters, as the table has them: a file holds anything."""
    if not isinstance(steps, list | tuple) or len(steps) > most:
        raise UsageError(f"expected a list of at most {most} {table}")
    for number, step in enumerate(steps):
        _check_one(step, table, f"{table[:-1]} {number}")


def _check_one(step: object, table: str, where: str) -> None:
    tag = TAGS[table]
    if not isinstance(step, Mapping) or not isinstance(step.get(tag), str) or step[tag] not in TABLES[table]:
        raise UsageError(f"{where}: expected '{tag}' with one of {', '.join(TABLES[table])}")
    fields = fields_of(table, step[tag])
    for name, value in step.items():
        if name == tag:
            continue
        rule = fields.get(name)
        if rule is None or not rule.fits(value):
            raise UsageError(f"{where}: '{step[tag]}' has no such field or value: {str(name)[:40]} = {str(value)[:40]}")
        if isinstance(rule, Several):
            check(value, rule.table, rule.most)
            for inner in value:
                if inner[TAGS[rule.table]] not in rule.kinds:
                    raise UsageError(f"{where}: {name} may hold {', '.join(rule.kinds)}")


def shape(steps: Sequence[Step]) -> tuple[str, ...]:
    """What a program is about, step by step: what it takes to tell two findings of one rule apart."""
    return tuple(_words(step) for step in steps)


def _words(step: Step) -> str:
    kind = step["do"]
    if kind == "call":
        kinds = ",".join(sorted({param["is"] for param in step.get("params", ())}))
        return f"call {value_of(step, 'command')}({kinds})"
    if kind in ("resume", "fast", "write", "give back"):
        name = {"resume": "answer", "fast": "function"}.get(kind, "where")
        return f"{kind} {value_of(step, name)}"
    if kind == "together":
        return " and ".join(_words(inner) for name in ("first", "second") for inner in step.get(name, ()))
    return str(kind)
