"""YAML read node by node, so that every complaint about a file names its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from framework.common.errors import ConfigError

# The C parser, where PyYAML has it, reads the lock file ten times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Source:
    """One YAML file taken apart node by node; scalars stay text, so versions never become numbers."""

    def __init__(self, path: Path, hint: str | None = None) -> None:
        """``hint`` is shown with every error: what a user does about a bad file of this kind."""
        self.path = path
        self.hint = hint

    def root(self) -> yaml.Node:
        """The document's root.

        :raises ConfigError: the file cannot be read, is not YAML, or is empty.
        """
        try:
            node = yaml.compose(self.path.read_text(encoding="utf-8"), Loader=_LOADER)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", where=str(self.path), hint=self.hint) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"not UTF-8: {error.reason}", where=str(self.path), hint=self.hint) from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            text = f"not valid YAML: {error.problem}"
            raise ConfigError(text, where=f"{self.path}:{line}", hint=self.hint) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"not valid YAML: {error}", where=f"{self.path}:1", hint=self.hint) from error
        if node is None:
            raise ConfigError("the file is empty", where=f"{self.path}:1", hint=self.hint)
        return node

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
