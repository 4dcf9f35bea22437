# SPDX-License-Identifier: GPL-2.0-or-later
"""The OP-TEE ABI as tables: SMC functions, message layout, commands, attributes, return codes.

The only source of these numbers for the reference, the decoder, generated documents and the tests. Sources:
``optee_smc.h``, ``optee_msg.h``, ``optee_rpc_cmd.h`` of OP-TEE OS (the ABI), Xen's ``arch/arm/tee/optee.c`` for how
the mediator handles each function.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from mediator_ref.abi.smccc import U32
from mediator_ref.events import PAGE_SIZE

# SMC functions


class Handling(Enum):
    """What the mediator does with a function."""

    LOCAL = "answered locally"
    FORWARD = "forwarded"
    FILTER = "filtered"
    STANDARD = "standard call"
    RESUME = "return from RPC"
    UNKNOWN = "unknown to guests"
    HYPERVISOR = "hypervisor only"


@dataclass(frozen=True, slots=True)
class SmcFunction:
    """One row: a function id, what the mediator does with it, and what it gives back.

    ``writes``: argument registers (x0 = 0) the guest gets from EL3 for a call that succeeded; ``always``: those written
    whatever x0 says; ``local_x0``: the answer of a function that never reaches EL3. Everything not named is preserved.
    """

    fid: int
    name: str
    handling: Handling
    writes: tuple[int, ...] = (0,)
    always: tuple[int, ...] = (0,)
    local_x0: int | None = None
    note: str = ""


OPTEE_MEDIATOR_SMC_COUNT = 11
"""Functions a mediator offers to guests."""


def _rows() -> Iterable[SmcFunction]:
    unknown = Handling.UNKNOWN
    row = SmcFunction
    yield row(
        0xBF00FF00,
        "CALLS_COUNT",
        Handling.LOCAL,
        local_x0=OPTEE_MEDIATOR_SMC_COUNT,
        note="number of functions offered to guests",
    )
    yield row(0xBF00FF01, "CALLS_UID", Handling.FORWARD, (0, 1, 2, 3), (0, 1, 2, 3))
    yield row(0xBF00FF03, "CALLS_REVISION", Handling.FORWARD, (0, 1), (0, 1))
    yield row(0xB2000000, "GET_OS_UUID", Handling.FORWARD, (0, 1, 2, 3), (0, 1, 2, 3))
    yield row(
        0xB2000001,
        "GET_OS_REVISION",
        Handling.FORWARD,
        (0, 1),
        (0, 1),
        note="build id in a2 is not passed on",
    )
    yield row(0x32000003, "CALL_RETURN_FROM_RPC", Handling.RESUME)
    yield row(0x32000004, "CALL_WITH_ARG", Handling.STANDARD)
    yield row(0xB2000007, "GET_SHM_CONFIG", Handling.LOCAL, local_x0=7, note="no static shared memory for guests")
    yield row(0xB2000008, "L2CC_MUTEX", unknown)
    yield row(0xB2000009, "EXCHANGE_CAPABILITIES", Handling.FILTER, (0, 1))
    yield row(0xB200000A, "DISABLE_SHM_CACHE", Handling.FORWARD, (0, 1, 2), note="x1:x2 is a cookie to release")
    yield row(0xB200000B, "ENABLE_SHM_CACHE", Handling.FORWARD)
    yield row(0xB200000C, "BOOT_SECONDARY", unknown)
    yield row(0xB200000D, "VM_CREATED", Handling.HYPERVISOR)
    yield row(0xB200000E, "VM_DESTROYED", Handling.HYPERVISOR)
    yield row(0xB200000F, "GET_THREAD_COUNT", Handling.HYPERVISOR)
    yield row(0xB2000010, "ENABLE_ASYNC_NOTIF", unknown)
    yield row(0xB2000011, "GET_ASYNC_NOTIF_VALUE", unknown)
    yield row(0x32000012, "CALL_WITH_RPC_ARG", unknown)
    yield row(0x32000013, "CALL_WITH_REGD_ARG", unknown)
    yield row(0xB2000014, "GET_PROTMEM_CONFIG", unknown)


FUNCTIONS: Mapping[int, SmcFunction] = {row.fid: row for row in _rows()}
FID: Mapping[str, int] = {row.name: row.fid for row in FUNCTIONS.values()}
"""Function id by name."""

CALL_WITH_ARG = FID["CALL_WITH_ARG"]
RETURN_FROM_RPC = FID["CALL_RETURN_FROM_RPC"]
VM_CREATED = FID["VM_CREATED"]
VM_DESTROYED = FID["VM_DESTROYED"]
GET_THREAD_COUNT = FID["GET_THREAD_COUNT"]
CALLS_UID = FID["CALLS_UID"]
CALLS_COUNT = FID["CALLS_COUNT"]
GET_SHM_CONFIG = FID["GET_SHM_CONFIG"]
EXCHANGE_CAPABILITIES = FID["EXCHANGE_CAPABILITIES"]
DISABLE_SHM_CACHE = FID["DISABLE_SHM_CACHE"]

OPTEE_MSG_UID = (0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B)
"""OP-TEE's answer to CALLS_UID: OPTEE_MSG_UID_0 to _3 of optee_msg.h."""

