# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: what one run exercises (``images/profiles.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from framework.common.paths import IMAGES
from framework.common.yaml_source import Source


@dataclass(frozen=True)
class Profile:
    """One choice of xtest cases and stimuli. ``cases`` None means the whole suite; ``tests`` are pytest's arguments
    that choose from the suite, none for no tests; ``senses`` are those of :func:`framework.trace.senses.chosen`;
    ``dom0`` are the cases that dom0 runs meanwhile, none for none."""

    name: str
    cases: tuple[str, ...] | None
    tests: tuple[str, ...] = ()
    senses: str | None = None
    dom0: tuple[str, ...] = ()


def profiles(path: Path | None = None) -> dict[str, Profile]:
    """All profiles of ``images/profiles.yaml``, or of ``path``. Raises ConfigError, whatever is wrong with it."""
    source = Source(path or IMAGES / "profiles.yaml")
    result: dict[str, Profile] = {}
    for name, node in source.mapping(source.root(), "the profiles").items():
        entry = source.record(node, f"profile {name}", ("cases",), ("tests", "senses", "dom0"))
        everything = isinstance(entry["cases"], yaml.ScalarNode) and entry["cases"].value == "all"
        cases = None if everything else _words(source, entry["cases"], f"profile {name}: cases")
        tests = _words(source, entry["tests"], f"profile {name}: tests") if "tests" in entry else ()
        senses = source.text(entry["senses"], f"profile {name}: senses") if "senses" in entry else None
        result[name] = Profile(name, cases, tests, senses)
        if "dom0" in entry:
            result[name] = replace(result[name], dom0=_of_profile(source, entry["dom0"], result))
    return result


def _of_profile(source: Source, node: yaml.Node, known: Mapping[str, Profile]) -> tuple[str, ...]:
    """The cases of the profile that ``node`` names: the same or one that stands before it."""
    name = source.text(node, "dom0")
    cases = known[name].cases if name in known else None
    if cases is None:
        raise source.error(node, f"dom0: '{name}' is no profile up to here that lists its cases")
    return cases


def _words(source: Source, node: yaml.Node, what: str) -> tuple[str, ...]:
    return tuple(source.text(item, what) for item in source.items(node, what))
