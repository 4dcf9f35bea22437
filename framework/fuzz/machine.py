# SPDX-License-Identifier: GPL-2.0-or-later
"""Execution of a fuzz program's steps by probes: what a step only counts (sessions, calls that wait, cookies, pages)
is found here."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from framework.common.errors import UsageError
from framework.fuzz.steps import COMMANDS, STEPS, Step, value_of
from framework.probe.client import Probe
from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    PTA_CMD_TRACE,
    UNANSWERED,
    open_session_params,
)
from framework.probe.ops import Call, Drive, Fill, Join, Op, Read, RpcPage, Run, Write
from framework.probe.program import Program
from framework.probe.wire import Record, Status
from framework.probe.xen import FREE_SPACE, balloon_in_ops, balloon_out_ops
from mediator_ref.abi import (
    ARG_FIELDS,
    ATTR_META,
    ATTR_NONCONTIG,
    CALL_WITH_ARG,
    FID,
    HEADER,
    LIST_ENTRIES,
    PARAM,
    RETURN_FROM_RPC,
    U32,
    U64,
    Attr,
    SmcReturn,
    is_rpc,
    pair,
    split,
)
from mediator_ref.events import PAGE_SIZE

_MOST_REQUESTS = 200
"""Requests after which a call is left waiting: OP-TEE may ask again and again when the answers are wrong."""
_MOST_WAITING = 16
_DATA_PAGES = 513 + 2 * 16
_LIST_PAGES = 3
_PARAMS = 8
_SHARED_INFO = 0x38FFF000
_POOL = range(0x40300000, 0x40400000)
"""The pages from which the probe answers by itself: such a page's cookie is its address (``docs/probe.md``)."""
_COOKIE = 0xC00C1E << 32 | 0x1001
_ITEM_NOT_FOUND = 0xFFFF0008
_FUNCTIONS = {
    "unknown": 0xB2001234,
    "SMC64": FID["CALLS_UID"] | 1 << 30,
    "standard": 0x32000002,
    "another owner": 0xB1000000,
}
_DIRECTIONS = {"in": 0, "out": 1, "inout": 2}
_COUNTS = {"none": 0, "127": 127, "128": 128, "highest": U32}
_TAIL = struct.Struct("<3I")
"""``ret``, ``ret_origin`` and ``num_params`` of a message."""
_Take = Callable[[Sequence[Record]], None]


@dataclass
class Waiting:
    """A call at a request of OP-TEE's: its registers, and its argument page."""

    regs: tuple[int, ...]
    page: int
    conduit: str


def cookie(number: int) -> int:
    """The cookie with a number of :data:`framework.fuzz.steps.COOKIE`."""
    return {4: _COOKIE ^ 1 << 40, 5: 0, 6: U64}.get(number, _COOKIE + number)


