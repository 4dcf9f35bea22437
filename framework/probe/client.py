# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest's client: SMCs, memory, hypercalls and whole OP-TEE calls, made from inside a domU.

session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
with probe.parked_at(RpcCmd.SHM_ALLOC) as call:
    probe.smc(0xB200000A)          # the call waits in OP-TEE meanwhile
assert call.arg.ret == TEE_ITEM_NOT_FOUND
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from framework.common.errors import GuestError
from framework.guests.ssh import Completed
from framework.guests.xl import GuestConfig, Xl
from framework.probe.call import Parking, StdCall
from framework.probe.link import ConsoleLike, ConsoleTransport, Transport
from framework.probe.message import NO_TA, Message, OpenSession
from framework.probe.ops import HEAP, RAM, Call, Drive, Fill, Hypercall, Op, Read, Write
from framework.probe.program import Program
from framework.probe.wire import Record, decode
from mediator_ref.abi import CALL_WITH_ARG, U32, split
from mediator_ref.events import PAGE_SIZE

_MIB = 1 << 20
_DEVICE_TREE = _MIB
"""The toolstack puts the device tree at the end of RAM; the last MiB is left alone."""
IMAGE_IN_DOM0 = "/run/medcheck-probe.img"
"""Path at which :func:`create_probe` leaves the image in dom0."""


class ProbeFault(GuestError):  # noqa: N818 - the guest's exception, not the client's
    """The probe took an exception, or refused an instruction, where the test expected none."""


