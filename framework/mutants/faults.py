# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of meaning: patches of the mediator of kinds that no operator makes, in one table.

The table (``testcases/faults/faults.yaml``) is not part of the installed package: it tests the suite, not a mediator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from framework.artifacts.source_tree import File
from framework.artifacts.xen_patch import apply_patch
from framework.artifacts.xen_source import XenSource
from framework.common import yaml_schema as y
from framework.common.errors import UsageError
from framework.common.paths import ROOT

TABLE = ROOT / "testcases" / "faults" / "faults.yaml"
KINDS = ("isolation", "lifecycle", "concurrency", "resource", "protocol")
PRESERVES = "preserves"

_FAULT = y.Table(
    {
        "id": y.Text(r"[a-z][a-z0-9-]{2,40}", "a name of lower-case letters, digits and dashes"),
        "kind": y.Choice(*KINDS, PRESERVES),
        "what": y.Text(r".{10,200}", "one sentence"),
        "expected": y.Text(r"[A-Z0-9, -]{2,80}|preserves", "rules, comma separated, or 'preserves'"),
    }
)
_SCHEMA = y.Table({"faults": y.Items(_FAULT, 1, 500)})


@dataclass(frozen=True)
class Fault:
    """One patch: the sentence ``what`` it breaks, and the rules that should see it (none: behaviour is the same)."""

    id: str
    kind: str
    what: str
    expected: tuple[str, ...]
    patch: str

    @property
    def preserves(self) -> bool:
        """Whether the mediator behaves as before with it: nothing may kill it."""
        return self.kind == PRESERVES


def load(table: Path = TABLE) -> list[Fault]:
    """Read the table and the patches beside it.

    :raises ConfigError: the table is malformed. :raises UsageError: there is none, or a patch is missing.
    """
    if not table.is_file():
        raise UsageError("there is no table of seeded faults here", where=str(table), hint="run in a checkout")
    found = []
    for row in y.load(table, _SCHEMA).values["faults"]:
        patch = table.parent / f"{row['id']}.patch"
        if not patch.is_file():
            raise UsageError(f"fault {row['id']} has no patch", where=str(patch))
        rules = () if row["expected"] == PRESERVES else tuple(word.strip() for word in row["expected"].split(","))
        found.append(Fault(row["id"], row["kind"], row["what"], rules, patch.read_text()))
    return found


def patched(source: XenSource, fault: Fault, name: str) -> bytes:
    """The content of the file ``name`` with a fault's patch.

    :raises UsageError: it does not apply to this tree.
    """
    patch = TABLE.parent / f"{fault.id}.patch"
    files = apply_patch({name: source.files[name]}, patch, File)
    data: bytes = files[name].data
    return data
