# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutation operators, by family as Mull has them (mull.readthedocs.io, "Supported Mutation Operators").

An operator looks at one node of the syntax tree and names the texts that may stand there instead. What does not
compile is sorted out by the compiler (:mod:`framework.mutants.compile`), so no operator knows types.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tree_sitter import Node

from framework.mutants.mutation import Mutation
from framework.mutants.syntax import Function, Source, place_of

Replace = Callable[[Source, Node], list[str]]


@dataclass(frozen=True)
class Operator:
    """A family of changes: the ``kinds`` of nodes it looks at, and what it makes of one. ``deletes``: it removes the
    statement, and ``replace`` only says whether it does."""

    name: str
    text: str
    kinds: tuple[str, ...]
    replace: Replace
    deletes: bool = False


_QUIET = re.compile(r"^(g?d?printk|printk|ASSERT(_UNREACHABLE)?|BUILD_BUG_ON|BUG|WARN_ON)$")
"""Calls that only print or assert: their loss is no fault of a mediator, and their texts are no behaviour."""

_UNTOUCHED = re.compile(r"^(list_for_each_\w+|sizeof|offsetof|container_of|XFREE|ARM_SMCCC_\w+|xz?alloc\w*)$")
"""Macros whose arguments are names, types, places to write to or parts of a name, not values."""

_RELATIONS = {
    "<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",), "!=": ("==",),
}  # fmt: skip
_ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "%": "*"}
_BITS = {"&": ("|",), "|": ("&",), "^": ("|",), "<<": (">>",), ">>": ("<<",)}
_ASSIGNMENTS = {"+=": "-=", "-=": "+=", "&=": "|=", "|=": "&=", "^=": "|="}
_NEXT_FIELD = {"a": "b", "b": "c", "c": "a", "a0": "a1", "a1": "a2", "a2": "a3", "a3": "a1", "ret": "ret_origin",
               "tmem": "rmem", "rmem": "tmem", "buf_ptr": "size", "size": "shm_ref", "shm_ref": "size"}  # fmt: skip
"""Members of one structure that stand for each other without a compiler's word."""


def _operands(source: Source, node: Node) -> tuple[str, str, str]:
    left, operator, right = (node.child_by_field_name(name) for name in ("left", "operator", "right"))
    assert left is not None
    assert operator is not None
    assert right is not None
    return source.text(left), source.text(operator), source.text(right)


def _is_condition(node: Node) -> bool:
    """Whether a node is all of the condition of an if or a loop."""
    at = node.parent
    while at is not None and at.type == "parenthesized_expression":
        node, at = at, at.parent
    return at is not None and at.type != "switch_statement" and at.child_by_field_name("condition") == node


def _negated(source: Source, node: Node) -> list[str]:
    relation = node.type == "binary_expression" and _operands(source, node)[1] in ("==", "!=")
    negation = node.type == "unary_expression" and source.text(node).startswith("!")
    return [f"!({source.text(node)})"] if _is_condition(node) and not (relation or negation) else []


def _decided(source: Source, node: Node) -> list[str]:  # noqa: ARG001 - an operator's signature
    return ["true", "false"] if _is_condition(node) else []


def _relation(source: Source, node: Node) -> list[str]:
    left, operator, right = _operands(source, node)
    return [f"({left}) {other} ({right})" for other in _RELATIONS.get(operator, ())]


def _logic(source: Source, node: Node) -> list[str]:
    left, operator, right = _operands(source, node)
    if operator not in ("&&", "||"):
        return []
    other = "||" if operator == "&&" else "&&"
    return [f"({left}) {other} ({right})", left, right]


def _arithmetic(source: Source, node: Node) -> list[str]:
    left, operator, right = _operands(source, node)
    return [f"({left}) {_ARITHMETIC[operator]} ({right})", left] if operator in _ARITHMETIC else []


def _bits(source: Source, node: Node) -> list[str]:
    left, operator, right = _operands(source, node)
    if operator not in _BITS:
        return []
    return [*(f"({left}) {other} ({right})" for other in _BITS[operator]), left, right]


def _unary(source: Source, node: Node) -> list[str]:
    operator, argument = node.child_by_field_name("operator"), node.child_by_field_name("argument")
    assert operator is not None
    assert argument is not None
    if source.text(operator) == "!":
        return [f"!!({source.text(argument)})"]
    text = source.text(argument)
    # An error without its sign is one that the compiler's output tells from others, and callers do not.
    return [text] if source.text(operator) in ("-", "~") and not re.fullmatch(r"E[A-Z]{4,}", text) else []


