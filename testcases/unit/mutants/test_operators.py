# SPDX-License-Identifier: GPL-2.0-or-later
"""Which changes the operators make, and which places they leave alone."""

from __future__ import annotations

import pytest

from framework.common.errors import UsageError
from framework.mutants.operators import OPERATORS, mutations_of
from framework.mutants.syntax import Source


def _changes(body: str, operator: str | None = None, head: str = "static int f(struct s *p, int n)") -> set[str]:
    source = Source(f"{head}\n{{\n{body}\n}}\n".encode())
    found = mutations_of(source, tuple(OPERATORS) if operator is None else (operator,))
    return {"" if mutation.deletes else mutation.replacement for mutation in found}


@pytest.mark.parametrize(
    ("operator", "body", "wanted"),
    [
        ("negate-condition", "if ( n < 3 ) n = 1;", {"!(n < 3)"}),
        ("negate-condition", "if ( n == 3 ) n = 1;", set()),
        ("decide-condition", "while ( n ) n--;", {"true", "false"}),
        ("decide-condition", "switch ( n ) { case 1: break; }", set()),
        ("relation", "n = n < 3;", {"(n) <= (3)", "(n) >= (3)"}),
        ("logic", "n = p && n;", {"(p) || (n)", "p", "n"}),
        ("arithmetic", "n = n + 3;", {"(n) - (3)", "n"}),
        ("bits", "n = n & 3;", {"(n) | (3)", "n", "3"}),
        ("unary", "n = !n;", {"!!(n)"}),
        ("assignment", "n |= 3;", {"n &= 3;"}),
        ("step", "n++;", {"n--;"}),
        ("constant", "n = 5;", {"(5 + 1)", "0"}),
        ("constant", "n = LIMIT;", {"(LIMIT + 1)"}),
        ("constant", "n = -EINVAL;", set()),
        ("call-value", "n = get(p);", {"0"}),
        ("call-value", "get(p);", set()),
        ("return-value", "return n;", {"return 0;", "return -EINVAL;"}),
        ("return-value", "return true;", {"return !(true);"}),
        ("jump", "for ( ;; ) { break; }", {"continue;"}),
        ("jump", "goto a; a: n = 1; b: n = 2;", {"goto b;"}),
        ("swap-arguments", "put(p, n);", {"put(n, p);"}),
        ("field", "n = p->a0;", {"p->a1"}),
        ("written-field", "p->a1 = n;", {"p->a2 = n;"}),
    ],
)
def test_what_an_operator_makes(operator: str, body: str, wanted: set[str]) -> None:
    assert _changes(body, operator) == wanted


def test_statements_that_may_go() -> None:
    source = Source(b'int f(int n)\n{\n if ( n ) { put(n); return 1; }\n printk("x");\n ASSERT(n);\n return 2;\n}\n')
    gone = [mutation.original.split()[0] for mutation in mutations_of(source, ("delete",))]
    assert gone == ["if", "put(n);", "return"]


def test_places_that_are_no_values_stay() -> None:
    assert _changes('printk("%d", n + 1);') == set()
    assert _changes("BUILD_BUG_ON(n != 4096);") == set()
    assert all("sizeof" not in change for change in _changes("n = sizeof(n + 1);", "arithmetic"))
    assert _changes("p->x = n;", "call-value") == set()
    # The address of something, the target of an assignment.
    assert not any(change.startswith("(LIST") for change in _changes("put(&LIST);"))


def test_ids_are_by_content() -> None:
    one = mutations_of(Source(b"int f(int n)\n{\n return n + 1;\n}\n"))
    other = mutations_of(Source(b"/* moved */\n\nint f(int n)\n{\n return n + 1;\n}\n"))
    assert [mutation.id for mutation in one] == [mutation.id for mutation in other]
    assert len({mutation.id for mutation in one}) == len(one)


def test_a_file_without_functions() -> None:
    with pytest.raises(UsageError, match="no function"):
        mutations_of(Source(b"int x;\n"))
