# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed of the checker: on generated traces of growing length offline, and on a real board's while it runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from framework.bench.context import Context
from framework.common.errors import InfrastructureError
from framework.conformance.checker import check_file
from framework.conformance.result import PASS
from framework.conformance.synthesize import record_of
from framework.trace.format import PAGE
from framework.trace.writer import Writer
from mediator_ref import abi
from mediator_ref.events import El3Call, El3Return, Event, GuestCall, GuestReturn
from mediator_ref.simulator.board import ARG, DATA, LIST, RPC, Board
from mediator_ref.simulator.optee import FREE_ARG, INTR, ask

LENGTHS = (10**4, 10**5, 10**6)
"""Records of the generated traces."""

_COOKIE = 0xC0
_PLAN = (
    ask(abi.RpcCmd.GET_TIME),
    INTR,
    ask(abi.RpcCmd.GET_TIME),
    INTR,
    ask(abi.RpcCmd.GET_TIME),
    INTR,
    FREE_ARG,
)


def generate(path: Path, records: int) -> int:
    """Write a conforming trace of about ``records`` records; returns their number.

    Boot and dom0, then one guest that invokes a command with a buffer of four pages and a value again and
    again; OP-TEE suspends it eight times in between, in a mix like that of xtest. Pages are recorded as the
    plugin records them.
    """
    board = Board()
    board.create(0)
    board.create(1)
    head = list(board.events)
    board.events.clear()
    _one_call(board)
    cycle = board.events
    written = 0
    with Writer(path) as writer:
        for event in _repeat(head, cycle):
            record = record_of(event, written + 1)
            if record is None:
                continue
            writer.append(record)
            written += 1
            if written >= records:
                break
    return written + 1


def _repeat(head: Sequence[Event], cycle: Sequence[Event]) -> Iterator[Event]:
    yield from head
    thin = _as_recorded(cycle)
    while True:
        yield from thin


def _one_call(board: Board) -> None:
    page = abi.message(
        abi.MsgCmd.INVOKE_COMMAND,
        board.buffer(1, 4),
        abi.Param(abi.Attr.VALUE_INOUT, 1, 2, 3),
        func=7,
        session=1,
    )
    regs = board.message(1, page, plan=_PLAN)
    while abi.is_rpc(regs[0]):
        function = regs[0] & 0xFFFF
        if function == abi.RpcFunc.ALLOC:
            regs = board.serve_alloc(1, regs, cookie=_COOKIE)
        else:
            if function == abi.RpcFunc.CMD:
                board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 5, 6))
            regs = board.resume(1, regs)


def _as_recorded(cycle: Sequence[Event]) -> list[Event]:
    """The events with only the pages the trace plugin records with them."""
    found: list[Event] = []
    shadow_arg = shadow_rpc = 0
    asked = False  # OP-TEE's last answer was a request
    for event in cycle:
        if not isinstance(event, GuestCall | El3Call | El3Return | GuestReturn):
            found.append(event)
            continue
        pages: tuple[int, ...] = ()
        fid = abi.fid_of(event.regs[0])
        if isinstance(event, El3Return | GuestReturn):
            asked = event.regs[0] & abi.U32 == abi.RPC_CMD_RETURN
            pages = (RPC,) if asked else () if abi.is_rpc(event.regs[0]) else (ARG,)
        elif fid == abi.CALL_WITH_ARG:
            pages = (ARG,)
        elif asked:
            pages = (RPC,)
        mem = {ipa: event.mem[ipa] for ipa in pages}
        if isinstance(event, GuestCall | GuestReturn):
            if fid == abi.CALL_WITH_ARG:
                mem[LIST] = event.mem[LIST]
                mem |= {DATA + n * PAGE: replace(event.mem[DATA + n * PAGE], data=None) for n in range(4)}
            elif isinstance(event, GuestCall) and event.regs[4] | event.regs[5]:
                mem[RPC] = replace(event.mem[RPC], data=None)
            found.append(replace(event, mem=mem))
            continue
        if isinstance(event, El3Call) and fid == abi.CALL_WITH_ARG:
            shadow_arg = abi.pair(event.regs[1], event.regs[2])
        elif isinstance(event, El3Call) and event.regs[4] | event.regs[5]:
            shadow_rpc = abi.pair(event.regs[1], event.regs[2])
        shadow = {shadow_arg: event.shadow[shadow_arg]} if ARG in pages else {}
        if RPC in pages:
            shadow[shadow_rpc] = event.shadow[shadow_rpc]
        if isinstance(event, El3Call) and ARG in pages:
            (buffer, _) = abi.decode_arg(shadow[shadow_arg]).params
            shadow[buffer.a] = event.shadow[buffer.a]
        found.append(replace(event, mem=mem, shadow=shadow))
    return found


def check_events_per_s(lengths: Sequence[int] = LENGTHS) -> dict[int, float]:
    """Records checked per second of processor time, from the file to the verdicts, by length of the trace.

    Raises :class:`InfrastructureError` when a generated trace does not conform: then nothing was measured.
    """
    found = {}
    with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
        for length in lengths:
            path = Path(folder) / f"{length}.trace"
            records = generate(path, length)
            begin = time.process_time()
            result = check_file(path)
            seconds = time.process_time() - begin
            if result.verdict != PASS or result.gaps:
                raise InfrastructureError(f"the generated trace is judged {result.verdict}, gaps {result.gaps}")
            found[length] = records / seconds
            path.unlink()
    return found


def check_speed(context: Context) -> list[float]:
    """:func:`check_events_per_s` as samples, shortest trace first: they are alike when time grows linearly."""
    found = check_events_per_s()
    for length, speed in found.items():
        context.progress.say(f"{length} records: {speed:.0f} records/s")
    return list(found.values())


if __name__ == "__main__":
    for length, speed in check_events_per_s().items():
        print(f"{length:>9} records: {speed:>9.0f} records/s")