class Probe:
    """One probe guest. ``history`` holds every program it ran, to be saved, replayed or printed."""

    def __init__(
        self, transport: Transport, *, name: str = "probe", domid: int | None = None, memory_mib: int = 32
    ) -> None:
        self.transport = transport
        self.name = name
        self.domid = domid
        self.memory_mib = memory_mib
        self.history: list[Program] = []
        self._next_page = HEAP
        self._end = RAM + memory_mib * _MIB - _DEVICE_TREE
        self._next_cookie = 0x1000

    # Programs

    def execute(self, program: Program, *, timeout_s: float = 30.0) -> tuple[Record, ...]:
        """Run a program; its records, whatever they say. ``timeout_s`` bounds the silence to its end."""
        data, steps = program.encode()
        self.history.append(program)
        return decode(self.transport.execute(data, timeout_s), steps)

    def run(self, *ops: Op, timeout_s: float = 30.0, title: str = "") -> tuple[Record, ...]:
        """Run instructions. Raises ProbeFault when one without ``catch`` failed."""
        records = self.execute(Program(ops, title), timeout_s=timeout_s)
        for record in records:
            _check(record, self.name)
        return records

    def replay(self, programs: Sequence[Program]) -> list[tuple[Record, ...]]:
        """Run programs that were recorded, in their order."""
        return [self.execute(program) for program in programs]

    def as_pytest(self, name: str = "test_replay") -> str:
        """The history as a pytest test that runs the same programs; what it should assert is left to add."""
        used = {used for program in self.history for used in program.names()} - {"Program"}
        lines = ["from framework.probe.ops import " + ", ".join(sorted(used))]
        lines += ["from framework.probe.program import Program", "", "", f"def {name}(probe):"]
        for program in self.history:
            lines += [f"    # {program.title}"] if program.title else []
            lines += ["    probe.execute(", f"        {program.source()}", "    )"]
        return "\n".join(lines) + "\n"

    # Calls

    def smc(self, *regs: int, conduit: str = "hvc", imm: int = 0) -> tuple[int, ...]:
        """One SMCCC call with x0.. = ``regs``; x0..x17 afterwards. ``conduit``: hvc (libxl's way) or smc."""
        return self.run(Call(regs, conduit, imm))[0].regs

    def hypercall(self, number: int, *args: int) -> int:
        """A Xen hypercall; its result as a signed number (negative: -errno)."""
        result = self.run(Hypercall(number, args))[0].x0
        return result - (1 << 64) if result >> 63 else result

    # Memory

    def read(self, ipa: int, length: int) -> bytes:
        """Guest memory."""
        return self.run(Read(ipa, length))[0].data

    def write(self, ipa: int, data: bytes) -> None:
        """Change guest memory."""
        self.run(Write(ipa, data))

    def fill(self, ipa: int, length: int, word: int = 0) -> None:
        """Fill guest memory with a 64-bit word."""
        self.run(Fill(ipa, length // 8, word))

    def pages(self, count: int) -> int:
        """Return the IPA of that many adjacent pages, not used since the guest started."""
        first, self._next_page = self._next_page, self._next_page + count * PAGE_SIZE
        if self._next_page > self._end:
            raise GuestError("the probe has no memory left", where=self.name, hint="give it more, or a fresh probe")
        return first

    def cookie(self) -> int:
        """Return a new cookie: above 4 GiB, so that both halves matter."""
        self._next_cookie += 1
        return 0xC00C1E << 32 | self._next_cookie

    # OP-TEE calls

    def begin(
        self,
        message: Message | bytes,
        *,
        park: Sequence[Parking] = (),
        page: int | None = None,
        conduit: str = "hvc",
        max_rpcs: int = 10000,
        regs: Sequence[int] = (),
        timeout_s: float = 60.0,
    ) -> StdCall:
        """CALL_WITH_ARG, up to its completion or the first request that ``park`` names.

        ``page``: IPA of the argument page (a new one unless given), ``regs``: x3.. of the call.
        """
        arg_page = self.pages(1) if page is None else page
        content, buffers = (message, ()) if isinstance(message, bytes) else message.place(self)
        ops: list[Op] = [Write(arg_page, content)]
        for buffer in buffers:
            ops += buffer.list_ops() if buffer is not None else []
        high, low = split(arg_page)
        call = StdCall(self, arg_page, tuple(buffers), content)
        call.drive(
            Drive((CALL_WITH_ARG, high, low, *regs), conduit, max_rpcs=max_rpcs),
            park,
            ops,
            timeout_s=timeout_s,
        )
        return call

    def call_with_arg(self, message: Message | bytes, *, conduit: str = "hvc", timeout_s: float = 60.0) -> StdCall:
        """A whole standard call; the probe answers every request of OP-TEE by itself."""
        return self.begin(message, conduit=conduit, timeout_s=timeout_s)

    @contextmanager
    def parked_at(self, *where: Parking, message: Message | None = None) -> Iterator[StdCall]:
        """A call that waits at a request of OP-TEE; completed at the end of the block if it has not been.

        Without a message: OPEN_SESSION of a TA that does not exist, which makes OP-TEE ask for everything.
        """
        call = self.begin(OpenSession(NO_TA) if message is None else message, park=where)
        if call.done:
            raise GuestError(f"the call completed with x0 = {call.x0 & U32:#x} and never asked for {where}")
        try:
            yield call
        finally:
            if not call.done:
                call.finish()

    def close(self) -> None:
        """Release the transport; the domain lives on."""
        self.transport.close()


def _check(record: Record, name: str) -> None:
    if not record.ok and not (record.fault is not None and getattr(record.op, "catch", False)):
        raise ProbeFault(str(record), where=name)
    for inner in record.inner:
        _check(inner, name)


class Dom0Like(Protocol):
    """The part of :class:`framework.guests.dom0.Dom0` that is used here."""

    @property
    def xl(self) -> Xl:
        """Its toolstack."""
        ...

    def run(self, command: str, *, stdin: bytes = b"") -> Completed:
        """Run a command in its shell."""
        ...


def create_probe(
    dom0: Dom0Like,
    name: str,
    port_name: str,
    console: ConsoleLike,
    image_path: Path | None,
    vcpus: int = 1,
    memory_mib: int = 32,
    tee: bool = True,
) -> Probe:
    """Create a probe domain; the port ``port_name`` joins its console with the board's ``console``.

    ``image_path``: None where an earlier call has left the image in this dom0. Raises GuestError when it does not
    arrive there as it is.
    """
    if image_path is not None:
        upload(dom0, image_path.read_bytes(), IMAGE_IN_DOM0)
    config = GuestConfig(name, IMAGE_IN_DOM0, memory_mib=memory_mib, vcpus=vcpus, tee=tee, network=False)
    domid = dom0.xl.create_attached(config, port_name)
    transport = ConsoleTransport(console)
    transport.hello()
    return Probe(transport, name=name, domid=domid, memory_mib=memory_mib)


def upload(dom0: Dom0Like, data: bytes, path: str) -> None:
    """Copy a file into dom0 and compare what arrived: a full /run or a broken connection leaves half of it. Raises
    GuestError when it is not the same."""
    done = dom0.run(f"cat >{path}.new && sha256sum {path}.new && mv {path}.new {path}", stdin=data).check()
    if done.text.split()[:1] != [hashlib.sha256(data).hexdigest()]:
        raise GuestError(f"{path} did not arrive whole: sha256sum said {done.text[:100]!r}", where="dom0")
