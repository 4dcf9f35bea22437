"""The guest returns from an RPC and the call is resumed (Xen ``handle_rpc``)."""

from __future__ import annotations

from dataclasses import dataclass

from mediator_ref import abi
from mediator_ref.calls import own_page
from mediator_ref.check import check_client_id, check_el3_regs, check_guest_page, check_guest_regs
from mediator_ref.events import El3Call, GuestReturn
from mediator_ref.memory import usable
from mediator_ref.reply import Reply, check_reply, read_reply, refused_reply
from mediator_ref.state import FOLLOWS, Call, Pending, ShmRpc, State, uncertain
from mediator_ref.verdict import Difference

_CMD, _ALLOC = int(abi.RpcFunc.CMD), int(abi.RpcFunc.ALLOC)


@dataclass(frozen=True, slots=True)
class _Offer:
    """An RPC page the guest offers; ``fit`` is ``None`` when that was not observed."""

    ipa: int
    cookie: int
    mfn: int | None
    fit: bool | None
    reason: str


def resumed(state: State, p: Pending, event: El3Call) -> None:
    """RETURN_FROM_RPC reached EL3."""
    domain = p.domain
    check_client_id(state, p, event)
    thread = p.event.regs[3] & abi.U32
    call = domain.calls.pop(thread, None)
    if call is None:
        why = uncertain(p)
        if why:  # the call began before anybody watched; from OP-TEE's next answer on it is known
            state.unchecked("RPC-5", why, event)
            p.call = domain.running[p.event.vcpu] = Call(p.event.seq, None, None)
            return
        state.fail("RPC-5", event, f"thread {thread} is not suspended, and the call reached OP-TEE", cause=p.event)
        p.tainted = FOLLOWS
        return
    p.call = domain.running[p.event.vcpu] = call
    call.lost = False
    if call.tainted:
        state.unchecked("RPC-6", call.tainted, event)
    elif call.rpc_op == _CMD:
        _replied(state, p, event, call)
    elif call.rpc_op == _ALLOC:
        _offered(state, p, event, call)
    else:
        check_el3_regs(state, p, event, "RPC-6", _due(p, event, *call.rpc_args))


def _due(p: Pending, event: El3Call, x1: int, x2: int, x4: int = 0, x5: int = 0) -> tuple[int, ...]:
    """Registers of a resumed call. Of x3, the thread, 32 bits count."""
    x3 = p.event.regs[3]
    if not (event.regs[3] ^ x3) & abi.U32:
        x3 = event.regs[3]
    return (abi.RETURN_FROM_RPC, x1, x2, x3, x4, x5, 0)


def _offer(p: Pending) -> _Offer:
    x = p.event.regs
    ipa, cookie = abi.pair(x[1], x[2]), abi.pair(x[4], x[5])
    view = p.event.mem.get(ipa & ~abi.OFFSET_MASK)
    mfn = view.mfn if view is not None else None
    if ipa & abi.OFFSET_MASK:
        return _Offer(ipa, cookie, mfn, False, f"{ipa:#x} is not the start of a page")
    if cookie in p.domain.rpcs:
        return _Offer(ipa, cookie, mfn, False, f"cookie {cookie:#x} is in use")
    fit = usable(view)
    if ipa == 0 and view is None:
        fit = False
    return _Offer(ipa, cookie, mfn, fit, "" if fit else "the page is not the domain's writable RAM")


def _offered(state: State, p: Pending, event: El3Call, call: Call) -> None:
    """RPC-2: the guest offers a page for requests, OP-TEE gets a shadow of it or nothing."""
    offer = _offer(p)
    ma = abi.pair(event.regs[1], event.regs[2])
    x4, x5 = p.event.regs[4], p.event.regs[5]
    call.turned_down = None if ma else offer.cookie
    rule = "RPC-2"
    if offer.fit and offer.cookie in p.domain.returned_cookies:
        rule = "CACHE-1"
    if not check_el3_regs(state, p, event, "RPC-6", _due(p, event, event.regs[1], event.regs[2], x4, x5)):
        call.tainted = FOLLOWS
    if ma:
        if offer.fit is False:
            why = uncertain(p) if "cookie" in offer.reason else ""
            if why:
                state.unchecked(rule, why, event)
            else:
                state.fail(
                    rule,
                    event,
                    f"a shadow page although {offer.reason}",
                    Difference("x1:x2", "0", f"{ma:#x}"),
                    deviation="D13" if offer.cookie in p.domain.lost_rpcs else None,
                    cause=p.event,
                )
        elif offer.fit is None:
            state.unchecked(rule, "the offered page was not observed", event)
        elif ma & abi.OFFSET_MASK:
            state.fail(rule, event, "not a shadow page", Difference("x1:x2", "a page", f"{ma:#x}"), cause=p.event)
        elif ma >> 12 in {view.mfn for view in p.event.mem.values()} or ma == offer.ipa:
            state.fail(
                rule,
                event,
                "the guest's own page instead of a shadow",
                Difference("x1:x2", "a page of the hypervisor", f"{ma:#x}"),
                cause=p.event,
            )
        else:
            state.ok(rule)
            own_page(state, p, event, ma)
        p.domain.returned_cookies.discard(offer.cookie)
        if offer.cookie in p.domain.lost_rpcs:
            p.domain.lost_rpcs.discard(offer.cookie)
            p.domain.doubled_rpcs.add(offer.cookie)
        replaced = p.domain.rpcs.get(offer.cookie)
        if replaced is not None:
            state.drop_shadow(replaced.ma)
        p.domain.rpcs[offer.cookie] = ShmRpc(offer.cookie, offer.ipa, offer.mfn, ma, event.shadow.get(ma))
    elif offer.fit is False:
        state.ok(rule)
    elif offer.fit is None:
        state.unchecked(rule, "the offered page was not observed", event)
    elif uncertain(p):
        state.unchecked(rule, uncertain(p), event)
    else:
        state.fail(
            rule,
            event,
            "a good page was turned down",
            Difference("x1:x2", "a shadow page", "0"),
            cause=p.event,
        )


