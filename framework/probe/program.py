# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the probe guest: encoded for it, saved, loaded, and printed as Python."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from framework.common.errors import UsageError
from framework.probe.ops import OPS, PROGRAM_SIZE, Op, Run

_U64 = (1 << 64) - 1
_BY_NAME = {op.__name__: op for op in OPS.values()}


@dataclass(frozen=True)
class Program:
    """A list of instructions: can be encoded, saved, loaded and printed as a test."""

    ops: tuple[Op, ...]
    title: str = ""

    def encode(self) -> tuple[bytes, dict[int, Op]]:
        """The words, and which instruction begins at which word offset."""
        words, steps = encode_ops(self.ops, 0)
        data = struct.pack(f"<{len(words)}Q", *words)
        if len(data) > PROGRAM_SIZE:
            raise UsageError(f"a program of {len(data)} bytes; the probe takes {PROGRAM_SIZE}")
        return data, steps

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads back."""
        return json.dumps({"title": self.title, "program": [_plain(op) for op in self.ops]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Read what :meth:`to_json` wrote. Raises UsageError when it is not a program."""
        try:
            loaded = json.loads(text)
            return cls(tuple(_op(entry) for entry in loaded["program"]), loaded["title"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"this is no saved probe program: {error!r}") from error

    def source(self) -> str:
        """The program as a Python expression."""
        title = f", title={self.title!r}" if self.title else ""
        return f"Program(({''.join(f'{source_of(op)}, ' for op in self.ops)}){title})"

    def names(self) -> set[str]:
        """The names that :meth:`source` uses."""
        return {"Program", *_names(self.ops)}


def _names(ops: Iterable[Op]) -> Iterator[str]:
    for op in ops:
        yield type(op).__name__
        yield from _names(getattr(op, "body", ()))


def encode_ops(ops: Iterable[Op], base: int) -> tuple[list[int], dict[int, Op]]:
    words: list[int] = []
    steps: dict[int, Op] = {}
    for op in ops:
        at = base + len(words)
        operands = [value & _U64 for value in op.operands()]
        body: Sequence[Op] = getattr(op, "body", ())
        # Another vCPU counts from the start of its own section.
        inner, inner_steps = encode_ops(body, 0 if isinstance(op, Run) else at + 1 + len(operands))
        length = 1 + len(operands) + len(inner)
        words += [op.opcode | int(op.flags()) << 16 | length << 32, *operands, *inner]
        steps[at] = op
        if not isinstance(op, Run):
            steps |= inner_steps
    return words, steps


def _plain(op: Op) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"hex": value.hex()}
        if isinstance(value, tuple):
            return [_plain(item) if isinstance(item, Op) else item for item in value]
        return value

    kept = {f.name: getattr(op, f.name) for f in fields(op) if getattr(op, f.name) != f.default}
    return {"op": type(op).__name__, **{name: convert(value) for name, value in kept.items()}}


def _op(entry: dict[str, Any]) -> Op:
    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return bytes.fromhex(value["hex"])
        if isinstance(value, list):
            return tuple(_op(item) if isinstance(item, dict) else item for item in value)
        return value

    rest = {name: convert(value) for name, value in entry.items() if name != "op"}
    return _BY_NAME[entry["op"]](**rest)


def source_of(value: Any) -> str:
    if isinstance(value, Op):
        shown = [f"{f.name}={source_of(getattr(value, f.name))}" for f in fields(value)
                 if getattr(value, f.name) != f.default]  # fmt: skip
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, bool) or not isinstance(value, int | tuple):
        return repr(value)
    if isinstance(value, int):
        return hex(value) if value > 9 else str(value)
    return f"({''.join(f'{source_of(item)}, ' for item in value).rstrip()})"
