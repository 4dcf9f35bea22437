# SPDX-License-Identifier: GPL-2.0-or-later
"""A fuzz program as a value: read from and written to JSON, and printed as a pytest file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pprint import pformat
from typing import Any

from framework.common.errors import UsageError
from framework.fuzz.steps import DOMAINS, Step, check, shape, short

_FORMAT = "medcheck-fuzz"
_VERSION = 1
_LIMIT = 1 << 20
_FIXTURES = {"probe": "probe", "probe_pair": "probe_pair", "probe_smp": "smp_probe"}


@dataclass(frozen=True)
class FuzzProgram:
    """Steps for the probes of a checkpoint. ``dies``: the first domain is destroyed at the end, with what is open;
    otherwise everything is completed and closed."""

    checkpoint: str
    steps: tuple[Step, ...]
    dies: bool = False

    @property
    def shape(self) -> tuple[str, ...]:
        """What it is about: what it takes to tell two findings of one rule apart."""
        return (*shape(self.steps), *(("death",) if self.dies else ()))

    @property
    def text(self) -> str:
        """The JSON document; the same program is the same text."""
        steps = [short(step) for step in self.steps]
        return json.dumps(
            {_FORMAT: _VERSION, "checkpoint": self.checkpoint, "dies": self.dies, "steps": steps}, indent=1
        )

    @property
    def digest(self) -> str:
        """Its name by its content."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def upto(self, step: int) -> FuzzProgram:
        """The program up to a step that showed something; all of it when that was the end."""
        return self if step >= len(self.steps) else replace(self, steps=self.steps[: step + 1], dies=False)


def joined(programs: Sequence[FuzzProgram]) -> FuzzProgram:
    """One program that does what several did on one board, one after the other."""
    steps: list[Step] = []
    for program in programs[:-1]:
        steps += [*program.steps, {"do": "reset"}]
    last = programs[-1]
    return FuzzProgram(last.checkpoint, (*steps, *last.steps), last.dies)


def parsed(text: str, where: str) -> FuzzProgram:
    """Read a JSON document. Raises UsageError, with ``where``, when it is no fuzz program."""
    try:
        found: Any = json.loads(text)
        if not isinstance(found, dict) or found.get(_FORMAT) != _VERSION:
            raise UsageError(f'expected an object with "{_FORMAT}": {_VERSION}')
        if found.get("checkpoint") not in DOMAINS:
            raise UsageError(f"checkpoint: expected one of {', '.join(DOMAINS)}")
        if not isinstance(found.get("dies", False), bool):
            raise UsageError("dies: expected true or false")
        check(found.get("steps"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"this is no JSON: {error}", where=where) from error
    except UsageError as error:
        raise UsageError(error.what, where=where, hint="a file that `medcheck fuzz` wrote") from error
    return FuzzProgram(found["checkpoint"], tuple(short(step) for step in found["steps"]), found.get("dies", False))


def load(path: Path) -> FuzzProgram:
    """Read a program's file. Raises UsageError when it cannot be read, or is none."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise UsageError("this is no fuzz program: it is too large", where=str(path))
        return parsed(data.decode(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the program cannot be read: {error}", where=str(path)) from error


def as_pytest(program: FuzzProgram, name: str, words: str) -> str:
    """A pytest file that runs on its own (with medcheck installed), one test: the program, judged as every test is.

    ``name``: of the test, a Python name's rest; ``words``: what was found, for the docstring.
    """
    probes = _FIXTURES[program.checkpoint]
    fixtures = {
        probes: "medcheck.Probe" if program.checkpoint != "probe_pair" else "tuple[medcheck.Probe, medcheck.Probe]"
    }
    fixtures |= {"target": "medcheck.Target"} if program.dies else {}
    signature = ", ".join(f"{fixture}: {kind}" for fixture, kind in fixtures.items())
    said = words.replace("\\", "\\\\").replace('"', "'").splitlines()
    lines = ['"""A program that `medcheck fuzz` found.', "", *said, '"""', "", "from __future__ import annotations", ""]
    lines += [
        "import medcheck",
        "",
        "STEPS: list[medcheck.FuzzStep] = "
        + pformat([short(step) for step in program.steps], 2, 116, sort_dicts=False),
    ]
    call = f"medcheck.play({probes}, STEPS{', dies=target' if program.dies else ''})"
    lines += ["", "", f"def test_{name}({signature}) -> None:", f"    {call}"]
    return "\n".join(lines) + "\n"
