# SPDX-License-Identifier: GPL-2.0-or-later
"""YAML read against a checked schema: an error names the file, the line, the key and what was expected.

A schema is a small tree of the classes below. :func:`load` gives plain Python values back, with every default
filled in, plus the place of each value, so that later cross-checks can point at a line as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from framework.common.errors import ConfigError
from framework.common.yaml_source import compose

_SHOWN = 60
"""Characters of a wrong value that an error repeats."""

KeyPath = tuple[str | int, ...]
"""The way from the document's root to a value: ``("guests", 0, "vcpus")``."""


@dataclass
class Document:
    """A checked YAML file: its values, and the line each of them stands on."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, *keys: str | int) -> str:
        """Return ``file:line`` of a value, or of the nearest enclosing one if it was left out."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}:{self.lines.get(keys, 1)}"

    def error(self, text: str, *keys: str | int, hint: str | None = None) -> ConfigError:
        """Build the error that says what is wrong with the value at ``keys``."""
        return ConfigError(f"{dotted(keys)}: {text}" if keys else text, where=self.where(*keys), hint=hint)


def dotted(keys: KeyPath) -> str:
    """Write a key path in the usual notation: ``guests[0].vcpus``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


class Schema:
    """Type of a value. :meth:`read` returns the Python value or raises ConfigError."""

    expected = "a value"

    def read(self, node: yaml.Node, keys: KeyPath, document: Document) -> Any:
        """Turn a YAML node into a value of this schema."""
        raise NotImplementedError

    def wrong(self, node: yaml.Node, keys: KeyPath, document: Document) -> ConfigError:
        """Build the error for a node that is something else."""
        return document.error(f"expected {self.expected}, found {describe(node)}", *keys)


def describe(node: yaml.Node) -> str:
    """Describe a node in a few words."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    if node.tag == "tag:yaml.org,2002:null":
        return "nothing"
    # Whatever file was named by mistake: its first words are enough to know it by.
    return repr(node.value if len(node.value) <= _SHOWN else node.value[: _SHOWN - 1] + "…")


class _Scalar(Schema):
    tag = ""
    longest = 1 << 16
    """Characters of a value at most."""

    def read(self, node: yaml.Node, keys: KeyPath, document: Document) -> Any:
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"tag:yaml.org,2002:{self.tag}":
            raise self.wrong(node, keys, document)
        if len(node.value) > self.longest:
            raise self.wrong(node, keys, document)
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except ValueError as error:
            # What looks like a number and is none: 0b_, 0x_.
            raise self.wrong(node, keys, document) from error
        if not self.accepts(value):
            raise self.wrong(node, keys, document)
        return value

    def accepts(self, value: Any) -> bool:  # noqa: ARG002 - the base takes every value of the right type
        """Whether a value of the right type is also a valid value."""
        return True


class Text(_Scalar):
    """A string, optionally matching a regular expression that ``meaning`` puts into words."""

    tag = "str"

    def __init__(self, pattern: str | None = None, meaning: str = "text") -> None:
        self._pattern = None if pattern is None else re.compile(pattern)
        self.expected = meaning

    def accepts(self, value: Any) -> bool:
        """Match the pattern, if there is one."""
        return self._pattern is None or self._pattern.fullmatch(value) is not None


class Choice(_Scalar):
    """One of a few words."""

    tag = "str"

    def __init__(self, *words: str) -> None:
        self._words = words
        self.expected = "one of " + ", ".join(words)

    def accepts(self, value: Any) -> bool:
        """Be one of the words."""
        return value in self._words


class Whole(_Scalar):
    """A whole number within bounds, both included; ``unit`` only serves the message."""

    tag = "int"
    # Python refuses to read thousands of digits, and numbers of base 60 take ever longer.
    longest = 70

    def __init__(self, low: int, high: int, *, unit: str = "", multiple: int = 1, base: int = 10) -> None:
        self._low, self._high, self._multiple = low, high, multiple
        bounds = f"{low:#x} to {high:#x}" if base == 16 else f"{low} to {high}"
        step = f", a multiple of {multiple:#x}" if multiple > 1 else ""
        self.expected = f"a whole number from {bounds}{' ' + unit if unit else ''}{step}"

    def accepts(self, value: Any) -> bool:
        """Lie within the bounds."""
        return bool(self._low <= value <= self._high and value % self._multiple == 0)


class Flag(_Scalar):
    """true or false."""

    tag = "bool"
    expected = "true or false"


class Date(_Scalar):
    """A day, written as 2027-06-30."""

    tag = "timestamp"
    expected = "a date such as 2027-06-30"

    def accepts(self, value: Any) -> bool:
        """Have no time of day."""
        return type(value) is date


class Items(Schema):
    """A list of ``low`` to ``high`` values of one schema; comes out as a tuple."""

    def __init__(self, item: Schema, low: int = 0, high: int = 1000) -> None:
        self._item, self._low, self._high = item, low, high
        self.expected = f"a list of {low} to {high} entries"

    def read(self, node: yaml.Node, keys: KeyPath, document: Document) -> Any:
        """Read every entry."""
        if not isinstance(node, yaml.SequenceNode) or not self._low <= len(node.value) <= self._high:
            raise self.wrong(node, keys, document)
        values = []
        for index, child in enumerate(node.value):
            at = (*keys, index)
            document.lines[at] = child.start_mark.line + 1
            values.append(self._item.read(child, at, document))
        return tuple(values)


@dataclass(frozen=True)
class Key:
    """One key of a mapping; it is required unless it has a default."""

    schema: Schema
    default: Any = None
    required: bool = True


def optional(schema: Schema, default: Any) -> Key:
    """Describe a key that may be left out and then has ``default`` as its value."""
    return Key(schema, default, required=False)


class Table(Schema):
    """A mapping with known keys.

    Unknown and repeated keys are errors: a typing mistake must not pass in silence.
    """

    expected = "a mapping"

    def __init__(self, keys: Mapping[str, Key | Schema]) -> None:
        self._keys = {name: key if isinstance(key, Key) else Key(key) for name, key in keys.items()}

    def read(self, node: yaml.Node, keys: KeyPath, document: Document) -> Any:
        """Read every known key."""
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, keys, document)
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                # Not to be written out: with aliases it may be as large as one likes.
                where = f"{document.path}:{key_node.start_mark.line + 1}"
                raise ConfigError(f"expected a key, found {describe(key_node)}", where=where)
            name = str(key_node.value)
            at = (*keys, name)
            repeated = name in values
            document.lines[at] = key_node.start_mark.line + 1
            if name not in self._keys:
                raise document.error("unknown key", *at, hint=_nearest(name, list(self._keys)))
            if repeated:
                raise document.error("this key stands here twice", *at)
            values[name] = self._keys[name].schema.read(child, at, document)
        for name, key in self._keys.items():
            if name in values:
                continue
            if key.required:
                missing = f"the key '{name}' is missing, expected {key.schema.expected}"
                raise document.error(missing, *keys)
            values[name] = key.default
        return {name: values[name] for name in self._keys}


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else "known keys: " + ", ".join(known)


def load(path: Path, schema: Table) -> Document:
    """Read a YAML file and check it.

    Raises ConfigError (``where`` is ``file:line``) when the file is missing, is not YAML, or does not fit
    the schema.
    """
    document = Document(path)
    node = compose(path)
    document.lines[()] = node.start_mark.line + 1
    document.values = schema.read(node, (), document)
    return document
