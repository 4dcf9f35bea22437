# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory hypercalls of a probe: balloon pages out and in, grant them, map grants.

Structures and numbers: Xen's public headers ``memory.h`` and ``grant_table.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from framework.common.errors import GuestError
from framework.probe.client import Probe
from framework.probe.ops import Hypercall, Op, Read, Write
from mediator_ref.events import PAGE_SIZE

_MEMORY_OP, _GRANT_OP = 12, 20
_DECREASE_RESERVATION, _POPULATE_PHYSMAP, _ADD_TO_PHYSMAP = 1, 6, 7
_SPACE_GRANT_TABLE = 1
_MAP_GRANT, _UNMAP_GRANT = 0, 1
_HOST_MAP, _READONLY = 2, 4
_PERMIT, _PERMIT_READONLY = 1, 5
_DOMID_SELF = 0x7FF0
_TABLE = 0x38000000
"""Address at which the probe maps its grant table: in the region that Xen sets aside for it."""
_FIRST_REF = 16
"""The first references belong to the toolstack (console, xenstore)."""
_RESERVATION = struct.Struct("<QQIIH6x")
_PHYSMAP = struct.Struct("<HHIQQ")
_MAP = struct.Struct("<QIIHhIQ")
_UNMAP = struct.Struct("<QQIh2x")

FREE_SPACE = 0x80000000
"""IPAs from here on hold nothing: room to map something at."""


def _reservation(scratch: int, ipa: int, command: int) -> list[Op]:
    """Instructions for a reservation of one page; ``scratch`` is a page for the structures."""
    frame = struct.pack("<Q", ipa // PAGE_SIZE)
    request = _RESERVATION.pack(scratch + 128, 1, 0, 0, _DOMID_SELF)
    return [
        Write(scratch, request),
        Write(scratch + 128, frame),
        Hypercall(_MEMORY_OP, (command, scratch)),
    ]


def balloon_out_ops(scratch: int, ipa: int) -> list[Op]:
    """Instructions that give a page back to Xen (XENMEM_decrease_reservation); the last one's x0 is 1 then."""
    return _reservation(scratch, ipa, _DECREASE_RESERVATION)


def balloon_in_ops(scratch: int, ipa: int) -> list[Op]:
    """Instructions that get a page of RAM where nothing is (XENMEM_populate_physmap); the last one's x0 is 1 then."""
    return _reservation(scratch, ipa, _POPULATE_PHYSMAP)


def balloon_out(probe: Probe, ipa: int) -> None:
    """Give a page back to Xen: nothing is at ``ipa`` afterwards."""
    _one(probe, probe.run(*balloon_out_ops(probe.pages(1), ipa))[-1].x0, f"giving back {ipa:#x}")


def balloon_in(probe: Probe, ipa: int) -> None:
    """Get a page of RAM at ``ipa``, where nothing is (XENMEM_populate_physmap)."""
    _one(probe, probe.run(*balloon_in_ops(probe.pages(1), ipa))[-1].x0, f"filling {ipa:#x}")


@dataclass(frozen=True)
class Grant:
    """A page of ``domid`` that another domain may map: its reference in the grant table."""

    domid: int
    ref: int


@dataclass(frozen=True)
class Mapping:
    """A granted page, mapped at ``ipa``."""

    ipa: int
    handle: int


def grant(probe: Probe, ipa: int, to: int, *, index: int = 0, readonly: bool = False) -> Grant:
    """Let domain ``to`` map the page at ``ipa``. ``index`` tells a probe's grants apart."""
    if probe.domid is None:
        raise GuestError("a probe whose domid is not known cannot grant", where=probe.name)
    scratch = probe.pages(1)
    place = _PHYSMAP.pack(_DOMID_SELF, 0, _SPACE_GRANT_TABLE, 0, _TABLE // PAGE_SIZE)
    probe.write(scratch, place)
    _zero(probe, probe.hypercall(_MEMORY_OP, _ADD_TO_PHYSMAP, scratch), "mapping the grant table")
    ref = _FIRST_REF + index
    flags = _PERMIT_READONLY if readonly else _PERMIT
    probe.write(_TABLE + 8 * ref, struct.pack("<HHI", flags, to, ipa // PAGE_SIZE))
    return Grant(probe.domid, ref)


def map_grant(probe: Probe, given: Grant, ipa: int, *, readonly: bool = False) -> Mapping:
    """Map another domain's granted page at ``ipa``."""
    scratch = probe.pages(1)
    flags = _HOST_MAP | (_READONLY if readonly else 0)
    request = Write(scratch, _MAP.pack(ipa, flags, given.ref, given.domid, 0, 0, 0))
    call = Hypercall(_GRANT_OP, (_MAP_GRANT, scratch, 1))
    _, answer = probe.run(request, call, Read(scratch, _MAP.size))
    _, _, _, _, status, handle, _ = _MAP.unpack(answer.data)
    _zero(probe, status, f"mapping grant {given.ref} of domain {given.domid}")
    return Mapping(ipa, handle)


def unmap_grant(probe: Probe, mapping: Mapping) -> None:
    """Undo :func:`map_grant`."""
    scratch = probe.pages(1)
    request = Write(scratch, _UNMAP.pack(mapping.ipa, 0, mapping.handle, 0))
    call = Hypercall(_GRANT_OP, (_UNMAP_GRANT, scratch, 1))
    _, answer = probe.run(request, call, Read(scratch, _UNMAP.size))
    _zero(probe, _UNMAP.unpack(answer.data)[3], f"unmapping handle {mapping.handle}")


def _one(probe: Probe, done: int, what: str) -> None:
    if done != 1:
        raise GuestError(f"{what}: Xen answered {done:#x}", where=probe.name)


def _zero(probe: Probe, status: int, what: str) -> None:
    if status != 0:
        raise GuestError(f"{what}: Xen answered {status}", where=probe.name)
