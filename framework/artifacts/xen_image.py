# SPDX-License-Identifier: GPL-2.0-or-later
"""What a Xen image says about itself: its release, the mediators it has, and the options it knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from framework.common.errors import InfrastructureError

_RELEASE = re.compile(rb"xen,xen-(\d+\.\d+)\0")
"""What dom0's device tree will call the hypervisor (make_hypervisor_node in xen/arch/arm/domain_build.c)."""
_ANY_MEDIATOR = b"Using TEE mediator for"
"""What a Xen with any mediator carries (xen/arch/arm/tee/tee.c); its console shows it at boot."""
_MEDIATORS = {"OP-TEE": b"OP-TEE\0", "FF-A": b"FF-A\0"}
_KNOWS_TEE = b"selected from command line"


@dataclass(frozen=True)
class XenImage:
    """One image: ``release`` such as ``4.17`` (None: it does not say), the names of its ``mediators``, and whether it
    ``knows_tee``, the option ``tee=`` that chooses among them."""

    release: str | None
    mediators: tuple[str, ...]
    knows_tee: bool

    @classmethod
    def read(cls, path: Path) -> XenImage:
        """Look into an image.

        :raises InfrastructureError: it has no mediator, or only FF-A's.
        """
        data = path.read_bytes()
        hint = "build it with CONFIG_EXPERT=y CONFIG_UNSUPPORTED=y CONFIG_TEE=y CONFIG_OPTEE=y"
        if _ANY_MEDIATOR not in data:
            raise InfrastructureError("this Xen was built without a TEE mediator", where=str(path), hint=hint)
        mediators = tuple(name for name, mark in _MEDIATORS.items() if mark in data)
        if "OP-TEE" not in mediators:
            what = f"this Xen has a mediator for {' and '.join(mediators) or 'another TEE'}, but none for OP-TEE"
            raise InfrastructureError(what, where=str(path), hint=hint)
        match = _RELEASE.search(data)
        return cls(match[1].decode() if match else None, mediators, _KNOWS_TEE in data)


def arguments_for(image: Path) -> str:
    """What Xen's command line needs, unless the user chose a mediator: with FF-A's built in, that would win."""
    return "tee=optee" if _KNOWS_TEE in image.read_bytes() else ""


def unchecked(symbols: Path | None) -> str | None:
    """Why the calls of a board with these symbols of Xen cannot be checked; None if they can."""
    lost = "calls are recorded, but nothing tells which domain made them, so no rule can be checked"
    if symbols is None:
        return f"no xen-syms was given: {lost}"
    try:
        with symbols.open("rb") as stream:
            elf = ELFFile(stream)
            missing = [name for name in (".symtab", ".debug_info") if elf.get_section_by_name(name) is None]
    except (ELFError, OSError) as error:
        return f"{symbols} cannot be read as ELF ({error}): {lost}"
    if ".symtab" in missing:
        return f"{symbols} was stripped of its symbols: {lost}"
    if missing:
        return f"{symbols} has no DWARF (CONFIG_DEBUG_INFO=y makes it): {lost}"
    return None
