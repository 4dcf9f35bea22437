# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's own books: faults of its book-keeping are found by their rules, and every Xen that lies here can be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from framework.common.paths import SUITE, cache_root
from framework.trace.xen_symbols import XenLayout

pytestmark = [pytest.mark.artifacts, pytest.mark.slow]

FAULTS = Path(__file__).parent / "payloads" / "books"
"""Patches of the pinned mediator; none changes what a guest or OP-TEE sees of the call that shows it."""

CASES = {
    "count-of-refused-buffer": ("limits/test_shared_memory.py::test_r3_one_cookie_one_buffer", "BOOK-1"),
    "unregistered-buffer-stays": (
        "limits/test_shared_memory.py::test_r4_registered_memory_is_used_by_reference",
        "BOOK-2",
    ),
    "refused-command-stays-in-flight": (
        "abi/test_standard_calls.py::test_r6_commands_that_are_not_mediated[6]",
        "BOOK-4",
    ),
    "rpc-pages-of-dying-domain": ("lifecycle/test_destroy.py::test_r1_destroyed_while_a_call_waits", "BOOK-5"),
    "buffer-not-pinned": ("limits/test_shared_memory.py::test_r3_one_cookie_one_buffer", "REF-1"),
    "list-page-stays-pinned": (
        "limits/test_shared_memory.py::test_r8_pages_that_are_not_the_guests_ram",
        "REF-2",
    ),
    "refused-offer-keeps-memory": ("abi/test_rpc.py::test_r3_alloc_answered_with_no_page", "HEAP-1"),
    "page-of-dying-call": ("lifecycle/test_destroy.py::test_r1_destroyed_while_a_call_waits", "HEAP-2"),
}
"""A fault, the stimulus that shows it, and the rule that has to name it."""


@pytest.mark.nightly
@pytest.mark.parametrize("fault", CASES)
def test_a_fault_of_the_books_is_named_by_its_rule(fault: str) -> None:
    """All faults are in one Xen, so that it is built and booted once."""
    test, rule = CASES[fault]
    patches = [word for patch in sorted(FAULTS.glob("*.patch")) for word in ("--mc-xen-patch", str(patch))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE / test), *patches]
    done = subprocess.run(command, cwd=SUITE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-4000:]
    assert rule in done.stdout, done.stdout[-4000:]


def test_each_fault_has_a_case() -> None:
    assert sorted(CASES) == sorted(patch.stem for patch in FAULTS.glob("*.patch"))


@pytest.mark.nightly
def test_the_books_of_every_xen_in_the_cache_can_be_read() -> None:
    found = {path.stat().st_size: path for path in sorted((cache_root() / "builds").glob("*/**/xen-syms"))}
    assert found, "no Xen was built here"
    for path in found.values():
        layout = XenLayout.load(path)
        assert not layout.tee or layout.books, f"{path}: {layout.without_books}"
