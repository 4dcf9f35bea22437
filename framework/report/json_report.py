# SPDX-License-Identifier: GPL-2.0-or-later
"""``report.json``: the machine's view of a run, described by ``report.schema.json`` beside this module."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from framework.conformance.requirements import judge_requirements
from framework.conformance.result import ConformanceResult
from framework.report.model import RunReport, XtestReport

SCHEMA_VERSION = 1
"""Raised when a key is removed or changes its meaning; new keys do not raise it."""

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of ``report.json``."""
    loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return loaded


def document(report: RunReport, folder: Path) -> dict[str, Any]:
    """Turn ``report`` into JSON values. Paths become relative to ``folder``; no conformance, no key.

    Strings keep what the guest sent, except lone surrogates, which no UTF-8 file can hold.
    """
    result: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for item in dataclasses.fields(report):
        result[item.name] = _value(getattr(report, item.name), folder)
    for console in result["consoles"]:
        console["file"] = console.pop("path")
    if report.conformance is None:
        del result["conformance"]
    else:
        result["conformance"] = _value(_conformance(report.conformance), folder)
    if report.conclusion is None:
        del result["conclusion"]
    return result


def _conformance(result: ConformanceResult) -> dict[str, Any]:
    """A result in the words of the contract; keys beyond those of the first version stand last."""
    return {
        "events_checked": result.events_checked,
        "rules": [
            {
                "id": rule.id,
                "title": rule.title,
                "severity": rule.severity,
                "verdict": rule.verdict,
                "checked": rule.passed + rule.failed + rule.deviations,
                "failed": rule.failed,
                "not_checked": rule.not_checked,
                "reasons": rule.not_checked_reasons,
                "reason_counts": rule.reasons,
                "deviations": rule.deviations,
                "carried_by": rule.carried_by,
            }
            for rule in result.rules
        ],
        "nonconformances": [
            {
                "rule": found.rule,
                "event": found.event,
                "expected": found.expected,
                "observed": found.observed,
                "explanation": found.explanation,
                "where": found.where,
            }
            for found in result.nonconformances
        ],
        "deviations": [
            {
                "id": deviation.id,
                "rule": deviation.rule,
                "status": deviation.status,
                "evidence": deviation.evidence,
                "report_privately": deviation.report_privately,
                "count": deviation.count,
                "carried_by": deviation.carried_by,
            }
            for deviation in result.deviations
        ],
        "gaps": result.gaps,
        "incomplete": result.incomplete,
        "requirements": [dataclasses.asdict(requirement) for requirement in judge_requirements(result)],
        "outcomes": dict(result.outcomes),
        "instructions": dict(result.instructions),
    }


def dump(content: Mapping[str, Any]) -> bytes:
    """``content`` as UTF-8 JSON text; what holds only plain values (a subtest, a rule) has its own line."""
    return ("".join(_layout(content, "")) + "\n").encode()


def _layout(value: object, margin: str) -> Iterator[str]:
    if not isinstance(value, dict | list) or not any(isinstance(item, dict | list) for item in _items(value)):
        yield json.dumps(value, ensure_ascii=False, allow_nan=False)
        return
    inner = margin + " "
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    keys = [json.dumps(key, ensure_ascii=False) + ": " for key in value] if isinstance(value, dict) else None
    yield opening
    for number, item in enumerate(_items(value)):
        yield f"{',' if number else ''}\n{inner}{keys[number] if keys else ''}"
        yield from _layout(item, inner)
    yield f"\n{margin}{closing}"


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _value(value: object, folder: Path) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if isinstance(value, Path):
        return _value(Path(os.path.relpath(value, folder)).as_posix(), folder)
    if isinstance(value, Mapping):
        return {_value(str(key), folder): _value(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item, folder) for item in value]
    if dataclasses.is_dataclass(value):
        # What a guest's run knows beyond its report (a crash, say) is no part of the contract.
        shown = XtestReport if isinstance(value, XtestReport) else value
        return {item.name: _value(getattr(value, item.name), folder) for item in dataclasses.fields(shown)}
    raise TypeError(f"a report cannot hold a {type(value).__name__}")
