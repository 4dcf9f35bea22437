# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard calls up to OP-TEE (optee.c: allocate_std_call(), get_std_call(), copy_std_request(), handle_std_call())."""

from __future__ import annotations

from itertools import starmap

from mediator_ref import abi
from mediator_ref.domain import Domain, StdCall
from mediator_ref.events import GuestCall, Registers
from mediator_ref.limits import Limits
from mediator_ref.rules import RuleId
from mediator_ref.spec.guest_memory import GuestMemory, access_guest_memory_by_ipa
from mediator_ref.spec.outcome import Forward, Refuse, Request
from mediator_ref.spec.translate import translate_params

_NUM_PARAMS = abi.ARG_FIELDS["num_params"]
_OK = int(abi.SmcReturn.OK)

CALL_WITH_ARG_REGS: tuple[int | None, ...] = (abi.CALL_WITH_ARG, None, None, abi.SHM_CACHED, 0, 0, 0)
"""x0..x6 of a standard call at EL3: x1:x2 is the shadow argument, always cached."""


def params_of(page: bytes) -> list[abi.Param]:
    """Decode the parameters of a message; those beyond the page are left out."""
    count = min(abi.U32_AT.unpack_from(page, _NUM_PARAMS)[0], abi.MAX_NUM_PARAMS)
    return list(starmap(abi.Param, abi.PARAM.iter_unpack(page[abi.HEADER_SIZE : abi.arg_size(count)])))


def allocate_std_call(domain: Domain, threads: int | None) -> Refuse | None:
    """optee.c: allocate_std_call(): at most as many calls as OP-TEE has threads, ``None`` when that is not known."""
    if threads is not None and domain.call_count >= threads:
        return Refuse(RuleId.STD_1, abi.SmcReturn.ETHREAD_LIMIT, f"{domain.call_count} calls are running")
    return None


def get_std_call(domain: Domain, thread: int) -> StdCall | None:
    """optee.c: get_std_call(): the suspended call of a thread; one in flight cannot be resumed."""
    return domain.calls.get(thread)


def copy_std_request(regs: Registers, guest: GuestMemory) -> Request | Refuse:
    """optee.c: copy_std_request(): read the argument page, once."""
    ipa = abi.pair(regs[1], regs[2])
    if ipa & abi.OFFSET_MASK:
        return Refuse(RuleId.STD_2, abi.SmcReturn.EBADADDR, f"{ipa:#x} is not the start of a page")
    page = access_guest_memory_by_ipa(
        guest,
        ipa,
        "the argument page was not observed",
        "the content of the argument page was not observed",
    )
    if page is None:
        return Refuse(RuleId.STD_2, abi.SmcReturn.EBADADDR, f"{ipa:#x} is not RAM of the domain")
    header = abi.HEADER.unpack_from(page)
    return Request(page, guest[ipa].kind, header[0], header[7])


def handle_std_call(domain: Domain, event: GuestCall, limits: Limits, threads: int | None) -> Refuse | Forward:
    """optee.c: handle_std_call()."""
    refuse = allocate_std_call(domain, threads)
    if refuse is not None:
        return refuse
    request = copy_std_request(event.regs, event.mem)
    if isinstance(request, Refuse):
        return request
    if request.num_params > abi.MAX_NUM_PARAMS:
        reason = f"{request.num_params} parameters"
        return Refuse(RuleId.STD_3, _OK, reason, abi.Tee.BAD_PARAMETERS, request)
    if request.cmd not in abi.MEDIATED_CMDS:
        return Refuse(RuleId.STD_4, abi.SmcReturn.EBADCMD, f"command {request.cmd}", None, request)
    translation = None
    if request.num_params:
        request.params = params_of(request.page)
        translation = translate_params(domain, request.params, event.mem, limits)
    if translation is not None and translation.refusal is not None:
        refusal = translation.refusal
        return Refuse(refusal.rule, _OK, refusal.reason, refusal.ret, request, translation)
    return Forward(CALL_WITH_ARG_REGS, request, translation)
