"""What a guest's answer to a request has to become in the shadow (Xen ``handle_rpc_cmd``, ``handle_rpc_cmd_alloc``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.calls import STATEFUL, check_translated, params_of
from mediator_ref.check import page_differences, patched
from mediator_ref.events import El3Call, PageKind
from mediator_ref.ledger import attributed, commit, commit_refused
from mediator_ref.memory import Translation, page_count, translate
from mediator_ref.state import Call, Pending, ShmRpc, State, uncertain
from mediator_ref.verdict import Difference

_RET, _NUM = abi.ARG_FIELDS["ret"], abi.ARG_FIELDS["num_params"]
_POINTER = abi.HEADER_SIZE + 8


@dataclass(slots=True)
class Reply:
    """A guest's reply, read. ``refusal``: why its buffer cannot be shared; ``generic``: why OP-TEE gets an error.

    ``plain_address``: it carries an address nobody translates. ``renamed``: its cmd is not that of the request;
    ``misleading``: and that would decide whether its address is translated.
    """

    rpc: ShmRpc | None = None
    page: bytes = b""
    size: int = 0
    params: list[abi.Param] = field(default_factory=list)
    generic: str = ""
    refusal: Translation | None = None
    translation: Translation | None = None
    known: Translation | None = None
    known_rule: str = ""
    known_deviation: str | None = None
    plain_address: bool = False
    renamed: bool = False
    misleading: bool = False
    unknown: str = ""


def read_reply(state: State, p: Pending, call: Call) -> Reply:
    """Read the reply from the page of the request."""
    rpc = p.domain.rpcs.get(abi.pair(*call.rpc_args))
    if rpc is None:
        return Reply(unknown=p.domain.partial or "the RPC page of the request is not known")
    reply = Reply(rpc)
    view = p.event.mem.get(rpc.ipa)
    if view is not None and view.kind in (PageKind.OTHER, PageKind.UNMAPPED):
        reply.generic = "the page cannot be read"
        return reply
    if view is None or view.data is None:
        reply.unknown = "the RPC page was not observed"
        return reply
    reply.page = view.data
    header = abi.HEADER.unpack_from(view.data)
    if header[7] > abi.MAX_NUM_PARAMS:
        reply.generic = f"{header[7]} parameters"
        return reply
    reply.params = params_of(view.data)
    reply.size = abi.arg_size(header[7])
    if call.asked_to_free:
        return reply
    reply.renamed = call.rpc_cmd is not None and header[0] != call.rpc_cmd
    reply.misleading = (
        reply.renamed and offers_buffer(reply.params, header) and (abi.RpcCmd.SHM_ALLOC in (header[0], call.rpc_cmd))
    )
    asked = call.rpc_cmd if call.rpc_cmd is not None else header[0]
    if asked == abi.RpcCmd.SHM_ALLOC and header[5] == 0 and header[7] == 1:
        _allocated(state, p, reply)
    return reply


def offers_buffer(params: list[abi.Param], header: tuple[int, ...]) -> bool:
    """Whether OP-TEE would take a reply for a buffer, had it asked for one."""
    if header[5] or header[7] != 1 or not params[0].a:
        return False
    return params[0].attr in (abi.Attr.TMEM_OUTPUT, abi.RPC_ALLOC_ATTR)


def _allocated(state: State, p: Pending, reply: Reply) -> None:
    """The reply to SHM_ALLOC offers a buffer."""
    param = reply.params[0]
    if param.attr == abi.Attr.TMEM_OUTPUT and param.a:
        reply.plain_address = True
    if param.attr != abi.RPC_ALLOC_ATTR or not param.a:
        return
    t = translate(reply.params, p.event.mem, p.domain.ledger(), state.limits)
    if t.error:
        reply.refusal = t
    else:
        reply.translation = t
    if t.unknown and t.error:
        reply.unknown = t.unknown
    if p.domain.known is not None or t.wraps or t.error:
        held = p.domain.known if p.domain.known is not None else p.domain.ledger()
        reply.known = translate(reply.params, p.event.mem, held, state.limits, defects=state.deviations)
        reply.known_rule, reply.known_deviation = attributed(p.domain, t, reply.known)


def check_reply(state: State, p: Pending, event: El3Call, call: Call, reply: Reply) -> None:
    """The shadow OP-TEE is resumed with."""
    rpc = reply.rpc
    assert rpc is not None
    shadow = event.shadow.get(rpc.ma) if rpc.ma is not None else None
    if reply.unknown or shadow is None:
        state.unchecked("RPC-4", reply.unknown or "the RPC shadow was not observed", event)
        if reply.unknown:
            p.domain.partial = p.domain.partial or reply.unknown
        return
    asked, call.asked_to_free = call.asked_to_free, False
    if asked and not reply.generic:
        _expect(state, p, event, "RPC-10", shadow, (("ret", _RET, abi.Tee.GENERIC), ("num_params", _NUM, 0)))
    elif reply.generic:
        _expect(state, p, event, "RPC-12", shadow, (("ret", _RET, abi.Tee.GENERIC),))
    elif reply.plain_address:
        _untranslated(state, p, event, reply, shadow)
    elif reply.refusal is not None:
        _should_have_asked(state, p, event, call, reply, shadow)
    else:
        _copied(state, p, event, call, reply, shadow)
    call.stale_request = bool(reply.generic) and (asked or call.stale_request)
    rpc.shadow = shadow


def _expect(
    state: State,
    p: Pending,
    event: El3Call,
    rule: str,
    shadow: bytes,
    fields: tuple[tuple[str, int, int], ...],
) -> None:
    wrong = [
        Difference(name, f"{due:#x}", f"{seen:#x}")
        for name, at, due in fields
        if (seen := abi.U32_AT.unpack_from(shadow, at)[0]) != due
    ]
    if wrong:
        state.fail(rule, event, "the RPC shadow", *wrong, deviation=_other_page(p), cause=p.event)
    else:
        state.ok(rule)


def _other_page(p: Pending) -> str | None:
    """D4, when the guest left another cookie in x1:x2 than the request had."""
    call = p.call
    assert call is not None
    return "D4" if abi.pair(p.event.regs[1], p.event.regs[2]) != abi.pair(*call.rpc_args) else None


def _stale(call: Call) -> str | None:
    """D15, when the mediator still waits for an answer to a request of its own."""
    return "D15" if call.stale_request else None


def _untranslated(state: State, p: Pending, event: El3Call, reply: Reply, shadow: bytes) -> None:
    """RPC-8: OP-TEE must not be given an address the guest chose."""
    pointer = int.from_bytes(shadow[_POINTER : _POINTER + 8], "little")
    if (
        abi.U32_AT.unpack_from(shadow, _RET)[0]
        or abi.U32_AT.unpack_from(shadow, _NUM)[0] != 1
        or pointer != reply.params[0].a
    ):
        state.ok("RPC-8")
        state.absent("D1")
        return
    state.fail(
        "RPC-8",
        event,
        "an address of the guest's choice reached OP-TEE",
        Difference("params[0].buf_ptr", "nothing usable", f"{pointer:#x}"),
        deviation="D11" if reply.renamed else "D1",
        cause=p.event,
    )


def _should_have_asked(state: State, p: Pending, event: El3Call, call: Call, reply: Reply, shadow: bytes) -> None:
    """The buffer cannot be shared, and OP-TEE was resumed nevertheless."""
    refusal = reply.refusal
    assert refusal is not None
    if abi.U32_AT.unpack_from(shadow, _RET)[0]:
        rule, reason, deviation = (
            "RPC-9",
            "OP-TEE was told, and the guest was not asked to free its buffer",
            _stale(call),
        )
    elif reply.renamed and int.from_bytes(shadow[_POINTER : _POINTER + 8], "little") == reply.params[0].a:
        rule, reason, deviation = "RPC-8", "an address of the guest's choice reached OP-TEE", "D11"
    else:
        rule, reason = refusal.rule, f"{refusal.reason}, and the buffer reached OP-TEE"
        deviation = reply.known_deviation if reply.known is not None and not reply.known.error else None
    why = uncertain(p) if rule in STATEFUL else ""
    if why:
        state.unchecked(rule, why, event)
        return
    state.fail(rule, event, reason, deviation=deviation, cause=p.event)
    if rule == refusal.rule:
        commit(p, refusal, reply.known, temporary=False)


def _copied(state: State, p: Pending, event: El3Call, call: Call, reply: Reply, shadow: bytes) -> None:
    """RPC-4: the reply as the guest gave it, with only a buffer's address replaced (RPC-8)."""
    rpc = reply.rpc
    assert rpc is not None
    before = rpc.shadow if rpc.shadow is not None else shadow
    due = reply.page[: reply.size] + before[reply.size :]
    translated = reply.translation is not None and bool(reply.translation.buffers)
    pointer = int.from_bytes(shadow[_POINTER : _POINTER + 8], "little")
    if translated:
        due = patched(due, [(_POINTER, shadow[_POINTER : _POINTER + 8])])
    if reply.renamed and shadow[:4] != due[:4] and abi.U32_AT.unpack_from(shadow)[0] == call.rpc_cmd:
        due = patched(due, [(0, shadow[:4])])  # a mediator may put the request's own command back
    if due == shadow:
        state.ok("RPC-4")
        if call.stale_request:
            state.absent("D15")
        if _other_page(p):
            state.ok("RPC-7")
            state.absent("D4")
    else:
        found = page_differences(due, shadow)
        renamed = reply.renamed and {d.field for _, d in found} == {"params[0].buf_ptr"}
        state.fail(
            "RPC-4",
            event,
            "the RPC shadow",
            *(d for _, d in found),
            deviation="D11" if renamed else _stale(call) or _other_page(p),
            cause=p.event,
        )
        if renamed:  # such a mediator now holds a buffer nobody shared
            cookie = reply.params[0].c
            p.domain.known_ledger().held[cookie] = page_count(reply.params[0].b, reply.params[0].a)
            p.domain.blame[cookie] = "D11"
        return
    if not translated:
        if reply.misleading:
            state.absent("D11")
        return
    assert reply.translation is not None
    if pointer == reply.params[0].a:
        state.fail(
            "RPC-8",
            event,
            "an address of the guest's choice reached OP-TEE",
            Difference("params[0].buf_ptr", "a shadow page list", f"{pointer:#x}"),
            deviation="D11" if reply.renamed else None,
            cause=p.event,
        )
        return
    state.ok("RPC-8")
    if reply.misleading:
        state.absent("D11")
    check_translated(
        state,
        p,
        event,
        "params[0]",
        reply.params[0].a,
        pointer,
        reply.translation.buffers[0],
        call.rpc_list_pages,
    )
    commit(p, reply.translation, reply.known, temporary=False)


def refused_reply(p: Pending, reply: Reply) -> None:
    """The mediator asked to free the buffer: what a mediator with D3 keeps of it."""
    if reply.known is not None and reply.known.error:
        commit_refused(p, reply.known)
