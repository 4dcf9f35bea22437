# SPDX-License-Identifier: GPL-2.0-or-later
"""Text form of a trace for people: calls in the ABI's own words, nested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from framework.common.errors import UsageError
from framework.trace.calls import Call, Exchange, fold, message_page
from framework.trace.event import Event
from framework.trace.format import BlockFlag, BlockKind, Flag, Kind
from mediator_ref import abi
from mediator_ref.describe import describe_attr, describe_call, describe_return, function_name, view_of

_SHOWN_PARAMS = 8


@dataclass(frozen=True, slots=True)
class Filter:
    """Selection of calls to show; None: all. ``function`` is a part of a name (``CALL_WITH``), a message command
    (``OPEN_SESSION``), or a number; times are board seconds; ``thread`` is OP-TEE's thread id."""

    domain: int | None = None
    function: str | None = None
    since: float | None = None
    until: float | None = None
    thread: int | None = None

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.until < self.since:
            raise UsageError(f"the time range ends ({self.until}) before it begins ({self.since})")

    def matches(self, item: Call | Event) -> bool:
        """Whether to show it."""
        start = item.start if isinstance(item, Call) else item
        seconds = start.time_ns / 1e9
        if (self.since is not None and seconds < self.since) or (self.until is not None and seconds > self.until):
            return False
        if isinstance(item, Event):
            subject = item.subject if item.kind in _DOMAIN_WORDS else item.domain
            return self.function is None and self.thread is None and self.domain in (None, subject)
        if self.domain is not None and start.domain != self.domain:
            return False
        if self.thread is not None and item.thread != self.thread:
            return False
        return self.function is None or self._is_function(item)

    def _is_function(self, call: Call) -> bool:
        assert self.function is not None
        try:
            return call.fid == int(self.function, 0)
        except ValueError:
            return self.function.upper() in f"{function_name(call.fid)} {command_name(call) or ''}"


_DOMAIN_WORDS = {
    int(Kind.DOMAIN_CREATE): "is being created",
    int(Kind.DOMAIN_KILL): "is being killed",
    int(Kind.DOMAIN_DESTROY): "is destroyed",
}


def command_name(call: Call) -> str | None:
    """The message command of a standard call (``OPEN_SESSION``); None when it is not one or its page is
    unknown."""
    page = call.argument() if call.fid == abi.CALL_WITH_ARG else None
    return None if page is None else _name(abi.MsgCmd, abi.decode_arg(page).cmd)


def rpc_name(exchange: Exchange) -> str | None:
    """Return OP-TEE's request at the end of an exchange: ``ALLOC``, ``FOREIGN_INTR``, ``CMD SHM_ALLOC``, ..."""
    if exchange.rpc is None:
        return None
    name = _name(abi.RpcFunc, exchange.rpc)
    page = exchange.rpc_page() if exchange.rpc == abi.RpcFunc.CMD else None
    return name if page is None else f"{name} {_name(abi.RpcCmd, abi.decode_arg(page).cmd)}"


def show(events: Iterable[Event], chosen: Filter | None = None) -> Iterator[str]:
    """Lines of text for the calls that ``chosen`` lets through, in the order in which they ended."""
    chosen = chosen or Filter()
    for item in fold(events):
        if chosen.matches(item):
            yield from _call_lines(item) if isinstance(item, Call) else _event_lines(item)


def _name(kind: type[abi.MsgCmd] | type[abi.RpcCmd] | type[abi.RpcFunc] | type[abi.Tee], value: int) -> str:
    try:
        return kind(value).name
    except ValueError:
        return f"{value:#x}"


def _head(event: Event) -> str:
    domain = "d?" if event.domain is None else "xen" if event.domain >= 0x7FF0 else f"d{event.domain}v{event.vcpu}"
    return f"[{event.time_ns / 1e9:12.6f}] #{event.seq:<7} {domain:<6}"


def _event_lines(event: Event) -> Iterator[str]:
    if event.kind in _DOMAIN_WORDS:
        yield f"{_head(event)} domain {event.subject} {_DOMAIN_WORDS[event.kind]}"
    elif event.kind == Kind.DOORBELL:
        yield f"{_head(event)} doorbell x0={event.regs[0]:#x}"
    elif event.kind == Kind.COUNTERS:
        counts = event.counters()
        yield (
            f"{_head(event)} end of trace: {counts['records']} records; "
            f"also {counts['hypercall']} hypercalls, {counts['psci']} PSCI, {counts['arch']} architecture "
            f"and {counts['guest_other']} other guest calls, "
            f"{counts['el2_other']} of Xen's own"
        )


def _call_lines(call: Call) -> Iterator[str]:
    start = call.start
    marks = [start.conduit.upper()] if call.from_guest else ["Xen's own"]
    if start.flags & Flag.AARCH32:
        marks.append("AArch32")
    if start.imm:
        marks.append(f"imm {start.imm:#x}")
    first = call.exchanges[0]
    prefix = "" if first.guest_call is not None and not start.is_tee else "OPTEE_SMC_"
    yield f"{_head(start)} {prefix}{_call_text(call)} ({', '.join(marks)})"
    for number, exchange in enumerate(call.exchanges):
        for there, back in exchange.el3:
            if there.regs[0] != start.regs[0] and not _is_resume(there):
                yield f"{'':<14} #{there.seq:<7}    Xen asks EL3: {describe_call(there.regs)}"
            if back is None:
                yield f"{'':<14} #{there.seq:<7}    EL3 has not answered"
        if exchange.rpc is not None:
            following = call.exchanges[number + 1] if number + 1 < len(call.exchanges) else None
            yield from _rpc_lines(exchange, following)
    yield _end_line(call)


