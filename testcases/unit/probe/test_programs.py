# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the probe guest: encoding, records, text; and the messages built from typed parameters."""

from __future__ import annotations

import re
import struct
from uuid import UUID

import pytest

from framework.common.errors import GuestError, UsageError
from framework.common.paths import IMAGES
from framework.probe import ops as probe_ops
from framework.probe.message import (
    INVOKE_TESTS,
    Invoke,
    Message,
    OpenSession,
    RegisterShm,
    contiguous,
    null_tmem,
    rmem,
    tmem,
    value,
)
from framework.probe.ops import (
    OPS,
    Add,
    Break,
    Call,
    Code,
    Copy,
    Delay,
    Drive,
    Fill,
    Hypercall,
    If,
    Join,
    Loop,
    Op,
    Read,
    RpcPage,
    Run,
    Scan,
    SetFlag,
    WaitFlag,
    Write,
)
from framework.probe.program import Program
from framework.probe.wire import Fault, Status, decode
from mediator_ref.abi import Attr, decode_arg

EVERYTHING = (
    Call((0xBF00FF01, 1), "smc", 7, catch=True),
    Write(0x40400000, b"abc"),
    Read(0x40400000, 3),
    Fill(0x40400000, 4, 1, 2),
    Hypercall(17, (0,)),
    Drive((0x32000004, 0, 0x40400000), funcs=(0,), cmds=(6, 200), answer=True),
    Run(1, (Loop(3, (Call((1,), quiet=True),)), Read(0x40400000, 8))),
    Join(1, 0.5),
    SetFlag(1, 2, add=True),
    WaitFlag(1, 2, 0.25),
    Delay(0.001),
    If(0xFF, 3, (Break(stop=True),), ipa=0x40400000, u32=True, negate=True),
    Break(),
    Add(0x40400000, -1),
    Copy(0x40400000, 0x40401000, 64),
    Scan(0x40400000, 4096, 0xFFF, 1),
    RpcPage(5, 0x40400000),
    Code(0x40400000, (1, 2)),
)


class Pages:
    """Memory as the client gives it, without a guest."""

    def __init__(self) -> None:
        self.next, self.name = 0x40400000, 0

    def pages(self, count: int) -> int:
        self.next += count * 4096
        return self.next - count * 4096

    def cookie(self) -> int:
        self.name += 1
        return self.name


def words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 8}Q", data)


def test_every_instruction_is_there_and_has_its_own_number() -> None:
    assert len(OPS) == len({type(op) for op in EVERYTHING} | {Loop}) == 19


def test_numbers_are_those_of_the_guest() -> None:
    header = (IMAGES / "probe" / "probe.h").read_text()
    names = re.search(r"enum op \{(.*?)\};", header, re.DOTALL)
    assert names is not None
    in_guest = [name.strip().removeprefix("OP_").split(" ")[0] for name in names[1].split(",") if name.strip()]
    flag_names = {"SetFlag": "SET", "WaitFlag": "WAIT"}
    ours = [flag_names.get(op.__name__, re.sub(r"(?<!^)(?=[A-Z])", "_", op.__name__).upper()) for op in OPS.values()]
    assert in_guest == ours
    assert list(OPS) == list(range(1, 20))
    layout = dict(re.findall(r"#define (\w+) (0x[0-9a-f]+|\d+)", (IMAGES / "probe" / "layout.h").read_text()))
    for name in ("PROTOCOL", "MAILBOX", "PROGRAM", "PROGRAM_SIZE", "RESULTS", "HEAP", "VCPUS_MAX"):
        assert int(layout[name], 0) == getattr(probe_ops, name), name


def test_lengths_tile_the_program() -> None:
    data, steps = Program(EVERYTHING).encode()
    found, at = words(data), 0
    for op in EVERYTHING:
        assert found[at] & 0xFFFF == op.opcode
        assert steps[at] is op
        at += found[at] >> 32
    assert at == len(found)


def test_nested_instructions_have_their_own_steps() -> None:
    inner = Call((1,))
    program = Program((Read(0, 8), Loop(2, (inner,)), If(1, 1, (Break(),))))
    data, steps = program.encode()
    at = next(step for step, op in steps.items() if op is inner)
    assert words(data)[at] & 0xFFFF == Call.opcode


def test_flags() -> None:
    data, _ = Program((EVERYTHING[0], Drive((1,), answer=True, quiet=True))).encode()
    found = words(data)
    assert found[0] >> 16 & 0xFFFF == 1 | 4
    assert found[found[0] >> 32] >> 16 & 0xFFFF == 128 | 2


def test_masks_of_a_drive() -> None:
    found = words(Program((Drive((1,), funcs=(0, 5), cmds=(6, 200)),)).encode()[0])
    assert found[2:5] == (0b100001, 1 << 6 | 1 << 63, 10000)


def test_saved_and_loaded() -> None:
    program = Program(EVERYTHING, "everything")
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"title": "", "program": [{"op": "Nothing"}]}'])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Program.from_json(text)


def test_printed_as_python() -> None:
    program = Program(EVERYTHING, "everything")
    names = {name: getattr(probe_ops, name) for name in program.names() - {"Program"}}
    assert eval(program.source(), {"Program": Program, **names}) == program


def test_too_long() -> None:
    with pytest.raises(UsageError, match="takes"):
        Program((Write(0, bytes(0x80000)),)).encode()