PROBE_FIDS = frozenset({CALLS_UID, GET_THREAD_COUNT})
"""What the hypervisor asks on its own behalf at boot (and VM_DESTROYED with x1 = 0)."""

SHM_CACHED = 1

# Return codes in x0


class SmcReturn(IntEnum):
    """OPTEE_SMC_RETURN_* without the RPC range."""

    OK = 0
    ETHREAD_LIMIT = 1
    EBUSY = 2
    ERESUME = 3
    EBADADDR = 4
    EBADCMD = 5
    ENOMEM = 6
    ENOTAVAIL = 7


RPC_PREFIX = 0xFFFF0000


class RpcFunc(IntEnum):
    """OPTEE_SMC_RPC_FUNC_*: the low half of x0 when OP-TEE suspends a call."""

    ALLOC = 0
    FREE = 2
    FOREIGN_INTR = 4
    CMD = 5


RPC_CMD_RETURN = RPC_PREFIX | RpcFunc.CMD


def is_rpc(x0: int) -> bool:
    """True when ``x0`` says that the call is suspended for an RPC (and not that the function is unknown)."""
    return RPC_PREFIX <= x0 & U32 < U32


def is_answer(x0: int) -> bool:
    """True when ``x0`` is an answer to a standard call: a request of OP-TEE's, or any code that ends the call.

    None are a request that does not exist, and that the function is unknown.
    """
    if x0 & U32 == U32:
        return False
    return not is_rpc(x0) or (x0 >> 16 == RPC_PREFIX >> 16 and x0 & 0xFFFF in _RPC_FUNCS)


_RPC_FUNCS = frozenset(map(int, RpcFunc))

# Capabilities

NSEC_CAPS = {0: "UNIPROCESSOR"}
SEC_CAPS = {
    0: "HAVE_RESERVED_SHM",
    1: "UNREGISTERED_SHM",
    2: "DYNAMIC_SHM",
    3: "VIRTUALIZATION",
    4: "MEMREF_NULL",
    5: "ASYNC_NOTIF",
    6: "RPC_ARG",
    7: "RPMB_PROBE",
    8: "PROTMEM",
    9: "DYNAMIC_PROTMEM",
}
NSEC_CAPS_FORWARDED = 1 << 0
SEC_CAP_DYNAMIC_SHM = 1 << 2
SEC_CAPS_OFFERED = 1 << 1 | SEC_CAP_DYNAMIC_SHM | 1 << 4
"""What a guest may see: of what the mediator knows everything but reserved memory, which only the host has."""

# Messages: struct optee_msg_arg and struct optee_msg_param

