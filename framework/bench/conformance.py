"""How fast traces are checked: generated ones of growing length offline, and a real board's while it runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from framework.conformance.checker import check_file
from framework.conformance.result import PASS
from framework.conformance.synthesize import record_of
from framework.errors import InfrastructureError
from framework.trace.writer import Writer
from mediator_ref import abi
from mediator_ref.events import El3Call, El3Return, Event, GuestCall, GuestReturn, PageView
from mediator_ref.model.board import ARG, DATA, LIST, RPC, Board
from mediator_ref.model.optee import FREE_ARG, INTR, ask

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
    thin = [_as_recorded(event) for event in cycle]
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


def _as_recorded(event: Event) -> Event:
    """The event with only the pages the trace plugin would have recorded with it."""
    if isinstance(event, GuestCall):
        if abi.fid_of(event.regs[0]) == abi.CALL_WITH_ARG:
            data = {ipa: replace(event.mem[ipa], data=None) for ipa in range(DATA, DATA + 4 * 4096, 4096)}
            return replace(event, mem={**_only(event.mem, ARG, LIST), **data})
        return replace(event, mem=_only(event.mem, RPC) if event.regs[1] or event.regs[2] else {})
    if isinstance(event, GuestReturn):
        return replace(event, mem=_for_answer(event.regs, event.mem))
    if isinstance(event, El3Call):
        return replace(event, mem={}, shadow=dict(event.shadow))
    if isinstance(event, El3Return):
        return replace(event, mem=_for_answer(event.regs, event.mem))
    return event


def _only(mem: Mapping[int, PageView], *pages: int) -> dict[int, PageView]:
    return {ipa: mem[ipa] for ipa in pages}


def _for_answer(regs: Sequence[int], mem: Mapping[int, PageView]) -> dict[int, PageView]:
    if not abi.is_rpc(regs[0]):
        return _only(mem, ARG)
    return _only(mem, RPC) if regs[0] & abi.U32 == abi.RPC_CMD_RETURN else {}


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
                raise InfrastructureError(
                    f"the generated trace is judged {result.verdict}, gaps {result.gaps}"
                )
            found[length] = records / seconds
            path.unlink()
    return found


def live_check_ratio(work: Callable[[bool], float], rounds: int = 3) -> list[float]:
    """How much longer the same work takes with the live check: 1.3 means 30 % longer.

    ``work(checked)`` boots a board with the trace plugin, with or without the live check, exercises it, and
    gives the seconds the exercise took. Rounds alternate, so that a slower host slows both.
    """
    return [work(True) / work(False) for _ in range(rounds)]


if __name__ == "__main__":
    for length, speed in check_events_per_s().items():
        print(f"{length:>9} records: {speed:>9.0f} records/s")
