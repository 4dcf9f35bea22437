# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants that no test can kill, by reasons that were written down (``testcases/faults/equivalents.yaml``)."""

from __future__ import annotations

from pathlib import Path

from framework.common import yaml_schema as y
from framework.mutants.faults import TABLE

REASONS = TABLE.with_name("equivalents.yaml")

_SCHEMA = y.Table(
    {
        "equivalents": y.Items(
            y.Table(
                {
                    "ids": y.Items(y.Text(r"[0-9a-f]{10}", "a mutant's id"), 1, 100),
                    "reason": y.Text(r"(?s).{20,500}", "one or two sentences"),
                }
            ),
            0,
            1000,
        )
    }
)


def reasons(path: Path = REASONS) -> dict[str, str]:
    """The reason for each mutant, by its id; empty without such a file.

    :raises ConfigError: the file is malformed.
    """
    if not path.is_file():
        return {}
    rows = y.load(path, _SCHEMA).values["equivalents"]
    return {identity: " ".join(row["reason"].split()) for row in rows for identity in row["ids"]}
