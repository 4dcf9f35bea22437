# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest returns from an RPC (optee.c: issue_rpc_cmd_free() to handle_rpc())."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.domain import Domain, ShmRpc, StdCall
from mediator_ref.events import GuestCall, Registers
from mediator_ref.limits import Limits
from mediator_ref.rules import RuleId
from mediator_ref.spec.call_return import find_shm_rpc
from mediator_ref.spec.guest_memory import GuestMemory, access_guest_memory_by_ipa, get_domain_ram_page
from mediator_ref.spec.outcome import (
    Deliver,
    Forward,
    NotObserved,
    Offer,
    PageWrite,
    Patch,
    Refuse,
    Reply,
    ReplyKind,
    Unknown,
)
from mediator_ref.spec.std_call import get_std_call, params_of
from mediator_ref.spec.translate import translate_params

_CMD, _ALLOC, _SHM_ALLOC = int(abi.RpcFunc.CMD), int(abi.RpcFunc.ALLOC), int(abi.RpcCmd.SHM_ALLOC)
_RET, _NUM_PARAMS = abi.ARG_FIELDS["ret"], abi.ARG_FIELDS["num_params"]


def issue_rpc_cmd_free(call: StdCall, rpc: ShmRpc, cookie: int) -> Deliver:
    """optee.c: issue_rpc_cmd_free(): the mediator's own request to free the buffer of a cookie."""
    high, low = abi.split(rpc.cookie)
    regs = (abi.RPC_CMD_RETURN, high, low)
    if call.rpc_buffer_type is None:
        return Deliver(regs, Unknown("the request to allocate was not observed"))
    fields = [("cmd", abi.RpcCmd.SHM_FREE), ("ret", abi.Tee.GENERIC), ("num_params", 1)]
    patches: list[Patch] = [(abi.ARG_FIELDS[name], int(number).to_bytes(4, "little")) for name, number in fields]
    value = abi.PARAM.pack(abi.Attr.VALUE_INPUT, call.rpc_buffer_type, cookie, 0)
    patches.append((abi.HEADER_SIZE, value[:24]))
    return Deliver(regs, PageWrite(rpc.ipa, patches, abi.arg_size(1)))


def handle_xen_rpc_return() -> list[tuple[str, int, int]]:
    """optee.c: handle_xen_rpc_return(): fields of the shadow OP-TEE finds, with their offsets and values."""
    return [("ret", _RET, abi.Tee.GENERIC), ("num_params", _NUM_PARAMS, 0)]


def handle_rpc_cmd_error() -> list[tuple[str, int, int]]:
    """optee.c: handle_rpc_cmd(), a reply that cannot be read: fields of the shadow, with offsets and values."""
    return [("ret", _RET, abi.Tee.GENERIC)]


def handle_rpc_cmd_alloc(domain: Domain, reply: Reply, guest: GuestMemory, limits: Limits) -> Reply:
    """optee.c: handle_rpc_cmd_alloc(), for a reply without error and with one parameter."""
    param = reply.params[0]
    if param.attr == abi.Attr.TMEM_OUTPUT and param.a:
        reply.kind = ReplyKind.HIDE_ADDRESS
    if param.attr != abi.RPC_ALLOC_ATTR or not param.a:
        return reply
    reply.translation = translate_params(domain, reply.params, guest, limits)
    if reply.translation is not None and reply.translation.refusal is not None:
        reply.kind = ReplyKind.ASK_TO_FREE
    return reply


def handle_rpc_cmd(domain: Domain, event: GuestCall, call: StdCall, limits: Limits) -> Reply:
    """optee.c: handle_rpc_cmd(). The page is that of the request, whatever the guest leaves in x1 and x2."""
    rpc = find_shm_rpc(domain, abi.pair(*call.rpc_params))
    if rpc is None:
        raise NotObserved(domain.history_unknown or "the RPC page of the request is not known")
    reply = Reply(ReplyKind.GENERIC_ERROR, rpc, resume_regs(event.regs))
    missing = "the RPC page was not observed"
    page = access_guest_memory_by_ipa(event.mem, rpc.ipa, missing, missing)
    if page is None:
        reply.reason = "the page cannot be read"
        return reply
    cmd, _, _, _, _, ret, _, num_params = abi.HEADER.unpack_from(page)
    if num_params > abi.MAX_NUM_PARAMS:
        reply.reason = f"{num_params} parameters"
        return reply
    reply.page, reply.size = page, abi.arg_size(num_params)
    if call.xen_rpc:
        reply.kind = ReplyKind.XEN_RPC_DONE
        return reply
    reply.kind = ReplyKind.COPY
    reply.renamed = call.rpc_cmd is not None and cmd != call.rpc_cmd
    requested = call.rpc_cmd if call.rpc_cmd is not None else cmd
    if requested == _SHM_ALLOC or reply.renamed:
        reply.params = params_of(page)
    if requested == _SHM_ALLOC and ret == 0 and num_params == 1:
        return handle_rpc_cmd_alloc(domain, reply, event.mem, limits)
    return reply


def allocate_and_pin_shm_rpc(domain: Domain, offer: Offer, guest: GuestMemory) -> Offer:
    """optee.c: allocate_and_pin_shm_rpc(): a cookie that is not in use, and a page that can be pinned.

    A page at address 0 that was not observed is taken for no page: that is how a guest answers that it has none.
    """
    if offer.cookie in domain.rpcs:
        offer.reason, offer.cookie_in_use = f"cookie {offer.cookie:#x} is in use", True
    elif (offer.ipa == 0 and guest.get(0) is None) or not get_domain_ram_page(
        guest, offer.ipa, "the offered page was not observed"
    ):
        offer.reason = "the page is not the domain's writable RAM"
    elif offer.cookie in domain.returned_cookies:
        offer.rule = RuleId.CACHE_1
    return offer


def handle_rpc_func_alloc(domain: Domain, event: GuestCall) -> Offer:
    """optee.c: handle_rpc_func_alloc(): the guest offers a page for requests."""
    x = event.regs
    ipa, cookie = abi.pair(x[1], x[2]), abi.pair(x[4], x[5])
    offer = Offer(RuleId.RPC_2, resume_regs(x, None, None, x[4], x[5]), ipa, cookie)
    if ipa & abi.OFFSET_MASK:
        offer.reason = f"{ipa:#x} is not the start of a page"
        return offer
    return allocate_and_pin_shm_rpc(domain, offer, event.mem)


def resume_regs(
    x: Registers, x1: int | None = 0, x2: int | None = 0, x4: int = 0, x5: int = 0
) -> tuple[int | None, ...]:
    """x0..x6 that resume a call in OP-TEE; x3, the thread, is the guest's."""
    return (abi.RETURN_FROM_RPC, x1, x2, x[3], x4, x5, 0)


def handle_rpc(domain: Domain, event: GuestCall, limits: Limits) -> Refuse | Forward | Offer | Reply:
    """optee.c: handle_rpc()."""
    thread = event.regs[3] & abi.U32
    call = get_std_call(domain, thread)
    if call is None:
        return Refuse(RuleId.RPC_5, abi.SmcReturn.ERESUME, f"thread {thread} is not suspended")
    if call.rpc_op == _ALLOC:
        return handle_rpc_func_alloc(domain, event)
    if call.rpc_op == _CMD:
        return handle_rpc_cmd(domain, event, call, limits)
    return Forward(resume_regs(event.regs, *call.rpc_params))
