# SPDX-License-Identifier: GPL-2.0-or-later
"""Schemata hold what they promise: with a number set, a program does what the changed source would do."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from framework.common.errors import BuildError, UsageError
from framework.mutants.compile import Compiler, drop_refused, same_code
from framework.mutants.mutation import Mutation
from framework.mutants.operators import mutations_of
from framework.mutants.schemata import Schemata, render
from framework.mutants.syntax import Source
from framework.mutants.variants import variant_of

_PROGRAM = b"""\
#include <stdbool.h>
#include <errno.h>
static int limit(int n)
{
    if ( n > 3 || n == -1 )
        return 3;
    return n;
}
int total(int n)
{
    int sum = 0, i;

    for ( i = 0; i < n; i++ )
    {
        if ( i == 2 )
            continue;
        sum += limit(i) * 2;
    }
    return sum;
}
"""
_COMPILER = ("cc", "-Werror=int-conversion", "-Werror=incompatible-pointer-types", "-std=gnu11", "-O1")


def _library(text: str, path: Path) -> ctypes.CDLL:
    path.with_suffix(".c").write_text(text)
    subprocess.run([*_COMPILER, "-w", "-shared", "-fPIC", "-o", str(path), str(path.with_suffix(".c"))], check=True)
    return ctypes.CDLL(str(path))


def _replaced(mutation: Mutation) -> str:
    after = b"" if mutation.deletes else f"({mutation.replacement})".encode()
    if mutation.replacement.endswith(";"):
        after = mutation.replacement.encode()
    return (_PROGRAM[: mutation.start] + (after or b";") + _PROGRAM[mutation.end :]).decode()


def test_each_number_is_its_mutant(tmp_path: Path) -> None:
    # Of the loop's own mutants some never end.
    mutations = {n: m for n, m in enumerate(mutations_of(Source(_PROGRAM)), start=1) if m.function == "limit"}
    assert len(mutations) > 15
    schemata = _library(render(Source(_PROGRAM), mutations).text, tmp_path / "all.so")
    switch = ctypes.c_uint.in_dll(schemata, "medcheck_mutant")
    plain = schemata.total(6)
    differing = 0
    for number in list(mutations)[2::7]:  # a compilation each
        alone = _library(_replaced(mutations[number]), tmp_path / f"{number}.so")
        switch.value = number
        assert [schemata.total(n) for n in range(8)] == [alone.total(n) for n in range(8)], mutations[number].words
        differing += schemata.total(6) != plain
    assert differing
    switch.value = 0
    assert schemata.total(6) == plain


def test_what_is_reached_leaves_a_mark(tmp_path: Path) -> None:
    mutations = dict(enumerate(mutations_of(Source(_PROGRAM)), start=1))
    schemata = _library(render(Source(_PROGRAM), mutations).text, tmp_path / "all.so")
    marks = (ctypes.c_ubyte * (len(mutations) + 1)).in_dll(schemata, "medcheck_reached")
    schemata.total(0)
    few = sum(marks)
    schemata.total(6)
    assert 0 < few < sum(marks)
    assert marks[0] == 0


def test_a_variant_is_called_by_its_number(tmp_path: Path) -> None:
    source = Source(_PROGRAM)
    changed = Source(_PROGRAM.replace(b"return 3;", b"return 1;").replace(b"* 2", b"* 3"))
    schemata = _library(render(source, {}, [variant_of(7, "x", source, changed)]).text, tmp_path / "all.so")
    alone = _library(changed.data.decode(), tmp_path / "alone.so")
    before = schemata.total(6)
    ctypes.c_uint.in_dll(schemata, "medcheck_mutant").value = 7
    assert schemata.total(6) == alone.total(6) != before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"int total(int n)", b"int total(int n, int m)", "how total is called"),
        (b"#include <stdbool.h>", b"#define X 1", "outside of functions"),
        (b"", b"", "changes nothing"),
    ],
)
def test_variants_that_cannot_be(old: bytes, new: bytes, words: str) -> None:
    changed = Source(_PROGRAM.replace(old, new, 1))
    with pytest.raises(UsageError, match=words):
        variant_of(1, "fault x", Source(_PROGRAM), changed)


_WITH_POINTERS = b"""\
#define wrap(x) (*(x) + 1)
int *here(int *p, int n);
int both(int *p, int n)
{
    int *q = here(p, n);

    return wrap(q) + n;
}
"""


def _compiler(tmp_path: Path) -> Compiler:
    return Compiler(_COMPILER, tmp_path, "x.c")


def test_the_compilers_complaints_name_the_mutants(tmp_path: Path) -> None:
    source = Source(_WITH_POINTERS)
    mutations = dict(enumerate(mutations_of(source), start=1))

    def some(numbers: set[int]) -> Schemata:
        return render(source, {n: m for n, m in mutations.items() if n in numbers})

    refused = drop_refused(_compiler(tmp_path), mutations, some)
    words = {mutations[number].words for number in refused}
    assert any("here(n, p)" in each for each in words)
    assert not any("(n) - " in each for each in words)
    left = mutations.keys() - refused.keys()
    assert left
    assert _compiler(tmp_path).refused(some(set(left)).text) == []


def test_a_source_that_is_wrong_by_itself(tmp_path: Path) -> None:
    source = Source(b"int f(int n)\n{\n    return x;\n}\n")
    with pytest.raises(BuildError, match="no mutant is to blame"):
        drop_refused(_compiler(tmp_path), [], lambda _numbers: render(source, {}))


def test_equal_code_is_found(tmp_path: Path) -> None:
    source = Source(b"int f(int n)\n{\n    return n * 2;\n}\n")
    changes = [("n * 2", "(n) + (n)"), ("n * 2", "n * 3"), ("n * 2", "3 * n")]
    at = source.data.index(b"n * 2")
    model = mutations_of(source, ("arithmetic",))[0]
    mutations = {
        number: Mutation("x", "f", at, at + 5, model.place, old, new) for number, (old, new) in enumerate(changes, 1)
    }
    compiler = _compiler(tmp_path)
    compiler.preprocess(render(source, mutations).text, tmp_path / "x.i")
    prints = {number: compiler.fingerprint(tmp_path / "x.i", number) for number in range(4)}
    assert same_code(prints) == {1: 0, 3: 2}