def _assignment(source: Source, node: Node) -> list[str]:
    left, operator, right = _operands(source, node)
    return [f"{left} {_ASSIGNMENTS[operator]} {right}"] if operator in _ASSIGNMENTS else []


def _step(source: Source, node: Node) -> list[str]:
    text = source.text(node)
    return [text.replace("++", "--") if "++" in text else text.replace("--", "++")]


def _constant(source: Source, node: Node) -> list[str]:
    if node.type in ("true", "false"):
        return ["false" if node.type == "true" else "true"]
    text = source.text(node)
    if node.type == "identifier":
        # Which error it is decides an operator of its own: another value is returned.
        named = re.fullmatch(r"[A-Z][A-Z0-9_]+", text) and text != "NULL" and not re.fullmatch(r"E[A-Z]{4,}", text)
        return [f"({text} + 1)"] if named else []
    return ["1"] if text == "0" else [f"({text} + 1)", "0"]


def _call_value(source: Source, node: Node) -> list[str]:  # noqa: ARG001 - an operator's signature
    """A call whose value is used gives nothing instead."""
    return [] if node.parent is None or node.parent.type == "expression_statement" else ["0"]


def _returned(source: Source, node: Node) -> list[str]:
    value = next((child for child in node.named_children if child.type != "comment"), None)
    if value is None:
        return []
    text = source.text(value)
    wanted = [f"!({text})"] if text in ("true", "false") else ["0", "-EINVAL"]
    return [f"return {other};" for other in wanted if other != text]


def _statement(source: Source, node: Node) -> list[str]:
    """Whether a statement may go: calls and assignments, jumps, and a whole if."""
    if node.type == "expression_statement":
        return [""] if _called(source, node) is None or not _QUIET.match(_called(source, node) or "") else []
    if node.type == "return_statement":
        # Without the last one, a function has no end.
        return [""] if node.parent is not None and _further(node) else []
    return [""]


def _further(node: Node) -> bool:
    at: Node | None = node
    while at is not None and at.type != "function_definition":
        if at.next_named_sibling is not None:
            return True
        at = at.parent
    return False


def _called(source: Source, node: Node) -> str | None:
    """The name of the function that a statement calls; None for other statements."""
    first = next(iter(node.named_children), None)
    if first is None or first.type != "call_expression":
        return None
    function = first.child_by_field_name("function")
    return None if function is None else source.text(function)


def _jump(source: Source, node: Node) -> list[str]:
    if node.type == "break_statement":
        return ["continue;"]
    if node.type == "continue_statement":
        return ["break;"]
    return [f"goto {label};" for label in _labels(source, node) if source.text(node) != f"goto {label};"]


def _labels(source: Source, node: Node) -> list[str]:
    at: Node | None = node
    while at is not None and at.type != "function_definition":
        at = at.parent
    if at is None:
        return []
    found, todo = [], [at]
    while todo:
        here = todo.pop()
        if here.type == "labeled_statement":
            label = here.child_by_field_name("label")
            found.append("" if label is None else source.text(label))
        todo.extend(here.children)
    return sorted(filter(None, found))


def _swapped(source: Source, node: Node) -> list[str]:
    function, listed = node.child_by_field_name("function"), node.child_by_field_name("arguments")
    if function is None or listed is None:
        return []
    arguments = [source.text(child) for child in listed.named_children if child.type != "comment"]
    found = []
    for i in range(len(arguments) - 1):
        if arguments[i] != arguments[i + 1]:
            other = [*arguments[:i], arguments[i + 1], arguments[i], *arguments[i + 2 :]]
            found.append(f"{source.text(function)}({', '.join(other)})")
    return found


def _field(source: Source, node: Node) -> list[str]:
    field = node.child_by_field_name("field")
    if field is None or source.text(field) not in _NEXT_FIELD:
        return []
    return [source.text(node)[: -len(source.text(field))] + _NEXT_FIELD[source.text(field)]]


def _written_field(source: Source, node: Node) -> list[str]:
    """An assignment to a member goes to the next one."""
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    if left is None or right is None or left.type != "field_expression":
        return []
    return [f"{other} = {source.text(right)}" for other in _field(source, left)]


_STATEMENTS = (
    "expression_statement", "return_statement", "goto_statement", "break_statement", "continue_statement",
    "if_statement",
)  # fmt: skip
_CONDITIONS = ("binary_expression", "unary_expression", "call_expression", "identifier", "field_expression",
               "subscript_expression", "assignment_expression")  # fmt: skip

OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("negate-condition", "a condition is negated", _CONDITIONS, _negated),
        Operator("decide-condition", "a condition always holds, or never", _CONDITIONS, _decided),
        Operator("relation", "a comparison is another: its border moves, or it is the opposite",
                 ("binary_expression",), _relation),
        Operator("logic", "&& and || are exchanged, or one side of them goes", ("binary_expression",), _logic),
        Operator("arithmetic", "+ - * / % are exchanged, or the right side goes", ("binary_expression",), _arithmetic),
        Operator("bits", "& | ^ << >> are exchanged, or one side goes", ("binary_expression",), _bits),
        Operator("unary", "a sign or a negation goes", ("unary_expression",), _unary),
        Operator("assignment", "+= -= &= |= are exchanged", ("assignment_expression",), _assignment),
        Operator("step", "++ and -- are exchanged", ("update_expression",), _step),
        Operator("constant", "a constant is one more, or 0; true and false are exchanged",
                 ("number_literal", "identifier", "true", "false"), _constant),
        Operator("call-value", "a call whose value is used is not made, and gives 0", ("call_expression",),
                 _call_value),
        Operator("return-value", "another value is returned", ("return_statement",), _returned),
        Operator("delete", "a statement goes", _STATEMENTS, _statement, deletes=True),
        Operator("jump", "break and continue are exchanged, goto goes elsewhere",
                 ("break_statement", "continue_statement", "goto_statement"), _jump),
        Operator("swap-arguments", "two arguments beside each other are exchanged", ("call_expression",), _swapped),
        Operator("field", "another member of the same structure is read", ("field_expression",), _field),
        Operator("written-field", "another member of the same structure is written", ("assignment_expression",),
                 _written_field),
    )
}  # fmt: skip
"""All operators by name."""


def mutations_of(source: Source, operators: tuple[str, ...] = tuple(OPERATORS)) -> list[Mutation]:
    """All changes that these operators make to a source's functions, in the order of the text; equal ones once."""
    found: list[Mutation] = []
    for function in source.functions():
        seen: set[tuple[int, int, str]] = set()
        counted: Counter[tuple[str, str, str]] = Counter()
        for node in _changeable(source, function.body):
            for operator in (OPERATORS[name] for name in operators):
                if node.type not in operator.kinds:
                    continue
                for text in dict.fromkeys(operator.replace(source, node)):
                    mutation = _make(source, function, node, operator, text, counted)
                    key = (node.start_byte, node.end_byte, text if not operator.deletes else "\0")
                    if key not in seen and text != mutation.original:
                        seen.add(key)
                        found.append(mutation)
    return found


def _make(
    source: Source, function: Function, node: Node, operator: Operator, text: str,
    counted: Counter[tuple[str, str, str]],
) -> Mutation:  # fmt: skip
    if node.parent is not None and node.parent.type == "expression_statement" and not operator.deletes:
        # A macro may be a statement, which cannot stand within an expression.
        node, text = node.parent, f"{text};"
    original = source.text(node)
    key = (operator.name, original, text)
    counted[key] += 1
    return Mutation(
        operator.name, function.name, node.start_byte, node.end_byte, place_of(node), original, text,
        operator.deletes, counted[key] - 1,
    )  # fmt: skip


def _changeable(source: Source, node: Node) -> Iterator[Node]:
    """The nodes at which something else may stand: whole statements, and expressions that are values."""
    if node.type in ("comment", "sizeof_expression", "string_literal", "concatenated_string", "type_descriptor"):
        return
    if node.type == "ERROR" or any(child.is_missing for child in node.children):
        return
    if node.type == "call_expression":
        function = node.child_by_field_name("function")
        name = "" if function is None else source.text(function)
        if _QUIET.match(name) or _UNTOUCHED.match(name):
            if _QUIET.match(name):
                return
            yield node
            return
    yield node
    for child in node.children:
        if _is_place(source, node, child):
            # What is written to, or whose address is taken, is no value; an index in it would be.
            continue
        yield from _changeable(source, child)


def _is_place(source: Source, node: Node, child: Node) -> bool:
    field = next((name for name in ("left", "argument", "value", "function", "declarator", "type", "field", "label")
                  if node.child_by_field_name(name) == child), "")  # fmt: skip
    match node.type:
        case "assignment_expression":
            return field == "left"
        case "update_expression":
            return True
        case "pointer_expression":
            return source.text(node).startswith("&")
        case "field_expression":
            return field == "field"
        case "call_expression":
            return field == "function"
        case "case_statement":
            return field == "value"
        case "init_declarator":
            return field == "declarator"
        case "declaration":
            return field == "type" or child.type not in ("init_declarator",)
        case "cast_expression":
            return field == "type"
        case "goto_statement" | "labeled_statement":
            return field == "label"
        case _:
            return False
