# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and descriptions in the words of the OP-TEE ABI: a call, a message, every offset."""

from __future__ import annotations

from collections.abc import Sequence

from mediator_ref import abi


def _enum(
    kind: type[abi.MsgCmd] | type[abi.RpcCmd] | type[abi.SmcReturn] | type[abi.RpcFunc] | type[abi.Tee],
    value: int,
) -> str:
    try:
        return kind(value).name
    except ValueError:
        return f"{value:#x}"


def function_name(x0: int) -> str:
    """Name of an SMC function, or its number."""
    fid = abi.fid_of(x0)
    row = abi.FUNCTIONS.get(fid)
    return row.name if row is not None else f"function {fid:#010x}"


def describe_return(x0: int) -> str:
    """Describe the value in x0 after a call."""
    low = x0 & abi.U32
    if low == abi.U32:
        return "UNKNOWN_FUNCTION"
    if abi.is_rpc(low):
        return f"RPC {_enum(abi.RpcFunc, low & 0xFFFF)}"
    return _enum(abi.SmcReturn, low)


def describe_call(regs: Sequence[int]) -> str:
    """One line for an SMC's registers on the way in."""
    name = function_name(regs[0])
    fid = abi.fid_of(regs[0])
    x = [*regs, *([0] * (8 - len(regs)))]
    if fid == abi.CALL_WITH_ARG:
        text = f"{name} arg={abi.pair(x[1], x[2]):#x} cache={x[3]:#x}"
    elif fid == abi.RETURN_FROM_RPC:
        text = f"{name} thread={x[3] & abi.U32} x1:x2={abi.pair(x[1], x[2]):#x} x4:x5={abi.pair(x[4], x[5]):#x}"
    elif fid in (abi.VM_CREATED, abi.VM_DESTROYED):
        text = f"{name} client={x[1]}"
    elif fid == abi.EXCHANGE_CAPABILITIES:
        text = f"{name} caps={x[1]:#x}"
    else:
        given = " ".join(f"x{i}={v:#x}" for i, v in enumerate(x[1:7], 1) if v)
        text = f"{name} {given}".rstrip()
    return f"{text} client id x7={x[7]:#x}" if x[7] else text


def describe_caps(value: int) -> str:
    """Secure-world capabilities by name."""
    names = [name for bit, name in abi.SEC_CAPS.items() if value >> bit & 1]
    return "|".join(names) or "none"


def describe_attr(attr: int) -> str:
    """A parameter's attributes by name."""
    try:
        name = abi.Attr(attr & abi.ATTR_TYPE_MASK).name
    except ValueError:
        name = f"type {attr & abi.ATTR_TYPE_MASK:#x}"
    flags = [flag for bit, flag in abi.ATTR_FLAGS.items() if attr >> bit & 1]
    rest = attr & ~(abi.ATTR_TYPE_MASK | sum(1 << bit for bit in abi.ATTR_FLAGS))
    return "|".join([name, *flags, *([f"{rest:#x}"] if rest else [])])


def view_of(attr: int) -> tuple[str, str, str]:
    """Names of a parameter's three words, by its type."""
    kind = attr & abi.ATTR_TYPE_MASK
    if kind in abi.TMEM_TYPES:
        return abi.PARAM_VIEWS["tmem"]
    if kind in (abi.Attr.RMEM_INPUT, abi.Attr.RMEM_OUTPUT, abi.Attr.RMEM_INOUT):
        return abi.PARAM_VIEWS["rmem"]
    return abi.PARAM_VIEWS["value"]


def describe_arg(page: bytes, *, rpc: bool = False) -> str:
    """A message on one line per parameter; ``rpc`` reads ``cmd`` as OP-TEE's request to the guest."""
    arg = abi.decode_arg(page)
    cmd = _enum(abi.RpcCmd, arg.cmd) if rpc else _enum(abi.MsgCmd, arg.cmd)
    lines = [
        f"cmd={cmd} func={arg.func:#x} session={arg.session} cancel_id={arg.cancel_id:#x} "
        f"ret={_enum(abi.Tee, arg.ret)} origin={arg.ret_origin} num_params={arg.num_params}"
    ]
    for index, p in enumerate(arg.params[:16]):
        words = " ".join(f"{name}={value:#x}" for name, value in zip(view_of(p.attr), (p.a, p.b, p.c), strict=True))
        lines.append(f"  params[{index}] {describe_attr(p.attr)} {words}")
    if len(arg.params) > 16:
        lines.append(f"  and {len(arg.params) - 16} more")
    return "\n".join(lines)


def field_at(offset: int, page: bytes | None = None) -> str:
    """Name of the field of a message at a byte offset; with its page the words are named by the parameter's type."""
    if offset < abi.HEADER_SIZE:
        return next(name for name, at in abi.ARG_FIELDS.items() if at == offset & ~3)
    index, inside = divmod(offset - abi.HEADER_SIZE, abi.PARAM_SIZE)
    if inside < 8:
        return f"params[{index}].attr"
    attr = abi.PARAM.unpack_from(page, abi.arg_size(index))[0] if page is not None else 0
    return f"params[{index}].{view_of(attr)[inside // 8 - 1]}"
