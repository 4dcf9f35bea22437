# SPDX-License-Identifier: GPL-2.0-or-later
"""Baselines: the known deviations that a user accepts for now, each with a reason and an end.

::

    deviations:
      - id: D8
        reason: fixed upstream, not in our release yet
        versions: ["4.17", "4.18"]     # Xen versions by their beginning; all, if left out
        expires: 2027-06-30

What is seen and does not stand here is a failure; what stands here, whose condition was met and which was not seen, has
vanished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from framework.common import yaml_schema
from framework.common.yaml_schema import Date, Items, Table, Text, optional
from mediator_ref import DEVIATIONS

_WORDS = r"(?s).*\S.*"
_SCHEMA = Table(
    {
        "deviations": Items(
            Table(
                {
                    "id": Text(r"[A-Z]+[0-9]+", "the id of a known deviation, such as D8"),
                    "reason": Text(_WORDS, "a reason in words"),
                    "versions": optional(Items(Text(_WORDS, "the beginning of a version, such as '4.17'"), 1), ()),
                    "expires": Date(),
                }
            )
        )
    }
)


@dataclass(frozen=True)
class Waiver:
    """One accepted deviation: for ``versions`` (by their beginning; empty: all), up to and including ``expires``."""

    id: str
    reason: str
    versions: tuple[str, ...]
    expires: date


@dataclass(frozen=True)
class Baseline:
    """Accepted deviations, by id."""

    waivers: Mapping[str, Waiver]

    def waived(self, version: str | None) -> frozenset[str]:
        """Ids that are accepted for this version of the mediator; one that is not known has those without versions."""
        return frozenset(
            id_
            for id_, waiver in self.waivers.items()
            if not waiver.versions or (version is not None and version.startswith(waiver.versions))
        )


def load_baseline(path: Path, today: date | None = None) -> Baseline:
    """Read a baseline file.

    Raises ConfigError (``where`` is ``file:line``) for unknown ids, wrong types, ids that stand there twice, a waiver
    without a reason, and one that has expired.
    """
    today = today or datetime.now(UTC).date()
    document = yaml_schema.load(path, _SCHEMA)
    waivers: dict[str, Waiver] = {}
    for number, entry in enumerate(document.values["deviations"]):
        waiver = Waiver(entry["id"], entry["reason"].strip(), entry["versions"], entry["expires"])
        at = ("deviations", number)
        if waiver.id not in DEVIATIONS:
            raise document.error(f"no known deviation {waiver.id}", *at, "id", hint="`medcheck explain` lists them")
        if waiver.id in waivers:
            raise document.error(f"{waiver.id} stands here twice", *at, "id")
        if waiver.expires < today:
            hint = "check whether its reason still holds: then prolong it, else remove it"
            raise document.error(f"the waiver of {waiver.id} expired on {waiver.expires}", *at, "expires", hint=hint)
        waivers[waiver.id] = waiver
    return Baseline(waivers)
