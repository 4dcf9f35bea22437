# SPDX-License-Identifier: GPL-2.0-or-later
"""How the reference is built: what may import and decide what, and that a reader finds optee.c in it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mediator_ref
from mediator_ref import DEVIATIONS, RULES, State
from mediator_ref.counterparts import COUNTERPARTS
from mediator_ref.deviations import Mismatch
from mediator_ref.deviations.deviation import Deviation
from mediator_ref.events import End
from mediator_ref.rules import DeviationId, RuleId

PACKAGE = Path(mediator_ref.__file__).parent

OPTEE_C = [
    "optee_probe",
    "optee_domain_init",
    "regpair_to_uint64",
    "uint64_to_regpair",
    "get_domain_ram_page",
    "allocate_std_call",
    "free_std_call",
    "map_xen_arg",
    "unmap_xen_arg",
    "get_std_call",
    "put_std_call",
    "allocate_and_pin_shm_rpc",
    "free_shm_rpc",
    "find_shm_rpc",
    "allocate_optee_shm_buf",
    "free_pg_list",
    "free_optee_shm_buf",
    "free_optee_shm_buf_pg_list",
    "optee_relinquish_resources",
    "get_pages_list_size",
    "translate_noncontig",
    "translate_params",
    "copy_std_request",
    "copy_std_request_back",
    "free_shm_buffers",
    "handle_rpc_return",
    "do_call_with_arg",
    "handle_std_call",
    "issue_rpc_cmd_free",
    "handle_xen_rpc_return",
    "handle_rpc_cmd_alloc",
    "handle_rpc_cmd",
    "handle_rpc_func_alloc",
    "handle_rpc",
    "handle_exchange_capabilities",
    "optee_handle_call",
]
"""Every function of xen/arch/arm/tee/optee.c (Xen 4.17), in its order."""

RENAMED = {"regpair_to_uint64", "uint64_to_regpair"}
"""Helpers that have a name of their own in the ABI."""

VERDICTS = {"ok", "fail", "unchecked", "deviation_not_seen"}

ALLOWED = {
    "abi": {"events"},
    "spec": {"abi", "domain", "events", "limits", "rules"},
    "defect_model": {"abi", "domain", "events", "limits", "rules", "spec"},
    "deviations": {"abi", "defect_model", "domain", "events", "knowledge", "rules", "spec"},
    "knowledge": {"abi", "books", "defect_model", "domain", "events", "rules", "spec"},
    "simulator": {"abi", "books", "events", "limits"},
}
"""Modules of the reference a part may import; every part of it beside itself."""

DECISIONS = {"FUNCTIONS", "Handling", "SmcFunction", "MEDIATED_CMDS", "SEC_CAPS_OFFERED", "NSEC_CAPS_FORWARDED"}
DECISIONS |= {"OPTEE_MEDIATOR_SMC_COUNT", "TMEM_TYPES", "MEMREF_OUT_TYPES", "VALUE_OUT_TYPES"}
"""Words of the ABI's tables that say what a mediator does; the mediator of the simulator decides by itself."""


def trees(part: str) -> Iterator[tuple[Path, ast.Module]]:
    folder = PACKAGE / part
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]:
        yield path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Part of the reference and name of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "mediator_ref":
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mediator_ref."):
            yield from ((node.module.split(".")[1], alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name.split(".")[1], "") for a in node.names if a.name.startswith("mediator_ref."))


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_parts_import_only_what_they_may(part: str) -> None:
    for path, tree in trees(part):
        wrong = {name for name, _ in imported(tree)} - ALLOWED[part] - {part}
        assert not wrong, f"{path.name} imports {wrong}"


def test_every_function_of_optee_c_has_a_counterpart_or_a_reason() -> None:
    assert list(COUNTERPARTS) == OPTEE_C
    for name, counterpart in COUNTERPARTS.items():
        if isinstance(counterpart, str):
            assert len(counterpart.split()) > 5, name
        elif name not in RENAMED:
            assert counterpart.__name__ == name
            assert counterpart.__module__.startswith("mediator_ref.spec.")
            assert f"optee.c: {name}()" in (counterpart.__doc__ or "")


def test_functions_of_the_specification_fit_on_a_screen() -> None:
    for path, tree in trees("spec"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 45, f"{path.name}: {node.name}"


def test_only_the_comparison_gives_verdicts() -> None:
    giving = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in VERDICTS:
                giving.add(path.relative_to(PACKAGE).parts[0])
    assert giving == {"compare"}


def test_the_specification_changes_nothing_it_is_given() -> None:
    """No assignment to, and no changing method of, a domain, a call, an event or guest memory."""
    given = {"domain", "call", "event", "guest", "rpc", "limits", "regs", "res", "shadow", "params", "param"}
    changing = {"pop", "add", "discard", "append", "clear", "update", "setdefault", "remove", "extend", "popitem"}
    for path, tree in trees("spec"):
        for node in ast.walk(tree):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AugAssign):
                targets = [node.target]
            elif isinstance(node, ast.Delete):
                targets = node.targets
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing:
                targets = [node.func]
            for target in targets:
                if isinstance(target, ast.Attribute | ast.Subscript):
                    root = ast.unparse(target).split(".")[0].split("[")[0]
                    assert root not in given, f"{path.name}:{node.lineno} changes {root}"


def test_what_was_not_observed_is_caught_in_one_place() -> None:
    catching = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and node.type is not None and "NotObserved" in ast.unparse(node.type)
    ]
    # The list of one buffer may be unknown and the rest of its message still be judged.
    assert catching == ["compare/entry.py", "spec/translate.py"]


def test_the_mediator_of_the_simulator_decides_by_itself() -> None:
    for path, tree in trees("simulator/mediator"):
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {name for _, name in imported(tree)}
        assert not names & DECISIONS, path.name


def test_a_rule_that_does_not_exist_cannot_be_counted() -> None:
    state = State()
    for give in (
        lambda: state.ok("STD-66"),  # type: ignore[arg-type]
        lambda: state.unchecked("STD-66", "a reason", End(1)),  # type: ignore[arg-type]
        lambda: state.fail("STD-66", End(1), "a reason"),  # type: ignore[arg-type]
        lambda: state.tally.passes["STD-66"],
    ):
        with pytest.raises(ValueError, match="STD-66"):
            give()
    assert not state.tally.passes


def test_mypy_refuses_a_rule_that_is_no_rule_id(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text('from mediator_ref import State\n\nState().ok("STD-66")\n')
    command = [sys.executable, "-m", "mypy", "--config-file", str(PACKAGE.parent / "pyproject.toml"), str(wrong)]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert 'incompatible type "str"; expected "RuleId"' in done.stdout, done.stdout + done.stderr


def test_tables_and_ids_are_the_same() -> None:
    assert list(RULES) == list(RuleId)
    assert list(DEVIATIONS) == list(DeviationId)
    for deviation in DEVIATIONS.values():
        assert all(isinstance(rule, RuleId) for rule in deviation.rules), deviation.id


@pytest.mark.parametrize("deviation", DEVIATIONS.values(), ids=list(DEVIATIONS))
def test_no_deviation_explains_a_mismatch_it_knows_nothing_of(deviation: Deviation) -> None:
    for rule in deviation.rules:
        if rule is not RuleId.RPC_13:  # has no other cause than D13
            assert not deviation.explains(Mismatch(rule, End(1)))