def _is_resume(event: Event) -> bool:
    return abi.fid_of(event.regs[0]) == abi.RETURN_FROM_RPC


def _call_text(call: Call) -> str:
    page = call.argument() if call.fid == abi.CALL_WITH_ARG else None
    if page is None:
        text = describe_call(call.start.regs)
        block = call.start.block(BlockKind.GUEST_ARG)
        return text if block is None else f"{text} argument page {_block_trouble(block.flags)}"
    arg = abi.decode_arg(page)
    session = f" session={arg.session:#x}" if arg.cmd in _WITH_SESSION else ""
    func = f" func={arg.func:#x}" if arg.cmd == abi.MsgCmd.INVOKE_COMMAND else ""
    return f"CALL_WITH_ARG cmd={_name(abi.MsgCmd, arg.cmd)}{session}{func} params={_params(arg, call.start)}"


_WITH_SESSION = (abi.MsgCmd.INVOKE_COMMAND, abi.MsgCmd.CLOSE_SESSION, abi.MsgCmd.CANCEL)


def _block_trouble(flags: BlockFlag) -> str:
    words = [flag.name.lower().replace("_", " ") for flag in flags if flag.name]
    return "is " + ", ".join(words) if words else "is readable"


def _params(arg: abi.Arg, event: Event | None) -> str:
    parts = [_param(index, param, event) for index, param in enumerate(arg.params[:_SHOWN_PARAMS])]
    if arg.num_params > _SHOWN_PARAMS:
        parts.append(f"and {arg.num_params - _SHOWN_PARAMS} more")
    return f"[{', '.join(parts)}]"


def _param(index: int, param: abi.Param, event: Event | None) -> str:
    attr = describe_attr(param.attr)
    if param.attr == abi.Attr.NONE:
        return attr
    if param.type in abi.TMEM_TYPES and param.attr & abi.ATTR_NONCONTIG:
        named = (
            sum(b.count for b in event.blocks() if b.kind == BlockKind.TRANSLATIONS and b.index == index)
            if event is not None
            else 0
        )
        pages = f" {named} pages" if named else ""
        return (
            f"{attr}{pages} size={param.b:#x} shm_ref={param.c:#x}" if param.a else f"{attr} NULL shm_ref={param.c:#x}"
        )
    words = zip(view_of(param.attr), (param.a, param.b, param.c), strict=True)
    return " ".join([attr, *(f"{name}={value:#x}" for name, value in words if value)])


def _rpc_lines(exchange: Exchange, following: Exchange | None) -> Iterator[str]:
    back = exchange.guest_return
    assert back is not None
    page = exchange.rpc_page() if exchange.rpc == abi.RpcFunc.CMD else None
    text = f"RPC_{rpc_name(exchange)}"
    if page is not None:
        text += f" params={_params(abi.decode_arg(page), None)}"
    elif exchange.rpc == abi.RpcFunc.CMD:
        text += f" cookie={abi.pair(back.regs[1], back.regs[2]):#x}"
    elif exchange.rpc == abi.RpcFunc.ALLOC:
        text += f" size={back.regs[1]:#x}"
    elif exchange.rpc == abi.RpcFunc.FREE:
        text += f" cookie={abi.pair(back.regs[1], back.regs[2]):#x}"
    answer = _answer(exchange, following)
    yield f"{'':<14} #{back.seq:<7}    -> {text}" + (f" <- {answer}" if answer else "")


def _answer(exchange: Exchange, following: Exchange | None) -> str | None:
    """Return the guest's answer to an RPC: the call of the next exchange."""
    if following is None or (event := following.guest_call) is None:
        return None
    if exchange.rpc == abi.RpcFunc.ALLOC:
        x = event.regs
        return f"page {abi.pair(x[1], x[2]):#x} cookie={abi.pair(x[4], x[5]):#x}"
    page = message_page(event.block(BlockKind.GUEST_RPC)) if exchange.rpc == abi.RpcFunc.CMD else None
    if page is None:
        return None
    arg = abi.decode_arg(page)
    return f"ret={_name(abi.Tee, arg.ret)} params={_params(arg, event)}"


_PLAIN_ANSWERS = frozenset(
    abi.FID[name] for name in ("CALLS_COUNT", "CALLS_UID", "CALLS_REVISION", "GET_OS_UUID", "GET_OS_REVISION")
)
"""Functions whose x0 is data, not a return code."""


def _end_line(call: Call) -> str:
    end = call.end
    if end is None:
        return f"{'':<14} {'':<8}    => unfinished" if call.start.is_tee else f"{'':<14} {'':<8}    => not followed"
    plain = call.fid in _PLAIN_ANSWERS
    text = f"x0={end.regs[0]:#x}" if plain and abi.fid_of(end.regs[0]) != abi.U32 else describe_return(end.regs[0])
    page = call.result() if call.fid == abi.CALL_WITH_ARG else None
    if page is not None:
        arg = abi.decode_arg(page)
        text += f" ret={_name(abi.Tee, arg.ret)} origin={arg.ret_origin}"
        if arg.cmd == abi.MsgCmd.OPEN_SESSION:
            text += f" session={arg.session:#x}"
    elif call.fid not in (abi.CALL_WITH_ARG, abi.RETURN_FROM_RPC):
        text += "".join(f" x{i}={value:#x}" for i, value in enumerate(end.regs[1:4], 1) if value)
    microseconds = (call.duration_ns or 0) / 1e3
    return f"{'':<14} #{end.seq:<7}    => {text} ({microseconds:.0f} us)"
