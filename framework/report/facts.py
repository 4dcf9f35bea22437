# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparable part of a report: verdicts as words by kind and name, the seconds of each phase, and the reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.common.errors import UsageError

REPORT, MATRIX = "report.json", "matrix.json"
KINDS = ("stack", "verdict", "rule", "deviation", "xtest", "test")
"""Kinds of words, those of the parts under test first."""
_MOST_BYTES = 64 << 20
"""Of a report; that of a whole nightly run has a few MB."""
_HINT = f"give a report's folder, its {REPORT}, or the folder of a matrix"


@dataclass(frozen=True)
class Facts:
    """``words`` of a report by kind and name (``words["rule"]["STD-6"]`` is ``pass``), the ``seconds`` since power-on
    at which each phase ended, and why it is no pass."""

    words: Mapping[str, Mapping[str, str]]
    seconds: Mapping[str, float]
    reason: str


def load_facts(path: Path) -> dict[str, Facts]:
    """Read a report or a matrix, given by its file or its folder; it may come from anywhere.

    Returns the facts of a matrix by column, those of a report under the empty name.

    :raises UsageError: there is none, or it is malformed.
    """
    file = path
    if path.is_dir():
        file = path / (MATRIX if (path / MATRIX).exists() else REPORT)
    document = _read(file)
    try:
        if "columns" in document:
            return {_text(column["name"]): _of_column(column) for column in document["columns"]}
        return {"": facts_of(document)}
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is no report of medcheck, or a damaged one: {error!r}"[:400], hint=_HINT) from error


def facts_of(report: Mapping[str, Any]) -> Facts:
    """Pick the facts out of a ``report.json`` document.

    Raises KeyError, TypeError or AttributeError for one that is malformed.
    """
    conformance = report.get("conformance", {"rules": [], "deviations": []})
    cases = [
        (f"{guest['name']} {case['id']}", case["status"])
        for guest in report["guests"]
        for case in (guest["xtest"] or {"cases": []})["cases"]
    ]
    words = {
        "stack": _words((_name(part), f"{part['version']} [{part['sha256'][:8]}]") for part in report["stack"]),
        "verdict": _words([("run", report["verdict"])]),
        "rule": _words((rule["id"], rule["verdict"]) for rule in conformance["rules"]),
        "deviation": _words((deviation["id"], deviation["status"]) for deviation in conformance["deviations"]),
        "xtest": _words(cases),
        "test": _words((test["id"], test["status"]) for test in report.get("tests", ())),
    }
    seconds = {_text(phase["name"]): _seconds(phase["seconds"]) for phase in report.get("timings", ())}
    return Facts(words, seconds, _text(report.get("reason") or ""))


def _of_column(column: Mapping[str, Any]) -> Facts:
    words = {kind: _words(column["facts"].get(kind, {}).items()) for kind in KINDS}
    seconds = {_text(name): _seconds(value) for name, value in column["timings"].items()}
    return Facts({**words, "verdict": {"run": _text(column["verdict"])}}, seconds, _text(column.get("reason") or ""))


def _read(file: Path) -> Mapping[str, Any]:
    try:
        # A pipe or a device has no end.
        if file.exists() and not file.is_file():
            raise ValueError("this is not a file")
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError(f"it is a {type(document).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no report: {error}", hint=_HINT) from error
    return document


def _words(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    return {_text(name): _text(word) for name, word in pairs}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} stands where a text belongs")
    return value


def _seconds(value: Any) -> float:
    """JSON has no number for what cannot be measured: a report says null."""
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"a {type(value).__name__} stands where seconds belong")
    return float(value)


def _name(part: Mapping[str, Any]) -> str:
    """The name of a part under test without its variant."""
    return _text(part["name"]).split(" (")[0]
