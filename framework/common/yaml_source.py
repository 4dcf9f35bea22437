# SPDX-License-Identifier: GPL-2.0-or-later
"""Reader of YAML files: bounded, and node by node, so that every error names its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from framework.common.errors import ConfigError

# The C parser, where PyYAML has it, reads the lock file ten times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MOST = 1 << 20
"""Characters of a file; the longest of the project's own has a tenth of that."""


def compose(path: Path, hint: str | None = None) -> yaml.Node:
    """The root of a YAML document. ``hint`` is shown with every error.

    :raises ConfigError: the file is none, cannot be read, is too long, is not YAML, or is empty.
    """

    def wrong(text: str, line: int | None = None) -> ConfigError:
        return ConfigError(text, where=str(path) if line is None else f"{path}:{line}", hint=hint)

    if path.exists() and not path.is_file():
        raise wrong("this is no file")  # a pipe would be waited on for ever
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_MOST + 1)
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise wrong(f"not UTF-8: {error.reason}") from error
    if len(text) > _MOST:
        raise wrong(f"longer than {_MOST} characters, which no such file is")
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context
        # libyaml's own bound; the parser in Python has only the interpreter's.
        words = "nested too deeply" if problem == "exceeded maximum nesting depth" else f"not valid YAML: {problem}"
        raise wrong(words, mark.line + 1 if mark else 1) from error
    except yaml.YAMLError as error:
        raise wrong(f"not valid YAML: {error}", 1) from error
    except RecursionError as error:
        raise wrong("nested too deeply", 1) from error
    if node is None:
        raise wrong("the file is empty, expected a mapping", 1)
    return node


class Source:
    """One YAML file taken apart node by node; scalars stay text, so versions never become numbers."""

    def __init__(self, path: Path, hint: str | None = None) -> None:
        """``hint`` is shown with every error: what a user does about a bad file of this kind."""
        self.path = path
        self.hint = hint

    def root(self) -> yaml.Node:
        """The document's root; see :func:`compose`."""
        return compose(self.path, self.hint)

    def error(self, node: yaml.Node, text: str) -> ConfigError:
        """The error that says ``text`` about ``node``."""
        return ConfigError(text, where=f"{self.path}:{node.start_mark.line + 1}", hint=self.hint)

    def mapping(self, node: yaml.Node, what: str) -> dict[str, yaml.Node]:
        """The entries of a mapping; a key that occurs twice is an error, not a silent overwrite."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what}: expected a mapping")
        result: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key, f"a key of {what}")
            if name in result:
                raise self.error(key, f"{what}: {name} occurs twice")
            result[name] = value
        return result

    def record(
        self, node: yaml.Node, what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        """A mapping with exactly these keys."""
        result = self.mapping(node, what)
        for name, value in result.items():
            if name not in required + optional:
                known = ", ".join(required + optional)
                raise self.error(value, f"{what}: unknown key {name}; known are {known}")
        for name in required:
            if name not in result:
                raise self.error(node, f"{what}: {name} is missing")
        return result

    def items(self, node: yaml.Node, what: str) -> Iterator[yaml.Node]:
        """The entries of a list."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what}: expected a list")
        yield from node.value

    def text(self, node: yaml.Node, what: str) -> str:
        """A scalar as it is written."""
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise self.error(node, f"{what}: expected a text")
        return str(node.value)
