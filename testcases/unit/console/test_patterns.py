# SPDX-License-Identifier: GPL-2.0-or-later
"""Every regular expression that may meet a guest's text takes time that grows with the text, and no faster.

The expressions are found, not listed: whatever a module of these packages holds under a name is tried, and an
expression that has no name of its own is refused. Expressions for :meth:`Console.expect` are constants of type bytes.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import framework
from framework.common.paths import ROOT

PACKAGES = ("console", "diagnosis", "guests", "probe", "target")
MODULES = (
    "framework.common.safe_text",
    "framework.jobs.replay",
    "framework.pytest_plugin.verdict",
    "framework.report.timeline",
)
SIZES = (22, 1 << 10, 8 << 10, 64 << 10, 256 << 10)
"""The first is for what doubles with each byte."""
SECONDS = 1.0
"""For the largest size, of this thread's own time; for the others in proportion, and a little for the clock."""


def modules() -> list[str]:
    found = list(MODULES)
    for package in PACKAGES:
        path = str(Path(framework.__path__[0]) / package)
        found += [f"framework.{package}.{module.name}" for module in pkgutil.iter_modules([path])]
    return sorted(found)


def patterns_in(value: Any, depth: int = 0) -> Iterator[re.Pattern[Any]]:
    """The expressions in a value, in containers and data classes as well."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, bytes) and 0 < len(value) < 400:
        try:
            yield re.compile(value, re.DOTALL)
        except re.error:
            return
    elif depth < 4 and isinstance(value, Mapping):
        yield from (found for item in value.values() for found in patterns_in(item, depth + 1))
    elif depth < 4 and isinstance(value, tuple | list | frozenset | set):
        yield from (found for item in value for found in patterns_in(item, depth + 1))
    elif depth < 4 and is_dataclass(value) and not isinstance(value, type):
        yield from (found for f in fields(value) for found in patterns_in(getattr(value, f.name), depth + 1))


def all_patterns() -> dict[str, re.Pattern[Any]]:
    found: dict[Any, tuple[str, re.Pattern[Any]]] = {}
    for module in modules():
        for name, value in vars(importlib.import_module(module)).items():
            for pattern in patterns_in(value):
                found.setdefault((pattern.pattern, pattern.flags), (f"{module}.{name}", pattern))
    return {f"{name}-{number}": pattern for number, (name, pattern) in enumerate(found.values())}


PATTERNS = all_patterns()
_METHODS = ("search", "match", "fullmatch", "finditer", "split", "sub")


def methods_of(name: str) -> set[str]:
    """How its module uses the expression called ``name``; what has no such use, as in a table, is searched for."""
    module, _, rest = name.rpartition(".")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    used = set(re.findall(rf"\b{rest.rpartition('-')[0]}\.(\w+)\b", source)) & set(_METHODS)
    return used or {"search"}


def literals(source: str) -> list[str]:
    """The text that an expression asks for, in its order, and a character of each of its classes."""
    parsed = re._parser.parse(source)  # type: ignore[attr-defined]
    found: list[str] = [""]

    def walk(items: Any) -> None:
        for kind, value in items:
            name = str(kind)
            if name == "LITERAL":
                found[-1] += chr(value)
            elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
                found.append("")
                walk(value[2])
                found.append("")
            elif name == "SUBPATTERN":
                walk(value[3])
            elif name == "BRANCH":
                for branch in value[1]:
                    found.append("")
                    walk(branch)
                found.append("")
            elif name == "IN":
                found.append(_member(value))
            elif name in ("ASSERT", "ASSERT_NOT"):
                found.append("")
                walk(value[1])
                found.append("")

    walk(parsed)
    return [text for text in dict.fromkeys(found) if text]


def _member(items: Any) -> str:
    sample = {"CATEGORY_DIGIT": "7", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "w", "CATEGORY_NOT_SPACE": "n"}
    for kind, value in items:
        if str(kind) == "LITERAL":
            return chr(value)
        if str(kind) == "RANGE":
            return chr(value[0])
        if str(kind) == "CATEGORY":
            return sample.get(str(value), "x")
    return "x"


def attacks(source: str) -> list[tuple[str, str]]:
    """Beginnings, and pieces to repeat behind them: what an expression asks for, alone, in pairs, and with what stands
    between words. Chosen so that the end never comes."""
    texts = literals(source)[:12]
    pieces = [*texts, *(a + b for a, b in pairwise(texts)), "".join(texts), " ".join(texts)]
    pieces += [f"{text} " for text in texts] + [*" \t7a.'/-\r\n[_", "a ", "7 "]
    heads = ["", *("".join(texts[:count]) for count in range(1, len(texts)))][:4]
    return [
        (head, piece) for piece in dict.fromkeys(filter(None, pieces)) for head in (heads if len(piece) < 3 else ("",))
    ]


def spent(pattern: re.Pattern[Any], text: Any, methods: set[str]) -> float:
    begin = time.thread_time()
    for method in methods:
        if method == "sub":
            pattern.sub(text[:0], text)
        elif method == "finditer":
            for _ in pattern.finditer(text):
                continue
        else:
            getattr(pattern, method)(text)
    return time.thread_time() - begin


def worst(pattern: re.Pattern[Any], methods: set[str]) -> tuple[float, str]:
    """The first attack that takes too long, and how long, with its size; or the longest of all good ones."""
    longest = (0.0, "")
    source = pattern.pattern.decode("latin-1") if isinstance(pattern.pattern, bytes) else pattern.pattern
    for head, piece in attacks(source):
        for size in SIZES:
            text = (head + piece * (size // len(piece)))[:size] + "\0"
            given = text.encode("latin-1", "replace") if isinstance(pattern.pattern, bytes) else text
            took = spent(pattern, given, methods)
            longest = max(longest, (took, f"{size} bytes of {head!r} and {piece!r}"))
            if took > SECONDS * size / SIZES[-1] + 0.05:
                return took, f"TOO LONG: {size} bytes of {head!r} and {piece!r} repeated"
            if size > SIZES[1] and took * (SIZES[-1] / size) ** 2 < SECONDS:
                break  # Were it to grow with the square, it would be good still.
    return longest


@pytest.mark.parametrize("name", PATTERNS)
def test_an_expression_takes_time_that_grows_with_the_text(name: str) -> None:
    took, what = worst(PATTERNS[name], methods_of(name))
    assert "TOO LONG" not in what, f"{PATTERNS[name].pattern!r}: {took:.2f} s for {what}"


def test_the_known_ones_are_found() -> None:
    found = {pattern.pattern for pattern in PATTERNS.values()}
    from framework.console.crash_signatures import CRASH_SIGNATURES
    from framework.guests import dom0, xl, xtest_parser
    from framework.probe import link

    assert {dom0.PANIC, link._LINE, xl._ROW.pattern, xtest_parser._ERROR.pattern} <= found
    assert {signature.pattern.pattern for signatures in CRASH_SIGNATURES.values() for signature in signatures} <= found
    assert len(found) > 60


@pytest.mark.parametrize("source", [
    r"\(XEN\).*Assertion '.*' failed", r"E/TC:.*assertion (.* )?failed", r"INFO: task .* blocked", r"(a+)+b",
    r"\S*?[a-z.]+\.[ch]:", r"@([HREN]) ([^\r\n]*)\r?\n",
])  # fmt: skip
def test_a_bad_expression_is_found_out(source: str) -> None:
    assert "TOO LONG" in worst(re.compile(source), {"search"})[1]


_OF_RE = {"compile", "search", "match", "fullmatch", "finditer", "findall", "sub", "split"}


def _nameless(tree: ast.Module) -> Iterator[int]:
    """Lines in functions where an expression is written out that no name of the module holds."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.func.attr in _OF_RE
            if (of_re or node.func.attr in ("expect", "watch")) and any(
                isinstance(part, ast.Constant | ast.JoinedStr) and not _plain(part) for part in ast.walk(node.args[0])
            ):
                yield node.lineno


def _plain(part: ast.Constant | ast.JoinedStr) -> bool:
    """Whether it holds nothing that an expression would repeat."""
    value = part.value if isinstance(part, ast.Constant) else ""
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return isinstance(part, ast.Constant) and not re.search(r"[*+?{]", text)


NOT_OF_GUESTS = {
    "framework.console.crash_signatures",  # Made of a table, and found in what it makes.
    "framework.target.postmortem",  # A name that the user gave.
    "framework.target.slots",  # The user's environment.
}


@pytest.mark.parametrize("module", sorted({*modules()} - NOT_OF_GUESTS))
def test_every_expression_has_a_name(module: str) -> None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert list(_nameless(ast.parse(path.read_text()))) == [], f"{path}: make it a constant of the module"