@dataclass
class Actor:
    """One domain: its probe, the pages it uses, and what is open in OP-TEE. A session of OP-TEE's test TA always is."""

    probe: Probe
    waiting: list[Waiting] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)
    registered: set[int] = field(default_factory=set)
    rpc_pages: dict[int, int] = field(default_factory=dict)
    given_back: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._args, self._rpcs = self.probe.pages(6), self.probe.pages(3)
        self._lists = self.probe.pages(2 * _PARAMS * _LIST_PAGES)
        self._data, self._scratch = self.probe.pages(_DATA_PAGES), self.probe.pages(1)
        self.open_one()

    def execute(self, ops: Sequence[Op]) -> Sequence[Record]:
        """Run instructions; whatever they say, they are not kept."""
        found = self.probe.execute(Program(tuple(ops)))
        self.probe.history.clear()
        return found

    def open_one(self) -> None:
        """Open a session if there is none, so that a program may begin with its first command."""
        if not self.sessions:
            self.run({"do": "call", "command": "OPEN_SESSION"})

    def run(self, step: Step) -> None:
        """Execute one step."""
        ops, take = self.plan(step)
        take(self.execute(ops))

    def plan(self, step: Step, vcpu: int = 0) -> tuple[list[Op], _Take]:
        """The instructions of a step, and what takes in their results."""
        planner: Callable[[Step, int], tuple[list[Op], _Take]] = getattr(self, _PLANNERS[step["do"]])
        return planner(step, vcpu)

    # Steps

    def _call(self, step: Step, vcpu: int) -> tuple[list[Op], _Take]:
        page = self._args + (3 * vcpu + value_of(step, "page")) * PAGE_SIZE
        command = value_of(step, "command")
        before: list[Op] = [Fill(page, PAGE_SIZE // 8, value_of(step, "fill"))]
        params: list[bytes] = []
        if command == "OPEN_SESSION" and value_of(step, "ta") != "none":
            uuid = INVOKE_TESTS if value_of(step, "ta") == "tests" else NO_TA
            specs = open_session_params(uuid)
            params += [PARAM.pack(p.param.attr, p.param.a, p.param.b, p.param.c) for p in specs]
        params += self._params(value_of(step, "params"), vcpu, before)
        if command == "REGISTER_SHM":
            self.registered |= {cookie(p.get("cookie", 0)) for p in value_of(step, "params") if p["is"] == "tmem"}
        session = {"zero": 0, "highest": U32}.get(value_of(step, "session"), self.sessions[-1] if self.sessions else 0)
        header = HEADER.pack(
            COMMANDS[command], _function(step), session, 0, 0, UNANSWERED, 0, _count(step, len(params))
        )
        before.append(Write(page, header + b"".join(params)))
        high, low = split(_address(value_of(step, "address"), page))
        conduit = value_of(step, "conduit")
        drive = Drive((CALL_WITH_ARG, high, low), conduit, max_rpcs=value_of(step, "park") or _MOST_REQUESTS)
        ops = [*before, drive, Read(page, HEADER.size, catch=True)]
        return ops, lambda records: self._took(records, Waiting((), page, conduit), command, session)

    def _resume(self, step: Step, vcpu: int) -> tuple[list[Op], _Take]:
        number = value_of(step, "call")
        known = bool(self.waiting)
        call = self.waiting[number % len(self.waiting)] if known else Waiting((0,) * 18, self._args, "hvc")
        conduit, most = value_of(step, "conduit"), value_of(step, "park") or _MOST_REQUESTS
        answer = value_of(step, "answer")
        thread = {"own": call.regs[3], "next": call.regs[3] + 1, "highest": U32}[value_of(step, "thread")] & U64
        before: list[Op] = []
        if answer == "own":
            drive = Drive((*call.regs[:3], thread, *call.regs[4:8]), conduit, answer=True, max_rpcs=most)
        else:
            x1, x2, x4, x5 = self._answer(step, call, vcpu, before)
            drive = Drive((RETURN_FROM_RPC, x1, x2, thread, x4, x5), conduit, max_rpcs=most)

        def take(records: Sequence[Record]) -> None:
            regs = _regs(records)
            if known and regs and regs[0] & U32 != SmcReturn.ERESUME and call in self.waiting:
                self.waiting.remove(call)
            self._took(records, call, "", 0)

        return [*before, drive, Read(call.page, HEADER.size, catch=True)], take

    def _answer(self, step: Step, call: Waiting, vcpu: int, before: list[Op]) -> tuple[int, int, int, int]:
        """x1, x2, x4 and x5 of a return from RPC; what has to be written for it goes to ``before``."""
        answer, page = value_of(step, "answer"), self._rpcs + value_of(step, "page") * PAGE_SIZE
        name = cookie(value_of(step, "cookie"))
        if answer in ("page", "nothing"):
            given = _address(value_of(step, "address"), page) if answer == "page" else 0
            if given == page:
                self.rpc_pages[name] = page
                before.append(RpcPage(name, page))
            return (*split(given), *split(name if answer == "page" else 0))
        asked = pair(call.regs[1], call.regs[2])
        message = self.rpc_pages.get(asked, asked if asked in _POOL else 0)
        if message and answer in ("error", "success"):
            ret = _ITEM_NOT_FOUND if answer == "error" else 0
            before.append(Write(message + ARG_FIELDS["ret"], struct.pack("<2I", ret, 0), catch=True))
        elif message and answer in ("memory", "params"):
            specs = value_of(step, "params")
            if answer == "memory":
                specs = specs or [{"is": "tmem", "direction": "out", "pages": 2, "cookie": value_of(step, "cookie")}]
            params = self._params(specs, vcpu, before)
            body = _TAIL.pack(0, 0, _count(step, len(params))) + b"".join(params)
            before.append(Write(message + ARG_FIELDS["ret"], body, catch=True))
        other = {"own": asked, "zero": 0, "other": name}[value_of(step, "request")]
        return (*split(other), call.regs[4], call.regs[5])

    def _fast(self, step: Step, vcpu: int) -> tuple[list[Op], _Take]:  # noqa: ARG002
        name = value_of(step, "function")
        x0 = FID.get(name) or _FUNCTIONS[name]
        x1, x2, x3, x7 = (value_of(step, register) for register in ("x1", "x2", "x3", "x7"))
        regs = (value_of(step, "upper") << 32 | x0, x1, x2, x3, 0, 0, 0, x7)
        return [Call(regs, value_of(step, "conduit"))], lambda _records: None

    def _write(self, step: Step, vcpu: int) -> tuple[list[Op], _Take]:  # noqa: ARG002
        place = self._place(value_of(step, "where"), value_of(step, "page")) + value_of(step, "offset")
        return [Write(place, struct.pack("<Q", value_of(step, "value")), catch=True)], lambda _records: None

    def _give_back(self, step: Step, vcpu: int) -> tuple[list[Op], _Take]:  # noqa: ARG002
        page = self._place(value_of(step, "where"), value_of(step, "page"))
        if page in self.given_back or page in _POOL:
            return [], lambda _records: None
        self.given_back.add(page)
        return balloon_out_ops(self._scratch, page), lambda _records: None

    def _together(self, step: Step, vcpu: int) -> tuple[list[Op], _Take]:  # noqa: ARG002
        (first, took), (second, others) = (self._side(step, name, n) for n, name in enumerate(("first", "second")))
        ops = [Run(1, tuple(second)), *first, Join(1)]

        def take(records: Sequence[Record]) -> None:
            joined = records[-1] if records else None
            took([record for record in records if record is not joined])
            others(joined.inner if joined is not None else ())

        return ops, take

    def _side(self, step: Step, name: str, vcpu: int) -> tuple[list[Op], _Take]:
        inner = value_of(step, name)
        return self.plan(inner[0], vcpu) if inner else ([], lambda _records: None)

    def _reset(self, step: Step, vcpu: int) -> tuple[list[Op], _Take]:  # noqa: ARG002
        self.reset()
        return [], lambda _records: None

    def reset(self) -> None:
        """Complete the calls that wait, take back pages, unregister memory, close sessions; as far as OP-TEE and the
        mediator let it."""
        for _ in range(3):
            for call in list(self.waiting):
                self.run({"do": "resume", "call": self.waiting.index(call)})
        self.waiting.clear()
        for page in sorted(self.given_back):
            self.execute(balloon_in_ops(self._scratch, page))
        self.given_back.clear()
        for name in sorted(self.registered):
            self._plainly(COMMANDS["UNREGISTER_SHM"], 0, PARAM.pack(Attr.RMEM_INPUT, 0, 0, name))
        self.registered.clear()
        for session in self.sessions[1:]:
            self._plainly(COMMANDS["CLOSE_SESSION"], session)
        del self.sessions[1:]
        self.open_one()

    def _plainly(self, command: int, session: int, *params: bytes) -> None:
        content = HEADER.pack(command, 0, session, 0, 0, UNANSWERED, 0, len(params)) + b"".join(params)
        self.execute([Write(self._args, content), Drive((CALL_WITH_ARG, *split(self._args)), max_rpcs=_MOST_REQUESTS)])

    # What steps consist of

    def _params(self, specs: Sequence[Step], vcpu: int, before: list[Op]) -> list[bytes]:
        return [self._param(spec, self._list(number, vcpu), before) for number, spec in enumerate(specs)]

    def _param(self, spec: Step, lists: int, before: list[Op]) -> bytes:
        def given(name: str) -> Any:
            return value_of(spec, name, "parameters")

        kind = spec["is"]
        if kind == "none":
            return PARAM.pack(Attr.NONE, 0, 0, 0)
        if kind == "raw":
            return PARAM.pack(given("attr"), given("a"), given("b"), given("c"))
        direction = _DIRECTIONS[given("direction")]
        if kind == "value":
            attr = Attr.VALUE_INPUT + direction | (ATTR_META if given("meta") else 0)
            return PARAM.pack(attr, given("a"), given("b"), given("c"))
        if kind == "rmem":
            return PARAM.pack(Attr.RMEM_INPUT + direction, given("a"), given("b"), cookie(given("cookie")))
        return self._tmem(given, direction, lists, before)

    def _tmem(self, given: Callable[[str], Any], direction: int, lists: int, before: list[Op]) -> bytes:
        pages, offset, how = given("pages"), given("offset"), given("list")
        data = self._data + 16 * given("at") * PAGE_SIZE
        if how == "its own data":
            data = lists
        total = max(pages * PAGE_SIZE - offset, 0)
        sizes = {"all": total, "zero": 0, "one": 1, "one more": total + 1, "half": total // 2, "highest": U64}
        for start in range(0, pages, LIST_ENTRIES):
            page = lists + start // LIST_ENTRIES * PAGE_SIZE
            count = min(pages - start, LIST_ENTRIES)
            following = page if how == "loop" else page + PAGE_SIZE if start + count < pages else 0
            before.append(Fill(page, LIST_ENTRIES + 1, 0))
            before.append(Fill(page, count, data + start * PAGE_SIZE, PAGE_SIZE))
            before.append(Fill(page + LIST_ENTRIES * 8, 1, following))
        which = given("which")
        if given("entry") != "page" and which < pages:
            wrong = data if given("entry") == "again" else _address(given("entry"), data + which * PAGE_SIZE)
            entry = lists + which // LIST_ENTRIES * PAGE_SIZE + which % LIST_ENTRIES * 8
            before.append(Fill(entry, 1, wrong))
        place = {"contiguous": data, "null": 0, "unmapped": FREE_SPACE, "shared info": _SHARED_INFO}.get(how, lists)
        attr = Attr.TMEM_INPUT + direction | (0 if how == "contiguous" else ATTR_NONCONTIG)
        attr |= ATTR_META if how == "meta" else 0
        return PARAM.pack(attr, place | offset if place else 0, sizes[given("size")], cookie(given("cookie")))

    def _list(self, number: int, vcpu: int) -> int:
        return self._lists + (vcpu * _PARAMS + number) * _LIST_PAGES * PAGE_SIZE

    def _place(self, where: str, number: int) -> int:
        if where == "request" and self.waiting:
            regs = self.waiting[number % len(self.waiting)].regs
            asked = pair(regs[1], regs[2])
            if asked in self.rpc_pages or asked in _POOL:
                return self.rpc_pages.get(asked, asked)
        base = {"argument": self._args, "request": self._rpcs, "data": self._data}
        return base[where] + number * PAGE_SIZE if where in base else self._list(number, 0)

    def _took(self, records: Sequence[Record], call: Waiting, command: str, session: int) -> None:
        """Take in what a call came back with."""
        regs = _regs(records)
        if not regs:
            return
        if is_rpc(regs[0]) and len(self.waiting) < _MOST_WAITING:
            self.waiting.append(Waiting(regs, call.page, call.conduit))
        header = records[-1].data
        if regs[0] or len(header) != HEADER.size:
            return
        cmd, _, opened, _, _, ret, _, _ = HEADER.unpack(header)
        if ret == 0 and cmd == COMMANDS["OPEN_SESSION"] and opened:
            self.sessions.append(opened)
        elif ret == 0 and command == "CLOSE_SESSION" and session in self.sessions:
            self.sessions.remove(session)


_PLANNERS = {kind: "_" + kind.replace(" ", "_") for kind in STEPS}


def _regs(records: Sequence[Record]) -> tuple[int, ...]:
    """The registers with which a call came back; none when the probe did not come to it."""
    return next((r.regs for r in records if isinstance(r.op, Drive) and r.status == Status.OK), ())


def _count(step: Step, right: int) -> int:
    word = value_of(step, "count")
    return _COUNTS.get(word, max(right + {"one more": 1, "one less": -1}.get(word, 0), 0))


def _is_none(param: Step) -> bool:
    return param["is"] == "none" or (param["is"] == "raw" and not param.get("attr", 0) & 0xFF)


def _function(step: Step) -> int:
    """The function of a trusted application that a call asks for: as the step has it, except where OP-TEE's test TA
    would take all of OP-TEE down, and every program after it. Its command 1 writes through an only parameter of memory
    without a look whether that is NULL (docs/findings/O3.md)."""
    function = int(value_of(step, "func"))
    params = value_of(step, "params")
    if value_of(step, "count") == "one less":
        params = params[:-1]
    given = [param for param in params if not _is_none(param)]
    if function != PTA_CMD_PARAMS or len(given) != 1 or given[0]["is"] == "value":
        return function
    whole = given[0]["is"] == "tmem" and not {"list", "size", "pages", "entry"} & given[0].keys()
    return function if whole else PTA_CMD_TRACE


def _address(word: str, page: int) -> int:
    """An address of the table's :data:`~framework.fuzz.steps.ADDRESS`, made from a page of the guest's own."""
    others = {"unmapped": FREE_SPACE, "shared info": _SHARED_INFO, "null": 0, "above": 1 << 48 | page}
    return others.get(word, page + {"misaligned": 8, "half a page on": PAGE_SIZE // 2}.get(word, 0))


class Machine:
    """All domains of a board."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.actors = [Actor(probe) for probe in probes]

    def run(self, step: Step) -> None:
        """Execute one step. Raises GuestError when a probe does not come back."""
        number = step.get("domain", 0)
        if number >= len(self.actors):
            raise UsageError(f"the program is for {number + 1} domains", hint="its checkpoint is probe_pair")
        self.actors[number].run(step)

    def reset(self) -> None:
        """Leave nothing open in any domain."""
        for actor in self.actors:
            actor.reset()


def play(probes: Probe | Sequence[Probe], steps: Sequence[Step], *, dies: Any = None) -> None:
    """Run a fuzz program, as `medcheck fuzz` did that found something with it; the board's trace is judged as in every
    test.

    ``probes``: the fixture ``probe``, ``probe_pair`` or ``smp_probe``. ``dies``: the fixture ``target``, when the
    program ends with the death of the first domain; otherwise everything is completed and closed at the end.

    Raises GuestError when a probe does not come back, UsageError for what is no program.
    """
    from framework.fuzz.steps import check

    check(steps)
    machine = Machine([probes] if isinstance(probes, Probe) else probes)
    for step in steps:
        machine.run(step)
    if dies is None:
        machine.reset()
    else:
        die(machine, dies)


def die(machine: Machine, target: Any) -> None:
    """Destroy the first domain as it is, and wait until it is gone. Raises GuestError when that cannot be done."""
    target.dom0.xl.destroy(machine.actors[0].probe.domid)