def record(op: Op, status: Status, *payload: int, step: int = 0) -> bytes:
    return struct.pack(f"<{2 + len(payload)}Q", op.opcode | status << 16 | len(payload) << 32, step, *payload)


def test_records() -> None:
    ops = (Call((1,)), Read(0, 3), Scan(0, 8, 1, 1))
    _, steps = Program(ops).encode()
    at = {op: step for step, op in steps.items()}
    found = decode(
        record(ops[0], Status.OK, *range(18), 99, step=at[ops[0]])
        + record(ops[1], Status.OK, int.from_bytes(b"abcdefgh", "little"), step=at[ops[1]])
        + record(ops[2], Status.OK, 2, 0x10, 0x20, *[0] * 13, step=at[ops[2]]),
        steps,
    )
    assert found[0].regs == tuple(range(18)) and found[0].ticks == 99
    assert found[1].data == b"abc"
    assert (found[2].count, found[2].found) == (2, (0x10, 0x20))


def test_record_of_a_drive() -> None:
    op = Drive((1,))
    data = record(op, Status.OK, *range(18), 7, 2, 0xFFFF0000, 0, 0, 0xFFFFFFFF, 0xFFFF0005, 0xC00C, 1, 6)
    (found,) = decode(data, {0: op})
    assert [str(rpc) for rpc in found.rpcs] == ["ALLOC", "CMD SHM_ALLOC"]
    assert (found.rpc_count, found.ticks, found.rpcs[1].cookie) == (2, 7, 0xC00C)


def test_records_of_another_vcpu_lie_inside_the_join() -> None:
    inner = Read(0, 8)
    run, join = Run(1, (SetFlag(0, 1), inner)), Join(1)
    _, steps = Program((run, join)).encode()
    at = next(step for step, op in steps.items() if op is join)
    (found,) = decode(record(join, Status.OK, 1, *words(record(inner, Status.OK, 5, step=3)), step=at), steps)
    assert found.inner[0].op is inner
    assert found.inner[0].data == bytes([5, 0, 0, 0, 0, 0, 0, 0])


def test_a_fault_is_a_record_and_no_register() -> None:
    op = Call((1,), imm=5, catch=True)
    (found,) = decode(record(op, Status.FAULT, 0x2000000, 0x40000010, 0, 0x3C5, 4), {0: op})
    assert isinstance(found.fault, Fault) and found.fault.exception_class == 0
    with pytest.raises(GuestError, match="FAULT"):
        _ = found.x0


@pytest.mark.parametrize(
    "data", [record(Call((1,)), Status.OK, 1, step=77), record(Call((1,)), Status.OK, *range(19))[:-8]]
)
def test_records_that_do_not_fit_are_refused(data: bytes) -> None:
    with pytest.raises(GuestError, match="fit"):
        decode(data, {0: Call((1,))})


def test_open_session_message() -> None:
    page, buffers = OpenSession(INVOKE_TESTS, [value(1, 2, 3, "in")]).place(Pages())
    arg = decode_arg(page)
    assert (arg.cmd, arg.num_params, buffers) == (0, 3, (None, None, None))
    assert UUID(bytes=page[32 + 8 : 32 + 24]) == INVOKE_TESTS
    assert [param.attr for param in arg.params] == [0x101, 0x101, Attr.VALUE_INPUT]


def test_buffers_find_pages_lists_and_cookies() -> None:
    page, (buffer,) = RegisterShm(tmem(pages=600, offset=0x10)).place(Pages())
    assert buffer is not None
    param = decode_arg(page).params[0]
    assert (param.attr, param.a, param.b, param.c) == (0x20A, buffer.lists[0] + 0x10, 600 * 4096 - 0x10, 1)
    assert len(buffer.lists) == 2
    fills = [op for op in buffer.list_ops() if isinstance(op, Fill)]
    assert Fill(buffer.lists[0], 511, buffer.pages[0], 4096) in fills
    assert Fill(buffer.lists[0] + 4088, 1, buffer.lists[1]) in fills
    assert Fill(buffer.lists[1], 89, buffer.pages[511], 4096) in fills


def test_scattered_pages_are_written_one_by_one() -> None:
    _, (buffer,) = Invoke(1, 0, [tmem(ipas=[0x1000, 0x5000, 0x2000])]).place(Pages())
    assert buffer is not None
    (op,) = buffer.list_ops()
    assert isinstance(op, Write)
    assert words(op.data)[:4] == (0x1000, 0x5000, 0x2000, 0)


def test_other_parameters() -> None:
    page, _ = Invoke(3, 4, [null_tmem(7), contiguous(0x4000, 5), rmem(9, 10, 11, "in")]).place(Pages())
    arg = decode_arg(page)
    assert [(p.attr, p.a, p.b, p.c) for p in arg.params] == [
        (0x20B, 0, 0, 7),
        (0xB, 0x4000, 5, 0),
        (0x5, 11, 10, 9),
    ]


def test_a_message_may_lie_about_its_parameters() -> None:
    page, _ = Message(0, num_params=128, fill=b"\xee").place(Pages())
    assert decode_arg(page).num_params == 128
    assert page[-1] == 0xEE


def test_directions_have_names() -> None:
    with pytest.raises(UsageError):
        tmem(direction="up")
