# SPDX-License-Identifier: GPL-2.0-or-later
"""Requirements of the review of 2017, in a few words each; docs/requirements.md has their text."""

from __future__ import annotations

from collections.abc import Mapping

from mediator_ref.rules import RULES

REQUIREMENTS: Mapping[str, str] = {
    "R1": "a domain may end at any point, and leaves nothing behind",
    "R2": "no input of a guest crashes or hangs the hypervisor",
    "R3": "any message is forwarded well-formed or refused with a defined code",
    "R4": "calls, buffers and pages are bounded for each domain",
    "R5": "load in one domain does not delay another",
    "R6": "only functions and commands on a list reach EL3",
    "R7": "the time that the hypervisor spends on one call is bounded",
    "R8": "pages OP-TEE may touch are the domain's own and stay referenced",
    "R9": "guest memory is reached through the hypervisor's helpers",
    "R10": "a guest gets the documented result registers and no others",
    "R11": "client ids are the domain id plus one, unique, never 0",
    "R12": "a guest can resume only its own suspended calls",
    "R13": "unused ids are named constants",
    "R14": "the hypervisor works on copies, not on mapped guest pages",
    "R15": "arguments are copied with checks, and a failed copy is reported",
    "R16": "the source refuses pages that are not 4 KiB",
    "R17": "a buffer of too many pages is refused",
    "R18": "references are given back on every error and at every end",
    "R19": "the offset into the first page is preserved",
    "R20": "a domain that OP-TEE refuses is not created",
    "R21": "the end of a domain releases calls, RPC pages and buffers",
    "R22": "a guest sees no translated address and cannot change a checked message",
}
"""Requirements by id, in the order of the review."""

RULES_OF: Mapping[str, tuple[str, ...]] = {
    id_: tuple(rule.id for rule in RULES.values() if id_ in rule.requirements) for id_ in REQUIREMENTS
}
"""Rules that decide each requirement."""
