"""``report.json``: the machine's view of a run, described by ``report.schema.json`` beside this module."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from framework.report.model import RunReport

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
    if result["conformance"] is None:
        del result["conformance"]
    return result


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
        return {item.name: _value(getattr(value, item.name), folder) for item in dataclasses.fields(value)}
    raise TypeError(f"a report cannot hold a {type(value).__name__}")