ARG_FIELDS: Mapping[str, int] = {
    name: 4 * index
    for index, name in enumerate(("cmd", "func", "session", "cancel_id", "pad", "ret", "ret_origin", "num_params"))
}
"""Offset of each 32-bit field of ``struct optee_msg_arg``."""

PARAM_VIEWS: Mapping[str, tuple[str, str, str]] = {
    "tmem": ("buf_ptr", "size", "shm_ref"),
    "rmem": ("offs", "size", "shm_ref"),
    "value": ("a", "b", "c"),
}
"""Names of the three 64-bit words after ``attr``, by the kind of parameter."""

HEADER_SIZE = 4 * len(ARG_FIELDS)
PARAM_SIZE = 32
MAX_NUM_PARAMS = (PAGE_SIZE - HEADER_SIZE) // PARAM_SIZE

HEADER = struct.Struct(f"<{len(ARG_FIELDS)}I")
PARAM = struct.Struct("<4Q")
U32_AT = struct.Struct("<I")


class Attr(IntEnum):
    """OPTEE_MSG_ATTR_TYPE_*: the low byte of a parameter's attributes."""

    NONE = 0x0
    VALUE_INPUT = 0x1
    VALUE_OUTPUT = 0x2
    VALUE_INOUT = 0x3
    RMEM_INPUT = 0x5
    RMEM_OUTPUT = 0x6
    RMEM_INOUT = 0x7
    TMEM_INPUT = 0x9
    TMEM_OUTPUT = 0xA
    TMEM_INOUT = 0xB


ATTR_TYPE_MASK = 0xFF
ATTR_META = 1 << 8
ATTR_NONCONTIG = 1 << 9
ATTR_FLAGS = {8: "META", 9: "NONCONTIG"}
ATTR_CACHE_MASK = 7 << 16
"""Cache attribute; only 0, "predefined", is in use."""
ATTR_UNDEFINED = ((1 << 64) - 1) & ~(ATTR_TYPE_MASK | ATTR_META | ATTR_NONCONTIG | ATTR_CACHE_MASK)
"""Bits of a parameter's attributes that no version of the ABI defines."""

RMEM_TYPES = frozenset({int(Attr.RMEM_INPUT), int(Attr.RMEM_OUTPUT), int(Attr.RMEM_INOUT)})
TMEM_TYPES = frozenset({int(Attr.TMEM_INPUT), int(Attr.TMEM_OUTPUT), int(Attr.TMEM_INOUT)})
MEMREF_OUT_TYPES = frozenset({int(Attr.TMEM_OUTPUT), int(Attr.TMEM_INOUT), int(Attr.RMEM_OUTPUT), int(Attr.RMEM_INOUT)})
VALUE_OUT_TYPES = frozenset({int(Attr.VALUE_OUTPUT), int(Attr.VALUE_INOUT)})
RPC_ALLOC_ATTR = Attr.TMEM_OUTPUT | ATTR_NONCONTIG


class MsgCmd(IntEnum):
    """OPTEE_MSG_CMD_*: commands of a standard call."""

    OPEN_SESSION = 0
    INVOKE_COMMAND = 1
    CLOSE_SESSION = 2
    CANCEL = 3
    REGISTER_SHM = 4
    UNREGISTER_SHM = 5
    DO_BOTTOM_HALF = 6
    STOP_ASYNC_NOTIF = 7


MEDIATED_CMDS = frozenset(range(MsgCmd.OPEN_SESSION, MsgCmd.UNREGISTER_SHM + 1))
"""Commands a mediator lets through; every other one is EBADCMD."""


class RpcCmd(IntEnum):
    """OPTEE_RPC_CMD_*: what OP-TEE asks the guest for."""

    LOAD_TA = 0
    RPMB = 1
    FS = 2
    GET_TIME = 3
    NOTIFICATION = 4
    SUSPEND = 5
    SHM_ALLOC = 6
    SHM_FREE = 7
    GPROF = 9
    SOCKET = 10
    FTRACE = 11
    SUPP_PLUGIN = 12
    BENCH_REG = 20
    I2C_TRANSFER = 21
    RPMB_PROBE_RESET = 22
    RPMB_PROBE_NEXT = 23
    RPMB_FRAMES = 24