def _replied(state: State, p: Pending, event: El3Call, call: Call) -> None:
    """The guest answered a request; OP-TEE finds the answer in the shadow."""
    check_el3_regs(state, p, event, "RPC-6", _due(p, event, 0, 0))
    reply = read_reply(state, p, call)
    if reply.rpc is None:
        state.unchecked("RPC-4", reply.unknown, event)
        call.tainted = ""
        return
    check_reply(state, p, event, call, reply)


# Answered without EL3


def refused(state: State, p: Pending, event: GuestReturn) -> None:
    """RETURN_FROM_RPC was answered without EL3: there is nothing to resume, or the mediator asks to free a buffer."""
    thread = p.event.regs[3] & abi.U32
    call = p.domain.calls.get(thread)
    if call is None:
        if event.regs[0] != abi.SmcReturn.ERESUME and uncertain(p):
            state.unchecked("RPC-5", uncertain(p), event)
        else:
            check_guest_regs(state, p, event, "RPC-5", {0: abi.SmcReturn.ERESUME})
        return
    if call.tainted:
        state.unchecked("RPC-6", call.tainted, event)
        return
    if event.regs[0] & abi.U32 == abi.RPC_CMD_RETURN and call.rpc_op == abi.RpcFunc.CMD:
        reply = read_reply(state, p, call)
        _asked_to_free(state, p, event, call, reply)
    elif event.regs[:4] == p.event.regs[:4] and call.rpc_op == abi.RpcFunc.CMD:
        given = abi.pair(p.event.regs[1], p.event.regs[2])
        gone = given in p.domain.lost_rpcs or given in p.domain.doubled_rpcs
        unknown = given != abi.pair(*call.rpc_args) and given not in p.domain.rpcs
        state.fail(
            "RPC-13" if gone else "RPC-7",
            event,
            "the call was neither resumed nor refused",
            Difference("x0", "a call at EL3", f"{event.regs[0]:#x}"),
            deviation="D13" if gone else "D4" if unknown else None,
            cause=p.event,
        )
        del p.domain.calls[thread]
        p.domain.lost_calls += 1
    elif uncertain(p):
        state.unchecked("RPC-6", uncertain(p), event)
    else:
        state.fail(
            "RPC-6",
            event,
            "a suspended call was not resumed",
            Difference("x0", "a call at EL3", f"{event.regs[0]:#x}"),
            cause=p.event,
        )


def _asked_to_free(state: State, p: Pending, event: GuestReturn, call: Call, reply: Reply) -> None:
    """RPC-9: the mediator's own request."""
    call.asked_to_free = True
    if reply.unknown or reply.rpc is None:
        state.unchecked("RPC-9", reply.unknown, event)
        return
    refused_reply(p, reply)
    if reply.refusal is None and not reply.plain_address:
        _asked_without_need(state, p, event, call, reply)
        return
    cookie = reply.params[0].c
    high, low = abi.split(reply.rpc.cookie)
    check_guest_regs(state, p, event, "RPC-9", {0: abi.RPC_CMD_RETURN, 1: high, 2: low})
    value = abi.PARAM.pack(abi.Attr.VALUE_INPUT, call.rpc_type or 0, cookie, 0)
    fields = [("cmd", abi.RpcCmd.SHM_FREE), ("ret", abi.Tee.GENERIC), ("num_params", 1)]
    patches = [(abi.ARG_FIELDS[name], int(number).to_bytes(4, "little")) for name, number in fields]
    if call.rpc_type is None:
        state.unchecked("RPC-9", "the request to allocate was not observed", event)
        return
    patches.append((abi.HEADER_SIZE, value[:24]))
    check_guest_page(state, p, event, "RPC-9", reply.rpc.ipa, patches, abi.arg_size(1))


def _asked_without_need(state: State, p: Pending, event: GuestReturn, call: Call, reply: Reply) -> None:
    """The mediator turned a buffer down that breaks nothing."""
    call.asked_to_free = True
    why = uncertain(p)
    if reply.known is not None and reply.known.error:
        state.fail(
            reply.known_rule,
            event,
            f"turned down: {reply.known.reason}, for a mediator that leaks",
            deviation=reply.known_deviation,
            cause=p.event,
        )
    elif why:
        state.unchecked("MEM-1", why, event)
    elif reply.renamed:
        state.fail(
            "RPC-4",
            event,
            "a reply to another request was taken for one to SHM_ALLOC",
            deviation="D11",
            cause=p.event,
        )
    else:
        state.fail("MEM-1", event, "a buffer was turned down without a reason", cause=p.event)
