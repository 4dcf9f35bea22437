# SPDX-License-Identifier: GPL-2.0-or-later
"""The syntax tree of a C file, as far as mutation needs it.

The file is read before the preprocessor: a macro's use looks like a call. Source: tree-sitter with its C grammar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from framework.common.errors import UsageError
from framework.mutants.mutation import Place

try:
    import tree_sitter_c
    from tree_sitter import Language, Node, Parser
except ImportError as error:
    raise UsageError(f"mutants need the parser tree-sitter: {error}", hint="pip install 'medcheck[mutants]'") from error

_LANGUAGE = Language(tree_sitter_c.language())


@dataclass(frozen=True)
class Function:
    """A function's definition. ``head`` is its text before the body, ``returns`` whether it returns a value."""

    name: str
    node: Node
    body: Node
    head: str
    name_at: int
    returns: bool
    parameters: tuple[str, ...]
    text: str


class Source:
    """A C file's bytes and tree."""

    def __init__(self, data: bytes, name: str = "optee.c") -> None:
        self.data = data
        self.name = name
        self.root = Parser(_LANGUAGE).parse(data).root_node

    def text(self, node: Node) -> str:
        """The source text of a node."""
        return self.data[node.start_byte : node.end_byte].decode(errors="replace")

    def functions(self) -> list[Function]:
        """All functions that are defined here, in their order.

        :raises UsageError: there is none.
        """
        found = [
            self._function(node) for node in self.root.children
            if node.type == "function_definition" and _declarator(node) is not None
        ]  # fmt: skip
        if not found:
            raise UsageError(f"{self.name} has no function to change", hint="is it the mediator's source?")
        return found

    def _function(self, node: Node) -> Function:
        declarator, body = _declarator(node), node.child_by_field_name("body")
        assert declarator is not None
        assert body is not None
        name = declarator.child_by_field_name("declarator")
        listed = declarator.child_by_field_name("parameters")
        kind = node.child_by_field_name("type")
        assert name is not None
        assert listed is not None
        assert kind is not None
        pointer = any(child.type == "pointer_declarator" for child in node.children)
        names = [self._parameter_name(child) for child in listed.named_children if child.type != "comment"]
        return Function(
            name=self.text(name),
            node=node,
            body=body,
            head=self.data[node.start_byte : body.start_byte].decode(errors="replace"),
            name_at=name.start_byte - node.start_byte,
            returns=pointer or self.text(kind) != "void",
            parameters=tuple(filter(None, names)),
            text=self.text(node),
        )

    def _parameter_name(self, node: Node) -> str:
        at: Node | None = node.child_by_field_name("declarator")
        while at is not None and at.type != "identifier":
            at = at.child_by_field_name("declarator")
        return "" if at is None else self.text(at)


def _declarator(node: Node) -> Node | None:
    at = node.child_by_field_name("declarator")
    while at is not None and at.type == "pointer_declarator":
        at = at.child_by_field_name("declarator")
    return at if at is not None and at.type == "function_declarator" else None


def place_of(node: Node) -> Place:
    """Where a node stands."""
    begin, end = node.start_point, node.end_point
    return Place(begin.row + 1, begin.column + 1, end.row + 1, end.column + 1)


def walk(node: Node) -> Iterator[Node]:
    """A node and all below it, in the order of the text."""
    yield node
    for child in node.children:
        yield from walk(child)