class Tee(IntEnum):
    """Results in ``ret`` the mediator itself gives (GlobalPlatform TEE Client API)."""

    SUCCESS = 0
    GENERIC = 0xFFFF0000
    BAD_PARAMETERS = 0xFFFF0006
    OUT_OF_MEMORY = 0xFFFF000C


ORIGIN_COMMS = 2

# Page lists (OPTEE_MSG_ATTR_NONCONTIG)

LIST_ENTRIES = PAGE_SIZE // 8 - 1
"""Addresses on one page of a page list; the last word is the address of the next list page."""

LIST_PAGE = struct.Struct(f"<{LIST_ENTRIES + 1}Q")
OFFSET_MASK = PAGE_SIZE - 1


def arg_size(num_params: int) -> int:
    """Bytes of ``struct optee_msg_arg`` with that many parameters."""
    return HEADER_SIZE + PARAM_SIZE * num_params


@dataclass(slots=True)
class Param:
    """``struct optee_msg_param``: attributes and three words whose names depend on the type.

    Not changed once made; not frozen for the reason given in :mod:`mediator_ref.events`.
    """

    attr: int
    a: int = 0
    b: int = 0
    c: int = 0

    @property
    def type(self) -> int:
        """The low byte of ``attr``."""
        return self.attr & ATTR_TYPE_MASK


@dataclass(frozen=True, slots=True)
class Arg:
    """``struct optee_msg_arg``, decoded. ``params`` are those that fit the page, ``num_params`` is what it says."""

    cmd: int = 0
    func: int = 0
    session: int = 0
    cancel_id: int = 0
    pad: int = 0
    ret: int = 0
    ret_origin: int = 0
    num_params: int = 0
    params: tuple[Param, ...] = ()


def decode_arg(page: bytes) -> Arg:
    """Read a message from a page; parameters beyond the page are left out."""
    header = HEADER.unpack_from(page)
    count = min(header[7], (len(page) - HEADER_SIZE) // PARAM_SIZE)
    params = tuple(Param(*PARAM.unpack_from(page, arg_size(i))) for i in range(count))
    cmd, func, session, cancel_id, pad, ret, ret_origin, num_params = header
    return Arg(cmd, func, session, cancel_id, pad, ret, ret_origin, num_params, params)


def encode_arg(arg: Arg, *, fill: bytes = b"\0") -> bytes:
    """Lay a message out on one page; what it does not cover repeats ``fill``. ``num_params`` is taken literally."""
    body = HEADER.pack(
        arg.cmd, arg.func, arg.session, arg.cancel_id, arg.pad, arg.ret, arg.ret_origin, arg.num_params
    ) + b"".join(PARAM.pack(p.attr, p.a, p.b, p.c) for p in arg.params)
    if len(body) > PAGE_SIZE:
        raise ValueError(f"a message of {len(body)} bytes does not fit a page of {PAGE_SIZE}")
    return (body + fill * PAGE_SIZE)[:PAGE_SIZE]


def message(cmd: int, *params: Param, **header: int) -> bytes:
    """A page holding one message with exactly these parameters."""
    return encode_arg(Arg(cmd=cmd, num_params=len(params), params=params, **header))


def encode_list_page(entries: Iterable[int], following: int = 0) -> bytes:
    """One page of a page list: up to 511 addresses, then the address of the next list page."""
    words = list(entries)
    if len(words) > LIST_ENTRIES:
        raise ValueError(f"{len(words)} entries do not fit one list page of {LIST_ENTRIES}")
    return LIST_PAGE.pack(*words, *([0] * (LIST_ENTRIES - len(words))), following)
